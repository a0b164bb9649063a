import io

import golden_rules
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from common.errors import UserError
from common.evaluation import clips, protocols
from common.method import AudioInput, VideoInput

PACK = golden_rules.Pack("brave")


def _protocol(num_clips, crops=1):
    return protocols.Protocol("test", "", 0, num_clips, crops)


@pytest.mark.parametrize("name", ["resize_a", "resize_b", "resize_c", "resize_d"])
def test_resizing_and_centre_crops_equal_the_published_ones(name):
    frames, stored = PACK.inputs(name)["frames"], PACK.stored(name)
    options = PACK.case(name)["options"]
    for t, frame in enumerate(frames):
        resized = clips.resize_short_side(frame, options["short_side"])
        np.testing.assert_array_equal(resized, stored["resize_min"][t])
        (crop,) = clips.square_crops(resized, options["crop"], 1)
        np.testing.assert_array_equal(crop, stored["resize_min_crop"][t])
        free = clips.resize_bilinear(frame, 20, 26)
        np.testing.assert_allclose(free, stored["free"][t], atol=1e-4)


def test_the_windows_of_a_video_are_the_published_ones():
    for key, stored in PACK.stored("sampling").items():
        if not key.startswith("linspaced/") or "_n1_" in key:
            continue
        length, count, frames, step = (int(part[1:]) for part in key.split("/")[1].split("_"))
        begin = clips.starts(length, (frames - 1) * step + 1, count)
        np.testing.assert_array_equal(begin, stored[:, 0], err_msg=key)


def test_the_evaluation_clips_equal_the_published_ones():
    options = PACK.case("eval_crops")["options"]
    frames = PACK.inputs("eval_crops")["frames"]
    size = options["center_crop_size"]
    resized = [clips.resize_short_side(frame, options["initial_resize"]) for frame in frames]
    # The case has its own ratio of resize to crop, so the frames come resized already.
    inputs = VideoInput(options["num_video_frames"], 25.0, options["video_step"], size)
    indices = clips.frame_indices(12, 25.0, inputs, options["num_temporal_crops"])
    ours = [
        np.stack([clips.square_crops(resized[i], size, 3)[crop] for i in window])
        for window in indices
        for crop in range(3)
    ]
    np.testing.assert_array_equal(np.stack(ours), PACK.stored("eval_crops")["crops"])


def test_all_clips_and_crops_of_a_video_come_in_one_array_in_order():
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (20, 32, 40, 3), np.uint8)
    inputs = VideoInput(num_frames=3, frame_rate=25.0, stride=2, size=28)
    asked = []

    def frame(index):
        asked.append(index)
        return frames[index]

    cut = clips.video_clips(frame, 20, 25.0, inputs, _protocol(2, crops=3))
    assert cut.shape == (6, 3, 28, 28, 3)
    np.testing.assert_array_equal(cut[0], frames[0:5:2, :28, :28])
    np.testing.assert_array_equal(cut[2], frames[0:5:2, 4:32, 12:40])
    np.testing.assert_array_equal(cut[3], frames[15:20:2, :28, :28])
    assert sorted(asked) == [0, 2, 4, 15, 17, 19]


@given(
    stored=st.integers(1, 80),
    stored_rate=st.sampled_from([5.0, 12.5, 25.0, 29.97, 60.0]),
    frames=st.integers(1, 16),
    stride=st.integers(1, 4),
    count=st.integers(1, 5),
)
@settings(max_examples=100, deadline=None)
def test_clips_of_any_video_stay_inside_it(stored, stored_rate, frames, stride, count):
    inputs = VideoInput(frames, 25.0, stride, 32)
    indices = clips.frame_indices(stored, stored_rate, inputs, count)
    assert indices.shape == (count, frames)
    assert indices.min() >= 0
    assert indices.max() < stored
    if (frames - 1) * stride / 25.0 < (stored - 1) / stored_rate:  # long enough: no repetition
        assert (np.diff(indices, axis=1) >= 0).all()


def test_a_video_of_another_rate_is_sampled_at_the_same_times():
    inputs = VideoInput(num_frames=4, frame_rate=25.0, stride=2, size=32)
    np.testing.assert_array_equal(
        clips.frame_indices(200, 50.0, inputs, 2), 2 * clips.frame_indices(100, 25.0, inputs, 2)
    )


def test_a_short_video_is_repeated_as_a_whole():
    inputs = VideoInput(num_frames=5, frame_rate=25.0, stride=1, size=32)
    np.testing.assert_array_equal(clips.frame_indices(2, 25.0, inputs, 1), [[0, 1, 0, 1, 0]])
    np.testing.assert_array_equal(clips.frame_indices(1, 25.0, inputs, 2), np.zeros((2, 5)))


def test_sound_windows_are_spread_evenly_and_short_sounds_repeated():
    inputs = AudioInput(num_samples=4, sample_rate=8000)
    sound = np.arange(10, dtype=np.int16)
    cut = clips.audio_clips(sound, inputs, _protocol(3))
    np.testing.assert_array_equal(cut, [[0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 8, 9]])
    assert cut.dtype == np.int16
    np.testing.assert_array_equal(
        clips.audio_clips(sound[:3], inputs, _protocol(1)), [[1, 2, 0, 1]]
    )


def test_a_truncated_frame_is_an_error_and_never_a_grey_area():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    file = io.BytesIO()
    image.save(file, "JPEG")
    encoded = file.getvalue()
    assert clips.decode_image(encoded).shape == (64, 64, 3)
    for broken in (encoded[: len(encoded) // 2], b"", b"not an image"):
        with pytest.raises(ValueError, match="cannot be decoded"):
            clips.decode_image(broken)


def test_the_released_protocol_is_the_published_one():
    released = protocols.get("released")
    assert (released.train_passes, released.test_clips, released.test_crops) == (10, 10, 3)


def test_an_unknown_protocol_is_answered_with_those_there_are():
    with pytest.raises(UserError, match="released"):
        protocols.get("relased")
