"""Which frames and which stretch of sound a view takes from a clip; runs inside tf.data.

Frames are counted at the view's rate, whatever rate the record has: frame ``i`` of the view is the
stored frame shown at time ``i / rate``. Where both rates are equal, and that is what the published
code assumes, the numbers are those of BraVe (Recasens et al., 2021,
https://github.com/google-deepmind/brave). Clips that are too short are repeated from their start.
"""

from __future__ import annotations

import numpy as np

from common.data.parts import StoredSound
from common.tf import empty_for_tf, tf

_SLACK = 1e-4  # of a frame: rates are stored in float32


def frames_at_rate(num_stored: tf.Tensor, stored_rate: tf.Tensor, rate: float) -> tf.Tensor:
    """Returns how many frames (int64) a clip of `num_stored` frames has at `rate` frames/s."""
    ratio = _ratio(rate, stored_rate)
    count = tf.math.ceil(tf.cast(num_stored, tf.float64) * ratio - _SLACK)
    return tf.maximum(tf.cast(count, tf.int64), 1)


def count_starts(available: tf.Tensor, num_frames: int, stride: int) -> tf.Tensor:
    """Returns at how many places (int64, at least 1) a view can start without being repeated."""
    span = (num_frames - 1) * stride + 1
    return tf.maximum(tf.cast(available, tf.int64) - span, 0) + 1


def random_start(seed: tf.Tensor, starts: tf.Tensor) -> tf.Tensor:
    """Draws a start (int64) uniformly from ``range(starts)``; `seed` is an int32 (2,) tensor."""
    return tf.random.stateless_uniform((), seed, 0, tf.cast(starts, tf.int64), tf.int64)


def clip_indices(
    start: tf.Tensor,
    num_frames: int,
    stride: int,
    num_stored: tf.Tensor,
    stored_rate: tf.Tensor,
    rate: float,
) -> tf.Tensor:
    """Returns the stored frames (num_frames,) int64 of a view that begins at frame `start`.

    `start` and `stride` count frames at `rate`; the clip is repeated where it ends too early.
    """
    available = frames_at_rate(num_stored, stored_rate, rate)
    wanted_T = (
        tf.cast(start, tf.int64) + stride * tf.range(num_frames, dtype=tf.int64)
    ) % available
    time_T = tf.cast(wanted_T, tf.float64) * _ratio(stored_rate, rate)
    index_T = tf.cast(tf.floor(time_T + _SLACK), tf.int64)
    return tf.minimum(index_T, tf.cast(num_stored, tf.int64) - 1)


def synced_waveform(
    waveform_N: tf.Tensor | StoredSound,
    stored_rate: tf.Tensor,
    start: tf.Tensor,
    num_frames: tf.Tensor,
    frame_rate: float,
    num_samples: int,
    sample_rate: int,
) -> tf.Tensor:
    """Returns the sound that begins with frame `start`, as int16 PCM (num_samples,).

    As published: a clip (of `num_frames` frames at `frame_rate`, with its sound) that ends before
    the window does is repeated as often as needed; the first sample is ``int(start * samples per
    frame)`` in float32; a waveform that is still too short is padded with zeros at its end. Sound
    stored at another rate than `sample_rate` is resampled by a polyphase windowed-sinc filter.

    Args:
        waveform_N: float32 mono in [-1, 1]; what lies outside is clipped. Samples that are not
            finite are an error of the record.
        stored_rate: Hz of `waveform_N`.
        start: frame at `frame_rate`.
        num_frames: of the clip, at `frame_rate`.
        frame_rate: frames/s.
        num_samples: length of the result.
        sample_rate: Hz of the result.
    """

    def window(stored_rate, start, num_frames, *place) -> np.ndarray:
        waveform_N = sound.read(*place)
        stored_rate = round(float(stored_rate))
        frames, start = np.float32(num_frames), np.float32(start)
        first = int(start * (np.float32(len(waveform_N)) / frames))
        needed = start + np.float32(num_samples / sample_rate * frame_rate)
        end = min(
            first - (-num_samples * stored_rate // sample_rate),
            len(waveform_N) * int(np.ceil(needed / frames)),
        )
        pieces = _repeated(waveform_N, first, end)
        if stored_rate != sample_rate:
            pieces = [_resample(np.concatenate(pieces), stored_rate, sample_rate)]
        pcm_N, at = empty_for_tf((num_samples,), np.int16), 0
        for piece_M in pieces:
            piece_M = piece_M[: num_samples - at]
            pcm_N[at : at + len(piece_M)] = to_int16(piece_M)
            at += len(piece_M)
        pcm_N[at:] = 0
        return pcm_N

    sound = waveform_N
    if not isinstance(sound, StoredSound):
        sound = StoredSound(lambda waveform_N: waveform_N, (waveform_N,))
    place = [stored_rate, start, num_frames, *sound.place]
    pcm_N = tf.numpy_function(window, place, tf.int16, stateful=False)
    return tf.ensure_shape(pcm_N, (num_samples,))


def to_int16(waveform_N: np.ndarray) -> np.ndarray:
    """Quantises sound in [-1, 1] to int16, 1.0 to 32767; louder sound is clipped."""
    if not np.isfinite(waveform_N.sum()):
        raise ValueError("the sound has samples that are not finite")
    scaled_N = waveform_N * np.float32(32767)
    np.rint(scaled_N, out=scaled_N)
    return np.clip(scaled_N, -32767, 32767, out=scaled_N).astype(np.int16)


def _repeated(waveform_N: np.ndarray, first: int, end: int) -> list[np.ndarray]:
    """Returns samples `first` to `end` of the waveform repeated for ever, lap by lap."""
    length = len(waveform_N)
    if end <= length:
        return [waveform_N[first:end]]
    laps = range(first // length, -(-end // length))
    return [waveform_N[max(first - lap * length, 0) : end - lap * length] for lap in laps]


def _resample(window_N: np.ndarray, stored_rate: int, sample_rate: int) -> np.ndarray:
    import scipy.signal

    common = np.gcd(stored_rate, sample_rate)
    return scipy.signal.resample_poly(window_N, sample_rate // common, stored_rate // common)


def _ratio(numerator: tf.Tensor | float, denominator: tf.Tensor | float) -> tf.Tensor:
    return tf.cast(numerator, tf.float64) / tf.cast(denominator, tf.float64)
