"""COCO captions: ``annotations/captions_<split><year>.json``, or Karpathy's ``dataset_coco.json``.

Lin et al., 2014 (https://arxiv.org/abs/1405.0312). ``--cut=2014`` and ``--cut=2017`` are the data
set's own splits, ``images`` with ``id`` and ``file_name`` and ``annotations`` with ``image_id``
and ``caption``; ``--cut=karpathy`` is the one that retrieval is reported on. Images are
``<split><year>/<file_name>``.
"""

from __future__ import annotations

import os

from common.data import tables
from common.data.annotations import karpathy, published
from common.data.annotations.published import Clip, Folder, Format, Published
from common.errors import UserError

_KARPATHY = "karpathy"


def read(folder: Folder, split: str, cut: str) -> Published:
    """Reads one split of a cut."""
    if cut == _KARPATHY:
        path = folder.need("dataset_coco.json", "annotations/dataset_coco.json")
        return karpathy.read(path, split)
    if split == "test":
        raise UserError(f"--cut={cut}: the captions of COCO's own test images are not published.")
    name = f"captions_{split}{cut}.json"
    path = folder.need(f"annotations/{name}", name)
    found = published.read_json(path, "images", "annotations")
    captions = published.grouped(
        published.fields(path, entry, "image_id", "caption") for entry in found["annotations"]
    )
    clips = []
    for entry in found["images"]:
        number, file = published.fields(path, entry, "id", "file_name")
        texts = published.untimed(captions.get(number, ()))
        clips.append(Clip(os.path.splitext(file)[0], (f"{split}{cut}/{file}",), texts))
    return Published(clips)


FORMAT = Format(
    read, ("train", "val", "test"), ("2014", "2017", _KARPATHY), suffixes=tables.IMAGE_SUFFIXES
)
