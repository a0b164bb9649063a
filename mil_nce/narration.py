"""Which narrations and which stretch of a video are shown together: functions on plain numbers.

The published rules of MIL-NCE (Miech et al., 2020, github.com/antoine77340/MIL-NCE_HowTo100M) for
captions with a start and an end in seconds, except that a clip begins at a frame, not at a whole
second, and never reaches beyond the video.
"""

from __future__ import annotations

import math

import numpy as np

_SLACK = 1e-4  # of a frame: caption times and rates are stored in float32


def inside(
    start_C: np.ndarray, end_C: np.ndarray, duration: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the captions said in a video by the time of their start: indices, starts, ends.

    A caption whose times are not known (NaN) spans the whole video. Those that begin after its end
    or end before its start are left out; what reaches beyond is cut.
    """
    start_C = np.where(np.isnan(start_C), 0.0, start_C).astype(np.float64)
    end_C = np.where(np.isnan(end_C), duration, end_C).astype(np.float64)
    index_C = np.flatnonzero((start_C < duration) & ((end_C > 0) | (start_C >= 0)))
    index_C = index_C[np.argsort(start_C[index_C], kind="stable")]
    start_C, end_C = np.maximum(start_C[index_C], 0), np.minimum(end_C[index_C], duration)
    return index_C, start_C, np.maximum(start_C, end_C)


def candidates(start_C: np.ndarray, end_C: np.ndarray, row: int, count: int) -> np.ndarray:
    """Returns `count` neighbouring captions (int64) with `row` among them, in order.

    The window grows by the side that makes it shorter in time, the later one where both do. At the
    first or last caption it goes on the other way; where there are too few, that one is repeated
    in the place of those that lack.
    """
    first = last = row
    while last - first + 1 < count and first > 0:
        if last == len(start_C) - 1:
            first = last - count + 1
            break
        earlier = end_C[last] - start_C[first - 1]
        later = end_C[last + 1] - start_C[first]
        if earlier < later:
            first -= 1
        else:
            last += 1
    return np.clip(np.arange(first, first + count), 0, len(start_C) - 1)


def widened(
    start: float, end: float, min_time: float, duration: float = math.inf
) -> tuple[float, float]:
    """Returns a span of at least `min_time` seconds around another, as far as the video allows."""
    if end - start < min_time:
        start = max(0.0, start - (min_time - (end - start)) / 2)
        end = start + min_time
    if end > duration:
        start, end = max(0.0, min(start, duration - min_time)), duration
    return start, end


def first_frames(
    start: float, end: float, num_frames: int, rate: float, available: int
) -> tuple[int, int]:
    """Returns the first and the last frame at which a clip may begin that lies in a span.

    A clip that is longer than the span begins with it; one that would reach beyond the video begins
    earlier, and at frame 0 where the video is too short for it.

    Args:
        start: of the span, seconds.
        end: of the span, seconds.
        num_frames: of the clip.
        rate: frames per second.
        available: frames of the video at that rate.
    """
    first = math.ceil(start * rate - _SLACK)
    last = max(first, math.floor(end * rate + _SLACK) - num_frames)
    room = max(available - num_frames, 0)
    return min(max(first, 0), room), min(max(last, 0), room)
