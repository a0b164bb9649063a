"""Conceptual Captions 3M: the published tables, and images named by the CRC-32 of their address.

Sharma et al., 2018 (https://aclanthology.org/P18-1238). Expected is either Frozen in Time's
``Train_GCC-training-success-020321-VALIDIMG.csv`` and
``Validation_GCC-1.1.0-Validation-success-020321-VALIDIMG.csv`` with columns caption and
thumbnailUrl, or the data set's own ``Train_GCC-training.tsv`` and
``Validation_GCC-1.1.0-Validation.tsv``, caption and address without a heading. The image of an
address is ``training/N`` or ``validation/N``, N its CRC-32 in decimal, with or without an ending.
``--cut=1000`` is what Frozen in Time validates on.
"""

from __future__ import annotations

import pathlib
import zlib
from collections.abc import Iterator

from common.data import tables
from common.data.annotations import published
from common.data.annotations.published import Clip, Folder, Format, Published
from common.errors import UserError

_LISTS = {"train": "Train_GCC-training", "val": "Validation_GCC-1.1.0-Validation"}
_FOLDERS = {"train": "training", "val": "validation"}


def read(folder: Folder, split: str, cut: str) -> Published:
    """Reads one split; addresses that come twice are one image with two captions."""
    if cut and split != "val":
        raise UserError(f"--cut={cut} is drawn from the list of --split=val alone.")
    name = _LISTS[split]
    path = folder.need(f"{name}-success-020321-VALIDIMG.csv", f"{name}.tsv")
    rows = list(_rows(path))
    if cut:
        rows = [rows[number] for number in published.validation_rows(len(rows))]
    whole = [row for row in rows if not published.MISSING.intersection(row)]
    captions = published.grouped((_number(url), caption) for caption, url in whole)
    clips = [
        Clip(number, (f"{_FOLDERS[split]}/{number}",), published.untimed(texts))
        for number, texts in captions.items()
    ]
    dropped = len(rows) - len(whole)
    left_out = (f"{dropped} rows of {path.name} with missing values",) if dropped else ()
    return Published(clips, left_out)


def _rows(path: pathlib.Path) -> Iterator[tuple[str, str]]:
    """Yields caption and address of each row."""
    if path.suffix == ".csv":
        for row in published.read_csv(path, "caption", "thumbnailUrl"):
            yield row["caption"], row["thumbnailUrl"]
        return
    for number, line in enumerate(published.read_lines(path), 1):
        caption, tab, url = line.partition("\t")
        if not tab:
            raise UserError(f"{path}, line {number}: expected a caption, a tab and an address.")
        yield caption, url


def _number(url: str) -> str:
    return str(zlib.crc32(url.encode("utf-8")))


FORMAT = Format(read, ("train", "val"), ("", "1000"), tables.IMAGE_SUFFIXES)
