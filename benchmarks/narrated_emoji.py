"""Narrated real videos: emoji clips joined into longer ones, with what somebody says meanwhile.

The clips are those of `real_data_sources`, in its splits. Every clip for training is shown twice,
in different company. Of the sentences about them half are said while the clip is on; of the others
a third comes 3 to 8 seconds early, a third as much late, and a third is about something else, as in
`common.data.playground_text.narrate`. Clips to be found are single, with the name of their concept.
"""

from __future__ import annotations

import dataclasses
import fractions
import itertools
import json
import os
import pathlib
from collections.abc import Mapping, Sequence

import av
import numpy as np

from benchmarks.real_data_sources import FRAME_RATE, SIZE, Emoji

ROUNDS = 2  # videos that show a clip
CLIPS = (5, 9)  # in a video, at least and at most

_SAYINGS = (
    "this one is the {it}",
    "and now you can see {it}",
    "here we have {it} again",
    "look at the {it}",
    "what a nice {it}",
    "{it} like this",
    "okay so {it}",
    "{it}",
)
_CHATTER = (
    "do not forget to like and subscribe",
    "um anyway where was i",
    "you can find the link in the description below",
    "if you have any questions just leave me a comment",
    "let me just see what comes next",
    "so yeah that is pretty much what we did last time",
)


@dataclasses.dataclass(frozen=True)
class Joined:
    """A video before it is made: its clips, and when each begins, in seconds."""

    name: str
    emojis: tuple[Emoji, ...]
    starts: tuple[float, ...]
    captions: tuple[dict, ...]  # text, start, end, timing


def plan(emojis: Sequence[Emoji], frames_of: Mapping[str, int], seed: int = 0) -> list[Joined]:
    """Decides which clips follow each other and what is said, a pure function of its arguments.

    Args:
        emojis: the clips to be joined.
        frames_of: frames of each clip, by code.
        seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    videos = []
    for _ in range(ROUNDS):
        order = [emojis[number] for number in rng.permutation(len(emojis))]
        while order:
            count = int(rng.integers(CLIPS[0], CLIPS[1] + 1))
            if len(order) - count < CLIPS[0]:  # the last one takes the rest
                count = len(order)
            shown, order = tuple(order[:count]), order[count:]
            lengths = [frames_of[emoji.code] / FRAME_RATE for emoji in shown]
            starts = tuple(float(s) for s in np.cumsum([0.0, *lengths[:-1]]))
            captions = _narrate(shown, starts, lengths, emojis, rng)
            videos.append(Joined(f"video_{len(videos):05d}", shown, starts, captions))
    return videos


def _narrate(
    shown: Sequence[Emoji],
    starts: Sequence[float],
    lengths: Sequence[float],
    emojis: Sequence[Emoji],
    rng: np.random.Generator,
) -> tuple[dict, ...]:
    """Returns a sentence about each clip, half of them misplaced, in the order of their starts."""
    duration = starts[-1] + lengths[-1]
    said = []
    for emoji, begin, length in zip(shown, starts, lengths, strict=True):
        seconds = min(float(rng.uniform(1.2, 2.4)), length)
        start = begin + (length - seconds) / 2
        timing, shift = "aligned", rng.uniform(3.0, 8.0)
        if rng.random() < 0.5:
            timing = ("early", "late", "other")[rng.integers(3)]
        start += {"early": -shift, "late": shift}.get(timing, 0.0)
        text = _about(emoji, rng)
        if timing == "other":
            text = str(rng.choice(_CHATTER))
            if rng.random() < 0.5:
                text = _about(emojis[rng.integers(len(emojis))], rng)
        start = float(np.clip(start, 0.0, duration - seconds))
        said.append(
            {
                "text": text,
                "start": round(start, 3),
                "end": round(start + seconds, 3),
                "timing": timing,
            }
        )
    return tuple(sorted(said, key=lambda line: line["start"]))


def _about(emoji: Emoji, rng: np.random.Generator) -> str:
    return str(rng.choice(_SAYINGS)).format(it=emoji.concept.replace(":", ""))


def write_training(
    emojis: Sequence[Emoji], clips: pathlib.Path, folder: pathlib.Path
) -> pathlib.Path:
    """Joins clips of ``clips/CODE.mp4`` to videos below `folder`; returns their table.

    Videos that are there already are kept, so a stopped run continues.
    """
    folder.mkdir(parents=True, exist_ok=True)
    videos = plan(emojis, {emoji.code: _count(clips / f"{emoji.code}.mp4") for emoji in emojis})
    for video in videos:
        path = folder / f"{video.name}.mp4"
        if not path.exists():
            _join([clips / f"{emoji.code}.mp4" for emoji in video.emojis], path)
    rows = [
        {
            "path": f"{video.name}.mp4",
            "labels": [emoji.concept for emoji in video.emojis],
            "captions": video.captions,
        }
        for video in videos
    ]
    return _write_table(folder / "train.jsonl", rows)


def write_test(emojis: Sequence[Emoji], clips: pathlib.Path, table: pathlib.Path) -> pathlib.Path:
    """Lists single clips, each with the name of its concept as its caption; returns the table."""
    rows = [
        {
            "path": os.path.relpath(clips / f"{emoji.code}.mp4", table.parent),
            "labels": [emoji.concept],
            "captions": [{"text": emoji.concept.replace(":", "")}],
        }
        for emoji in emojis
    ]
    return _write_table(table, rows)


def _write_table(path: pathlib.Path, rows: Sequence[Mapping]) -> pathlib.Path:
    partial = path.with_suffix(f".{os.getpid()}.partial")
    partial.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    partial.replace(path)
    return path


def _count(path: pathlib.Path) -> int:
    """Returns how many frames a rendered clip has; its container says."""
    with av.open(str(path)) as container:
        return container.streams.video[0].frames


def _join(paths: Sequence[pathlib.Path], output: pathlib.Path) -> None:
    """Writes the frames of clips one after the other as one mp4, which appears only when whole."""
    partial = output.with_suffix(f".{os.getpid()}.partial")
    with av.open(str(partial), "w", format="mp4") as joined:
        stream = joined.add_stream("libx264", rate=fractions.Fraction(FRAME_RATE))
        stream.height = stream.width = SIZE
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "17", "preset": "veryfast"}
        number = itertools.count()
        for path in paths:
            with av.open(str(path)) as clip:
                for frame in clip.decode(video=0):
                    frame.pts, frame.time_base = next(number), fractions.Fraction(1, FRAME_RATE)
                    frame.pict_type = av.video.frame.PictureType.NONE  # the encoder chooses anew
                    joined.mux(stream.encode(frame))
        joined.mux(stream.encode())
    partial.replace(output)
