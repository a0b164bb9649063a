"""The mesh of devices, and which array lies where on it.

The batch is split over both mesh axes. Parameters are split over "fsdp" by rules "PATTERN=AXIS", of
which the first whose pattern matches a parameter's path counts; whatever mirrors a parameter
(moments of the optimizer, moving average) lies as the parameter does. The axis is a number, "none",
or "auto", the largest axis that can be divided, which is what all parameters have unless told
otherwise: so a mesh with ``fsdp`` above 1 shares out any model. A device holds its part and gathers
the whole of a parameter where it is used (ZeRO, Rajbhandari et al., 2019, arXiv:1910.02054).
"""

from __future__ import annotations

import functools
import logging
import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

from common import state as state_lib
from common.errors import UserError

AXES = ("data", "fsdp")
_WORDS = ("auto", "none")
_WORTH_SPLITTING = 1 << 14  # numbers; gathering less takes longer than what it saves is worth

_log = logging.getLogger(__name__)


def make_mesh(config: Any, devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
    """Returns the mesh that ``config`` (the whole configuration) asks for.

    Args:
        config: of the run.
        devices: what it is of; None means all that are at hand.

    Raises:
        UserError: the devices or the batch cannot be divided so.
    """
    devices = jax.devices() if devices is None else devices
    shape = _mesh_shape(config, len(devices))
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 2, devices=devices)


def abstract_mesh(config: Any, devices: int) -> AbstractMesh:
    """Returns the mesh of so many devices that nothing is known of; see `make_mesh`."""
    return AbstractMesh(_mesh_shape(config, devices), AXES, axis_types=(AxisType.Auto,) * 2)


def _mesh_shape(config: Any, devices: int) -> tuple[int, int]:
    """Returns how many devices lie along each of `AXES`."""
    fsdp, data = config.mesh.fsdp, config.mesh.data
    if fsdp < 1 or devices % fsdp:
        raise UserError(f"config.mesh.fsdp={fsdp} does not divide the {devices} devices.")
    data = devices // fsdp if data == -1 else data
    if data * fsdp != devices:
        raise UserError(
            f"config.mesh.data={data} times config.mesh.fsdp={fsdp} is not the number of devices, "
            f"{devices}; config.mesh.data=-1 takes all."
        )
    if config.batch_size % (config.microbatches * devices):
        raise UserError(
            f"config.batch_size={config.batch_size} cannot be divided evenly into config."
            f"microbatches={config.microbatches} on {devices} devices; it must be a multiple of "
            f"{config.microbatches * devices}."
        )
    return data, fsdp


def batch_sharding(mesh: jax.sharding.Mesh) -> NamedSharding:
    """Returns how a batch lies: its first axis split over all devices."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def local_rows(mesh: jax.sharding.Mesh, batch_size: int) -> np.ndarray:
    """Returns the rows of a batch that lie on this process's devices, ascending, (rows,).

    Processes need not hold rows that are neighbours: on a TPU the mesh follows the wires.
    """
    held = batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
    return np.sort(np.concatenate([np.arange(batch_size)[rows] for rows in held.values()]))


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
    """Returns the sharding of what every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def _parse_rules(rules: tuple[str, ...]) -> list[tuple[re.Pattern[str], int | str]]:
    """Turns "PATTERN=AXIS" texts into compiled patterns and axes."""
    parsed = []
    for rule in rules:
        pattern, equals, axis = rule.rpartition("=")
        try:
            if not equals:
                raise ValueError("there is no '='")
            axis = axis.strip()
            parsed.append((re.compile(pattern), axis if axis in _WORDS else int(axis)))
        except (re.error, ValueError) as error:
            raise UserError(
                f"config.mesh.rules: {rule!r} is not of the form PATTERN=AXIS ({error})."
            ) from None
    return parsed


def parameter_specs(
    params: Any, mesh: jax.sharding.Mesh, rules: tuple[str, ...]
) -> dict[str, PartitionSpec]:
    """Returns the partition of every parameter, by path; the first rule that matches counts.

    Raises:
        UserError: a rule is malformed, matches no parameter, or names an axis that is not there or
            cannot be divided.
    """
    parsed = _parse_rules(rules)
    specs, used = {}, set()
    for path, leaf in state_lib.flatten(params).items():
        specs[path] = PartitionSpec()
        for number, (pattern, axis) in enumerate(parsed):
            if not pattern.fullmatch(path):
                continue
            used.add(number)
            shape, parts = leaf.shape, mesh.shape["fsdp"]
            if axis == "auto":
                axis = _widest(shape, parts)
            if axis is None or axis == "none":
                break
            if not -len(shape) <= axis < len(shape) or shape[axis] % parts:
                raise UserError(
                    f"config.mesh.rules: {rules[number]!r} cannot split {path} of shape {shape} "
                    f"into {parts} along axis {axis}."
                )
            names: list[str | None] = [None] * len(shape)
            names[axis] = "fsdp"
            specs[path] = PartitionSpec(*names)
            break
    for number, rule in enumerate(rules):
        if number not in used:
            raise UserError(
                f"config.mesh.rules: {rule!r} decides about no parameter; its pattern must match a "
                f"whole path such as {next(iter(specs))!r}."
            )
    return specs


def _widest(shape: tuple[int, ...], parts: int) -> int | None:
    """Returns the axis that "auto" splits: of the longest that can be divided the last."""
    if parts == 1 or math.prod(shape) < _WORTH_SPLITTING:
        return None
    axes = [axis for axis, size in enumerate(shape) if size % parts == 0]
    return max(axes, key=lambda axis: (shape[axis], axis), default=None)


def whole(params: Any, mesh: Any, specs: dict[str, PartitionSpec]) -> Any:
    """Gathers parameters that are split, inside a step; their gradients are split as they are.

    Without it XLA may as well split the products by the parameters' axes and move activations.
    """
    if mesh.shape["fsdp"] == 1:
        return params

    def gather(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        spec = specs[state_lib.path_of(path)]
        return leaf if spec == PartitionSpec() else _gather(NamedSharding(mesh, spec), leaf)

    return jax.tree_util.tree_map_with_path(gather, params)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _gather(split: NamedSharding, leaf: jax.Array) -> jax.Array:
    return jax.lax.with_sharding_constraint(leaf, NamedSharding(split.mesh, PartitionSpec()))


_gather.defvjp(
    lambda split, leaf: (_gather(split, leaf), None),
    lambda split, _, pull: (jax.lax.with_sharding_constraint(pull, split),),
)


def state_shardings(state: Any, mesh: jax.sharding.Mesh, specs: dict[str, PartitionSpec]) -> Any:
    """Returns the sharding of every leaf of a training state (or of its shapes).

    A leaf lies as the parameter does whose path ends its own and whose shape it has.
    """
    shapes = {path: leaf.shape for path, leaf in state_lib.flatten(state.params).items()}

    def of(key_path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        parts = state_lib.path_of(key_path).split("/")
        for start in range(len(parts)):
            path = "/".join(parts[start:])
            if shapes.get(path) == leaf.shape:
                return NamedSharding(mesh, specs[path])
        return replicated(mesh)

    return jax.tree_util.tree_map_with_path(of, state)


def table(params: Any, specs: dict[str, PartitionSpec]) -> str:
    """Returns a table of all parameters: path, shape, type, number, partition."""
    rows = [("parameter", "shape", "dtype", "number", "split over")]
    total = 0
    for path, leaf in state_lib.flatten(params).items():
        number = math.prod(leaf.shape)
        total += number
        split = ", ".join(name or "-" for name in specs[path]) or "(replicated)"
        rows.append((path, "x".join(map(str, leaf.shape)), str(leaf.dtype), f"{number:,}", split))
    rows.append(("total", "", "", f"{total:,}", ""))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column == 3 else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
