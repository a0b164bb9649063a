"""The frames that stand for a whole video: one from each of its equal parts.

The parts and their middles are those of Frozen in Time's published code
(github.com/m-bain/frozen-in-time), and so are the offsets of its sliding window.
"""

from __future__ import annotations

import numpy as np

from common.evaluation.protocols import Protocol
from common.method import VideoInput


def edges(length: int, num_frames: int) -> np.ndarray:
    """Returns where the parts of a video begin, and its end, int64 (parts + 1,).

    There are as many parts as frames are wanted, or as the video has.

    Args:
        length: frames of the video.
        num_frames: wanted.

    Raises:
        ValueError: one of them is not positive.
    """
    if min(length, num_frames) < 1:
        raise ValueError(f"{num_frames} parts of {length} frames")
    # Through floating point, as published: an edge may fall a frame below the exact quotient.
    return np.linspace(0, length, min(num_frames, length) + 1).astype(np.int64)


def spread_frames(length: int, num_frames: int, count: int) -> np.ndarray:
    """Returns one frame of each part for each of `count` clips, int64 (count, parts).

    The frames of the clips lie evenly inside the parts, rounded down: those of a single clip, which
    is the published one, in the middle of each.

    Args:
        length: frames of the video.
        num_frames: wanted.
        count: how many clips.

    Raises:
        ValueError: one of them is not positive.
    """
    if count < 1:
        raise ValueError(f"{count} clips")
    edge = edges(length, num_frames)
    last_T = np.diff(edge) - 1  # of a part, counted from its first frame
    return edge[:-1] + last_T * (2 * np.arange(count)[:, None] + 1) // (2 * count)


def sliding_frames(
    length: int, num_frames: int, stride: int, published_bound: bool = False
) -> np.ndarray:
    """Returns the frames of every window of a sliding window, int64 (windows, parts).

    Window k takes the frame k x `stride` after the first one of each part, for every k x `stride`
    below length // parts. The published code stops earlier, at length // (parts + 1), and fails
    where that is 0; here the first window is always there.

    Args:
        length: frames of the video.
        num_frames: wanted.
        stride: frames from one window to the next.
        published_bound: stops where the published code does.

    Raises:
        ValueError: one of the numbers is not positive.
    """
    if stride < 1:
        raise ValueError(f"a stride of {stride} frames")
    begin_T = edges(length, num_frames)[:-1]
    bound = length // (len(begin_T) + published_bound)
    return begin_T + np.arange(0, max(bound, 1), stride)[:, None]


def frames(num_stored: int, inputs: VideoInput, protocol: Protocol) -> np.ndarray:
    """Returns which stored frames make up each clip, int64 (clips, T).

    A video with fewer frames than the encoder takes gives all of them, the last one repeated. (The
    published code fills up with zeros after normalisation, which are frames of the mean colour.) A
    single picture is one clip of one frame, whatever the protocol.

    Args:
        num_stored: frames of the video, at least 1.
        inputs: what the encoder takes.
        protocol: how many clips, or how far apart.
    """
    if num_stored == 1:
        return np.zeros((1, 1), np.int64)
    if protocol.window_stride:
        stride, published = protocol.window_stride, protocol.published_bound
        frames_KT = sliding_frames(num_stored, inputs.num_frames, stride, published)
    else:
        frames_KT = spread_frames(num_stored, inputs.num_frames, protocol.test_clips)
    missing = inputs.num_frames - frames_KT.shape[1]
    return np.pad(frames_KT, ((0, 0), (0, missing)), mode="edge")
