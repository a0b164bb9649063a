"""Which frames and which stretch of sound a view takes from a clip; runs inside tf.data.

Frames are counted at the view's rate, whatever rate the record has: frame ``i`` of the view is the
stored frame shown at time ``i / rate``. Where both rates are equal, and that is what the published
code assumes, the numbers are those of BraVe (Recasens et al., 2021,
https://github.com/google-deepmind/brave). Clips that are too short are repeated from their start.
"""

from __future__ import annotations

from common.tf import tf

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
    waveform_N: tf.Tensor,
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
        waveform_N: float32 mono in [-1, 1]; what lies outside is clipped.
        stored_rate: Hz of `waveform_N`.
        start: frame at `frame_rate`.
        num_frames: of the clip, at `frame_rate`.
        frame_rate: frames/s.
        num_samples: length of the result.
        sample_rate: Hz of the result.
    """
    frames = tf.cast(num_frames, tf.float32)
    per_frame = tf.cast(tf.size(waveform_N), tf.float32) / frames
    first = tf.cast(tf.cast(start, tf.float32) * per_frame, tf.int64)
    needed = tf.cast(start, tf.float32) + num_samples / sample_rate * frame_rate
    repeats = tf.cast(tf.math.ceil(needed / frames), tf.int64)
    stored_rate = tf.cast(tf.round(stored_rate), tf.int64)
    length = -(-num_samples * stored_rate // sample_rate)  # of the window, as stored
    window_N = _repeated_window(to_int16(waveform_N), first, length, repeats)
    window_N = tf.cond(
        stored_rate == sample_rate,
        lambda: window_N,
        lambda: tf.numpy_function(
            _resample, [window_N, stored_rate, sample_rate], tf.int16, stateful=False
        ),
    )[:num_samples]
    window_N = tf.pad(window_N, [[0, num_samples - tf.size(window_N)]])
    return tf.ensure_shape(window_N, (num_samples,))


def to_int16(waveform_N: tf.Tensor) -> tf.Tensor:
    """Quantises sound in [-1, 1] to int16, 1.0 to 32767; louder sound is clipped."""
    return tf.cast(tf.round(tf.clip_by_value(waveform_N, -1.0, 1.0) * 32767.0), tf.int16)


def _repeated_window(
    waveform_N: tf.Tensor, first: tf.Tensor, length: tf.Tensor, repeats: tf.Tensor
) -> tf.Tensor:
    """Returns ``tile(waveform, repeats)[first : first + length]``."""
    fits = first + length <= tf.size(waveform_N, out_type=tf.int64)
    return tf.cond(
        fits,
        lambda: waveform_N[first : first + length],
        lambda: tf.tile(waveform_N, [repeats])[first : first + length],
    )


def _resample(window_N, stored_rate, sample_rate):
    import numpy as np
    import scipy.signal

    common = np.gcd(stored_rate, sample_rate)
    up, down = sample_rate // common, stored_rate // common
    result = scipy.signal.resample_poly(window_N.astype(np.float32), up, down)
    return np.clip(np.rint(result), -32768, 32767).astype(np.int16)


def _ratio(numerator: tf.Tensor | float, denominator: tf.Tensor | float) -> tf.Tensor:
    return tf.cast(numerator, tf.float64) / tf.cast(denominator, tf.float64)
