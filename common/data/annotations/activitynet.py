"""ActivityNet Captions: ``train.json``, ``val_1.json``, ``val_2.json``: timed sentences by video.

Krishna et al., 2017 (https://arxiv.org/abs/1705.00754): each video has ``timestamps``, pairs of
seconds, and as many ``sentences``. ``--split=val`` is val_1, on which retrieval is reported.
Video files may be named with or without the ``v_`` of the annotations. With ``--paragraph`` the
sentences of a video are joined in their order, as paragraph-to-video retrieval takes them.
"""

from __future__ import annotations

from common.data.annotations import published
from common.data.annotations.published import Clip, Folder, Format, Published
from common.errors import UserError


def read(folder: Folder, split: str, cut: str) -> Published:
    """Reads one split."""
    del cut
    name = "val_1.json" if split == "val" else f"{split}.json"
    path = folder.need(name, f"captions/{name}")
    clips = []
    for video, entry in published.read_json(path, kind=dict).items():
        times, sentences = published.fields(path, entry, "timestamps", "sentences")
        if len(times) != len(sentences):
            raise UserError(f"{path}, {video!r}: {len(times)} times, {len(sentences)} sentences.")
        try:
            captions = tuple(
                (text.strip(), float(start), float(end))
                for text, (start, end) in zip(sentences, times, strict=True)
                if text.strip()
            )
        except (AttributeError, TypeError, ValueError) as error:
            raise UserError(
                f"{path}, {video!r}: {error}; expected texts, pairs of seconds."
            ) from error
        files = (f"videos/{video}.mp4", f"videos/{video.removeprefix('v_')}.mp4")
        clips.append(Clip(video, files, captions))
    return Published(clips)


FORMAT = Format(read, ("train", "val", "val_1", "val_2"), tells=True)
