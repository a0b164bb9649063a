"""MSR-VTT: captions of 10,000 videos in json, and lists or tables that name those of a split.

Xu et al., 2016. Captions come from ``annotation/MSR_VTT.json`` (``annotations`` with ``image_id``
and ``caption``), or from ``MSRVTT_data.json`` or the challenge's ``*videodatainfo*.json``, of
which all that there are are read (``sentences`` with ``video_id`` and ``caption``). Lists are
those of Frozen in Time and Collaborative Experts,
``high-quality/structured-symlinks/*_list_*.txt``, or the tables ``MSRVTT_train.9k.csv``,
``MSRVTT_train.7k.csv`` and ``MSRVTT_JSFUSION_test.csv``. All files may also lie at the top of the
folder. The full cuts need no lists where the challenge's files say the splits. Videos are
``videos/all/<id>.mp4``.

| cut | train | val and test |
|---|---|---|
| jsfusion, 1k-A | 9,000 videos | 1,000 videos with the one caption that was drawn for each |
| 7k | 7,010 videos | as 1k-A |
| miech, 1k-B | 6,656 videos | 1,000 videos with the first caption of each, as is usual |
| full-val, full-test | 6,513 videos | 497 or 2,990 videos with all captions |
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator

from common.data.annotations import published
from common.data.annotations.published import Folder, Format, Published
from common.errors import UserError

_LIST_FOLDER = "high-quality/structured-symlinks/"
_JSFUSION_TEST = "MSRVTT_JSFUSION_test.csv"
_JSFUSION_INDEX = "jsfusion_val_caption_idx.pkl"
_OWN_CAPTIONS = ("annotation/MSR_VTT.json", "MSR_VTT.json")
_CHALLENGE, _CHALLENGE_PARTS = "MSRVTT_data.json", "*videodatainfo*.json"
_LISTS = {  # by cut: what may list the videos for training, and those held out
    "jsfusion": (
        ("train_list_jsfusion.txt", "MSRVTT_train.9k.csv"),
        ("val_list_jsfusion.txt", _JSFUSION_TEST),
    ),
    "7k": (("train_list_7k.txt", "MSRVTT_train.7k.csv"), ("val_list_jsfusion.txt", _JSFUSION_TEST)),
    "miech": (("train_list_miech.txt",), ("test_list_miech.txt",)),
    "full-val": (("train_list_full.txt",), ("val_list_full.txt",)),
    "full-test": (("train_list_full.txt",), ("test_list_full.txt",)),
}
_ALIASES = {"1k-A": "jsfusion", "1k-B": "miech"}


def read(folder: Folder, split: str, cut: str) -> Published:
    """Reads one split of a cut."""
    cut = _ALIASES.get(cut, cut)
    held_out = split != "train"
    names = [place + name for name in _LISTS[cut][held_out] for place in (_LIST_FOLDER, "")]
    listed = folder.find(*names)
    if held_out and listed and listed.name == _JSFUSION_TEST:
        rows = published.read_csv(listed, "video_id", "sentence")
        captions = published.grouped((row["video_id"], row["sentence"]) for row in rows)
        return Published(published.chosen(captions, captions, _files, str(listed)))
    captions, source = _captions(folder)
    if listed:
        videos = _videos(listed)
    else:
        listed, videos = source, _own_split(source, cut, held_out) or folder.refuse(names)
    if held_out and cut in ("jsfusion", "7k"):
        captions = _drawn(folder, source, captions, videos)
    elif held_out and cut == "miech":
        captions = {video: texts[:1] for video, texts in captions.items()}
    return Published(published.chosen(captions, videos, _files, f"{listed} and {source}"))


def _files(video: str) -> tuple[str, ...]:
    return (f"videos/all/{video}.mp4",)


def _videos(path: pathlib.Path) -> list[str]:
    if path.suffix == ".csv":
        return [row["video_id"] for row in published.read_csv(path, "video_id")]
    return published.read_lines(path)


def _captions(folder: Folder) -> tuple[dict[str, list[str]], pathlib.Path]:
    """Returns the captions by video, and the file they are from, the first of several."""
    if path := folder.find(*_OWN_CAPTIONS):
        return published.grouped(_pairs(path, "annotations", "image_id")), path
    if not (paths := _challenge_files(folder.path)):
        folder.refuse([*_OWN_CAPTIONS, _CHALLENGE, _CHALLENGE_PARTS])
    captions: dict[str, list[str]] = {}
    for path in paths:  # a video of several files, such as those of two years, has one set
        captions = published.grouped(_pairs(path, "sentences", "video_id")) | captions
    return captions, paths[0]


def _challenge_files(folder: pathlib.Path) -> list[pathlib.Path]:
    whole = folder / _CHALLENGE
    return [whole] if whole.is_file() else sorted(folder.glob(_CHALLENGE_PARTS))


def _own_split(source: pathlib.Path, cut: str, held_out: bool) -> list[str]:
    """Returns the videos of the challenge's own splits, which its files name beside captions."""
    if not cut.startswith("full") or source.name in map(os.path.basename, _OWN_CAPTIONS):
        return []
    wanted = {"full-val": "validate", "full-test": "test"}[cut] if held_out else "train"
    entries = (
        published.fields(path, entry, "video_id", "split")
        for path in _challenge_files(source.parent)
        for entry in published.read_json(path, "videos")["videos"]
    )
    return [video for video, split in entries if split == wanted]


def _pairs(path: pathlib.Path, key: str, video: str) -> Iterator[tuple[str, str]]:
    for entry in published.read_json(path, key)[key]:
        yield tuple(map(str, published.fields(path, entry, video, "caption")))


def _drawn(
    folder: Folder, source: pathlib.Path, captions: dict[str, list[str]], videos: list[str]
) -> dict[str, list[str]]:
    """Returns the one caption of each video that JSFusion's 1k-A split was published with."""
    path = folder.need(_LIST_FOLDER + _JSFUSION_INDEX, _JSFUSION_INDEX)
    if source.name != "MSR_VTT.json":
        raise UserError(
            f"{path} counts the captions in the order of MSR_VTT.json, but the captions are those "
            f"of {source.name}. Put MSR_VTT.json beside it, or {_JSFUSION_TEST} in place of the "
            "list."
        )
    index_of = published.read_pickle(path)
    drawn = {}
    for video in videos:
        place, texts = index_of.get(video), captions.get(video, [])
        if place is None or not 0 <= int(place) < len(texts):
            raise UserError(
                f"{path}: caption {place} of {video!r}, which has {len(texts)} in {source}."
            )
        drawn[video] = [texts[int(place)]]
    return drawn


FORMAT = Format(read, ("train", "val", "test"), (*_LISTS, *_ALIASES))
