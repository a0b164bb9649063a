"""Loads, checks, saves and compares configurations.

`define_flag` adds ``--config=FILE[:VARIANT]`` and ``--config.key=value`` to a tool's command line,
`load` returns the checked and locked result. A run keeps its configuration in
``WORKDIR/config.json``; `read` gives it back.
"""

from __future__ import annotations

import difflib
import importlib
import json
import math
import os
import pathlib
import re
from collections.abc import Iterable
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from common.errors import UserError

FILE_NAME = "config.json"

flags.disclaim_key_flags()  # --config shows in the --help of the tool that calls `define_flag`

# Keys in which a resumed run may differ: they change neither what is computed nor in which order,
# only, in the case of the patience, for how long.
# (Another mesh sums in another order; results agree within rounding, as docs and tests say.)
HARMLESS = frozenset(
    {
        "checkpoint_every",
        "collapse_warning",
        "data.max_bad_share",
        "data.prefetch",
        "data.reads",
        "data.threads",
        "hosts.heartbeat_timeout",
        "hosts.join_timeout",
        "hosts.stacks_after",
        "hosts.stall_timeout",
        "keep_checkpoints",
        "keep_every",
        "log_every",
        "mesh.data",
        "mesh.fsdp",
        "mesh.rules",
        "validation.patience",
    }
)

_POSITIVE = ("steps", "batch_size", "microbatches", "log_every", "checkpoint_every")
_POSITIVE += ("keep_checkpoints", "data.block_size", "data.prefetch", "validation.every")
_NOT_NEGATIVE = ("seed", "keep_every", "data.threads", "data.reads", "collapse_warning")
_NOT_NEGATIVE += ("validation.examples", "validation.patience")
_SEEDS = 2**31  # of the order of the data; greater ones would be taken for smaller ones
_SECONDS = tuple(
    f"hosts.{name}"
    for name in ("join_timeout", "heartbeat_timeout", "stall_timeout", "stacks_after")
)
# What these stand for in the methods' parts; lengths, counts and rates, or shares.
_ABOVE_ZERO = re.compile(
    "candidates|default_audio_rate|default_frame_rate|depth|embedding_dim|evaluation_frames|"
    "evaluation_pieces|evaluation_words|fft_step|fft_window|frame_rate|grid_size|heads|hidden|"
    "max_frames|max_pieces|max_words|mel_bins|mlp_ratio|num_frames|num_samples|patch|positions|"
    "projection_dim|projector_hidden|resize|sample_rate|size|stride|temperature|width|word_dim|"
    "words"
)
_PROBABILITIES = frozenset(["dropout", "flip"])
_TEXTS = frozenset(["curriculum", "exclude", "files", "init", "lr_multipliers", "rules"])
_CHOICES = {
    "accumulation": ("mean", "cached"),
    "compute_dtype": ("auto", "float32", "bfloat16"),
    "remat": ("none", "block"),
}


def define_flag(values: flags.FlagValues = flags.FLAGS, argv: list[str] | None = None) -> None:
    """Defines ``--config``; call it from a tool's ``define_flags``."""
    config_flags.DEFINE_config_file(
        "config",
        None,
        "file of the configuration, with an optional variant after a colon: configs/x.py:smoke. "
        "Any key can be changed with --config.KEY=VALUE.",
        flag_values=values,
        sys_argv=argv,
    )


def explain(argv: list[str], error: Exception) -> str:
    """Returns what is wrong with the command line ``argv`` that made flag parsing raise ``error``.

    Raises:
        Exception: ``error`` itself, where it comes from a bug and not from the command line.
    """
    words = [re.match(r"--?(?:no)?config\.([^=]+)(=.*)?$", word) for word in argv]
    overrides = {word[1]: (word[2] or "")[1:] for word in words if word}
    files = [word.partition("=")[2] for word in argv if re.match(r"--?config=", word)]
    path, _, variant = files[-1].partition(":") if files else ("", "", "")
    if path and not os.path.isfile(path):
        return _no_file(path)
    if variant and "positional argument" in str(error):
        return f"--config={files[-1]}: {path} has no variants."
    if path and overrides:
        values = flags.FlagValues()
        config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=[])
        values(["", f"--config={files[-1]}"])
        known = flatten(values.config)
        for key, value in overrides.items():
            if inner := [name for name in known if name.startswith(f"{key}.")]:
                return f"config.{key} is a group of keys: {', '.join(inner)}."
            if key not in known:
                return f"there is no config.{key}.{_nearest_key(key, known)}"
            if f"config.{key}=" in str(error):
                kind = type(known[key]).__name__
                example = """, such as "('A', 'B')\"""" if kind == "tuple" else ""
                return f"--config.{key}={value}: config.{key} must be of type {kind}{example}."
    missing = re.search(r"Flag (--\S+) must have a value other than None", str(error))
    if missing:
        return f"{missing[1]} is missing."
    if isinstance(error, flags.Error):
        return str(error)
    raise error


def _nearest_key(key: str, known: Iterable[str]) -> str:
    """Names the most similar key, first by its whole path, then by its last part."""
    close = difflib.get_close_matches(key, known, 1, 0.6)
    last = key.rpartition(".")[2]
    close = close or [name for name in known if name.rpartition(".")[2] == last]
    return f" Did you mean config.{close[0]}?" if close else " configs/base.py lists the keys."


def load(values: flags.FlagValues = flags.FLAGS) -> ConfigDict:
    """Returns the configuration of the command line, checked and locked.

    Raises:
        UserError: no or an unreadable ``--config``, or a value that cannot be.
    """
    if values.config is None:
        raise UserError("--config is missing; for example --config=configs/brave_v_a.py.")
    path = values["config"].config_filename.partition(":")[0]
    if not os.path.isfile(path):  # config_flags postpones this error and words it for programmers
        raise UserError(_no_file(path))
    check(values.config)
    return values.config


def _no_file(path: str) -> str:
    """Says so, and names the most similar Python file in the same folder, if any."""
    folder = pathlib.Path(path).parent
    names = [entry.name for entry in folder.glob("*.py")] if folder.is_dir() else []
    close = difflib.get_close_matches(pathlib.Path(path).name, names, 1, 0.5)
    near = f" Did you mean {str(folder / close[0])!r}?" if close else ""
    return f"--config: there is no file {path!r}.{near}"


def check(config: ConfigDict) -> None:
    """Checks the shared keys; a method checks its own when it is built.

    Raises:
        UserError: a value that cannot be, named with what it may be.
    """
    flat = flatten(config)
    for key in _POSITIVE:
        if flat[key] < 1:
            raise UserError(f"config.{key} is {flat[key]}; it must be at least 1.")
    for key in _NOT_NEGATIVE:
        if flat[key] < 0:
            raise UserError(f"config.{key} is {flat[key]}; it must not be negative.")
    if config.seed >= _SEEDS:
        raise UserError(f"config.seed is {config.seed}; it must be below {_SEEDS}.")
    for key in _SECONDS:
        if not flat[key] > 0:
            raise UserError(f"config.{key} is {flat[key]}; it must be above 0.")
    for key, choices in _CHOICES.items():
        if flat[key] not in choices:
            close = difflib.get_close_matches(str(flat[key]), choices, 1, 0.0)
            raise UserError(
                f"config.{key} is {flat[key]!r}; it must be one of {choices}"
                f" (the nearest is {close[0]!r})."
            )
    if config.batch_size % config.microbatches:
        raise UserError(
            f"config.batch_size={config.batch_size} cannot be cut into config.microbatches="
            f"{config.microbatches} equal parts."
        )
    for key in ("ema_decay", "data.max_bad_share"):
        if not 0 <= flat[key] < 1:
            raise UserError(f"config.{key} is {flat[key]}; it must be in [0, 1).")
    for key, value in flat.items():
        _check_value(key, key.rpartition(".")[2], value)


def _check_value(key: str, name: str, value: Any) -> None:
    """Checks one value by what keys of its name stand for, in whatever part they are."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and math.isnan(value):
        raise UserError(f"config.{key} is not a number.")
    if number and _ABOVE_ZERO.fullmatch(name) and not value > 0:
        raise UserError(f"config.{key} is {value}; it must be above 0.")
    if number and name in _PROBABILITIES and not 0 <= value <= 1:
        raise UserError(f"config.{key} is {value}; it must be from 0 to 1.")
    if name == "blocks" and not (value and all(isinstance(n, int) and n > 0 for n in value)):
        raise UserError(f"config.{key} is {value!r}; it must be block counts such as (3, 4, 6, 3).")
    if name in _TEXTS and not all(isinstance(text, str) for text in value):
        raise UserError(f"config.{key} is {value!r}; it must be texts such as ('A', 'B').")


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Returns ``{"data.train": ..., ...}`` for a nested ConfigDict."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def to_json(config: ConfigDict) -> str:
    """Returns the configuration as readable JSON; `from_json` is its inverse."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n"


def from_json(text: str) -> ConfigDict:
    """Returns the locked configuration that `to_json` wrote, then or with an older version.

    Keys that came later are at their defaults, which are what was done before there were any.
    """

    def tuples(value: Any) -> Any:  # JSON has no tuples; configurations hold no lists
        if isinstance(value, dict):
            return {key: tuples(entry) for key, entry in value.items()}
        return tuple(map(tuples, value)) if isinstance(value, list) else value

    config = ConfigDict(tuples(json.loads(text)))
    if "method" in config:
        _complete(config, _defaults(config.method))
    return config.lock()


def _defaults(method: str) -> ConfigDict:
    """Returns the defaults of a method's keys, or of the shared ones where it has none."""
    name = f"configs.{method}_base"
    try:
        return importlib.import_module(name).get_config()
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        return importlib.import_module("configs.base").get_config()


def _complete(config: ConfigDict, defaults: ConfigDict) -> None:
    """Adds what a configuration lacks."""
    for key, value in defaults.items():
        if key not in config:
            config[key] = value
        elif isinstance(value, ConfigDict) and isinstance(config[key], ConfigDict):
            _complete(config[key], value)


def read(workdir: str | os.PathLike[str]) -> ConfigDict:
    """Returns the configuration of the run in ``workdir``.

    Raises:
        UserError: the folder holds no run, or its configuration is not readable.
    """
    path = pathlib.Path(workdir) / FILE_NAME
    try:
        return from_json(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{workdir} holds no run: there is no {path}.") from None
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); restore it by hand.") from None


def claim(config: ConfigDict, workdir: str | os.PathLike[str], begun: bool = True) -> None:
    """Saves the configuration into ``workdir``, or checks it against the one that is there.

    A run continues only under the configuration it began with; keys in `HARMLESS` may change, and
    ``steps`` may too where the learning rate does not depend on it.

    Args:
        config: of the run.
        workdir: its folder.
        begun: whether anything was trained there; else a configuration that is there, such as one
            with a mistake, is replaced.

    Raises:
        UserError: the workdir belongs to a run with another configuration; names every difference.
    """
    path = pathlib.Path(workdir) / FILE_NAME
    if path.exists() and begun:
        changes = differences(read(workdir), config)
        if changes:
            raise UserError(
                f"{workdir} holds a run with another configuration:\n"
                + listed(changes)
                + f"\nUse another --workdir or the same values; if it is meant, edit {path}."
            )
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
    # Written beside and renamed: a crash leaves the old file or the new one, never half of one.
    partial = path.with_suffix(".json.partial")
    partial.write_text(to_json(config))
    os.replace(partial, path)


def listed(changes: Iterable[str]) -> str:
    """Returns what `differences` gives as lines of a message."""
    return "\n".join(f"  config.{line}" for line in changes)


def differences(old: ConfigDict, new: ConfigDict) -> list[str]:
    """Returns one line per key that differs and matters to the run that began with ``old``."""
    before, after = flatten(old), flatten(from_json(to_json(new)))
    allowed = set(HARMLESS)
    if after["optimizer.schedule"] != "cosine":
        allowed.add("steps")
    # Of files it is the contents that count; see `common.attachments`.
    files = after.get("files", ())
    allowed |= {key for key in files if before.get(key) and after.get(key)}
    missing = "(not there)"
    return [
        f"{key}: {before.get(key, missing)!r} there, {after.get(key, missing)!r} now"
        for key in sorted((before.keys() | after.keys()) - allowed)
        if before.get(key, missing) != after.get(key, missing)
    ]
