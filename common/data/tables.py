"""What to ingest: a folder of media files or a table of clips becomes a list of items."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from common.data.walk import walk
from common.errors import UserError

VIDEO_SUFFIXES = frozenset(
    [".3gp", ".avi", ".flv", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts"]
    + [".ogv", ".ts", ".webm", ".wmv"]
)
AUDIO_SUFFIXES = frozenset(
    [".aac", ".aif", ".aiff", ".flac", ".m4a", ".mp3", ".ogg", ".opus", ".wav", ".wma"]
)
IMAGE_SUFFIXES = frozenset([".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"])
TABLE_SUFFIXES = frozenset([".csv", ".json", ".jsonl", ".tsv"])

_PATH_COLUMNS = ("path", "video_path")  # the second is DMVR's
_LABEL_COLUMNS = ("labels", "label")
_CAPTION_COLUMNS = ("captions", "caption")
_LABEL_SEPARATOR = ";"
_LONGEST_S = 1e9  # later than any video ends, and in range of the microseconds of records
_LIST = re.compile(r"\s*\[\s*[\"{\]]")  # of texts or objects; captions may begin with "[Music]"


@dataclasses.dataclass(frozen=True)
class Item:
    """One clip to make.

    Attributes:
      id: unique name; the path below the source, with the times where a table gives some.
      path: absolute path of the media file.
      name: the path as the source has it, for people.
      start_s: seconds after the start of the file, or None for its first frame.
      end_s: seconds after the start of the file, or None for its end.
      captions: (text, start, end), seconds after the start of the file, NaN where not known.
      labels: names.
      problem: why this item cannot be ingested, or "".
    """

    id: str
    path: str
    name: str
    start_s: float | None = None
    end_s: float | None = None
    captions: tuple[tuple[str, float, float], ...] = ()
    labels: tuple[str, ...] = ()
    problem: str = ""


@dataclasses.dataclass(frozen=True)
class Source:
    """The items of a folder or table, and in words what else is there and is not used."""

    items: list[Item]
    unused: tuple[str, ...]


def read_source(source: str | os.PathLike, labels_from: str = "", label_column: str = "") -> Source:
    """Lists the clips of a folder (recursively) or of a csv, tsv, json or jsonl table.

    Table columns: ``path`` (relative to the table), and optionally ``id``, ``start`` and ``end``
    (seconds or h:m:s), ``labels`` (a list, or names separated by ";"), ``captions`` (a text, or a
    list of texts or of ``{"text", "start", "end"}`` with times in the file).

    Args:
      source: the folder or table.
      labels_from: "folder" labels each file with the name of its folder; "" does not.
      label_column: column of the labels; "" means "labels" or "label".

    Raises:
      UserError: no such source, no media files, or a table without the needed columns.
    """
    path = pathlib.Path(os.path.expanduser(source))
    if path.is_dir():
        if label_column:
            raise UserError(f"--label_column is for tables, but {path} is a folder.")
        found = _read_folder(path, labels_from == "folder")
    elif path.is_file():
        if path.suffix.lower() not in TABLE_SUFFIXES:
            raise UserError(f"--source={path} is neither a folder nor a .csv, .tsv, .json, .jsonl.")
        found = _read_table(path, labels_from == "folder", label_column)
    else:
        raise UserError(f"--source={path}: there is no such folder or table.")
    if not found.items:
        raise UserError(f"--source={path} holds no media files; known endings: {_known()}.")
    return Source(_reject_duplicates(found.items), found.unused)


def _known() -> str:
    return " ".join(sorted(VIDEO_SUFFIXES | AUDIO_SUFFIXES | IMAGE_SUFFIXES))


def _read_folder(root: pathlib.Path, label_by_folder: bool) -> Source:
    items, ignored, unread = [], {}, []
    for folder, names in walk(root, unread):
        for name in names:
            path = folder / name
            suffix = path.suffix.lower()
            if suffix not in VIDEO_SUFFIXES | AUDIO_SUFFIXES | IMAGE_SUFFIXES:
                ignored[suffix] = ignored.get(suffix, 0) + 1
                continue
            relative = printable(path.relative_to(root).as_posix())
            labels = (printable(path.parent.name),) if label_by_folder else ()
            if label_by_folder and path.parent == root:
                labels = ()  # a file that lies in no sub-folder has no label
            items.append(Item(relative, os.path.abspath(path), relative, labels=labels))
    unused = [
        f"{count} x {suffix or 'files without an ending'}"
        for suffix, count in sorted(ignored.items())
    ]
    return Source(items, (*unused, *map(printable, unread)))


def printable(text: str) -> str:
    """Replaces bytes of file names that are no UTF-8, so that names can be stored and printed."""
    return os.fsencode(text).decode(errors="backslashreplace")


def _read_table(path: pathlib.Path, label_by_folder: bool, label_column: str) -> Source:
    rows = _rows(path)
    columns = sorted({column for row in rows for column in row if column is not None})
    path_column = _column(columns, _PATH_COLUMNS)
    if path_column is None:
        raise UserError(
            f"{path} has no column 'path'; its columns are {columns}. Each row needs the path of a "
            "media file, absolute or relative to the table."
        )
    if label_by_folder and label_column:
        raise UserError("--labels_from=folder and --label_column do not go together.")
    if label_column and label_column not in columns:
        raise UserError(f"{path} has no column {label_column!r}; its columns are {columns}.")
    label_column = label_column or _column(columns, () if label_by_folder else _LABEL_COLUMNS) or ""
    caption_column = _column(columns, _CAPTION_COLUMNS) or ""
    used = {path_column, label_column, caption_column, "id", "start", "end"}
    items = []
    for number, row in enumerate(rows, 1):
        item = _item(path, number, row, path_column, label_column, caption_column)
        if label_by_folder:
            label = printable(pathlib.Path(item.path).parent.name)
            item = dataclasses.replace(item, labels=(label,))
        items.append(item)
    return Source(items, tuple(f"column {column!r}" for column in columns if column not in used))


def _column(columns: Iterable[str], wanted: Iterable[str]) -> str | None:
    return next((name for name in wanted if name in columns), None)


def _rows(path: pathlib.Path) -> list[Mapping[str | None, Any]]:
    """Returns the rows of a table; of a csv, what is in no column is the list ``row[None]``."""
    suffix = path.suffix.lower()
    try:
        text = path.read_bytes().decode("utf-8-sig")
        if suffix == ".jsonl":
            rows = list(_json_lines(text))
        elif suffix == ".json":
            rows = json.loads(text)
        else:
            rows = list(_cells(text, "\t" if suffix == ".tsv" else ","))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise UserError(f"{path} cannot be read as {suffix[1:]} in UTF-8: {error}") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f'{path} must be a list of objects such as {{"path": "a.mp4"}}.')
    if not rows:
        raise UserError(f"{path} has no rows.")
    return rows


def lines(text: str) -> list[str]:
    """Splits a text as editors do; `str.splitlines` also does where no editor begins a line."""
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def _json_lines(text: str) -> Iterator[Any]:
    for number, line in enumerate(lines(text), 1):
        if line.strip():
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(
                    f"line {number}, character {error.pos + 1}: {error.msg}"
                ) from error


def csv_reader(text: str, delimiter: str = ",") -> csv.DictReader:
    """Reads a csv whose first line names its columns; open quotes and the like are errors."""
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))  # many captions are a long cell
    return csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)


def refuse_surplus(row: Mapping[str | None, Any]) -> None:
    """Raises `ValueError` where a row of a csv has more cells than there are columns."""
    if surplus := [cell for cell in row.get(None, ()) if cell.strip()]:
        raise ValueError(
            f"{surplus[0]!r} is in no column; a text with a separator in it needs quotes"
        )


def _cells(text: str, delimiter: str) -> Iterator[Mapping[str | None, Any]]:
    reader = csv_reader(text, delimiter)
    try:
        yield from reader
    except csv.Error as error:
        raise ValueError(f"line {max(reader.reader.line_num, 1)}: {error}") from error


def _item(
    table: pathlib.Path,
    number: int,
    row: Mapping[str | None, Any],
    path_column: str,
    label_column: str,
    caption_column: str,
) -> Item:
    name = str(row.get(path_column) or "").strip()
    if not name:
        return Item(f"row {number}", "", f"row {number}", problem="the row has no path")
    try:
        absolute = os.path.abspath(table.parent / os.path.expanduser(name))
        name = printable(name)
    except UnicodeEncodeError:
        problem = f"row {number}: the path {name!r} is not valid Unicode"
        return Item(f"row {number}", "", f"row {number}", problem=problem)
    try:
        refuse_surplus(row)
        start, end = (seconds(row.get(column)) for column in ("start", "end"))
        if start is not None and start < 0:
            raise ValueError(f"start {start:g} is before the file begins")
        if start is not None and end is not None and end <= start:
            raise ValueError(f"end {end:g} is not after start {start:g}")
        captions = tuple(_captions(row.get(caption_column)))
        labels = tuple(_labels(row.get(label_column)))
        identity = plain_text(row.get("id"))
    except ValueError as error:
        return Item(name, absolute, name, problem=f"row {number}: {error}")
    span = "" if start is None and end is None else f"#{_mark(start)}-{_mark(end)}"
    return Item(identity or name + span, absolute, name, start, end, captions, labels)


def _mark(time: float | None) -> str:
    return "" if time is None else f"{time:.3f}"


def seconds(value: Any) -> float | None:
    """Returns a time of a table in seconds: a number, "75.5" or "1:15.5"; None when empty.

    Raises:
      ValueError: not a time.
    """
    if value is None or value == "":
        return None
    try:
        parts = [float(part) for part in str(value).split(":")]
    except ValueError:
        parts = []
    signed = len(parts) > 1 and "-" in str(value)  # of "-0:30" the sign would be lost
    if not 1 <= len(parts) <= 3 or not all(map(math.isfinite, parts)) or signed:
        raise ValueError(f"{value!r} is not a time in seconds or h:m:s")
    total = 0.0
    for part in parts:
        total = total * 60 + part
    if total > _LONGEST_S:
        raise ValueError(f"{value!r} is no time in a video")
    return total


def _captions(value: Any) -> Iterable[tuple[str, float, float]]:
    for caption in _listed(value, separator=None):
        start = end = None
        if isinstance(caption, Mapping):
            if "text" not in caption:
                raise ValueError(f"caption {dict(caption)} has no 'text'")
            start, end = seconds(caption.get("start")), seconds(caption.get("end"))
            caption = caption["text"]
        if text := plain_text(caption):
            yield text, math.nan if start is None else start, math.nan if end is None else end


def _labels(value: Any) -> list[str]:
    names = map(plain_text, _listed(value, _LABEL_SEPARATOR))
    return [name for name in dict.fromkeys(names) if name]


def _listed(value: Any, separator: str | None) -> list[Any]:
    """Returns the entries of a list, also of one written as json, as a csv cell holds it."""
    if isinstance(value, str) and _LIST.match(value):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise ValueError(f"{value[:40]!r} is not a list in json: {error}") from error
    if isinstance(value, str) and separator:
        return value.split(separator)
    return value if isinstance(value, list) else [value]


def plain_text(value: Any) -> str:
    """Returns a text or number without spaces around it; "" where there is none (None, NaN).

    Raises:
      ValueError: it cannot be stored, as half a character of json cannot.
    """
    text = "" if value is None or value != value else str(value).strip()
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{text!r} is not valid Unicode") from error
    return text


def _reject_duplicates(items: list[Item]) -> list[Item]:
    """The first good one of several items with one id stays, the others are rejected by name."""
    first: dict[str, Item] = {}
    for item in items:
        if not item.problem:
            first.setdefault(item.id, item)
    checked = []
    for number, item in enumerate(items, 1):
        if first.setdefault(item.id, item) is not item:
            problem = item.problem or f"duplicate id {item.id!r} (also of {first[item.id].name})"
            item = dataclasses.replace(item, id=f"{item.id} (row {number})", problem=problem)
        checked.append(item)
    return checked
