"""What is said in videos, from the files it comes in, for ``common.ingest --narrations``.

A folder holds one file per video: ``NAME.csv`` (HowTo100M: columns start, end and text, in
seconds), ``NAME.srt`` or ``NAME.vtt``. One json or pickle file holds all of them, as HowTo100M's
``caption.json`` does: ``{NAME: {"start": [...], "end": [...], "text": [...]}}``. Captions may
overlap, as automatic ones do; their order is kept. Subtitles that roll, each caption beginning with
the line that the one before ends with, are read without what they repeat.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import html
import itertools
import json
import math
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from common.data import tables
from common.data.walk import walk
from common.errors import UserError

Caption = tuple[str, float, float]  # text, start, end: seconds after the start of the file
Cue = tuple[list[str], float, float]  # lines of a caption of subtitles, start, end
_Reader = Callable[[], tuple[list[Caption], int]]  # captions, and how many lines were repetitions

_COLUMNS = ("start", "end", "text")
_TIMES = re.compile(r"\s*(\S+)\s*-->\s*(\S+)(\s.*)?")  # what follows is where the words are shown
_STAMP = re.compile(r"(\d+:)?\d+:\d+([.,]\d+)?")
_TAG = re.compile(r"</?[a-zA-Z][^<>]*>|<\d[\d:.]*>|\{\\[^{}]*\}")  # the last one is of SubStation


@dataclasses.dataclass
class Found:
    """Items with their narrations; its text is the report."""

    items: list[tables.Item]
    missing: list[str]  # ids of clips without a narration
    empty: list[str]  # ids of clips whose narration has no words for them
    repeated: dict[str, int]  # by name of a narration that rolls, the lines that were left out

    def __str__(self) -> str:
        clips = sum(not item.problem for item in self.items)
        parts = [f"{clips - len(self.missing) - len(self.empty)} of {clips} clips have some"]
        ways = ((self.missing, "have none"), (self.empty, "have one without words for them"))
        for ids, what in ways:
            if ids:
                parts.append(f"{len(ids)} {what} (the first is {ids[0]})")
        if self.repeated:
            parts.append(
                f"{sum(self.repeated.values())} lines that roll from caption to caption are read "
                f"once ({len(self.repeated)} narrations; the first is {next(iter(self.repeated))})"
            )
        return f"Narrations: {'; '.join(parts)}."


def attach(items: Sequence[tables.Item], source: str | os.PathLike) -> Found:
    """Gives items the captions of their videos, in place of those they have.

    A narration is named like the item's id, its id without the ending, or its media file without
    folder and ending; in a folder, ``NAME`` is the path below it. Of several files the csv is
    taken, then srt, then vtt. Captions outside the item's stretch of the file are left away. A
    narration that cannot be read makes its item one with a problem, as a wrong row of a table does.

    Raises:
        UserError: there is no such folder or file, it cannot be read, or it has nothing of any
            item.
    """
    reader_of = _readers(pathlib.Path(os.path.expanduser(source)))
    found = Found([], [], [], {})
    for item in items:
        found.items.append(_attach(item, reader_of, found.repeated))
    whole = [item for item in found.items if not item.problem]
    for item in whole:
        if not any(name in reader_of for name in _names(item)):
            found.missing.append(item.id)
        elif not item.captions:
            found.empty.append(item.id)
    if whole and len(found.missing) == len(whole):
        raise UserError(
            f"--narrations={source} has no narration of any of the {len(whole)} clips; that of "
            f"{whole[0].name} was looked for as {' or '.join(_names(whole[0]))}."
        )
    return found


def _attach(
    item: tables.Item, reader_of: Mapping[str, _Reader], repeated: dict[str, int]
) -> tables.Item:
    """Returns an item with its narration; notes in `repeated` what of that is left out."""
    name = next((name for name in _names(item) if name in reader_of), None)
    if item.problem or name is None:
        return item
    try:
        captions, count = reader_of[name]()
    except UserError as error:
        return dataclasses.replace(item, problem=str(error))
    if count:
        repeated[name] = count
    return dataclasses.replace(item, captions=tuple(within(captions, item)))


def _names(item: tables.Item) -> list[str]:
    """Returns the names that an item's narration may have."""
    stem = pathlib.Path(item.path).stem
    return list(dict.fromkeys([item.id, os.path.splitext(item.id)[0], stem]))


def within(captions: Iterable[Caption], item: tables.Item) -> Iterator[Caption]:
    """Keeps what lies at least partly inside the item; times that are not known are inside."""
    first = -math.inf if item.start_s is None else item.start_s
    last = math.inf if item.end_s is None else item.end_s
    for text, start, end in captions:
        if not (start >= last or end <= first):
            yield text, start, end


def _readers(source: pathlib.Path) -> Mapping[str, _Reader]:
    """Returns how to read each narration of a folder or file, by name."""
    if source.is_dir():
        readers: dict[str, _Reader] = {}
        rank = _FORMATS.index
        paths = [folder / name for folder, names in walk(source) for name in names]
        paths = [path for path in paths if path.suffix.lower() in _FORMATS]
        for path in sorted(paths, key=lambda path: rank(path.suffix.lower())):
            name = path.relative_to(source).as_posix().removesuffix(path.suffix)
            readers.setdefault(name, functools.partial(_read, path))
        return readers
    suffix = source.suffix.lower()
    if not source.is_file() or suffix not in (".json", ".pickle", ".pkl"):
        raise UserError(
            f"--narrations={source} is neither a folder of {', '.join(_FORMATS)} files nor a .json "
            "or .pickle file."
        )
    named = _json(source) if suffix == ".json" else _pickle(source)
    if not isinstance(named, Mapping):
        raise UserError(f"{source} must map names of videos to lists {', '.join(_COLUMNS)}.")
    return {
        str(name): functools.partial(_parallel, source, name, entry)
        for name, entry in named.items()
    }


def read(path: str | os.PathLike) -> list[Caption]:
    """Reads a .csv, .srt or .vtt file; times that a csv leaves out are NaN.

    What rolling subtitles repeat is left out; see `unrolled`.

    Raises:
        UserError: it cannot be read or is malformed; the message names the line.
    """
    return _read(pathlib.Path(path))[0]


def unrolled(cues: Sequence[Cue]) -> tuple[list[Caption], int]:
    """Joins the lines of cues to captions, without the lines that roll, and counts these.

    Automatic captions, such as YouTube's, show two lines: the lower is being said, the upper was
    the lower one before; between two such cues often stands one of the upper line alone. Subtitles
    roll where more than half of the cues begin with the lines that the one before ends with, and
    some go on with others: then each line is taken once, with the times of the cue in which it
    appears. All other subtitles stay as they are, since people do say a thing twice.
    """
    rolled = [0] * len(cues)  # how many lines each cue has from the one before
    for place, ((before, _, _), (lines, _, _)) in enumerate(itertools.pairwise(cues), 1):
        sizes = range(1, min(len(before), len(lines)) + 1)
        rolled[place] = max((n for n in sizes if before[-n:] == lines[:n]), default=0)
    going_on = any(0 < n < len(lines) for n, (lines, _, _) in zip(rolled, cues, strict=True))
    if not going_on or 2 * sum(map(bool, rolled)) <= len(cues) - 1:
        rolled = [0] * len(cues)
    captions = [
        (" ".join(lines[n:]), start, end)
        for n, (lines, start, end) in zip(rolled, cues, strict=True)
        if lines[n:]
    ]
    return captions, sum(rolled)


def _read(path: pathlib.Path) -> tuple[list[Caption], int]:
    try:
        data = path.read_bytes()
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    except UnicodeDecodeError as error:
        raise _malformed(path, data[: error.start].count(b"\n") + 1, "not UTF-8") from error
    suffix = path.suffix.lower()
    if suffix in _SUBTITLES:
        return unrolled(list(_SUBTITLES[suffix](path, text)))
    return list(_csv(path, text)), 0


def _malformed(path: pathlib.Path, line: int, what: str) -> UserError:
    return UserError(f"{path}, line {line}: {what}")


def _csv(path: pathlib.Path, text: str) -> Iterator[Caption]:
    rows = tables.csv_reader(text)
    try:
        if missing := [name for name in _COLUMNS if name not in (rows.fieldnames or ())]:
            raise ValueError(f"there is no column {missing[0]!r}; needed are {', '.join(_COLUMNS)}")
        for row in rows:
            cells = [row[name] for name in _COLUMNS]
            if None in cells:
                raise ValueError("the row is cut short")
            tables.refuse_surplus(row)
            if caption := _caption(*cells):
                yield caption
    except (ValueError, csv.Error) as error:
        raise _malformed(path, max(rows.reader.line_num, 1), str(error)) from error


def _caption(start: Any, end: Any, text: Any) -> Caption | None:
    """Makes a caption of the cells of a row, or None where it has no words."""
    times = [math.nan if time is None else time for time in map(tables.seconds, (start, end))]
    words = "" if text is None or text != text else str(text).strip()  # NaN: pandas, for none
    return (words, *times) if words else None


def _srt(path: pathlib.Path, text: str) -> Iterator[Cue]:
    """SubRip: a number, the times, the words, an empty line. Words may hold empty lines, too."""
    lines = tables.lines(text)
    places = [place for place, line in enumerate(lines) if "-->" in line]
    for place in range(places[0] if places else len(lines)):
        if lines[place].strip() and not lines[place].strip().isdecimal():
            raise _malformed(path, place + 1, f"expected times, got {lines[place][:60]!r}")
    for place, following in zip(places, [*places[1:], None], strict=True):
        words = lines[place + 1 : following]
        if following is not None and words and words[-1].strip().isdecimal():
            words.pop()  # the number of the next one
        yield from _cue(path, place, lines[place], words)


def _vtt(path: pathlib.Path, text: str) -> Iterator[Cue]:
    """WebVTT (https://www.w3.org/TR/webvtt1): blocks without times are notes and styles.

    A cue ends at an empty line; one that holds a space is part of it, as automatic captions have.
    """
    lines = tables.lines(text)
    if not re.match(r"WEBVTT(\s|$)", lines[0]):
        raise _malformed(path, 1, "a .vtt file begins with WEBVTT")
    for place, line in enumerate(lines):
        if "-->" in line:
            after = range(place + 1, len(lines))
            ends = (at for at in after if not lines[at] or "-->" in lines[at])
            yield from _cue(path, place, line, lines[place + 1 : next(ends, None)])


def _cue(path: pathlib.Path, place: int, times: str, words: list[str]) -> Iterator[Cue]:
    """Yields a cue, without markup, unless it has no words."""
    match = _TIMES.fullmatch(times)
    if not match or not all(_STAMP.fullmatch(match[side]) for side in (1, 2)):
        raise _malformed(path, place + 1, f"{times[:60]!r} are no times such as 00:01.5 --> 00:03")
    start, end = (tables.seconds(match[side].replace(",", ".")) for side in (1, 2))
    marked = _TAG.sub("", "\n".join(words))  # a tag may go on in the next line
    lines = [" ".join(html.unescape(line).split()) for line in marked.split("\n")]
    if any(lines):
        yield [line for line in lines if line], start, end


_SUBTITLES = {".srt": _srt, ".vtt": _vtt}
_FORMATS = (".csv", *_SUBTITLES)  # the first that there is of a video is taken


def _json(path: pathlib.Path) -> Any:
    try:
        return json.loads(path.read_bytes().decode("utf-8-sig"))
    except (OSError, ValueError) as error:  # the latter names the line
        raise UserError(f"{path} cannot be read as json in UTF-8: {error}") from error


def _pickle(path: pathlib.Path) -> Any:
    from common.weights import safe_pickle

    try:
        with open(path, "rb") as file:
            return safe_pickle.inert(safe_pickle.Unpickler(file).load())
    except Exception as error:  # damaged input can make the reader fail in any way
        raise UserError(
            f"{path} cannot be read as a pickle of plain lists and arrays ({error}); nothing in it "
            "was executed. Save it as json."
        ) from error


def _parallel(path: pathlib.Path, name: str, entry: Any) -> tuple[list[Caption], int]:
    """Makes captions of an entry's parallel lists."""
    try:
        columns = [list(entry[column]) for column in _COLUMNS]
    except (KeyError, TypeError, IndexError) as error:
        wanted = ", ".join(_COLUMNS)
        raise UserError(f"{path}, {name!r}: expected lists named {wanted}.") from error
    if len({len(column) for column in columns}) > 1:
        lengths = ", ".join(map(str, map(len, columns)))
        raise UserError(
            f"{path}, {name!r}: {', '.join(_COLUMNS)} have different lengths {lengths}."
        )
    captions = []
    for place, cells in enumerate(zip(*columns, strict=True)):
        try:
            captions.append(_caption(*cells))
        except ValueError as error:
            raise UserError(f"{path}, {name!r}, caption {place}: {error}.") from error
    return [caption for caption in captions if caption], 0
