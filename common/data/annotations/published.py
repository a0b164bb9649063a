"""What the published annotations of all data sets share: their files, their clips, their media."""

from __future__ import annotations

import csv
import dataclasses
import functools
import json
import math
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

from common.data import tables
from common.data.walk import walk
from common.errors import UserError

Caption = tuple[str, float, float]  # text, start, end: seconds after the start of the file

# What pandas reads as missing, and with it the published loaders.
MISSING = frozenset(
    ["", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN"]
    + ["<NA>", "N/A", "NA", "NULL", "NaN", "n/a", "nan", "null"]
)
_VALIDATION_ROWS = 1000  # Frozen in Time's published validation takes so many of a longer list


@dataclasses.dataclass(frozen=True)
class Clip:
    """One video or image of a data set and all its captions.

    Attributes:
        id: its published name, unique.
        files: where its media file may lie below the source, the published place first.
        captions: in published order.
        end_s: seconds after which it is not part of the data set, or None.
    """

    id: str
    files: tuple[str, ...]
    captions: tuple[Caption, ...]
    end_s: float | None = None


@dataclasses.dataclass(frozen=True)
class Published:
    """The clips of a split, and in words what of the annotations is left out."""

    clips: list[Clip]
    left_out: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Format:
    """How a data set publishes its captions.

    Attributes:
        read: reads one split; raises `UserError`.
        splits: names that it knows.
        cuts: variants of its lists; "" where none need be named.
        suffixes: endings of its media files.
        tells: whether a clip's captions tell it one after the other, so that they can be joined to
            a paragraph; otherwise each of them describes the whole.
    """

    read: Callable[[Folder, str, str], Published]
    splits: tuple[str, ...]
    cuts: tuple[str, ...] = ("",)
    suffixes: frozenset[str] = tables.VIDEO_SUFFIXES
    tells: bool = False


@dataclasses.dataclass(frozen=True)
class Folder:
    """Where the annotation files of a data set lie."""

    path: pathlib.Path

    def find(self, *names: str) -> pathlib.Path | None:
        """Returns the first of some files that exists, or None."""
        return next((self.path / name for name in names if (self.path / name).is_file()), None)

    def need(self, *names: str) -> pathlib.Path:
        """Returns the first of some files that exists.

        Raises:
            UserError: there is none; lists what was looked for.
        """
        return self.find(*names) or self.refuse(names)

    def refuse(self, names: Iterable[str]) -> NoReturn:
        """Raises the `UserError` that lists the files that were looked for."""
        listed = "".join(f"\n  {name}" for name in names)
        raise UserError(
            f"{self.path} has none of the annotation files that this split needs:{listed}\n"
            "Put one of them there, or say where they lie with --annotations_folder."
        )


def read_json(path: pathlib.Path, *lists: str, kind: type = dict) -> Any:
    """Reads a json file that holds an object with these lists, or a value of some other kind.

    Raises:
        UserError: it cannot be read, or holds something else.
    """
    try:
        value = json.loads(path.read_bytes().decode("utf-8-sig"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as json in UTF-8: {error}") from error
    if not isinstance(value, kind):
        raise UserError(f"{path} holds a {type(value).__name__}, expected a {kind.__name__}.")
    for name in lists:
        if not isinstance(value.get(name), list):
            raise UserError(f"{path} has no list {name!r}; it holds {', '.join(value)[:200]}.")
    return value


def fields(path: pathlib.Path, entry: Any, *names: str) -> list[Any]:
    """Returns fields of an entry of a json file.

    Raises:
        UserError: the entry lacks one.
    """
    missing = [name for name in names if not isinstance(entry, Mapping) or name not in entry]
    if missing:
        shown = json.dumps(entry, ensure_ascii=False)[:120]
        raise UserError(f"{path}: the entry {shown} has no {missing[0]!r}; needed: {list(names)}.")
    return [entry[name] for name in names]


def read_csv(path: pathlib.Path, *columns: str) -> Iterator[dict[str, str]]:
    """Yields the rows of a csv in UTF-8 whose first line names its columns.

    Raises:
        UserError: it cannot be read, or lacks a column.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file)
            found = rows.fieldnames or []
            if missing := [column for column in columns if column not in found]:
                raise UserError(
                    f"{path} has no column {missing[0]!r}; its columns are {', '.join(found)}; "
                    f"needed: {', '.join(columns)}."
                )
            for row in rows:
                yield {key: value or "" for key, value in row.items() if isinstance(key, str)}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as csv in UTF-8: {error}") from error


def read_lines(path: pathlib.Path) -> list[str]:
    """Returns the lines of a text file that hold something, without spaces around; tabs stay.

    Raises:
        UserError: it cannot be read, or has none.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as text in UTF-8: {error}") from error
    lines = [line.strip(" \r") for line in text.split("\n") if line.strip()]
    if not lines:
        raise UserError(f"{path} has no lines.")
    return lines


def read_pickle(path: pathlib.Path) -> Mapping[str, Any]:
    """Reads a pickled dictionary without executing anything in it.

    Raises:
        UserError: it is no pickle of plain data, or no dictionary.
    """
    from common.weights import safe_pickle

    mapping = {("collections", "defaultdict"): safe_pickle.Allowed(lambda *_: {})}
    try:
        with open(path, "rb") as file:
            value = safe_pickle.inert(safe_pickle.Unpickler(file, mapping).load())
    except Exception as error:  # damaged input can make the reader fail in any way
        raise UserError(
            f"{path} cannot be read as a pickle of plain data ({error}); nothing in it was "
            "executed."
        ) from error
    if not isinstance(value, Mapping):
        raise UserError(f"{path} holds a {type(value).__name__}, expected a dictionary by video.")
    return value


def token_captions(path: pathlib.Path) -> dict[str, list[str]]:
    """Reads ``raw-captions.pkl``: by video, captions that are lists of words, or texts.

    Raises:
        UserError: it is no such file.
    """
    found = {}
    for video, captions in read_pickle(path).items():
        if not isinstance(captions, list | tuple):
            raise UserError(f"{path}, {video!r}: expected a list of captions, got {captions!r}.")
        found[str(video)] = [
            caption if isinstance(caption, str) else " ".join(map(str, caption))
            for caption in captions
        ]
    return found


def grouped(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Returns captions by video, both in the order in which they come."""
    found: dict[str, list[str]] = {}
    for video, caption in pairs:
        found.setdefault(video, []).append(caption)
    return found


def untimed(captions: Iterable[str]) -> tuple[Caption, ...]:
    """Returns captions whose times are not known, without those that hold no words."""
    texts = (str(caption).strip() for caption in captions)
    return tuple((text, math.nan, math.nan) for text in texts if text)


def chosen(
    captions: Mapping[str, Sequence[str]],
    videos: Iterable[str],
    files: Callable[[str], tuple[str, ...]],
    where: str,
) -> list[Clip]:
    """Returns the clips of a list of videos.

    Args:
        captions: by video.
        videos: the list; each counts once.
        files: from a video to the `Clip.files`.
        where: what the list and the captions were read from, for people.

    Raises:
        UserError: a video of the list has no captions.
    """
    listed = list(dict.fromkeys(videos))
    if missing := [video for video in listed if not captions.get(video)]:
        raise UserError(
            f"{where}: {len(missing)} of {len(listed)} listed videos have no captions (the first "
            f"is {missing[0]!r}). The two files do not belong together."
        )
    return [Clip(video, files(video), untimed(captions[video])) for video in listed]


def validation_rows(count: int) -> list[int]:
    """Returns the rows of a list that Frozen in Time validates on, in its order.

    They are what ``DataFrame.sample(1000, random_state=0)`` draws, which is NumPy's legacy
    permutation; a list that is no longer than that is taken whole.
    """
    if count <= _VALIDATION_ROWS:
        return list(range(count))
    import numpy as np

    return np.random.RandomState(0).choice(count, _VALIDATION_ROWS, replace=False).tolist()


class Media:
    """The media files below a folder, found by published place or else by name."""

    def __init__(self, root: pathlib.Path, suffixes: frozenset[str]):
        """Looks at nothing yet; the folder is searched when a published place is empty."""
        self._root, self._suffixes = os.fspath(root), suffixes

    def find(self, files: Sequence[str]) -> tuple[str, str]:
        """Returns the path of a clip's file below the folder, and "" or what is wrong with it.

        A file that lies elsewhere, or has another ending, is found by its name without the ending;
        where several have that name none of them is taken.
        """
        for name in files:
            if os.path.isfile(os.path.join(self._root, name)):
                return name, ""
        for name in files:
            base = os.path.basename(name)
            for stem in (base, self._stem(base)):
                if len(found := self._by_stem.get(stem, ())) == 1:
                    return found[0], ""
                if found:
                    return files[0], f"several files have its name: {', '.join(sorted(found)[:3])}"
        return files[0], ""

    def _stem(self, name: str) -> str:
        stem, suffix = os.path.splitext(name)
        return stem if suffix.lower() in self._suffixes else name  # names may hold dots

    @functools.cached_property
    def _by_stem(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for folder, names in walk(self._root):
            for name in names:
                if os.path.splitext(name)[1].lower() in self._suffixes:
                    path = os.path.relpath(os.path.join(folder, name), self._root)
                    found.setdefault(self._stem(name), []).append(path)
        return found
