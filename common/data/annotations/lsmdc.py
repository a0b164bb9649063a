"""LSMDC: described clips of films, by lists with ``raw-captions.pkl`` or by the challenge's tables.

Rohrbach et al., 2017 (https://arxiv.org/abs/1605.03705). Expected is either
``structured-symlinks/<split>_list.txt`` with ``structured-symlinks/raw-captions.pkl`` (lists of
words by clip) and, where clips lie in folders of other names, ``frame_tar_list.txt`` (Frozen in
Time); or ``LSMDC16_annos_training.csv``, ``LSMDC16_annos_val.csv`` and
``LSMDC16_challenge_1000_publictect.csv``: columns separated by tabs, without a heading, the first
the clip and the last its sentence. A clip that comes in several rows has all their sentences.
Clips are ``<film>/<clip>.avi``, with or without ``videos/`` before.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator

from common.data.annotations import published
from common.data.annotations.published import Folder, Format, Published
from common.errors import UserError

_LIST_FOLDER = "structured-symlinks/"
_TABLES = {
    "train": "LSMDC16_annos_training.csv",
    "val": "LSMDC16_annos_val.csv",
    "test": "LSMDC16_challenge_1000_publictect.csv",
}


def read(folder: Folder, split: str, cut: str) -> Published:
    """Reads one split."""
    del cut
    lists = tuple(f"{place}{split}_list.txt" for place in (_LIST_FOLDER, ""))
    path = folder.need(*lists, _TABLES[split])
    tars = folder.find("frame_tar_list.txt")
    film_of = dict(map(_clip_and_film, published.read_lines(tars))) if tars else {}
    if path.name == _TABLES[split]:
        captions = published.grouped(_rows(path))
        videos, where = list(captions), str(path)
    else:
        source = folder.need(f"{_LIST_FOLDER}raw-captions.pkl", "raw-captions.pkl")
        captions = published.token_captions(source)
        videos, where = published.read_lines(path), f"{path} and {source}"

    def files(clip: str) -> tuple[str, ...]:
        film = film_of.get(clip) or clip.rpartition("_")[0]
        return tuple(f"{place}{film}/{clip}.avi" for place in ("videos/", ""))

    return Published(published.chosen(captions, videos, files, where))


def _clip_and_film(line: str) -> tuple[str, str]:
    film, clip = os.path.split(line.removesuffix(".tar"))
    return clip, os.path.basename(film)


def _rows(path: pathlib.Path) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(published.read_lines(path), 1):
        cells = line.split("\t")
        if len(cells) < 2:
            raise UserError(f"{path}, line {number}: {line[:60]!r} has no columns between tabs.")
        yield cells[0], cells[-1]


FORMAT = Format(read, ("train", "val", "test"))
