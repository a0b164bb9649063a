"""Log-mel spectrograms on the device, inside jit, equal to the published TensorFlow ones (BraVe,
Recasens et al. 2021, arXiv:2103.16559, ``spectrograms.py``; mel scale of
``tf.signal.linear_to_mel_weight_matrix``, which is HTK's) to float32 rounding.

The transform is a product with a matrix of windowed cosines and sines, made only for the
frequencies that some mel filter looks at. With 50 of 161 frequencies in use (48 kHz) this is as
quick on a CPU as a fast transform, it is what matrix units are for, and it leaves a batch that is
split over devices split, which XLA's transforms do not promise.
"""

from __future__ import annotations

import dataclasses
import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from common.errors import UserError

PCM_FULL_SCALE = 32767.0  # the int16 that stands for 1.0

_log = logging.getLogger(__name__)


def _mel(hertz: np.ndarray | float) -> np.ndarray:
    return 1127.0 * np.log1p(np.asarray(hertz, np.float64) / 700.0)


def mel_matrix(
    mel_bins: int, frequencies: int, sample_rate: int, low_hz: float, high_hz: float
) -> np.ndarray:
    """Returns float64 weights (frequencies, mel_bins) from magnitudes to triangular mel filters.

    Row i stands for the frequency i / (frequencies - 1) of half the sample rate; the row of
    frequency 0 is zero, as ``tf.signal.linear_to_mel_weight_matrix`` has it.
    """
    spectrum = _mel(np.linspace(0.0, sample_rate / 2.0, frequencies))[:, None]
    edges = np.linspace(_mel(low_hz), _mel(high_hz), mel_bins + 2)
    lower, centre, upper = edges[:-2], edges[1:-1], edges[2:]
    rising = (spectrum - lower) / (centre - lower)
    falling = (upper - spectrum) / (upper - centre)
    weights = np.maximum(0.0, np.minimum(rising, falling))
    weights[0] = 0.0
    return weights


@dataclasses.dataclass(frozen=True)
class LogMel:
    """Turns mono waveforms into log-mel spectrograms: log(1 + `log_factor` x mel magnitude).

    Building one logs a warning, once per setting, if filters are identically zero because the
    window is too short for the rate: 16 of 80 are with 320 samples at 48 kHz, none at 16 kHz.

    Raises:
      UserError: on building, when the settings make no spectrogram.
    """

    sample_rate: int  # Hz
    mel_bins: int = 80
    window: int = 320  # samples, even; also the length of the transform
    step: int = 160  # samples between the starts of two windows
    low_hz: float = 80.0
    high_hz: float = 7600.0
    log_factor: float = 10_000.0

    def __post_init__(self):
        for name in ("sample_rate", "mel_bins", "window", "step"):
            if getattr(self, name) < 1:
                raise UserError(f"spectrogram: {name} is {getattr(self, name)}; it must be >= 1")
        if self.window % 2:  # then no frequency falls on half the sample rate
            raise UserError(f"spectrogram: window is {self.window}; it must be an even number")
        if not 0.0 <= self.low_hz < self.high_hz:
            raise UserError(
                f"spectrogram: low_hz={self.low_hz} must be >= 0 and below high_hz={self.high_hz}"
            )
        if self.high_hz > self.sample_rate / 2:
            raise UserError(
                f"spectrogram: sound at {self.sample_rate} Hz holds frequencies up to "
                f"{self.sample_rate / 2:g} Hz, but the mel filters reach up to {self.high_hz:g} "
                f"Hz; use a sample rate of at least {2 * self.high_hz:g} Hz"
            )
        self._check_filters()

    def __call__(self, waveform: jax.Array) -> jax.Array:
        """Computes spectrograms.

        Args:
          waveform: (..., N) samples, float in [-1, 1] or int16 PCM.

        Returns:
          float32 (..., ceil(N / step), mel_bins); the last windows run into zeros past the end.
        """
        if waveform.dtype == jnp.int16:
            waveform = waveform.astype(jnp.float32) * (1.0 / PCM_FULL_SCALE)
        transform, filters = _matrices(self)
        # bfloat16 products would bury the quiet bands in rounding errors of the loud ones.
        parts = jnp.matmul(
            self._frames(waveform.astype(jnp.float32)), transform, precision=lax.Precision.HIGHEST
        )
        cosine, sine = jnp.split(parts, 2, axis=-1)
        magnitude = jnp.sqrt(cosine**2 + sine**2)
        mel = jnp.matmul(magnitude, filters, precision=lax.Precision.HIGHEST)
        return jnp.log(1.0 + self.log_factor * mel)

    def num_frames(self, num_samples: int) -> int:
        """Returns how many frames a waveform of so many samples gives."""
        return -(-num_samples // self.step)

    def _frames(self, waveform: jax.Array) -> jax.Array:
        """Cuts (..., N) into overlapping windows (..., frames, window), without a gather."""
        frames, pieces = self.num_frames(waveform.shape[-1]), -(-self.window // self.step)
        missing = (frames + pieces - 1) * self.step - waveform.shape[-1]
        padding = [(0, 0)] * (waveform.ndim - 1) + [(0, missing)]
        steps = jnp.pad(waveform, padding).reshape(*waveform.shape[:-1], -1, self.step)
        windows = jnp.concatenate(
            [lax.slice_in_dim(steps, i, i + frames, axis=-2) for i in range(pieces)], axis=-1
        )
        return windows[..., : self.window]

    def _filters(self) -> np.ndarray:
        frequencies = self.window // 2 + 1
        return mel_matrix(self.mel_bins, frequencies, self.sample_rate, self.low_hz, self.high_hz)

    @functools.lru_cache  # noqa: B019 - one entry per setting, and that is what makes it once
    def _check_filters(self) -> None:
        empty = np.flatnonzero(self._filters().sum(axis=0) == 0)
        if len(empty) == self.mel_bins:
            raise UserError(
                f"spectrogram: a window of {self.window} samples at {self.sample_rate} Hz has no "
                f"frequency between {self.low_hz:g} and {self.high_hz:g} Hz; make the window longer"
            )
        if len(empty):
            _log.warning(
                "spectrogram: %d of %d mel bins are always zero (a window of %d samples is %.1f ms "
                "at %d Hz, too short to tell the low bands apart); a lower sample rate or a longer "
                "window fills them",
                len(empty),
                self.mel_bins,
                self.window,
                1000 * self.window / self.sample_rate,
                self.sample_rate,
            )


@functools.lru_cache
def _matrices(settings: LogMel) -> tuple[np.ndarray, np.ndarray]:
    """Windowed cosines and sines of the frequencies in use, and their mel weights; float32."""
    filters = settings._filters()
    used = np.flatnonzero(filters.any(axis=1))
    sample = np.arange(settings.window)
    hann = 0.5 - 0.5 * np.cos(2.0 * np.pi * sample / settings.window)  # periodic
    # Whole turns are taken off in integers, where they are exact.
    angle = 2.0 * np.pi * (np.outer(sample, used) % settings.window) / settings.window
    waves = np.concatenate([np.cos(angle), np.sin(angle)], axis=1) * hann[:, None]
    return waves.astype(np.float32), filters[used].astype(np.float32)
