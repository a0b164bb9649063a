"""Clips other than the whole records of a source: those of a table, windows, single seconds."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from common.data import records
from common.errors import UserError
from common.evaluation import clips, reading, windows
from common.evaluation.features import BadClip, Example, Read
from common.method import VideoInput

if TYPE_CHECKING:
    from common.data.sources import Source

_SLACK = 1e-4  # of a frame: rates are stored in float32


@dataclasses.dataclass(frozen=True)
class Stretches:
    """What is embedded of a source instead of each of its records.

    Attributes:
        clips: for each clip the number of its record, and its start and end in the file that the
            record was made from, seconds; None is the whole record.
        windows: how many published windows are cut of each clip; 0 cuts what the protocol says,
            which is of whole records.
        every_second: cuts one window around each second of each clip instead, whose start and end
            are then whole seconds of the record.
    """

    clips: tuple[tuple[int, tuple[float, float] | None], ...]
    windows: int = 0
    every_second: bool = False

    def __len__(self) -> int:
        return len(self.clips)

    def description(self) -> dict[str, Any]:
        """Returns what decides the numbers, in JSON's types."""
        digest = hashlib.sha256(json.dumps(self.clips).encode()).hexdigest()
        return {"clips": digest, "windows": self.windows, "every_second": self.every_second}

    def reader(
        self, source: Source, inputs: VideoInput, cut: reading.Cut, rates: reading.DefaultRates
    ) -> Read:
        """Returns what reads the clips by number.

        Args:
            source: the records.
            inputs: what the encoder takes.
            cut: cuts a whole record as the protocol says.
            rates: of records that do not say.

        Raises:
            UserError: the source has no frames, or windows are asked for where an encoder's frames
                are spread over the whole video.
        """
        if inputs.segments and (self.windows or self.every_second):
            raise UserError(
                "Windows of a video are neighbouring frames, but the encoder's frames are spread "
                "over a whole clip. For retrieval take --protocol=frozen, with each clip ingested "
                "as a record of its own; steps are not localised with such a model."
            )
        whole = reading.SourceReader(source, "frames", cut, rates)

        def read(number: int) -> Example:
            record, span_s = self.clips[number]
            if not self.windows and not self.every_second:
                return whole(record)

            def cut_stretch(clip: records.Clip, _: int) -> np.ndarray:
                if self.every_second:
                    return second_clips(clip, span_s, inputs, rates)
                return window_clips(clip, span_s, inputs, self.windows, rates)

            return reading.SourceReader(source, "frames", cut_stretch, rates)(record)

        return read


def window_clips(
    clip: records.Clip,
    span_s: tuple[float, float] | None,
    inputs: VideoInput,
    count: int,
    rates: reading.DefaultRates,
) -> np.ndarray:
    """Cuts the windows of MIL-NCE's published retrieval, uint8 (count, T, S, S, 3).

    They begin as `windows.start_seconds` says; pictures are those of `_pictures`.

    Args:
        clip: the record.
        span_s: start and end, seconds of the file the record was made from; None is all of it.
        inputs: what the encoder takes.
        count: how many windows.
        rates: of records that do not say.

    Raises:
        BadClip: the record has no frames at that time, or one that cannot be decoded.
    """
    num_stored = len(clip.frames_jpeg)
    if not num_stored:
        raise BadClip("it has no frames")
    stored_rate = clip.frame_rate or rates.frame_rate
    length_s = num_stored / stored_rate
    start_s, end_s = (0.0, length_s) if span_s is None else np.subtract(span_s, clip.start_s)
    if start_s >= length_s or end_s <= 0:
        raise BadClip(
            f"it has no frames from {span_s[0]:g} s to {span_s[1]:g} s: it begins at "
            f"{clip.start_s:g} s and ends at {clip.start_s + length_s:g} s"
        )
    frame_rate = inputs.frame_rate / inputs.stride
    begin_K = windows.start_seconds(
        max(0.0, float(start_s)), float(end_s), inputs.num_frames, frame_rate, count
    )
    return _pictures(clip, begin_K, inputs, stored_rate)


def second_clips(
    clip: records.Clip,
    seconds: tuple[float, float],
    inputs: VideoInput,
    rates: reading.DefaultRates,
) -> np.ndarray:
    """Cuts the windows around seconds [first, end) of a record, uint8 (seconds, T, S, S, 3).

    They begin as `windows.start_around_seconds` says; pictures are those of `_pictures`.

    Raises:
        BadClip: a frame cannot be decoded.
    """
    first, end = seconds
    begin_K = windows.start_around_seconds(
        int(first), int(end), inputs.num_frames, inputs.frame_rate / inputs.stride
    )
    return _pictures(clip, begin_K, inputs, clip.frame_rate or rates.frame_rate)


def num_seconds(clip: records.Clip, rates: reading.DefaultRates) -> int:
    """Returns how many seconds a record has, the last of which may be cut short."""
    return math.ceil((len(clip.frames_jpeg) - _SLACK) / (clip.frame_rate or rates.frame_rate))


def _pictures(
    clip: records.Clip, begin_K: np.ndarray, inputs: VideoInput, stored_rate: float
) -> np.ndarray:
    """Returns the windows that begin at these seconds, uint8 (K, T, S, S, 3).

    A picture is the square in the middle of the stored frame shown at its time, as large as the
    frame's shorter side, resized; before the first frame and after the last one it is black.
    """
    num_stored = len(clip.frames_jpeg)
    at_KT = begin_K[:, None] + np.arange(inputs.num_frames) * inputs.stride / inputs.frame_rate
    stored_KT = np.floor(at_KT * stored_rate + _SLACK).astype(np.int64)
    frame = clips.encoded_frames(clip.frames_jpeg)
    try:
        return clips.squares(frame, num_stored, stored_KT, inputs)
    except ValueError as error:
        raise BadClip(str(error)) from error
