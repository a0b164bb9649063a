"""Where the windows of a clip begin in published evaluations, and those of every second.

MSR-VTT, YouCook2 and HMDB-51: github.com/antoine77340/MIL-NCE_HowTo100M; UCF-101:
github.com/google-deepmind/deepmind-research, mmv. A single window stands at the beginning, while
BraVe's rule (`common.evaluation.clips.starts`) puts it in the middle.
"""

from __future__ import annotations

import math

import numpy as np

from common.errors import UserError

MARGIN_S = 0.4  # left free at the end, since a file is often shorter than its table says


def start_seconds(
    clip_start_s: float, clip_end_s: float, num_frames: int, frame_rate: float, count: int
) -> np.ndarray:
    """Returns where the windows of MSR-VTT and YouCook2 begin, float64 seconds (count,).

    Evenly spaced from the start of the clip to a window's length and 0.4 s before its end; a single
    window, and every window of a clip shorter than that, begins where the clip does.

    Args:
        clip_start_s: where the clip begins in its video; 0 for a whole video.
        clip_end_s: where it ends.
        num_frames: of a window.
        frame_rate: frames per second of a window.
        count: how many windows.

    Raises:
        UserError: the clip ends before it begins, or a time is not a finite number.
        ValueError: count, frames or rate is not positive.
    """
    if count < 1 or num_frames < 1 or not 0 < frame_rate < math.inf:
        raise ValueError(f"{count} windows of {num_frames} frames at {frame_rate} frames/s")
    if not -math.inf < clip_start_s <= clip_end_s < math.inf:
        raise UserError(
            f"A clip from {clip_start_s:g} s to {clip_end_s:g} s has no windows: it must end after "
            "it begins. Correct its times in the table."
        )
    last_s = max(clip_start_s, clip_end_s - num_frames / frame_rate - MARGIN_S)
    return np.linspace(clip_start_s, last_s, count)


def start_around_seconds(first: int, end: int, num_frames: int, frame_rate: float) -> np.ndarray:
    """Returns where the windows of seconds [first, end) begin, float64 seconds (end - first,).

    The window of second t has its middle at t + 0.5. Those of the first seconds begin before the
    video does, which is a time below 0.

    Args:
        first: second, from 0.
        end: second after the last.
        num_frames: of a window.
        frame_rate: frames per second of a window.

    Raises:
        ValueError: frames or rate is not positive.
    """
    if num_frames < 1 or not 0 < frame_rate < math.inf:
        raise ValueError(f"windows of {num_frames} frames at {frame_rate} frames/s")
    return np.arange(first, end) + 0.5 - num_frames / frame_rate / 2


def start_frames(num_stored: int, num_frames: int, count: int) -> np.ndarray:
    """Returns the first frame of each window of HMDB-51, int64 (count,).

    Windows are consecutive frames at the video's own rate, evenly spaced from the first to the last
    possible place, rounded down; a single one, and every one of a video too short for one, begins
    at frame 0.

    Args:
        num_stored: frames of the video.
        num_frames: of a window.
        count: how many windows.

    Raises:
        ValueError: one of them is not positive.
    """
    if min(num_stored, num_frames, count) < 1:
        raise ValueError(f"{count} windows of {num_frames} of {num_stored} frames")
    return np.linspace(0, max(0, num_stored - num_frames), count).astype(np.int64)


def looped_frames(length: int, num_frames: int, stride: int, count: int) -> np.ndarray:
    """Returns the frames of each window of UCF-101, int64 (count, num_frames).

    Windows begin evenly spaced between frame 0 and `num_frames` strides before the end of the video
    (up to a stride more than a window needs, as published), rounded down. The frames of a video too
    short for that are taken round and round, every window from the first one.

    Args:
        length: frames of the video.
        num_frames: of a window.
        stride: frames between two of them.
        count: how many windows.

    Raises:
        ValueError: one of them is not positive.
    """
    if min(length, num_frames, stride, count) < 1:
        raise ValueError(f"{count} windows of {num_frames} of {length} frames, stride {stride}")
    begin_K = np.linspace(0, max(0, length - num_frames * stride), count).astype(np.int64)
    return (begin_K[:, None] + stride * np.arange(num_frames)) % length
