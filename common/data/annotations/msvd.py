"""MSVD (Microsoft Research Video Description Corpus): captions in one of three files, and a split.

Chen and Dolan, 2011 (https://aclanthology.org/P11-1020). A video is named ``<YouTube
id>_<start>_<end>`` and is a file of that name, ``YouTubeClips/<name>.avi``. Captions come from
``raw-captions.pkl`` (Collaborative Experts: lists of words by video), ``video_corpus.csv`` (the
data set's own, columns VideoID, Start, End, Language, Description, of which the English rows are
taken), or ``AllVideoDescriptions.txt`` (name, space, caption). The split comes from
``<split>_list.txt``, or from ``youtube_mapping.txt``, whose lines name the videos vid1 to
vid1970: the first 1,200 are for training, the next 100 for validation, the last 670 for testing.
Files named ``vid7`` are found through it.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

from common.data.annotations import published
from common.data.annotations.published import Folder, Format, Published
from common.errors import UserError

_CAPTIONS = (
    "raw-captions.pkl",
    "video_corpus.csv",
    "MSR Video Description Corpus.csv",
    "AllVideoDescriptions.txt",
)
_MAPPING = "youtube_mapping.txt"
_NUMBERS = {"train": range(1, 1201), "val": range(1201, 1301), "test": range(1301, 1971)}


def read(folder: Folder, split: str, cut: str) -> Published:
    """Reads one split."""
    del cut
    path = folder.need(*_CAPTIONS)
    if path.suffix == ".pkl":
        captions = published.token_captions(path)
    else:
        captions = published.grouped((_corpus if path.suffix == ".csv" else _text)(path))
    mapping = folder.find(_MAPPING)
    number_of = _mapping(mapping) if mapping else {}
    listed = folder.find(f"{split}_list.txt") or folder.need(f"{split}_list.txt", _MAPPING)
    if listed == mapping:
        videos = [video for video, number in number_of.items() if number in _NUMBERS[split]]
    else:
        videos = published.read_lines(listed)

    def files(video: str) -> tuple[str, ...]:
        renamed = (f"vid{number_of[video]}.avi",) if video in number_of else ()
        return (f"YouTubeClips/{video}.avi", *renamed)

    return Published(published.chosen(captions, videos, files, f"{listed} and {path}"))


def _corpus(path: pathlib.Path) -> Iterator[tuple[str, str]]:
    columns = ("VideoID", "Start", "End", "Language", "Description")
    for row in published.read_csv(path, *columns):
        video, start, end, language, caption = (row[column].strip() for column in columns)
        if language == "English" and caption:
            yield f"{video}_{start}_{end}", caption


def _text(path: pathlib.Path) -> Iterator[tuple[str, str]]:
    for line in published.read_lines(path):
        video, _, caption = line.partition(" ")
        if not line.startswith("#") and caption:  # the file begins with remarks
            yield video, caption


def _mapping(path: pathlib.Path) -> dict[str, int]:
    """Returns the number of each video."""
    number_of = {}
    for place, line in enumerate(published.read_lines(path), 1):
        video, _, name = line.partition(" ")
        number = name.strip().removeprefix("vid")
        if not number.isdecimal():
            raise UserError(f"{path}, line {place}: {line[:60]!r}; expected <name> vid<number>.")
        number_of[video] = int(number)
    return number_of


FORMAT = Format(read, ("train", "val", "test"))
