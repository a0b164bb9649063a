"""Spectrograms on the device: equal to the published ones, and honest about impossible settings."""

from __future__ import annotations

import logging

import golden_rules
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.data.log_mel import PCM_FULL_SCALE, LogMel, mel_matrix
from common.errors import UserError

PACK = golden_rules.Pack("brave")
CASES = ["logmel_48k", "logmel_16k", "logmel_short"]


def _waveform(case):
    noise = PACK.inputs(case)["noise"]
    rate = PACK.case(case)["options"]["sample_rate"]
    tone = 0.3 * np.sin(2 * np.pi * 440 * np.arange(len(noise)) / rate)
    return (tone + noise).astype(np.float32)


@pytest.mark.parametrize("case", CASES)
def test_spectrograms_equal_the_published_ones(case):
    options, stored = PACK.case(case)["options"], PACK.stored(case)
    log_mel = LogMel(options["sample_rate"], options["bins"], step=options["step"])
    ours = jax.jit(log_mel)(_waveform(case))
    tolerance = PACK.case(case)["tolerance"]["float32"]["atol"]
    np.testing.assert_allclose(ours, stored["log_mel"], rtol=0, atol=tolerance)
    assert ours.shape == (log_mel.num_frames(len(_waveform(case))), options["bins"])


@pytest.mark.parametrize("case", CASES)
def test_mel_filters_equal_the_published_ones(case):
    options, stored = PACK.case(case)["options"], PACK.stored(case)
    weights = mel_matrix(options["bins"], 161, options["sample_rate"], 80.0, 7600.0)
    np.testing.assert_allclose(weights.sum(axis=0), stored["mel_column_sums"], atol=1e-4)
    np.testing.assert_allclose(weights.sum(axis=1), stored["mel_row_sums"], atol=1e-4)
    np.testing.assert_array_equal(weights.sum(axis=0) == 0, stored["mel_column_sums"] == 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rate", "bins", "window", "step"), [(44100, 64, 1024, 441), (8000, 40, 200, 80)]
)
def test_spectrograms_of_other_settings_equal_tensorflow(rate, bins, window, step):
    """A step that does not divide the window, and a window that is no power of two."""
    from common.tf import tf

    waveform = np.random.default_rng(0).normal(size=(2, 5000)).astype(np.float32) * 0.1
    spectrum = tf.abs(tf.signal.stft(waveform, window, step, window, pad_end=True))
    filters = tf.signal.linear_to_mel_weight_matrix(bins, window // 2 + 1, rate, 50.0, 3900.0)
    expected = tf.math.log(1.0 + 10_000.0 * tf.tensordot(spectrum, filters, 1))
    ours = LogMel(rate, bins, window, step, low_hz=50.0, high_hz=3900.0)(jnp.asarray(waveform))
    np.testing.assert_allclose(ours, expected.numpy(), rtol=0, atol=2e-3)


@pytest.mark.slow
@settings(max_examples=10, deadline=None)
@given(samples=st.integers(1, 700), half=st.integers(4, 45), step=st.integers(1, 120))
def test_windows_start_every_step_and_run_into_zeros(samples, half, step):
    window = 2 * half
    log_mel = LogMel(16000, 4, window, step, low_hz=0.0, high_hz=8000.0)
    waveform = np.arange(1, 2 * samples + 1, dtype=np.float32).reshape(2, samples)
    frames = np.asarray(log_mel._frames(jnp.asarray(waveform)))
    assert frames.shape == (2, log_mel.num_frames(samples), window)
    padded = np.pad(waveform, ((0, 0), (0, window + step)))
    for i in range(frames.shape[1]):
        np.testing.assert_array_equal(frames[:, i], padded[:, i * step : i * step + window])


def test_pcm_gives_the_spectrogram_of_its_waveform():
    log_mel = LogMel(16000)
    pcm = np.round(_waveform("logmel_16k") * PCM_FULL_SCALE).astype(np.int16)[None]
    waveform = pcm.astype(np.float32) / PCM_FULL_SCALE
    ours, exact = log_mel(jnp.asarray(pcm)), log_mel(jnp.asarray(waveform))
    np.testing.assert_allclose(ours, exact, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_pcm_is_read_at_the_scale_at_which_the_pipeline_writes_it():
    from common.data.sampling import to_int16

    waveform = np.linspace(-1.0, 1.0, 1001).astype(np.float32)
    pcm = to_int16(waveform)
    np.testing.assert_allclose(pcm / PCM_FULL_SCALE, waveform, atol=0.51 / PCM_FULL_SCALE)


def test_a_clip_has_the_same_spectrogram_in_any_batch():
    log_mel = jax.jit(LogMel(16000))
    waveform = np.random.default_rng(0).normal(size=(4, 4000)).astype(np.float32) * 0.1
    whole = log_mel(waveform)
    for row in range(4):
        np.testing.assert_allclose(log_mel(waveform[row : row + 1])[0], whole[row], atol=1e-4)


def test_silence_is_exactly_zero():
    np.testing.assert_array_equal(LogMel(16000)(jnp.zeros((1, 1600), jnp.int16)), 0.0)


def test_empty_mel_bins_are_told_once_per_setting(caplog):
    with caplog.at_level(logging.WARNING):
        LogMel(48000, 79)
        LogMel(48000, 79)
        LogMel(16000, 80)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 1 and "of 79 mel bins are always zero" in messages[0]
    weights = mel_matrix(80, 161, 48000, 80.0, 7600.0)
    assert (weights.sum(axis=0) == 0).sum() == 16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sample_rate": 8000}, "at least 15200 Hz"),
        ({"sample_rate": 16000, "mel_bins": 0}, "mel_bins"),
        ({"sample_rate": 16000, "step": 0}, "step"),
        ({"sample_rate": 16000, "window": 321}, "even"),
        ({"sample_rate": 16000, "low_hz": 9000.0}, "low_hz"),
        ({"sample_rate": 48000, "window": 4}, "make the window longer"),
    ],
)
def test_impossible_settings_are_refused_with_the_way_out(arguments, message):
    with pytest.raises(UserError, match=message):
        LogMel(**arguments)
