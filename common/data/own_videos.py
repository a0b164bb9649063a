"""Cuts a folder of any videos into clips to train on and clips to hold out, as tables to ingest.

Long files become segments. Where the files lie in folders that can serve as labels, whole files are
held out, so that no file is on both sides. Where they do not, each file is its own label and the
last part of every long file is held out: "which of my videos is this from" needs no annotation.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pathlib
import sys
from collections.abc import Iterable, Sequence

from common.data import media, narrations, tables
from common.data.tables import Item
from common.errors import UserError

HELD_OUT = 5  # one part in so many
_SHORTEST_S = 1.0  # a last segment that is shorter is joined to the one before

_Row = dict[str, object]


def write_tables(
    videos: pathlib.Path, output: pathlib.Path, segment_s: float, told: str = ""
) -> dict[str, int]:
    """Writes ``output/train.jsonl`` and ``output/test.jsonl`` for `common.ingest`.

    Args:
        videos: a folder, searched recursively.
        output: folder of the tables.
        segment_s: length of the clips that longer files become, seconds.
        told: what is said in them, see `common.data.narrations`; clips without words are left out.

    Returns:
        The number of clips by split.

    Raises:
        UserError: the folder does not exist, or holds no media files.
    """
    items = tables.read_source(videos, labels_from="folder").items
    if told:
        items = _narrated(items, told)
    by_folder = len({item.labels for item in items}) > 1
    split = _by_file(items, segment_s) if by_folder else _by_time(items, segment_s)
    if by_folder and not split["test"]:  # no folder has as many files: they are no labels
        split = _by_time(items, segment_s)
    if told:
        split = {name: [row for row in rows if row["captions"]] for name, rows in split.items()}
    if not split["train"]:
        raise UserError(f"{videos} holds no clip to train on.")
    output.mkdir(parents=True, exist_ok=True)
    for name, rows in split.items():
        # ASCII: names of files may hold bytes that are no UTF-8.
        (output / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {name: len(rows) for name, rows in split.items()}


def _narrated(items: Sequence[Item], told: str) -> list[Item]:
    """Returns the items in which something is said, with their captions; says what is left out."""
    found = narrations.attach(items, told)
    print(found, file=sys.stderr)
    for item in found.items:
        if item.problem:
            print(f"Left out: {item.name}: {item.problem}", file=sys.stderr)
    return [item for item in found.items if item.captions and not item.problem]


def _by_file(items: Iterable[Item], segment_s: float) -> dict[str, list[_Row]]:
    """Holds out every fifth file of each folder, with all its segments."""
    split: dict[str, list[_Row]] = {"train": [], "test": []}
    counts: dict[tuple[str, ...], int] = {}
    for item in items:
        number = counts[item.labels] = counts.get(item.labels, 0) + 1
        name = "train" if number % HELD_OUT else "test"
        split[name] += [_row(item, *times, item.labels) for times in _segments(item, segment_s)]
    return split


def _by_time(items: Iterable[Item], segment_s: float) -> dict[str, list[_Row]]:
    """Holds out the last fifth of every file's segments, at least one where there are several."""
    split: dict[str, list[_Row]] = {"train": [], "test": []}
    for item in items:
        segments = _segments(item, segment_s)
        held_out = max(1, len(segments) // HELD_OUT) if len(segments) > 1 else 0
        for number, times in enumerate(segments):
            name = "train" if number < len(segments) - held_out else "test"
            split[name].append(_row(item, *times, (item.name,)))
    return split


def _row(item: Item, start: float | None, end: float | None, labels: Iterable[str]) -> _Row:
    row: _Row = {"path": os.fspath(item.path), "labels": list(labels)}
    if item.captions:
        part = dataclasses.replace(item, start_s=start, end_s=end)
        row["captions"] = [
            {"text": text, "start": _known(begin), "end": _known(until)}
            for text, begin, until in narrations.within(item.captions, part)
        ]
    return row if start is None else {**row, "start": start, "end": end}


def _known(time: float) -> float | None:
    return None if math.isnan(time) else time


def _segments(item: Item, segment_s: float) -> list[tuple[float | None, float | None]]:
    """Returns (start, end) of each segment in seconds; (None, None) is the whole file."""
    duration = _duration(item.path)
    count = int((duration + segment_s - _SHORTEST_S) // segment_s)
    if count < 2:
        return [(None, None)]
    ends = [segment_s * (k + 1) for k in range(count - 1)] + [duration]
    return list(zip([0.0, *ends[:-1]], ends, strict=True))


def _duration(path: str) -> float:
    """Returns a file's length in seconds, 0 where it does not say or cannot be read.

    The ingest that follows reports files that cannot be read; here they only are not cut.
    """
    try:
        with media.open_media(path) as container:
            return (container.duration or 0) / 1e6
    except media.Unreadable:
        return 0.0
