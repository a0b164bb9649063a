"""Cuts the clips that an evaluation or an exported bundle embeds, deterministically, in NumPy.

Records and video files come through the same functions, so a bundle sees exactly what evaluation
saw. The arithmetic is that of the published evaluations of BraVe (github.com/google-deepmind/brave)
and MMV, but for the TensorFlow, and of Frozen in Time (github.com/m-bain/frozen-in-time), but for
the torchvision 0.9.1, which are not needed here.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence

import numpy as np

from common.evaluation import segments, windows
from common.evaluation.protocols import (
    CONSECUTIVE,
    LOOPED,
    RESIZE_DENOMINATOR,
    RESIZE_NUMERATOR,
    Protocol,
)
from common.method import AudioInput, VideoInput

_SLACK = 1e-4  # of a frame: rates are stored in float32


def starts(length: int, needed: int, count: int) -> np.ndarray:
    """Returns where `count` windows of `needed` out of `length` begin, int64 (count,).

    Evenly spaced from the first to the last possible place, rounded down; a single window lies in
    the middle (the published code never takes a single one in time, and centres it in space).
    """
    if count == 1:
        return np.array([(length - needed) // 2])
    return np.linspace(0, length - needed, count).astype(np.int64)


def frame_indices(
    num_stored: int, stored_rate: float, inputs: VideoInput, num_clips: int
) -> np.ndarray:
    """Returns which stored frames make up each clip, int64 (num_clips, T).

    Frames are counted at the encoder's rate; from a video of another rate, the stored frame shown
    at that time is taken. A video shorter than a clip is repeated as a whole until it is long
    enough.

    Args:
        num_stored: frames of the video, at least 1.
        stored_rate: frames per second of the video.
        inputs: what the encoder takes.
        num_clips: how many clips.
    """
    length = frames_at_rate(num_stored, stored_rate, inputs.frame_rate)
    span = (inputs.num_frames - 1) * inputs.stride + 1
    repeated = length * -(-span // length) if length < span else length
    begin_K = starts(repeated, span, num_clips)
    at_KT = begin_K[:, None] + inputs.stride * np.arange(inputs.num_frames)
    return stored_frames(at_KT % length, num_stored, stored_rate, inputs.frame_rate)


def frames_at_rate(num_stored: int, stored_rate: float, frame_rate: float) -> int:
    """Returns how many frames, at least 1, a video has at another rate."""
    return max(1, math.ceil(num_stored * frame_rate / stored_rate - _SLACK))


def stored_frames(
    at: np.ndarray, num_stored: int, stored_rate: float, frame_rate: float
) -> np.ndarray:
    """Returns the stored frames, int64, that are shown at the times of frames at another rate."""
    stored = np.floor(at * (stored_rate / frame_rate) + _SLACK).astype(np.int64)
    return np.minimum(stored, num_stored - 1)


def video_clips(
    frame: Callable[[int], np.ndarray],
    num_stored: int,
    stored_rate: float,
    inputs: VideoInput,
    protocol: Protocol,
) -> np.ndarray:
    """Cuts a video's clips, uint8 (clips * crops, T, S, S, 3), the crops of a clip together.

    By the protocol's rule:
    - spread: frames as `frame_indices` says, resized to 256/224 of the size, then cropped;
    - looped: frames as `windows.looped_frames` says, the short side resized to the size, the square
      in the middle;
    - consecutive: stored frames from `windows.start_frames` on, as `squares` says; the encoder's
      frame rate plays no part;
    - segments, and spread where the encoder says so: frames as `segments.frames` says, of a single
      picture one.

    An encoder that says what a frame is resized to gets `resized_squares`, whatever the rule.

    Args:
        frame: returns a stored frame by number, uint8 (H, W, 3); asked once per frame needed.
        num_stored: how many frames there are.
        stored_rate: frames per second.
        inputs: what the encoder takes.
        protocol: how many clips and crops.

    Raises:
        UserError: the protocol is not one for such encoders.
    """
    protocol.check(inputs)
    inputs, count = protocol.sampling(inputs), protocol.test_clips
    if protocol.rule == CONSECUTIVE:
        begin_K = windows.start_frames(num_stored, inputs.num_frames, count)
        at_KT = begin_K[:, None] + np.arange(inputs.num_frames)
        return squares(frame, num_stored, at_KT, inputs)
    short_side = inputs.size
    if protocol.rule == LOOPED:
        length = frames_at_rate(num_stored, stored_rate, inputs.frame_rate)
        at_KT = windows.looped_frames(length, inputs.num_frames, inputs.stride, count)
        indices_KT = stored_frames(at_KT, num_stored, stored_rate, inputs.frame_rate)
    else:
        short_side = inputs.size * RESIZE_NUMERATOR // RESIZE_DENOMINATOR
        if inputs.segments:
            indices_KT = segments.frames(num_stored, inputs, protocol)
        else:
            indices_KT = frame_indices(num_stored, stored_rate, inputs, count)
    used, place_KT = np.unique(indices_KT, return_inverse=True)
    place_KT = place_KT.reshape(indices_KT.shape)
    crops = []
    for index in used:
        image_HWC = frame(int(index))
        if inputs.resize:
            crops.append(resized_squares(image_HWC, inputs, protocol.test_crops))
        else:
            image_HWC = resize_short_side(image_HWC, short_side)
            crops.append(square_crops(image_HWC, inputs.size, protocol.test_crops))
    crops_NJSSC = np.stack(crops)
    clips_KJTSSC = np.moveaxis(crops_NJSSC[place_KT], 1, 2)
    return np.ascontiguousarray(clips_KJTSSC.reshape(-1, *clips_KJTSSC.shape[2:]))


def squares(
    frame: Callable[[int], np.ndarray], num_stored: int, stored_KT: np.ndarray, inputs: VideoInput
) -> np.ndarray:
    """Returns the square in the middle of each frame, resized, uint8 (K, T, S, S, 3).

    It is as large as the shorter side, or as `resized_squares` says where the encoder asks for it.

    Args:
        frame: returns a stored frame by number, uint8 (H, W, 3); asked once per frame needed.
        num_stored: how many frames there are; what lies before and after them is black.
        stored_KT: which stored frames.
        inputs: what the encoder takes.
    """
    size = inputs.size
    used, place_KT = np.unique(np.clip(stored_KT, -1, num_stored), return_inverse=True)
    pictures_USSC = np.zeros((len(used), size, size, 3), np.uint8)
    for picture_SSC, index in zip(pictures_USSC, used, strict=True):
        if 0 <= index < num_stored:
            image_HWC = frame(int(index))
            if inputs.resize:
                (picture_SSC[:],) = resized_squares(image_HWC, inputs, 1)
                continue
            (square_HWC,) = square_crops(image_HWC, min(image_HWC.shape[:2]), 1)
            picture_SSC[:] = resize_short_side(square_HWC, size)
    return pictures_USSC[place_KT.reshape(stored_KT.shape)]


def square_crops(image_HWC: np.ndarray, size: int, count: int) -> list[np.ndarray]:
    """Returns `count` square crops, their top and left edges advancing together."""
    height, width, _ = image_HWC.shape
    corners = zip(starts(height, size, count), starts(width, size, count), strict=True)
    return [image_HWC[top : top + size, left : left + size] for top, left in corners]


def resized_squares(image_HWC: np.ndarray, inputs: VideoInput, count: int) -> list[np.ndarray]:
    """Returns `count` squares of a frame as `VideoInput.resize` says, uint8 (size, size, 3) each.

    Several advance from one end of the longer side to the other. Both resizes are in float32, and
    rounded once at the end.
    """
    return [
        np.rint(resize_bilinear(square_HWC, inputs.size, inputs.size)).astype(np.uint8)
        for square_HWC in large_squares(image_HWC, inputs.resize, count)
    ]


def large_squares(image_HWC: np.ndarray, side: int, count: int) -> list[np.ndarray]:
    """Returns `count` squares of an image whose short side was resized to theirs, float32.

    A single one lies in the middle, by halves rounded to the even pixel as torchvision's does; see
    `square_crops` for several.
    """
    height, width, _ = image_HWC.shape
    shorter = min(height, width)
    height, width = height * side // shorter, width * side // shorter
    resized_HWC = resize_bilinear(image_HWC, height, width)
    if count > 1:
        return square_crops(resized_HWC, side, count)
    top, left = round((height - side) / 2), round((width - side) / 2)
    return [resized_HWC[top : top + side, left : left + side]]


def resize_short_side(image_HWC: np.ndarray, short_side: int) -> np.ndarray:
    """Resizes a uint8 image so that its shorter side is `short_side`, the longer rounded down."""
    height, width, _ = image_HWC.shape
    shorter = min(height, width)
    new_height, new_width = height * short_side // shorter, width * short_side // shorter
    if (new_height, new_width) == (height, width):
        return image_HWC
    return resize_bilinear(image_HWC, new_height, new_width).astype(np.uint8)  # truncates


def resize_bilinear(image_HWC: np.ndarray, new_height: int, new_width: int) -> np.ndarray:
    """Resizes with half-pixel centres and no antialiasing, to float32, as ``tf.image.resize``."""
    height, width, _ = image_HWC.shape
    top, bottom, down = _neighbours(height, new_height)
    left, right, across = _neighbours(width, new_width)
    across = across[:, None]

    def along_width(rows: np.ndarray) -> np.ndarray:
        rows_HWC = image_HWC[rows].astype(np.float32)
        left_HWC = rows_HWC[:, left]
        return left_HWC + (rows_HWC[:, right] - left_HWC) * across

    upper_HWC = along_width(top)
    return upper_HWC + (along_width(bottom) - upper_HWC) * down[:, None, None]


def _neighbours(size: int, new_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns for each new pixel the two old ones it lies between, and how far along."""
    scale = np.float32(size) / np.float32(new_size)
    at = (np.arange(new_size, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5)
    below = np.floor(at)
    lower = np.maximum(below, 0).astype(np.int64)
    upper = np.minimum(np.ceil(at), size - 1).astype(np.int64)
    return lower, upper, at - below


def decode_image(encoded: bytes) -> np.ndarray:
    """Decodes a JPEG or PNG to uint8 (H, W, 3), with the accurate inverse transform.

    Raises:
        ValueError: it is no whole image. (OpenCV would fill the missing part with grey.)
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(encoded)) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError) as error:  # Pillow raises SyntaxError for broken PNG chunks
        raise ValueError(f"a frame cannot be decoded: {error}") from error


def encoded_frames(frames: Sequence[bytes]) -> Callable[[int], np.ndarray]:
    """Returns a function that decodes one of the stored frames."""
    return lambda index: decode_image(frames[index])


def to_int16(waveform_N: np.ndarray, stored_rate: int, sample_rate: int) -> np.ndarray:
    """Quantises sound in [-1, 1] to int16 PCM, resampled where the rates (Hz) differ.

    Louder sound is clipped; the resampler is a polyphase windowed sinc, as in training.
    """
    pcm_N = np.rint(np.clip(waveform_N, -1.0, 1.0) * np.float32(32767.0)).astype(np.int16)
    if stored_rate == sample_rate:
        return pcm_N
    from scipy import signal

    common = math.gcd(stored_rate, sample_rate)
    resampled_N = signal.resample_poly(
        pcm_N.astype(np.float32), sample_rate // common, stored_rate // common
    )
    return np.clip(np.rint(resampled_N), -32768, 32767).astype(np.int16)


def audio_clips(waveform_N: np.ndarray, inputs: AudioInput, protocol: Protocol) -> np.ndarray:
    """Cuts a sound's windows, (clips, num_samples), in the dtype of the waveform.

    A sound shorter than a window is repeated as a whole until it is long enough.

    Args:
        waveform_N: mono, at the encoder's sample rate, at least one sample.
        inputs: what the encoder takes.
        protocol: how many clips.
    """
    length, needed = len(waveform_N), inputs.num_samples
    repeated = length * -(-needed // length) if length < needed else length
    begin_K = starts(repeated, needed, protocol.test_clips)
    return waveform_N[(begin_K[:, None] + np.arange(needed)) % length]
