"""Karpathy's splits of COCO and Flickr30k: one json of ``images`` with ``split`` and ``sentences``.

Karpathy and Fei-Fei, 2015 (https://arxiv.org/abs/1412.2306). What COCO calls ``restval``, the
rest of its validation images, belongs to training, as in the results reported on these splits.
"""

from __future__ import annotations

import os
import pathlib

from common.data.annotations import published
from common.data.annotations.published import Clip, Published

_REST = "restval"


def read(path: pathlib.Path, split: str, folder: str = "") -> Published:
    """Reads one split.

    Args:
        path: of ``dataset_coco.json`` or ``dataset_flickr30k.json``.
        split: train, val or test.
        folder: of the images, where the file names none.

    Raises:
        UserError: it is no such file.
    """
    clips = []
    for entry in published.read_json(path, "images")["images"]:
        name, belongs, sentences = published.fields(path, entry, "filename", "split", "sentences")
        if belongs == split or (belongs == _REST and split == "train"):
            texts = [published.fields(path, sentence, "raw")[0] for sentence in sentences]
            file = os.path.join(entry.get("filepath", folder), name)
            clips.append(Clip(os.path.splitext(name)[0], (file,), published.untimed(texts)))
    return Published(clips)
