"""Flickr30k: Karpathy's ``dataset_flickr30k.json``, or all captions in ``results_20130124.token``.

Young et al., 2014 (https://aclanthology.org/Q14-1006). Without a cut the splits are those of
``dataset_flickr30k.json``, which retrieval is reported on. ``--cut=all`` takes every image of
``results_20130124.token`` (``NAME.jpg#0``, tab, caption) or ``results.csv`` (name, number and
caption between ``|``), which know no splits. Images lie in ``flickr30k-images``.
"""

from __future__ import annotations

import pathlib
import re
from collections.abc import Iterator

from common.data import tables
from common.data.annotations import karpathy, published
from common.data.annotations.published import Clip, Folder, Format, Published
from common.errors import UserError

_IMAGES = "flickr30k-images"
_TOKEN = re.compile(r"(\S+\.jpg)#\d+\t(.*)")
# In one row of the published csv the second bar is missing.
_ROW = re.compile(r"(\S+\.jpg)\s*\|\s*\d+\s*\|?\s*(.*)")


def read(folder: Folder, split: str, cut: str) -> Published:
    """Reads one split, or everything."""
    if not cut:
        return karpathy.read(folder.need("dataset_flickr30k.json"), split, _IMAGES)
    path = folder.need("results_20130124.token", "results.csv")
    clips = [
        Clip(pathlib.PurePath(name).stem, (f"{_IMAGES}/{name}",), published.untimed(texts))
        for name, texts in published.grouped(_pairs(path)).items()
    ]
    return Published(clips)


def _pairs(path: pathlib.Path) -> Iterator[tuple[str, str]]:
    pattern = _ROW if path.suffix == ".csv" else _TOKEN
    for number, line in enumerate(published.read_lines(path), 1):
        match = pattern.fullmatch(line)
        if match:
            yield match[1], match[2]
        elif number > 1 or pattern is _TOKEN:  # the csv begins with the names of its columns
            raise UserError(f"{path}, line {number}: {line[:60]!r} names no image and caption.")


FORMAT = Format(read, ("train", "val", "test"), ("", "all"), suffixes=tables.IMAGE_SUFFIXES)
