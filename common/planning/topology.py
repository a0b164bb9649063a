"""Slices of chips that are not here, described to JAX well enough to compile for them."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import re
from typing import Any

import jax

from common import launch, sharding
from common.errors import UserError
from common.planning import chips

EXAMPLES = ("v5e:1x1", "v5e:2x2", "v5e:16x16", "v6e:4x4", "v5p:2x2x1", "v5p:4x4x4", "v4:2x2x2")
_DIMENSIONS = {"v4": 3, "v5e": 2, "v5p": 3, "v6e": 2}  # in which chips are wired
_POD = {"v4": 4096, "v5e": 256, "v5p": 8960, "v6e": 256}  # chips that can be wired together


@dataclasses.dataclass(frozen=True)
class Topology:
    """Chips of one kind that work together."""

    name: str
    platform: str  # "tpu" or "gpu"
    chip: chips.Chip
    count: int
    devices: tuple[jax.Device, ...] | None  # to compile for; None where no compiler is at hand

    def mesh(self, config: Any) -> jax.sharding.Mesh | jax.sharding.AbstractMesh:
        """Returns the mesh that a configuration asks for on these chips.

        Raises:
            UserError: chips or batch cannot be divided so.
        """
        if self.devices is None:
            return sharding.abstract_mesh(config, self.count)
        return sharding.make_mesh(config, self.devices)


def describe(name: str) -> Topology:
    """Returns the chips that ``--topology`` names: "v5e:4x4", "h100" or "h100:8".

    Raises:
        UserError: there are no such chips, they do not form such a slice, or the TPU compiler is
            not installed.
    """
    kind, _, shape = name.partition(":")
    if kind in chips.GPUS and re.fullmatch(r"[1-9]\d*|", shape):
        count = int(shape or 1)
        return Topology(name, "gpu", chips.GPUS[kind], count, None)
    if kind in chips.TPUS and re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", shape):
        sides = [int(side) for side in shape.split("x")]
        count = math.prod(sides)
        if len(sides) == _DIMENSIONS[kind] and count <= _POD[kind]:
            return Topology(name, "tpu", chips.TPUS[kind], count, _tpus(name, kind, count))
    raise UserError(f"--topology={name}: {_known(kind)}")


def _known(kind: str) -> str:
    """Says how topologies are written."""
    if kind in chips.TPUS:
        sides = "x".join("ABC"[: _DIMENSIONS[kind]])
        near = [example for example in EXAMPLES if example.startswith(f"{kind}:")]
        return (
            f"chips of {kind} are wired as {kind}:{sides}, {_POD[kind]} at most, for example "
            f"{' or '.join(near)}."
        )
    if kind in chips.GPUS:
        return f"write {kind} or {kind}:COUNT, for example {kind}:8."
    return (
        f"TPUs are written KIND:SHAPE, for example {', '.join(EXAMPLES)}; GPUs KIND or KIND:COUNT, "
        f"for example h100:8, of {', '.join(chips.GPUS)}."
    )


def _tpus(name: str, kind: str, count: int) -> tuple[jax.Device, ...]:
    """Returns devices that programs can be compiled for, and nothing else."""
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f"--topology={name} needs the TPU compiler, which is not installed: pip install "
            "-e '.[tpu]' in the checkout; Linux on x86-64 has it."
        )
    from jax.experimental import topologies

    launch.quieten_tpu_compiler()
    options: dict[str, Any] = {"chips_per_host_bounds": (1, 1, 1)} if count == 1 else {}
    if kind == "v4":  # whose two cores are one device, as they are where JAX runs on them
        options["chip_config_name"] = "megacore"
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=name, **options)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--topology={name}: {reason} {_known(kind)}") from None
    return tuple(found.devices)
