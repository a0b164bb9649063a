"""Promises of Frozen in Time's views: frames from all of a video, and one of its captions."""

import io
import itertools
import json
import math
import re

import golden_rules
import numpy as np
import pytest
import tiny_media
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from tool_flags import tool_flags

from common import ingest
from common.data import records, shards, sources
from common.data.pipeline import TrainData
from common.errors import UserError
from common.tf import tf
from configs import frozen_base
from frozen.views import FrozenViews, frame_indices, random_window

PIECES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "ball", "cat", "dog", "runs", "##s")
RANGES = {
    tuple(map(int, re.findall(r"\d+", key))): stored
    for key, stored in np.load(golden_rules.Pack("frozen").folder / "frame_indices.npz").items()
    if key.startswith("random_range")
}
AREA, ASPECT = (0.5, 1.0), (3 / 4, 4 / 3)
DRAW = st.floats(0, 1, exclude_max=True, width=32)


def make_config(folder=None, **changes):
    config = frozen_base.smoke(frozen_base.get_config())
    config.batch_size = 4
    config.data.threads = 1
    if folder is not None:
        path = folder / "pieces.txt"
        path.write_text("".join(f"{piece}\n" for piece in PIECES))
        config.model.text.pieces = str(path)
        config.data.train = str(folder)
    config.update_from_flattened_dict({key.replace("__", "."): v for key, v in changes.items()})
    return config


# -------------------------------------------------------------------------------------- frames


def parts_of(length, count):
    """Where each of the equal parts of a video begins and ends."""
    edges = [int(edge) for edge in np.linspace(0, length, count + 1)]
    return list(itertools.pairwise(edges))


@settings(max_examples=100, deadline=None)
@given(length=st.integers(1, 5000), draws=st.lists(DRAW, min_size=1, max_size=40))
@pytest.mark.parametrize("published", [False, True])
def test_a_frame_is_drawn_from_every_equal_part_in_order(length, draws, published):
    index_T, real = frame_indices(length, np.array(draws, np.float32), published)
    assert index_T.dtype == np.int64 and len(index_T) == len(draws)
    assert real == min(length, len(draws))
    for frame, (begin, end) in zip(index_T[:real], parts_of(length, real), strict=True):
        assert begin <= frame < end
        assert not (published and end - begin > 1 and frame == end - 1)
    assert all(index_T[real:] == index_T[real - 1]), "what is missing repeats the last frame"
    assert all(np.diff(index_T[:real]) > 0), "no frame is shown twice while there are others"


def test_every_frame_of_a_part_is_drawn_equally_often_the_last_one_included():
    draws = (np.arange(1200) + 0.5) / 1200
    drawn_NT = np.array([frame_indices(12, np.array([u, 1 - u]))[0] for u in draws])
    np.testing.assert_array_equal(np.unique(drawn_NT, return_counts=True)[1], np.full(12, 200))
    kept_NT = np.array([frame_indices(12, np.array([u, 1 - u]), True)[0] for u in draws])
    assert sorted(set(kept_NT.ravel())) == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10]


@pytest.mark.parametrize("case", sorted(RANGES))
def test_the_published_ranges_are_drawn_from(case):
    """Where the published code has nothing to draw from, the only frame of the part is shown."""
    count, length = case
    low_T, high_T = RANGES[case].T
    lowest, real = frame_indices(length, np.zeros(count), True)
    highest, _ = frame_indices(length, np.full(count, 1 - 2**-24), True)
    np.testing.assert_array_equal(lowest[:real], low_T)
    np.testing.assert_array_equal(highest[:real], np.maximum(high_T - 1, low_T))


# -------------------------------------------------------------------------------------- windows


@settings(max_examples=100, deadline=None)
@given(
    height=st.integers(1, 400),
    width=st.integers(1, 400),
    draws=st.lists(st.tuples(DRAW, DRAW, DRAW, DRAW), min_size=1, max_size=10),
)
def test_windows_lie_in_the_picture_with_an_area_and_an_aspect_within_bounds(height, width, draws):
    window = random_window(np.array([height, width]), np.array(draws), AREA, ASPECT)
    top, left, tall, wide = map(int, window)
    assert window.dtype == np.int32
    assert tall >= 1 and wide >= 1
    assert 0 <= top <= height - tall and 0 <= left <= width - wide
    assume(min(tall, wide) >= 8)  # whole pixels are too coarse for less
    rounding = 0.5 / tall + 0.5 / wide + 0.01
    assert ASPECT[0] * (1 - rounding) <= wide / tall <= ASPECT[1] * (1 + rounding)
    if 2 / 3 < height / width < 3 / 2:  # else the widest window that is possible may be less
        assert AREA[0] - rounding <= tall * wide / (height * width) <= 1


def test_a_window_that_cannot_fit_is_the_largest_possible_one_in_the_middle():
    draws = np.array([[0.9, 0.5, 0.2, 0.2]] * 10)
    assert random_window(np.array([20, 200]), draws, AREA, ASPECT).tolist() == [0, 86, 20, 27]
    assert random_window(np.array([200, 20]), draws, AREA, ASPECT).tolist() == [86, 0, 27, 20]


def test_the_first_window_that_fits_is_taken():
    fits, too_wide = [0.0, 0.5, 0.999, 0.0], [0.999, 1.0, 0.0, 0.0]
    window = random_window(np.array([40, 40]), np.array([too_wide, fits, too_wide]), AREA, ASPECT)
    assert window.tolist() == [12, 0, 28, 28]  # half of 1600 is 28.3 x 28.3


# ------------------------------------------------------------------------------------- examples


def picture(level, height=20, width=24):
    """A grey picture whose columns tell where they are: 2 levels each."""
    ramp = level + 2 * np.arange(width, dtype=np.uint8)[None, :, None]
    buffer = io.BytesIO()
    Image.fromarray(np.broadcast_to(ramp, (height, width, 3))).save(buffer, "PNG")
    return buffer.getvalue()


def make_clip(number=0, frames=20, captions=("A ball runs", "cats")):
    """Frame k has level 8 k."""
    said = [(text, math.nan, math.nan) for text in captions]
    return records.Clip(
        f"clip{number}", "", [picture(8 * k) for k in range(frames)], 10.0, captions=said
    )


def example(views, clip, seed=(0, 0)):
    record = records.parse(records.serialize(clip), views.modalities, 25.0, 48_000)
    found = views.example(record, tf.constant(seed, tf.int32))
    return {name: value.numpy() for name, value in found.items()}


@pytest.mark.parametrize("short", ["repeat", "mask"])
def test_an_example_has_the_shapes_and_types_that_are_promised(tmp_path, short):
    views = FrozenViews(make_config(tmp_path, model__video__short=short))
    found = example(views, make_clip())
    assert found.keys() == views.spec().keys()
    for name, entry in views.spec().items():
        assert found[name].shape == entry.shape and found[name].dtype == entry.dtype


def test_an_example_is_a_function_of_its_seed(tmp_path):
    views = FrozenViews(make_config(tmp_path))
    drawn = [example(views, make_clip(), (seed, 1)) for seed in (3, 3, 4)]
    assert all(np.array_equal(drawn[0][name], drawn[1][name]) for name in drawn[0])
    assert not np.array_equal(drawn[0]["video"], drawn[2]["video"])


def test_captions_are_drawn_evenly_and_cut_into_their_pieces(tmp_path):
    views = FrozenViews(make_config(tmp_path))
    captions = np.array([b"A ball runs", b"", b"cats", b" \n", b"what"])
    counts = {}
    for draw in (np.arange(300) + 0.5) / 300:
        _, _, ids_L = views.draw(captions, 20, np.array([draw]), np.zeros(4))
        counts[tuple(ids_L)] = counts.get(tuple(ids_L), 0) + 1
    # [CLS] a ball runs [SEP], cat ##s, and what is unknown: a third each; nothing for the blank.
    ends = (0, 0, 0)
    assert counts == {
        (2, 4, 5, 8, 3, *ends): 100,
        (2, 6, 9, 3, 0, *ends): 100,
        (2, 1, 3, 0, 0, *ends): 100,
    }


def test_all_frames_of_a_clip_show_the_same_window_and_lie_in_order(tmp_path):
    views = FrozenViews(make_config(tmp_path))
    for seed in range(10):
        video = example(views, make_clip(), (seed, 0))["video"].astype(int)
        level_T = video[:, 0, 0, 0]
        apart_T = np.round(np.diff(level_T) / 8)  # in frames; 20 of them are cut into parts of 5
        assert all(apart_T >= 1) and all(apart_T <= 9)
        ramp = video - level_T[:, None, None, None]
        assert np.abs(ramp - ramp[:1]).max() <= 1, "but for rounding"


@pytest.mark.parametrize("frames", [1, 3, 4, 9])
def test_the_mask_says_how_many_frames_are_real_and_the_others_repeat_the_last(tmp_path, frames):
    views = FrozenViews(make_config(tmp_path, model__video__short="mask"))
    found = example(views, make_clip(frames=frames))
    assert found["frames"] == min(frames, 4)
    level_T = found["video"][:, 0, 0, 0].astype(int)
    assert all(np.diff(level_T)[: found["frames"] - 1] > 0)
    assert all(level_T[found["frames"] :] == level_T[found["frames"] - 1])
    repeated = example(FrozenViews(make_config(tmp_path)), make_clip(frames=frames))
    np.testing.assert_array_equal(repeated["video"], found["video"])


@pytest.mark.parametrize("captions", [(), ("",), ("  ", "\n\t")])
def test_a_record_without_a_caption_is_left_out_by_name(tmp_path, captions):
    clips = [make_clip(number) for number in range(7)] + [make_clip(7, captions=captions)]
    path = tmp_path / "a-00000-of-00001.tfrecord"
    path.write_bytes(b"".join(shards.frame(records.serialize(clip)) for clip in clips))
    shards.write_index(path)
    config = make_config(tmp_path)
    data = TrainData(config, FrozenViews(config))
    for batch in itertools.islice(data.batches(0), 4):
        assert batch["video"].shape == (4, 4, 32, 32, 3)
    (bad,) = data.bad.clips.values()
    assert (bad.number, bad.id) == (7, "clip7")
    assert "it has no caption" in bad.why


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Records of a short video of 9 frames and of a picture, as `common.ingest` makes them."""
    folder = tmp_path_factory.mktemp("files")
    tiny_media.write_video(folder / "moving.mp4", frames=9, sound=False)
    pixels = np.random.default_rng(0).integers(0, 256, (48, 70, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "still.jpg", quality=95)
    rows = [
        {"path": "moving.mp4", "captions": ["a ball runs", "a ball"]},
        {"path": "still.jpg", "captions": ["a cat"]},
    ]
    (folder / "table.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = (f"--source={folder / 'table.jsonl'}", f"--output={folder / 'records'}")
    with tool_flags(ingest, *given, "--audio_rate=0", "--workers=1"):
        assert not ingest.main(["ingest"])
    return folder


def test_videos_and_images_go_through_the_real_pipeline_in_one_batch(files):
    config = make_config(files, model__video__short="mask")
    config.data.train = str(files / "records" / "train")
    source = sources.open_source(config.data.train)
    assert len(source.records) == 2
    views = FrozenViews(config)
    batches = list(itertools.islice(TrainData(config, views).batches(0), 3))
    seen = {}
    for video, text, frames in zip(
        *(
            np.concatenate([batch[name] for batch in batches])
            for name in ("video", "text", "frames")
        ),
        strict=True,
    ):
        (said,) = views.pieces.sentences(text[None])
        seen.setdefault(int(frames), set()).add(said)
        moves = np.abs(np.diff(video.astype(int), axis=0)).max(axis=(1, 2, 3))
        assert all(moves > 20) if frames == 4 else not moves.any()
    assert seen == {1: {"a cat"}, 4: {"a ball runs", "a ball"}}


# ------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__video__sampling": "all"}, "video.sampling is 'all'; it must be one of whole, pu"),
        ({"model__video__short": "zeros"}, "video.short is 'zeros'; it must be one of repeat, mas"),
        ({"model__video__num_frames": 0}, "num_frames is 0; it must be from 1 to .*max_frames, 4"),
        ({"model__video__num_frames": 5}, "num_frames is 5; it must be from 1 to .*max_frames, 4"),
        ({"model__video__crop_area": (0.0, 1.0)}, r"crop_area is \(0.0, 1.0\)"),
        ({"model__video__crop_area": (0.8, 0.5)}, "the smaller one first"),
        ({"model__video__crop_area": (0.5, 1.5)}, "two shares of the picture"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        FrozenViews(make_config(**changes))


def test_word_pieces_that_are_not_named_are_asked_for():
    with pytest.raises(UserError, match="text.pieces names no file.*--pieces=N"):
        _ = FrozenViews(make_config()).pieces
