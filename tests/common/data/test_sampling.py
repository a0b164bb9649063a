"""Promises of view sampling: the published frames and samples, and the same times at any rate."""

import re

import golden_rules
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.data import sampling
from common.tf import tf

PACK = golden_rules.Pack("brave")
STORED = PACK.stored("sampling")
VIEWS = sorted({name.rpartition("/")[0] for name in STORED if name.startswith("views/")})
RATE = 48_000


def published_settings(case):
    """Returns frames, audio samples, start and (frames, stride) of both views of a case."""
    numbers = {
        "num_frames_narrow": 16, "step_narrow": 2, "num_frames_broad": 64, "step_broad": 4
    }  # fmt: skip
    frames, audio, start = map(
        int, re.match(r"views/frames(\d+)_audio(\d+)_start(\d+)", case).groups()
    )
    for name in numbers:
        if found := re.search(rf"_{name}(\d+)", case):
            numbers[name] = int(found[1])
    return (
        frames,
        audio,
        start,
        *((numbers[f"num_frames_{view}"], numbers[f"step_{view}"]) for view in ("narrow", "broad")),
    )


def ramp(length):
    """A waveform whose int16 values tell where they come from."""
    return ((np.arange(length) % 32_000 + 1) / 32_767).astype(np.float32)


@pytest.mark.parametrize("case", VIEWS)
def test_frames_and_sound_are_the_published_ones(case):
    frames, audio, start, narrow, broad = published_settings(case)
    starts = sampling.count_starts(tf.constant(frames), *narrow)
    assert starts == STORED[f"{case}/starts"][0]
    for name, view in (("narrow", narrow), ("broad", broad)):
        found = sampling.clip_indices(start, *view, tf.constant(frames), 25.0, 25.0)
        np.testing.assert_array_equal(found, STORED[f"{case}/{name}"])
    length, first, last, whole = STORED[f"{case}/audio"]
    samples = int(np.prod(broad) / 25 * RATE)
    assert samples == length == whole
    sound = sampling.synced_waveform(
        tf.constant(ramp(audio)), RATE, start, frames, 25.0, samples, RATE
    ).numpy()
    expected = (first + np.arange(length)) % audio
    assert expected[-1] == last
    np.testing.assert_array_equal(sound, expected % 32_000 + 1)


@pytest.mark.parametrize("case", sorted(n for n in STORED if n.startswith("synced/")))
def test_sound_starts_at_the_published_sample(case):
    start, end, frames, samples = map(int, re.findall(r"\d+", case))
    first, last, _ = STORED[case]
    sound = sampling.synced_waveform(
        tf.constant(ramp(samples)), RATE, start, frames, 25.0, int(last - first), RATE
    )
    assert sound[0] == first % 32_000 + 1


def test_a_waveform_that_ends_before_the_frames_do_is_padded_at_its_end():
    sound = sampling.synced_waveform(tf.fill([50], 1.0), 100, 0, 20, 10.0, 80, 100).numpy()
    assert (sound[:50] == 32_767).all() and (sound[50:] == 0).all()


def test_louder_sound_is_clipped_not_wrapped():
    found = sampling.to_int16(np.array([-3, -1, 0, 0.5, 1, 7], np.float32))
    assert found.tolist() == [-32_767, -32_767, 0, 16_384, 32_767, 32_767]


def test_sound_that_is_no_number_is_an_error_of_the_record():
    waveform = np.zeros(50_000, np.float32)  # in several blocks
    for place in (1, 49_999):
        spoilt = np.array(waveform)
        spoilt[place] = np.nan
        with pytest.raises(ValueError, match="not finite"):
            sampling.to_int16(spoilt)


@settings(max_examples=50, deadline=None)
@given(
    num_stored=st.integers(1, 500),
    stored=st.sampled_from([5.0, 10.0, 12.5, 15.0, 23.976, 24.0, 25.0, 29.97, 30.0, 50.0, 60.0]),
    num_frames=st.integers(1, 20),
    stride=st.integers(1, 6),
    start=st.integers(0, 50),
)
def test_at_other_rates_the_frame_shown_at_that_time_is_taken(
    num_stored, stored, num_frames, stride, start
):
    stored = float(np.float32(stored))
    available = int(sampling.frames_at_rate(num_stored, stored, 25.0))
    assert abs(available - num_stored * 25 / stored) < 1.001
    index_T = sampling.clip_indices(start, num_frames, stride, num_stored, stored, 25.0).numpy()
    assert index_T.min() >= 0 and index_T.max() < num_stored
    time_T = (start + stride * np.arange(num_frames)) % available / 25
    assert (index_T / stored <= time_T + 1e-4).all()
    assert (time_T < (index_T + 1) / stored + 1e-4).all()


def test_every_possible_start_is_drawn_and_no_other():
    starts = tf.constant(7, tf.int64)
    drawn = [int(sampling.random_start(tf.constant((n, 1)), starts)) for n in range(200)]
    assert set(drawn) == set(range(7))
    assert int(sampling.random_start(tf.constant((5, 1)), tf.constant(1, tf.int64))) == 0


@pytest.mark.parametrize(
    ("stored", "wanted"), [(44_100, 48_000), (48_000, 16_000), (8_000, 16_000)]
)
def test_sound_at_another_rate_keeps_its_pitch_its_level_and_its_place(stored, wanted):
    time = np.arange(2 * stored) / stored
    waveform = np.where(time < 1, 0.5 * np.sin(2 * np.pi * 440 * time), 0).astype(np.float32)
    start, seconds = 5, 1.2
    sound = sampling.synced_waveform(
        tf.constant(waveform), stored, start, 50, 25.0, int(seconds * wanted), wanted
    ).numpy()
    at = start / 25 + np.arange(len(sound)) / wanted
    expected = np.where(at < 1, 0.5 * np.sin(2 * np.pi * 440 * at), 0) * 32_767
    inner = slice(wanted // 100, int(0.7 * wanted))
    assert np.abs(sound[inner] - expected[inner]).max() < 0.01 * 32_767
    assert np.abs(sound[int(0.85 * wanted) :]).max() < 0.01 * 32_767


def test_frequencies_above_the_new_rate_do_not_fold_back():
    time = np.arange(48_000) / 48_000
    waveform = (0.5 * np.sin(2 * np.pi * 11_000 * time)).astype(np.float32)
    sound = sampling.synced_waveform(tf.constant(waveform), 48_000, 0, 25, 25.0, 16_000, 16_000)
    assert np.abs(sound.numpy()[200:-200]).max() < 0.02 * 32_767
