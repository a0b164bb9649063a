"""What frozen features have to beat: raw pixels, raw sound, noise."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from common.evaluation.features import Features
from common.method import AudioInput, Encoder, VideoInput

_FRAMES, _PIXELS = 8, 16  # what a clip is reduced to
_BANDS, _MOMENTS = 64, 8  # what a sound is reduced to
_WINDOW_S = 0.025
_NOISE_DIM = 64


@functools.cache  # one object per input, so that what is compiled for it is found again
def raw_encoder(inputs: VideoInput | AudioInput) -> Encoder:
    """Returns an encoder without weights, whose features are the input itself, made small.

    Video: at most 8 frames of 16 x 16 pixels in colour, each the mean of the area it stands for.
    Sound: the log of a spectrogram's magnitudes in 64 bands, averaged over 8 stretches of time.
    """
    if isinstance(inputs, AudioInput):
        return Encoder(inputs, _BANDS * _MOMENTS, lambda _, sound: _spectrogram(sound, inputs))
    frames, pixels = min(_FRAMES, inputs.num_frames), min(_PIXELS, inputs.size)

    def embed(_: None, video_BTHWC: jax.Array) -> jax.Array:
        shape = (video_BTHWC.shape[0], frames, pixels, pixels, 3)
        small = jax.image.resize(video_BTHWC.astype(jnp.float32) / 255.0, shape, "linear")
        return small.reshape(shape[0], -1)

    return Encoder(inputs, frames * pixels * pixels * 3, embed)


def _spectrogram(sound_BN: jax.Array, inputs: AudioInput) -> jax.Array:
    window = int(_WINDOW_S * inputs.sample_rate)
    count = inputs.num_samples // window
    frames_BLW = sound_BN[:, : count * window].astype(jnp.float32).reshape(-1, count, window)
    spectrum = jnp.abs(jnp.fft.rfft(frames_BLW / 32768.0 * jnp.hanning(window)))
    shape = (len(sound_BN), _MOMENTS, _BANDS)
    return jax.image.resize(jnp.log(spectrum + 1e-4), shape, "linear").reshape(len(sound_BN), -1)


def noise_like(features: Features, seed: int) -> Features:
    """Returns the same videos with standard normal rows that know nothing of them."""
    shape = (len(features.rows_RD), _NOISE_DIM)
    rows_RD = np.random.default_rng(seed).standard_normal(shape, np.float32)
    return Features(rows_RD, features.videos, features.bad)
