"""DiDeMo: ``<split>_data.json``, a list of sentences with ``video``, ``description`` and ``times``.

Hendricks et al., 2017 (https://arxiv.org/abs/1708.01641). ``times`` holds what several people
chose, first and last piece of five seconds each; a caption's times are the means of their
choices, as is usual. People saw the first 30 seconds of a video, so what follows is no part of
it. Where a file ``<split>_list.txt`` is there too, its videos alone are taken. With
``--paragraph`` the sentences of a video are joined in the order of the file, as
paragraph-to-video retrieval takes them.
"""

from __future__ import annotations

import math
import pathlib
from typing import Any

from common.data.annotations import published
from common.data.annotations.published import Caption, Clip, Folder, Format, Published
from common.errors import UserError

_PIECE_S = 5.0
_SEEN_S = 30.0


def read(folder: Folder, split: str, cut: str) -> Published:
    """Reads one split."""
    del cut
    path = folder.need(f"{split}_data.json", f"data/{split}_data.json")
    captions: dict[str, list[Caption]] = {}
    for entry in published.read_json(path, kind=list):
        video, text, times = published.fields(path, entry, "video", "description", "times")
        start, end = _seconds(path, video, times)
        if text := str(text).strip():
            captions.setdefault(str(video), []).append((text, start, end))
    left_out: tuple[str, ...] = ()
    if listed := folder.find(f"{split}_list.txt"):
        videos = dict.fromkeys(published.read_lines(listed))
        if missing := [video for video in videos if video not in captions]:
            raise UserError(f"{listed}: {missing[0]!r} has no captions in {path}.")
        if more := len(captions) - len(videos):
            left_out = (f"{more} videos of {path.name} that {listed.name} does not list",)
        captions = {video: captions[video] for video in videos}
    clips = [
        Clip(video, (f"videos/{video}",), tuple(told), _SEEN_S) for video, told in captions.items()
    ]
    return Published(clips, left_out)


def _seconds(path: pathlib.Path, video: Any, times: Any) -> tuple[float, float]:
    if not times:
        return math.nan, math.nan
    try:
        first = sum(first for first, _ in times) / len(times)
        last = sum(last for _, last in times) / len(times)
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}, {video!r}: times must be pairs of numbers ({error}).") from error
    return first * _PIECE_S, (last + 1) * _PIECE_S


FORMAT = Format(read, ("train", "val", "test"), tells=True)
