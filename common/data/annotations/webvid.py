"""WebVid: ``metadata/results_<cut>_<split>.csv`` with columns videoid, page_dir and name.

Bain et al., 2021 (https://arxiv.org/abs/2104.00650). Videos are
``videos/<page_dir>/<videoid>.mp4``. As in the published loader of Frozen in Time, rows with any
missing value are left out and captions are cut to 350 characters. A cut that ends in ``-1000`` is
what that loader validates on.
"""

from __future__ import annotations

from common.data.annotations import published
from common.data.annotations.published import Clip, Folder, Format, Published
from common.errors import UserError

_LONGEST = 350  # characters
_SAMPLED = "-1000"


def read(folder: Folder, split: str, cut: str) -> Published:
    """Reads one split of a cut, 2M or 10M."""
    sampled = cut.endswith(_SAMPLED)
    if sampled and split != "val":
        raise UserError(f"--cut={cut} is drawn from the list of --split=val alone.")
    name = f"results_{cut.removesuffix(_SAMPLED)}_{split}.csv"
    path = folder.need(f"metadata/{name}", name)
    rows = list(map(_clip, published.read_csv(path, "videoid", "page_dir", "name")))
    if sampled:
        rows = [rows[number] for number in published.validation_rows(len(rows))]
    clips: dict[str, Clip] = {}
    for clip in filter(None, rows):
        before = clips.get(clip.id)
        captions = before.captions + clip.captions if before else clip.captions
        clips[clip.id] = Clip(clip.id, clip.files, captions)
    dropped = rows.count(None)
    left_out = (f"{dropped} rows of {path.name} with missing values",) if dropped else ()
    return Published(list(clips.values()), left_out)


def _clip(row: dict[str, str]) -> Clip | None:
    """Returns the clip of a row, or None where a value is missing."""
    if any(value in published.MISSING for value in row.values()):
        return None
    file = f"videos/{row['page_dir']}/{row['videoid']}.mp4"
    return Clip(row["videoid"], (file,), published.untimed([row["name"][:_LONGEST]]))


FORMAT = Format(read, ("train", "val"), ("2M", "10M", *(cut + _SAMPLED for cut in ("2M", "10M"))))
