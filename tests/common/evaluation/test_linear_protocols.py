"""The published linear protocols of HMDB-51 and UCF-101, against their rules written out."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from common.data import records
from common.evaluation import clips, probes, protocols, random_clips, reading, windows
from common.evaluation.features import BadClip
from common.method import AudioInput, VideoInput

HMDB51, UCF101 = protocols.get("hmdb51"), protocols.get("ucf101")
RATES = reading.DefaultRates()
INPUTS = VideoInput(num_frames=4, frame_rate=10.0, stride=1, size=16)


def _clip(frames, rate, size=(24, 36), seed=0):
    """A clip of noise, stored without loss, and its frames."""
    video = np.random.default_rng(seed).integers(0, 256, (frames, *size, 3), np.uint8)
    pictures = []
    for image in video:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "PNG")
        pictures.append(file.getvalue())
    return records.Clip(id="a", frames_jpeg=pictures, frame_rate=rate), video


def test_the_constants_are_the_published_ones():
    assert (HMDB51.train_passes, HMDB51.test_clips, HMDB51.test_crops) == (0, 10, 1)
    assert (HMDB51.C, HMDB51.standardise) == (100.0, False)
    assert (UCF101.train_passes, UCF101.test_clips, UCF101.test_crops) == (10, 10, 1)
    assert (UCF101.C, UCF101.standardise) == (1e-3, True)
    assert (UCF101.frame_rate, UCF101.stride) == (25.0, 2)


# ------------------------------------------------------------------------------------- HMDB-51


@pytest.mark.parametrize("rate", [5.0, 10.0, 30.0])
def test_hmdb_windows_are_consecutive_stored_frames_whatever_the_rates(rate):
    clip, video = _clip(frames=33, rate=rate)
    cut = reading.cut(clip, INPUTS, HMDB51)
    begin = np.floor(np.linspace(0, 33 - 4, 10)).astype(int)
    assert begin[-1] == 29
    for window, first in zip(cut, begin, strict=True):
        squares = video[first : first + 4, :, 6:30]  # 24 of 36 columns
        wanted = [clips.resize_bilinear(image, 16, 16).astype(np.uint8) for image in squares]
        np.testing.assert_array_equal(window, np.stack(wanted))


def test_a_short_hmdb_video_is_black_after_its_last_frame_in_ten_equal_windows():
    clip, video = _clip(frames=3, rate=30.0, size=(16, 16))
    cut = reading.cut(clip, INPUTS, HMDB51)
    assert cut.shape == (10, 4, 16, 16, 3)
    for window in cut:
        np.testing.assert_array_equal(window[:3], video)
        assert not window[3].any()


# ------------------------------------------------------------------------------------- UCF-101


def _published_indices(length, num_windows, num_steps, stride):
    """MMV's rule with TensorFlow's linspace: the frames repeated until they are enough."""
    from common.tf import tf

    last = max(0, length - num_steps * stride)
    offsets = tf.cast(tf.linspace(0.0, tf.cast(last, tf.float32), num_windows), tf.int32).numpy()
    repeated = np.tile(np.arange(length), -(-(num_steps * stride + max(offsets)) // length))
    return np.stack([repeated[o : o + num_steps * stride : stride] for o in offsets])


@pytest.mark.slow
@given(
    length=st.integers(1, 2000),
    count=st.integers(1, 12),
    frames=st.integers(1, 32),
    stride=st.integers(1, 3),
)
@settings(max_examples=100, deadline=None)
def test_ucf_windows_are_the_published_ones(length, count, frames, stride):
    ours = windows.looped_frames(length, frames, stride, count)
    np.testing.assert_array_equal(ours, _published_indices(length, count, frames, stride))


@pytest.mark.slow
def test_ten_ucf_windows_of_every_length_are_the_published_ones():
    for length in range(1, 700):  # 28 seconds; published in float32
        ours = windows.looped_frames(length, 32, 2, 10)
        np.testing.assert_array_equal(ours, _published_indices(length, 10, 32, 2))


def test_no_looped_windows_of_nothing():
    with pytest.raises(ValueError, match="of 0 frames"):
        windows.looped_frames(0, 32, 2, 10)


@pytest.mark.parametrize(("frames", "rate"), [(40, 25.0), (80, 50.0), (5, 25.0)])
def test_ucf_test_clips_are_every_second_frame_of_25_per_second_and_the_middle(frames, rate):
    from common.tf import tf

    clip, video = _clip(frames, rate)
    cut = reading.cut(clip, INPUTS, UCF101)
    at_25 = video[:: round(rate / 25)]
    resized = tf.cast(tf.image.resize(at_25, (16, 24)), tf.uint8)  # 24 * 36 // 24 columns
    middle = tf.image.resize_with_crop_or_pad(resized, 16, 16).numpy()
    wanted = middle[_published_indices(len(at_25), 10, 4, 2)]
    np.testing.assert_array_equal(cut, wanted)


@pytest.mark.parametrize("frames", [9, 5])  # a clip spans 7
def test_ucf_training_clips_are_random_crops_mirrored_or_not_and_reach_every_place(frames):
    clip, video = _clip(frames, 25.0, size=(17, 18))
    inputs = VideoInput(num_frames=4, frame_rate=10.0, stride=1, size=17)  # 2 places of a crop
    protocol = protocols.Protocol("test", "", 400, 1, 1, protocols.LOOPED, 25.0, 2)
    drawn = random_clips.cutter(inputs, protocol, 0, RATES)(clip, 3)
    starts = range(3) if frames == 9 else range(5)
    possible = set()
    for start in starts:
        looped = video[(start + 2 * np.arange(4)) % frames]
        for left in range(2):
            crop = looped[:, :, left : left + 17]
            possible |= {crop.tobytes(), crop[:, :, ::-1].tobytes()}
    assert len(possible) == 4 * len(starts)
    assert {one.tobytes() for one in drawn} == possible
    again = random_clips.cutter(inputs, protocol, 0, RATES)
    np.testing.assert_array_equal(drawn, again(clip, 3))
    assert (drawn != again(clip, 4)).any()


def test_ucf_training_frames_are_resized_to_the_size_and_not_beyond():
    clip, video = _clip(1, 25.0)
    (one, *_) = random_clips.cutter(INPUTS, UCF101, 0, RATES)(clip, 0)
    resized = clips.resize_short_side(video[0], 16)
    assert resized.shape == (16, 24, 3)
    crops = [resized[:, left : left + 16] for left in range(9)]
    assert any((one[0] == c).all() or (one[0] == c[:, ::-1]).all() for c in crops)


@pytest.mark.parametrize(
    ("clip", "message"),
    [
        (records.Clip(), "it has no frames"),
        (records.Clip(frames_jpeg=[b"no"] * 9, frame_rate=25.0), "cannot be decoded"),
    ],
)
@pytest.mark.parametrize("protocol", [HMDB51, UCF101])
def test_a_record_without_pictures_says_why(protocol, clip, message):
    with pytest.raises(BadClip, match=message):
        reading.cut(clip, INPUTS, protocol)
    with pytest.raises(BadClip, match=message):
        random_clips.cutter(INPUTS, UCF101, 0, RATES)(clip, 0)


@pytest.mark.parametrize("protocol", [HMDB51, UCF101])
def test_sounds_are_cut_evenly(protocol):
    clip = records.Clip(waveform=np.linspace(-1, 1, 400, dtype=np.float32), audio_rate=8000)
    assert reading.cut(clip, AudioInput(40, 8000), protocol).shape == (10, 40)


# -------------------------------------------------------------------------------------- probes


@pytest.mark.slow
@pytest.mark.parametrize("dim", [12, 90])  # also more columns than rows
@pytest.mark.parametrize("protocol", [HMDB51, UCF101])
def test_the_probe_is_scikit_learns_as_the_protocol_prescribes(protocol, dim):
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 15)
    centres = rng.normal(size=(4, dim))
    rows = (0.1 * (centres[labels] + 2 * rng.normal(size=(60, dim))) + 3).astype(np.float32)
    scaler = StandardScaler().fit(rows)
    theirs_rows = scaler.transform(rows) if protocol.standardise else rows.astype(np.float64)
    theirs = LinearSVC(C=protocol.C, dual=True, max_iter=1_000_000, tol=1e-8)
    theirs.fit(theirs_rows, labels)
    ours = probes.fit_svm(
        rows, labels, 4, C=protocol.C, max_iter=1_000_000, standardise=protocol.standardise
    )
    scores = ours.scores(rows)
    reference = theirs.decision_function(theirs_rows)
    np.testing.assert_allclose(scores, reference, atol=0.02 * np.abs(reference).max())
    np.testing.assert_array_equal(scores.argmax(axis=1), reference.argmax(axis=1))
