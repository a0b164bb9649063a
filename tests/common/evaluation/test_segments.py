"""The frames and pictures of a whole video that Frozen in Time's published code embeds."""

import json
import pathlib
import re

import golden_rules
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import UserError
from common.evaluation import clips, protocols, random_clips, reading, segments, stretches
from common.method import VideoInput

FOLDER = pathlib.Path(golden_rules.__file__).parent / "frozen"
MANIFEST = json.loads((FOLDER / "manifest.json").read_text())
INPUTS = VideoInput(num_frames=4, frame_rate=1.0, stride=1, size=16, segments=True, resize=20)
CONSECUTIVE_FRAMES = VideoInput(num_frames=4, frame_rate=25.0, stride=1, size=16)
FROZEN = protocols.get("frozen")
MEAN, DEVIATION = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def stored(name):
    with np.load(FOLDER / MANIFEST["cases"][name]["file"]) as file:
        return dict(file)


def transform_case(name):
    """The frame of a case, and the stored places of its result in levels of uint8."""
    spec = MANIFEST["cases"][name]["inputs"]["frames"]
    frame_HWC = golden_rules.make_input(spec, MANIFEST["seed"])[0, 0]
    levels = {key: 255 * (v * DEVIATION + MEAN) for key, v in stored(name).items() if v.ndim == 3}
    return frame_HWC, levels


def shown(cut_KTSSC):
    """The number that each frame of `numbered` shows."""
    assert (cut_KTSSC == cut_KTSSC[..., :1, :1, :1]).all()
    return cut_KTSSC[..., 0, 0, 0]


def numbered(index):
    """A frame that is all one level, its number."""
    return np.full((24, 40, 3), index, np.uint8)


def cut(num_stored, protocol=FROZEN, inputs=INPUTS):
    return shown(clips.video_clips(numbered, num_stored, 25.0, inputs, protocol)).tolist()


@pytest.mark.parametrize("key", sorted(k for k in stored("frame_indices") if "random" not in k))
def test_frames_are_the_published_ones(key):
    kind, num_frames, length = re.fullmatch(r"(\w+)_n(\d+)_l(\d+)", key).groups()
    wanted = stored("frame_indices")[key]
    if kind == "uniform":
        ours = segments.spread_frames(int(length), int(num_frames), 1)[0]
    else:  # the start of each part and an offset, even where that leaves the video
        offset = int(kind.removeprefix("offset"))
        ours = segments.edges(int(length), int(num_frames))[:-1] + offset
    np.testing.assert_array_equal(ours, wanted)


@pytest.mark.parametrize("name", ["transform_wide", "transform_tall", "transform_big"])
def test_pictures_are_the_published_ones_before_and_after_rounding(name):
    frame_HWC, wanted = transform_case(name)
    inputs = VideoInput(4, 1.0, 1, 224, segments=True, resize=256)
    (large_HWC,) = clips.large_squares(frame_HWC, 256, 1)
    exact_SSC = clips.resize_bilinear(large_HWC, 224, 224)
    (rounded_SSC,) = clips.resized_squares(frame_HWC, inputs, 1)
    assert exact_SSC.dtype == np.float32 and rounded_SSC.dtype == np.uint8
    places = {"plain/every4": np.s_[::4, ::4], "plain/corner": np.s_[200:, 200:]}
    assert wanted.keys() == places.keys()
    for key, place in places.items():
        np.testing.assert_allclose(exact_SSC[place], wanted[key], atol=2e-4)
        assert np.abs(rounded_SSC[place] - wanted[key]).max() <= 0.5002
    normal_SSC = (exact_SSC / 255 - MEAN) / DEVIATION
    mean_rms = [normal_SSC.mean(), np.sqrt((normal_SSC**2).mean())]
    np.testing.assert_allclose(mean_rms, stored(name)["plain/mean_rms"], atol=1e-5)


@given(st.integers(1, 400), st.integers(1, 16), st.integers(1, 5))
def test_each_clip_has_one_frame_of_every_part_in_order(length, num_frames, count):
    edge = segments.edges(length, num_frames)
    assert edge[0] == 0 and edge[-1] == length and (np.diff(edge) >= 1).all()
    frames_KT = segments.spread_frames(length, num_frames, count)
    assert frames_KT.shape == (count, min(num_frames, length))
    assert (frames_KT >= edge[:-1]).all() and (frames_KT < edge[1:]).all()
    assert (np.diff(frames_KT, axis=0) >= 0).all()


@given(st.integers(1, 400), st.integers(1, 16), st.integers(1, 40), st.booleans())
def test_a_sliding_window_stays_in_the_video_and_ends_where_it_says(
    length, num_frames, stride, published
):
    parts = min(length, num_frames)
    frames_KT = segments.sliding_frames(length, num_frames, stride, published)
    assert frames_KT.max() < length
    np.testing.assert_array_equal(frames_KT[0], segments.edges(length, num_frames)[:-1])
    assert (np.diff(frames_KT, axis=0) == stride).all()
    bound = max(1, int(length / (parts + 1 if published else parts)))
    assert len(frames_KT) == len(range(0, bound, stride))


def test_the_published_sliding_window_ends_earlier():
    whole = segments.sliding_frames(100, 4, 6)[:, 0]
    assert whole.tolist() == [0, 6, 12, 18, 24]
    assert segments.sliding_frames(100, 4, 6, published_bound=True)[:, 0].tolist() == [0, 6, 12, 18]


def test_numbers_that_give_no_frames_are_refused():
    for wrong in ((0, 4, 1), (5, 0, 1), (5, 4, 0)):
        with pytest.raises(ValueError):
            segments.spread_frames(*wrong)
        with pytest.raises(ValueError):
            segments.sliding_frames(*wrong)


def test_the_frozen_protocol_cuts_one_clip_of_the_whole_video():
    assert cut(75) == [[8, 27, 46, 65]]
    assert cut(75, protocols.sliding(9)) == [[0, 18, 37, 56], [9, 27, 46, 65]]
    assert cut(75, protocols.sliding(5, published_bound=True))[-1] == [10, 28, 47, 66]


def test_other_protocols_cut_clips_that_differ_inside_the_parts():
    assert cut(75, protocols.get("quick")) == cut(75)
    assert cut(75, protocols.get("even")) == [
        [2, 20, 39, 58], [6, 24, 43, 62], [10, 29, 48, 67], [14, 33, 52, 71],
    ]  # fmt: skip


def test_a_short_video_repeats_its_last_frame_and_a_picture_is_one_frame():
    assert cut(3) == [[0, 1, 2, 2]]
    assert cut(2, protocols.sliding(1)) == [[0, 1, 1, 1]]
    for protocol in (FROZEN, protocols.get("even"), protocols.sliding(3)):
        assert cut(1, protocol) == [[0]]


def test_the_rates_of_the_video_and_the_encoder_do_not_count():
    slow = VideoInput(4, 7.0, 3, 16, segments=True, resize=20)
    assert cut(75, inputs=slow) == cut(75)


def test_the_short_side_is_resized_first_wherever_pictures_are_cut():
    frames = np.random.default_rng(0).integers(0, 256, (9, 30, 47, 3), np.uint8)
    resized = VideoInput(3, 25.0, 1, 16, resize=20)
    for name in ("quick", "ucf101", "hmdb51"):
        found = clips.video_clips(frames.__getitem__, 9, 25.0, resized, protocols.get(name))
        (first,) = clips.resized_squares(frames[3 if name == "quick" else 0], resized, 1)
        np.testing.assert_array_equal(found[0, 0], first)
    three = clips.video_clips(frames.__getitem__, 9, 25.0, resized, protocols.get("released"))
    assert three.shape == (30, 3, 16, 16, 3)
    large = clips.large_squares(frames[0], 20, 3)
    whole = clips.resize_bilinear(frames[0], 20, 31)
    for square, left in zip(large, (0, 5, 11), strict=True):
        np.testing.assert_array_equal(square, whole[:, left : left + 20])


@pytest.mark.parametrize(("longer", "left"), [(21, 0), (22, 1), (23, 2), (25, 2), (27, 4)])
def test_the_square_in_the_middle_is_rounded_as_torchvision_does(longer, left):
    image_HWC = np.zeros((20, longer, 3), np.uint8) + np.arange(longer, dtype=np.uint8)[:, None]
    (square,) = clips.large_squares(image_HWC, 20, 1)
    assert square[0, 0, 0] == left


def test_protocols_and_encoders_that_do_not_fit_are_told_apart():
    for name in ("hmdb51", "ucf101"):
        with pytest.raises(UserError, match="neighbouring frames.*--protocol=even"):
            cut(75, protocols.get(name))
    with pytest.raises(UserError, match="all parts of a video, but the encoder takes 4 neigh"):
        cut(75, inputs=CONSECUTIVE_FRAMES)
    rates = reading.DefaultRates()
    with pytest.raises(UserError, match="'released' trains on random stretches.*frozen"):
        random_clips.cutter(INPUTS, protocols.get("released"), 0, rates)
    for wanted in ({"windows": 3}, {"every_second": True}):
        windows = stretches.Stretches(((0, None),), **wanted)
        with pytest.raises(UserError, match="spread over a whole clip"):
            windows.reader(None, INPUTS, lambda clip, _: None, rates)
