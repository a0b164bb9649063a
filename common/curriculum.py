"""What a run changes on its way: frames, resolution, batch size or data, as a table over steps.

Rows of ``config.curriculum`` say from which step on which keys have which values:

    config.curriculum = (
        "0: model.video.num_frames=1 batch_size=96",
        "90000: model.video.num_frames=4 batch_size=24",
    )

Parts of a row with "|" between them take turns, a step each: that is how Frozen in Time (Bain et
al., 2021, arXiv:2104.00650) trains on images and videos jointly. A row holds until the next one
begins; what it does not name is as the configuration says. Which part a step belongs to follows
from its number alone, so a run continues inside any row.
"""

from __future__ import annotations

import ast
import dataclasses
import shlex
from collections.abc import Iterator, Sequence
from typing import Any

from ml_collections import ConfigDict

from common import config as config_lib
from common.errors import UserError

_MAY_CHANGE = ("batch_size", "microbatches", "accumulation", "remat", "data.", "model.")
_APART = 1_000_003  # between the seeds of two parts, or both would draw the same examples


@dataclasses.dataclass(frozen=True)
class _Row:
    start: int
    parts: tuple[int, ...]  # numbers of the configurations that take turns


class Curriculum:
    """The configurations of a run, and which of them a step is trained with.

    Attributes:
        configs: one for each part of each row, or the run's own if there are no rows.
    """

    def __init__(self, config: ConfigDict):
        """Reads the table.

        Raises:
            UserError: a row cannot be read, rows are not in order, or a key may not change.
        """
        configs, rows = [], []
        for text in config.curriculum or ("0:",):
            start, parts = _parse(text)
            numbers = range(len(configs), len(configs) + len(parts))
            if start <= rows[-1].start if rows else start:
                raise UserError(
                    f"config.curriculum, row {text!r}: rows begin at step 0, and each one at a "
                    "later step than the one before."
                )
            rows.append(_Row(start, tuple(numbers)))
            configs += [_changed(config, part, i) for i, part in zip(numbers, parts, strict=True)]
        self.configs: tuple[ConfigDict, ...] = tuple(configs)
        self._rows = tuple(rows)

    def part(self, step: int) -> int:
        """Returns which of `configs` step `step`, counted from 0, is trained with."""
        row = self._row(step)
        return row.parts[(step - row.start) % len(row.parts)]

    def parts(self, step: int) -> tuple[int, ...]:
        """Returns which of `configs` take turns around step `step`."""
        return self._row(step).parts

    def before(self, step: int) -> int:
        """Returns how many steps before `step` were trained with the same part: its own count."""
        row = self._row(step)
        return (step - row.start) // len(row.parts)

    def _row(self, step: int) -> _Row:
        return next(row for row in reversed(self._rows) if row.start <= step)


def batches(curriculum: Curriculum, data: Sequence[Any], start: int) -> Iterator[Any]:
    """Yields the batches of step `start` and all later ones, each from the data of its part.

    Args:
        curriculum: which part a step belongs to.
        data: for each part, something with ``batches(start_step)``; opened when its turn comes,
            closed when it has no more.
        start: a step, counted from 0.
    """
    running: dict[int, Iterator[Any]] = {}
    step = start
    while True:
        part = curriculum.part(step)
        if part not in running:
            for other in set(running) - set(curriculum.parts(step)):
                del running[other]
            running[part] = data[part].batches(curriculum.before(step))
        yield next(running[part])
        step += 1


def describe(config: ConfigDict, base: ConfigDict) -> str:
    """Returns in words what a part changes of the run's own configuration."""
    flat, own = config_lib.flatten(config), config_lib.flatten(base)
    changes = [f"{key}={flat[key]!r}" for key in flat if key != "seed" and flat[key] != own[key]]
    return " ".join(changes) or "the configuration as it is"


def _parse(text: str) -> tuple[int, list[dict[str, str]]]:
    """Returns the first step of a row and the changes of each of its parts."""
    start, colon, rest = text.partition(":")
    if not colon or not start.strip().isdigit():
        raise UserError(
            f"config.curriculum, row {text!r}: a row is 'STEP: KEY=VALUE KEY=VALUE', such as "
            "'90000: batch_size=24 model.video.num_frames=4'; parts that take turns have '|' "
            "between them."
        )
    parts = []
    for part in rest.split("|"):
        pairs = [word.partition("=") for word in shlex.split(part)]
        if bad := [key for key, equals, _ in pairs if not equals]:
            raise UserError(f"config.curriculum, row {text!r}: {bad[0]!r} is not KEY=VALUE.")
        parts.append({key: value for key, _, value in pairs})
    return int(start), parts


def _changed(config: ConfigDict, changes: dict[str, str], number: int) -> ConfigDict:
    """Returns a copy of a configuration with other values."""
    known = config_lib.flatten(config)
    copy = config.copy_and_resolve_references()
    with copy.unlocked():
        for key, text in changes.items():
            if key not in known:
                raise UserError(f"config.curriculum names {key}, but there is no config.{key}.")
            if not key.startswith(_MAY_CHANGE) or key in config.files:
                raise UserError(
                    f"config.curriculum names {key}, which cannot change during a run; what can, "
                    "but for the files of the model, is "
                    f"{', '.join(f'{name}*' if name[-1] == '.' else name for name in _MAY_CHANGE)}."
                )
            *groups, last = key.split(".")
            owner = copy
            for group in groups:
                owner = owner[group]
            owner[last] = _value(key, text, known[key])
        copy.seed = config.seed + number * _APART
    copy.lock()
    config_lib.check(copy)
    return copy


def _value(key: str, text: str, now: Any) -> Any:
    """Returns what a value says, as the type that its key has."""
    if isinstance(now, str):
        return text
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = None
    if isinstance(now, float) and type(value) is int:
        value = float(value)
    if type(value) is not type(now):
        raise UserError(
            f"config.curriculum: {key}={text}: config.{key} must be of type {type(now).__name__}."
        )
    return value
