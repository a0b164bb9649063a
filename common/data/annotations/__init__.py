"""Captions of public data sets as they are published, for ``common.ingest --annotations``.

Each module here says in its first lines which files it expects; docs/data.md has the commands. What
comes out is what a table gives: one clip per video or image, with all its captions and with times
where the data set knows them. Published code is named where it decides what belongs to a split.
"""

from __future__ import annotations

import difflib
import math
import os
import pathlib

from common.data import tables
from common.data.annotations import (
    activitynet,
    coco,
    conceptual_captions,
    didemo,
    flickr30k,
    lsmdc,
    msrvtt,
    msvd,
    webvid,
)
from common.data.annotations.published import Clip, Folder, Format, Media
from common.errors import UserError

FORMATS: dict[str, Format] = {
    "activitynet": activitynet.FORMAT,
    "cc3m": conceptual_captions.FORMAT,
    "coco": coco.FORMAT,
    "didemo": didemo.FORMAT,
    "flickr30k": flickr30k.FORMAT,
    "lsmdc": lsmdc.FORMAT,
    "msrvtt": msrvtt.FORMAT,
    "msvd": msvd.FORMAT,
    "webvid": webvid.FORMAT,
}


def read(
    name: str,
    source: str | os.PathLike,
    split: str,
    cut: str = "",
    folder: str | os.PathLike = "",
    paragraph: bool = False,
) -> tables.Source:
    """Lists the clips of one split of a data set.

    A clip whose media file is missing stays in the list and is rejected by name when it is read.

    Args:
        name: a key of `FORMATS`.
        source: folder of the media files, in the published arrangement or any other.
        split: name of the split, as the data set has it.
        cut: variant of the data set's lists.
        folder: of the annotation files; "" means they lie in `source`.
        paragraph: makes one caption of the captions of a clip, joined in their order.

    Raises:
        UserError: there is no such data set, split, cut or folder, a file or column is missing or
            malformed, or not one of the media files is there.
    """
    format_ = _checked(name, split, cut, paragraph)
    root = pathlib.Path(source).expanduser().absolute()
    place = pathlib.Path(folder).expanduser() if folder else root
    for flag, path in (("source", root), ("annotations_folder", place)):
        if not path.is_dir():
            raise UserError(f"--{flag}={path}: there is no such folder.")
    published = format_.read(Folder(place), split, cut)
    if not published.clips:
        raise UserError(f"{name} has no clips in --split={split} of {place}.")
    media = Media(root, format_.suffixes)  # millions of clips: no pathlib from here on
    items = [_item(clip, root, media, paragraph) for clip in published.clips]
    if not any(os.path.exists(item.path) for item in items):
        first = published.clips[0]
        raise UserError(
            f"--source={root} has no media file of the {len(items)} clips; that of {first.id!r} "
            f"was looked for as {' or '.join(first.files)}, and by its name in all folders below "
            f"with the endings {' '.join(sorted(format_.suffixes))}."
        )
    return tables.Source(items, published.left_out)


def _checked(name: str, split: str, cut: str, paragraph: bool) -> Format:
    if name not in FORMATS:
        near = difflib.get_close_matches(name, FORMATS, 1)
        raise UserError(
            f"--annotations={name} is not known{f'; did you mean {near[0]}' if near else ''}. "
            f"Choose among {', '.join(FORMATS)}; other captions come in a table, see docs/data.md."
        )
    format_ = FORMATS[name]
    if split not in format_.splits:
        raise UserError(f"--split={split}: {name} has the splits {', '.join(format_.splits)}.")
    if cut not in format_.cuts:
        known = ", ".join(known for known in format_.cuts if known)
        given = f"--cut={cut}: " if cut else "--cut is needed: "
        raise UserError(f"{given}{name} has {f'the cuts {known}' if known else 'no cuts'}.")
    if paragraph and not format_.tells:
        telling = ", ".join(key for key, value in FORMATS.items() if value.tells)
        raise UserError(
            f"--paragraph joins captions that tell a video one after the other ({telling}); each "
            f"caption of {name} describes the whole."
        )
    return format_


def _item(clip: Clip, root: pathlib.Path, media: Media, paragraph: bool) -> tables.Item:
    name, problem = media.find(clip.files)
    captions = clip.captions
    if paragraph and captions:
        captions = ((" ".join(text for text, _, _ in captions), math.nan, math.nan),)
    path = os.path.normpath(os.path.join(root, name))
    return tables.Item(clip.id, path, name, None, clip.end_s, captions, problem=problem)
