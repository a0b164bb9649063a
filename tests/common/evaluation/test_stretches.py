"""Clips of a table and their published windows."""

import io

import numpy as np
import pytest
from PIL import Image

from common.data import records, shards
from common.data.sources import Source
from common.errors import UserError
from common.evaluation import reading, windows
from common.evaluation.features import BadClip
from common.evaluation.stretches import Stretches, num_seconds, second_clips, window_clips
from common.method import VideoInput

INPUTS = VideoInput(num_frames=4, frame_rate=5.0, stride=1, size=16)
RATES = reading.DefaultRates()


def _picture(value, edge=255):
    """A grey picture of 32 x 48 pixels whose left and right eight columns are of another grey."""
    image = np.full((32, 48, 3), value, np.uint8)
    image[:, :8] = image[:, -8:] = edge
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def _clip(name="a", frames=40, rate=10.0, start_s=0.0):
    """Frame n is of grey 5 n."""
    pictures = [_picture(5 * number) for number in range(frames)]
    return records.Clip(id=name, frames_jpeg=pictures, frame_rate=rate, start_s=start_s)


def _shown(clips_KTSSC):
    """The stored frames that are shown; black counts as the first."""
    assert (clips_KTSSC == clips_KTSSC[:, :, :1, :1, :1]).all()  # the edges are cut away
    return clips_KTSSC[:, :, 0, 0, 0] // 5


def test_windows_begin_at_the_published_seconds_and_show_the_square_in_the_middle():
    ours = window_clips(_clip(), (1.0, 3.5), INPUTS, 3, RATES)
    assert ours.shape == (3, 4, 16, 16, 3) and ours.dtype == np.uint8
    begin_K = windows.start_seconds(1.0, 3.5, 4, 5.0, 3)
    expected = np.floor(begin_K[:, None] * 10 + 2 * np.arange(4) + 1e-4)
    np.testing.assert_array_equal(_shown(ours), expected)
    assert expected[0].tolist() == [10, 12, 14, 16]


def test_a_clip_without_times_is_the_whole_record():
    whole = window_clips(_clip(), None, INPUTS, 2, RATES)
    np.testing.assert_array_equal(whole, window_clips(_clip(), (0.0, 4.0), INPUTS, 2, RATES))
    assert _shown(whole)[0].tolist() == [0, 2, 4, 6]


def test_times_are_those_of_the_file_that_the_record_was_made_from():
    late = _clip(start_s=2.0)
    np.testing.assert_array_equal(
        window_clips(late, (3.0, 5.0), INPUTS, 2, RATES),
        window_clips(_clip(), (1.0, 3.0), INPUTS, 2, RATES),
    )


def test_what_runs_past_the_end_is_black():
    (window,) = _shown(window_clips(_clip(), (3.6, 9.0), INPUTS, 1, RATES))
    assert window.tolist() == [36, 38, 0, 0]


@pytest.mark.parametrize(
    ("clip", "span_s", "message"),
    [
        (records.Clip(), None, "it has no frames"),
        (_clip(), (4.0, 5.0), "from 4 s to 5 s: it begins at 0 s and ends at 4 s"),
        (_clip(start_s=9.0), (4.0, 9.0), "it begins at 9 s"),
        (records.Clip(frames_jpeg=[b"no"] * 9, frame_rate=10.0), None, "cannot be decoded"),
    ],
)
def test_a_clip_without_pictures_says_why(clip, span_s, message):
    with pytest.raises(BadClip, match=message):
        window_clips(clip, span_s, INPUTS, 2, RATES)


def test_the_window_of_a_second_has_its_middle_in_the_middle_of_the_second():
    ours = second_clips(_clip(), (1, 4), INPUTS, RATES)  # 0.8 s: from 0.1 s to 0.9 s of a second
    assert ours.shape == (3, 4, 16, 16, 3) and ours.dtype == np.uint8
    assert _shown(ours).tolist() == [[11, 13, 15, 17], [21, 23, 25, 27], [31, 33, 35, 37]]


def test_the_window_of_a_second_is_black_before_the_video_and_after_it():
    slow = VideoInput(num_frames=4, frame_rate=4.0, stride=2, size=16)  # 2 s
    first, *_, last = _shown(second_clips(_clip(), (0, 4), slow, RATES)).tolist()
    assert (first, last) == ([0, 0, 5, 10], [25, 30, 35, 0])
    grey = records.Clip(frames_jpeg=[_picture(200)] * 40, frame_rate=10.0)
    (window,) = second_clips(grey, (0, 1), slow, RATES)[..., 0, 0, 0]
    assert window.tolist() == [0, 200, 200, 200]


def test_the_last_second_of_a_record_may_be_cut_short():
    assert [num_seconds(_clip(frames=n), RATES) for n in (1, 9, 10, 11, 40)] == [1, 1, 1, 2, 4]
    assert num_seconds(_clip(frames=30, rate=None), RATES) == 2  # at 25 frames/s


def test_parts_of_a_video_have_the_windows_of_the_whole(source):
    whole = Stretches(((1, (0.0, 4.0)),), every_second=True)
    parts = Stretches(((1, (0.0, 3.0)), (1, (3.0, 4.0))), every_second=True)
    read = parts.reader(source, INPUTS, lambda *_: None, RATES)
    np.testing.assert_array_equal(
        np.concatenate([read(0).inputs, read(1).inputs]),
        whole.reader(source, INPUTS, lambda *_: None, RATES)(0).inputs,
    )
    assert read(1).inputs.shape == (1, 4, 16, 16, 3)


@pytest.fixture
def source(tmp_path):
    data = b"".join(shards.frame(records.serialize(_clip(name))) for name in "abc")
    (tmp_path / "clips-00000-of-00001.tfrecord").write_bytes(data)
    return Source(str(tmp_path), 1.0, shards.RecordSet.open(tmp_path), records.parse)


def test_clips_are_read_in_the_order_of_the_table(source):
    def number_of(clip, number):
        return np.array([number])

    chosen = Stretches(((2, None), (0, None)))
    read = chosen.reader(source, INPUTS, number_of, RATES)
    assert [(read(n).id, read(n).inputs.tolist()) for n in range(len(chosen))] == [
        ("c", [2]),
        ("a", [0]),
    ]
    cut = Stretches(((1, (1.0, 2.0)), (1, (2.0, 3.0))), windows=2)
    read = cut.reader(source, INPUTS, number_of, RATES)
    assert [_shown(read(n).inputs)[0, 0] for n in range(2)] == [10, 20]


def test_other_clips_and_windows_have_other_descriptions(source):
    every = [Stretches(((1, (1.0, 2.0)),), 2), Stretches(((1, (1.0, 2.5)),), 2)]
    every += [Stretches(((1, (1.0, 2.0)),), 3), Stretches(((1, None),))]
    every += [Stretches(((1, (1.0, 2.0)),), every_second=True)]
    assert len({str(one.description()) for one in every}) == 5


def test_a_source_without_frames_is_refused(source):
    silent = Source(source.name, 1.0, source.records, source.parse, frozenset({"labels"}))
    with pytest.raises(UserError, match="has no frames"):
        Stretches(((0, None),)).reader(silent, INPUTS, lambda *_: None, RATES)
