"""Promises of MIL-NCE's views: the published candidates, and clips where the words are said."""

import io
import math
import re

import golden_rules
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict
from PIL import Image

from common.data import records, shards
from common.data.pipeline import TrainData
from common.data.text import Vocabulary
from common.errors import UserError
from common.tf import tf
from configs import base
from mil_nce import narration
from mil_nce.views import MilNceViews, square_window

PACK = golden_rules.Pack("mil_nce")
STORED = PACK.stored("candidates")
CLIP_SECONDS = PACK.case("candidates")["options"]["clip_seconds"]
FILES = ["long", "short", "one", "even_ties"]

# ------------------------------------------------------------------------------ published rules


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_candidates_are_the_published_ones(file, count):
    times = STORED[f"{file}/start"], STORED[f"{file}/end"]
    for row, chosen_K in enumerate(STORED[f"{file}/chosen_{count}"]):
        np.testing.assert_array_equal(narration.candidates(*times, row, count), chosen_K)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("min_time", ["5.0", "4.0"])
def test_spans_and_starts_are_the_published_ones_to_the_whole_second(file, min_time):
    """The published code cuts seconds to integers; frames of 0.1 s are cut here for comparison."""
    for start, end, span, starts in zip(
        STORED[f"{file}/start"],
        STORED[f"{file}/end"],
        STORED[f"{file}/span_{min_time}"],
        STORED[f"{file}/start_range_{min_time}"],
        strict=True,
    ):
        wide = narration.widened(start, end, float(min_time))
        assert tuple(map(int, wide)) == tuple(span)
        frames = narration.first_frames(*span, round(10 * CLIP_SECONDS), 10, 10_000)
        assert tuple(frame // 10 for frame in frames) == tuple(starts)


# ------------------------------------------------------------------------------------- laws

TIMES = st.lists(st.tuples(st.integers(0, 300), st.integers(0, 80)), min_size=1, max_size=12).map(
    lambda pairs: np.array([(a / 10, (a + b) / 10) for a, b in sorted(pairs)]).T
)


@settings(max_examples=200, deadline=None)
@given(times=TIMES, count=st.integers(1, 8), draw=st.floats(0, 0.999))
def test_candidates_are_neighbours_in_order_with_the_drawn_one_among_them(times, count, draw):
    number = times.shape[1]
    row = int(draw * number)
    rows_K = narration.candidates(*times, row, count)
    assert len(rows_K) == count and row in rows_K
    assert rows_K.min() >= 0 and rows_K.max() < number
    steps = np.diff(rows_K)
    assert set(steps) <= {0, 1}
    assert not (0 in steps and number >= count)  # repeats only where there are too few
    if number <= count:
        assert set(rows_K) == set(range(number))
    inner = steps == 0
    assert all(rows_K[:-1][inner] == 0) or all(rows_K[:-1][inner] == number - 1)


@settings(max_examples=100, deadline=None)
@given(times=TIMES, draw=st.floats(0, 0.999))
def test_the_first_neighbour_is_on_the_side_that_takes_less_time(times, draw):
    (start_C, end_C), number = times, times.shape[1]
    row = int(draw * number)
    one, other = narration.candidates(start_C, end_C, row, 2)
    if 0 < row < number - 1:
        spans = {row - 1: end_C[row] - start_C[row - 1], row + 1: end_C[row + 1] - start_C[row]}
        chosen = one if other == row else other
        assert spans[chosen] == min(spans.values())


@settings(max_examples=200, deadline=None)
@given(
    start=st.floats(0, 50),
    length=st.floats(0, 20),
    min_time=st.floats(0, 10),
    duration=st.floats(0.1, 60),
    num_frames=st.integers(1, 40),
    rate=st.sampled_from([5.0, 10.0, 12.5, 29.97]),
)
def test_a_clip_lies_in_the_widened_span_and_in_the_video(
    start, length, min_time, duration, num_frames, rate
):
    start = min(start, duration)
    end = min(start + length, duration)
    wide = narration.widened(start, end, min_time, duration)
    assert 0 <= wide[0] <= start and end <= wide[1] <= duration
    assert wide[1] - wide[0] >= min(min_time, duration) - 1e-6 or wide == (start, end)
    available = max(math.ceil(duration * rate), 1)
    first, last = narration.first_frames(*wide, num_frames, rate, available)
    assert 0 <= first <= last <= max(available - num_frames, 0)
    if wide[1] - wide[0] >= (num_frames + 1) / rate:
        assert first / rate >= wide[0] - 1e-3
        assert (last + num_frames) / rate <= wide[1] + 1e-3


def test_captions_outside_the_video_are_left_out_and_the_others_put_in_order():
    nan = math.nan
    start_C = np.array([8.0, 12.0, -3.0, -3.0, nan, 4.0, 5.0])
    end_C = np.array([15.0, 14.0, -1.0, 2.0, nan, 3.0, nan])
    index_C, start_C, end_C = narration.inside(start_C, end_C, 10.0)
    assert index_C.tolist() == [3, 4, 5, 6, 0]
    assert start_C.tolist() == [0, 0, 4, 5, 8]
    assert end_C.tolist() == [2, 10, 4, 10, 10]


# --------------------------------------------------------------------------------------- views


def make_config(folder=None, words=("add", "basil", "stir", "cut", "pan"), **changes):
    config = base.get_config()
    config.method, config.batch_size = "mil_nce", 4
    config.data.threads = 1
    config.model = ConfigDict(
        {
            "frame_rate": 5.0,
            "video": {"num_frames": 4, "size": 16, "crop": "position"},
            "text": {
                "vocabulary": "",
                "max_words": 3,
                "lower": False,
                "candidates": 3,
                "min_time": 1.0,
            },
        }
    )
    if folder is not None:
        path = folder / "words.txt"
        Vocabulary(words).write(path)
        config.model.text.vocabulary = str(path)
        config.data.train = str(folder)
    config.update_from_flattened_dict({key.replace("__", "."): v for key, v in changes.items()})
    return config


def picture(level, height=20, width=24):
    """A grey picture whose columns tell where they are: 2 levels each."""
    image = (
        np.full((height, width, 3), level, np.uint8)
        + 2 * np.arange(width, dtype=np.uint8)[None, :, None]
    )
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def make_clip(number=0, frames=40, rate=10.0, captions=None):
    """Frame k has level 4 k; 40 frames at 10 per second are 4 s."""
    if captions is None:
        captions = [("add basil", 0.0, 1.0), ("zzz", 1.0, 2.0), ("cut, cut!", 2.0, 3.0)]
    pictures = [picture(4 * k) for k in range(frames)]
    return records.Clip(f"clip{number}", "", pictures, rate, captions=captions)


def example(views, clip, seed=(0, 0)):
    record = records.parse(records.serialize(clip), views.modalities, 25.0, 48_000)
    found = views.example(record, tf.constant(seed, tf.int32))
    return {name: value.numpy() for name, value in found.items()}


def test_an_example_has_the_shapes_and_types_that_are_promised(tmp_path):
    views = MilNceViews(make_config(tmp_path))
    found = example(views, make_clip())
    for name, entry in views.spec().items():
        assert found[name].shape == entry.shape and found[name].dtype == entry.dtype
    np.testing.assert_array_equal(found["text"], [[1, 2, 0], [0, 0, 0], [4, 4, 0]])


def test_clip_and_narration_are_a_function_of_the_seed_and_cover_what_they_can(tmp_path):
    views = MilNceViews(make_config(tmp_path, model__text__candidates=1))
    said, begun = set(), set()
    for seed in range(60):
        found = example(views, make_clip(), (seed, 1))
        again = example(views, make_clip(), (seed, 1))
        assert all(np.array_equal(found[name], again[name]) for name in found)
        level_T = found["video"][:, 0, 0, 0].astype(int)
        np.testing.assert_array_equal(np.diff(level_T), 8)  # every second frame: 5 per second
        said.add(tuple(found["text"][0]))
        begun.add((tuple(found["text"][0]), round(level_T[0] / 4 / 2)))
    assert said == {(1, 2, 0), (4, 4, 0)}  # never the one without known words
    # Columns shift levels by up to 16, or 2 frames of 5 per second.
    for words, frame in begun:
        assert (0 if words[0] == 1 else 10) <= frame <= (1 if words[0] == 1 else 11) + 3


@pytest.mark.parametrize("stored_rate", [5.0, 10.0, 30.0])
def test_the_clip_is_at_its_rate_whatever_rate_is_stored(tmp_path, stored_rate):
    views = MilNceViews(make_config(tmp_path, model__text__min_time=0.8))
    caption = [("add", 0.6, 1.4)]  # as long as the clip, which has one place: frames 3 to 6
    frames = round(2 * stored_rate)
    clip = make_clip(frames=frames, rate=stored_rate, captions=caption)
    found = example(views, clip)["video"]
    column = found[0, 0, 0, 0] - 4 * round(0.6 * stored_rate)
    wanted = [4 * round(second * stored_rate) for second in (0.6, 0.8, 1.0, 1.2)]
    np.testing.assert_array_equal(found[:, 0, 0, 0] - column, wanted)


def test_a_video_shorter_than_the_clip_is_repeated_and_never_black(tmp_path):
    views = MilNceViews(make_config(tmp_path, model__video__num_frames=10))
    clip = make_clip(frames=6, rate=5.0, captions=[("add", 0.9, 5.0)])
    level_T = example(views, clip)["video"][:, 0, 0, 0].astype(int)
    np.testing.assert_array_equal(level_T - level_T[0], [0, 4, 8, 12, 16, 20, 0, 4, 8, 12])


def test_captions_of_unknown_time_belong_to_the_whole_video(tmp_path):
    views = MilNceViews(make_config(tmp_path))
    nan = math.nan
    clip = make_clip(captions=[("add", nan, nan), ("stir", nan, nan)])
    starts = set()
    for seed in range(40):
        found = example(views, clip, (seed, 0))
        assert {tuple(row) for row in found["text"]} == {(1, 0, 0), (3, 0, 0)}
        starts.add(int(found["video"][0, 0, 0, 0]) // 8)
    assert min(starts) <= 3 and max(starts) >= 14  # of frames 0 to 16


@pytest.mark.parametrize(
    ("captions", "why"),
    [
        ([], "it has no narrations within its 4.0 s \\(0 in all\\)"),
        ([("add", 4.5, 6.0)], "it has no narrations within its 4.0 s \\(1 in all\\)"),
        ([("um", 0.0, 1.0), ("...", 1.0, 2.0)], "none of its 2 narrations has a word of"),
    ],
)
def test_a_record_without_words_is_left_out_by_name(tmp_path, captions, why):
    clips = [make_clip(number) for number in range(7)] + [make_clip(7, captions=captions)]
    path = tmp_path / "a-00000-of-00001.tfrecord"
    path.write_bytes(b"".join(shards.frame(records.serialize(clip)) for clip in clips))
    shards.write_index(path)
    config = make_config(tmp_path)
    data = TrainData(config, MilNceViews(config))
    batches = data.batches(0)
    for _ in range(4):
        batch = next(batches)
        assert batch["text"].shape == (4, 3, 3) and batch["text"].any(axis=(1, 2)).all()
    assert data.bad.count >= 1
    (bad,) = data.bad.clips.values()
    assert (bad.number, bad.id) == (7, "clip7")
    assert re.search(why, bad.why)


@settings(max_examples=100, deadline=None)
@given(
    height=st.integers(8, 60),
    width=st.integers(8, 60),
    draws=st.tuples(*[st.floats(0, 1, exclude_max=True, width=32)] * 2),
    crop=st.sampled_from(["position", "resize"]),
)
def test_windows_are_squares_within_the_picture(height, width, draws, crop):
    top, left, tall, wide = square_window(np.array([height, width]), np.array(draws), 8, crop)
    assert tall == wide == (8 if crop == "position" else min(height, width))
    assert 0 <= top <= height - tall and 0 <= left <= width - wide


def test_pictures_too_small_to_be_cut_are_refused_with_the_way_out():
    with pytest.raises(ValueError, match="24x20 pixels are smaller .*crop='resize'"):
        square_window(np.array([20, 24]), np.zeros(2), 21, "position")


def test_cut_windows_keep_every_pixel_and_resized_ones_show_the_short_side(tmp_path):
    cut = example(MilNceViews(make_config(tmp_path)), make_clip())["video"]
    np.testing.assert_array_equal(np.diff(cut[0, 0, :, 0].astype(int)), 2)
    views = MilNceViews(make_config(tmp_path, model__video__crop="resize"))
    resized = example(views, make_clip())["video"]
    across = int(resized[0, 0, -1, 0]) - int(resized[0, 0, 0, 0])
    assert 36 <= across <= 39  # 20 of 24 columns in 16 pixels


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__video__crop": "centre"}, "video.crop is 'centre'; it must be one of position"),
        ({"model__video__num_frames": 0}, "video.num_frames is 0; it must be at least 1"),
        ({"model__text__candidates": 0}, "text.candidates is 0; it must be at least 1"),
        ({"model__text__min_time": -1.0}, "text.min_time is -1.0; it must be at least 0"),
        ({"model__frame_rate": 0.0}, "frame_rate is 0.0; it must be above 0"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        MilNceViews(make_config(**changes))


def test_a_vocabulary_that_is_not_named_is_asked_for():
    with pytest.raises(UserError, match="text.vocabulary names no file"):
        _ = MilNceViews(make_config()).vocabulary
