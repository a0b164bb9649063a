"""Clips other than the whole records of a source: those of a table, and published windows."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import TYPE_CHECKING, Any

import numpy as np

from common.data import records
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
    """

    clips: tuple[tuple[int, tuple[float, float] | None], ...]
    windows: int = 0

    def __len__(self) -> int:
        return len(self.clips)

    def description(self) -> dict[str, Any]:
        """Returns what decides the numbers, in JSON's types."""
        digest = hashlib.sha256(json.dumps(self.clips).encode()).hexdigest()
        return {"clips": digest, "windows": self.windows}

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
            UserError: the source has no frames.
        """
        whole = reading.SourceReader(source, "frames", cut, rates)

        def read(number: int) -> Example:
            record, span_s = self.clips[number]
            if not self.windows:
                return whole(record)

            def cut_windows(clip: records.Clip, _: int) -> np.ndarray:
                return window_clips(clip, span_s, inputs, self.windows, rates)

            return reading.SourceReader(source, "frames", cut_windows, rates)(record)

        return read


def window_clips(
    clip: records.Clip,
    span_s: tuple[float, float] | None,
    inputs: VideoInput,
    count: int,
    rates: reading.DefaultRates,
) -> np.ndarray:
    """Cuts the windows of MIL-NCE's published retrieval, uint8 (count, T, S, S, 3).

    They begin as `windows.start_seconds` says. A picture is the square in the middle of the stored
    frame shown at its time, with the frame's shorter side, resized; it is black after the last one.

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
    at_KT = begin_K[:, None] + np.arange(inputs.num_frames) / frame_rate
    stored_KT = np.floor(at_KT * stored_rate + _SLACK).astype(np.int64)
    frame = clips.encoded_frames(clip.frames_jpeg)
    try:
        return clips.squares(frame, num_stored, stored_KT, inputs.size)
    except ValueError as error:
        raise BadClip(str(error)) from error
