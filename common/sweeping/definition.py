"""What a sweep is: a configuration, and the overrides of each of its runs.

    def get_sweep():
        return Sweep(
            config="configs/brave_demo.py",
            runs=cross(
                grid({"optimizer.learning_rate": (3e-4, 1e-3, 3e-3)}),
                grid({"seed": (0, 1, 2)}),
            ),
        )

Runs are data: a list of dictionaries from key to value, which the functions here make and which
anybody may write out.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import math
import os
import random
import re
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from common import config as config_lib
from common.errors import UserError

Overrides = Mapping[str, Any]
"""Values of one run, by key of the configuration."""

Distribution = Callable[[random.Random], Any]
"""Draws a value."""

_LONGEST_NAME = 120  # file systems allow 255 bytes, terminals less


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Runs of one configuration, and by what they are compared.

    Attributes:
        config: its file, with an optional variant after a colon.
        runs: the overrides of each run. Those that differ in ``seed`` alone are compared by their
            mean.
        metric: as ``metrics.jsonl`` names it; "validation/loss" and others that begin like it are
            those of the best validation.
        goal: "min" or "max".
    """

    config: str
    runs: Sequence[Overrides]
    metric: str = "validation/loss"
    goal: str = "min"

    def names(self) -> list[str]:
        """The name of each run, which follows from its overrides alone."""
        return [name_of(overrides) for overrides in self.runs]


def grid(values: Mapping[str, Iterable[Any]]) -> list[dict[str, Any]]:
    """Every combination of the values of each key, the last key changing fastest."""
    return [
        dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())
    ]


def sampled(
    distributions: Mapping[str, Distribution], runs: int, seed: int = 0
) -> list[dict[str, Any]]:
    """Independent draws; more runs of the same seed begin with those of fewer."""
    generator = random.Random(seed)
    return [{key: draw(generator) for key, draw in distributions.items()} for _ in range(runs)]


def uniform(low: float, high: float) -> Distribution:
    """A number between two, rounded to three digits."""
    return lambda generator: _rounded(generator.uniform(low, high))


def log_uniform(low: float, high: float) -> Distribution:
    """A positive number whose logarithm is uniform, rounded to three digits."""
    ends = math.log(low), math.log(high)
    return lambda generator: _rounded(math.exp(generator.uniform(*ends)))


def choice(*values: Any) -> Distribution:
    """One of the values, all alike."""
    return lambda generator: generator.choice(values)


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")


def cross(*lists: Iterable[Overrides]) -> list[dict[str, Any]]:
    """Every run of one list with every run of the others; of a key in several, the last counts."""
    together = itertools.product(*lists)
    return [{key: v for one in parts for key, v in one.items()} for parts in together]


def name_of(overrides: Overrides) -> str:
    """The folder of a run: its overrides, readable, and the same however they are ordered."""
    text = ",".join(f"{key}={overrides[key]}" for key in sorted(overrides)) or "defaults"
    name = re.sub(r"[^\w.=,+-]", "_", text)
    if name == text and len(name) <= _LONGEST_NAME:
        return name
    return f"{name[:_LONGEST_NAME]}-{zlib.crc32(text.encode()):08x}"


def keys_of(runs: Iterable[Overrides]) -> list[str]:
    """Every key that some run overrides, in the order in which they come."""
    return list(dict.fromkeys(key for overrides in runs for key in overrides))


def flags_of(overrides: Overrides) -> list[str]:
    """The overrides as ``common.train`` takes them."""
    return [f"--config.{key}={value}" for key, value in overrides.items()]


def read(path: str) -> Sweep:
    """Loads a sweep and checks the configuration of every run.

    Raises:
        UserError: there is no such file, it defines no sweep, a run is there twice, or the
            configuration of one is not possible.
    """
    if not os.path.isfile(path):
        raise UserError(f"--sweep: there is no file {path!r}.")
    spec = importlib.util.spec_from_file_location("sweep_file", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sweep = module.get_sweep() if hasattr(module, "get_sweep") else None
    if not isinstance(sweep, Sweep):
        raise UserError(
            f"{path} must define get_sweep(), which returns a Sweep: see configs/sweeps/."
        )
    _check(sweep, path)
    return sweep


def _check(sweep: Sweep, path: str) -> None:
    if sweep.goal not in ("min", "max"):
        raise UserError(f"{path}: goal={sweep.goal!r} must be 'min' or 'max'.")
    if not sweep.runs:
        raise UserError(f"{path} lists no runs.")
    names = sweep.names()
    for number, name in enumerate(names):
        if name in names[:number]:
            raise UserError(f"{path} lists the run {name} twice.")
    for name, overrides in zip(names, sweep.runs, strict=True):
        config = configuration(sweep.config, overrides, f"{path}, run {name}")
        if sweep.metric.startswith("validation/") and not config.validation.data:
            raise UserError(
                f"{path} compares runs by {sweep.metric}, but run {name} has no clips held out. "
                "Set config.validation.data, in the config or in the runs, or name another metric."
            )
        if sweep.metric.startswith("validation/") and config.validation.every > config.steps:
            raise UserError(
                f"{path} compares runs by {sweep.metric}, but run {name} of {config.steps} steps "
                f"is validated every {config.validation.every}: lower config.validation.every."
            )


def configuration(file: str, overrides: Overrides, where: str) -> ConfigDict:
    """Returns what ``common.train`` would train with; errors begin with `where`."""
    argv = ["common.train", f"--config={file}", *flags_of(overrides)]
    values = flags.FlagValues()
    config_lib.define_flag(values, argv)
    try:
        values(argv)
        return config_lib.load(values)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        raise UserError(f"{where}: {config_lib.explain(argv, error)}") from None
