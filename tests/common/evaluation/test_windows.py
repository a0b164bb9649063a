"""Evaluation windows: those of the published code, and what must hold of them."""

import golden_rules
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import UserError
from common.evaluation import windows

PACK = golden_rules.Pack("mil_nce")
STORED = PACK.stored("windows")


def _numbers(name):
    """The numbers of a case such as "12_17_c4_f16_r5"."""
    return [float(part.lstrip("cfr")) for part in name.split("/")[1].split("_")]


@pytest.mark.parametrize("data_set", ["msrvtt", "youcook"])
def test_windows_of_msrvtt_and_youcook2_begin_at_the_published_seconds(data_set):
    names = [name for name in STORED if name.startswith(data_set)]
    assert len(names) == 45
    tolerance = PACK.case("windows")["tolerance"]["float64"]["atol"]
    for name in names:
        start, end, count, num_frames, frame_rate = _numbers(name)
        ours = windows.start_seconds(start, end, int(num_frames), frame_rate, int(count))
        np.testing.assert_allclose(ours, STORED[name], rtol=0, atol=tolerance, err_msg=name)


def test_windows_of_hmdb_begin_at_the_published_frames():
    names = [name for name in STORED if name.startswith("hmdb")]
    assert len(names) == 12
    for name in names:
        num_stored, count, num_frames = map(int, _numbers(name))
        ours = windows.start_frames(num_stored, num_frames, count)
        np.testing.assert_array_equal(ours, STORED[name], err_msg=name)


@given(st.floats(0, 1000), st.floats(0, 500), st.integers(1, 32), st.integers(1, 12))
def test_windows_lie_in_order_inside_the_clip_unless_it_is_too_short(start, length, frames, count):
    begin = windows.start_seconds(start, start + length, frames, 10.0, count)
    assert begin.shape == (count,)
    assert begin[0] == start
    assert (np.diff(begin) >= 0).all()
    last = start + length - frames / 10.0 - windows.MARGIN_S
    assert begin[-1] <= max(start, last) + 1e-9


@given(st.integers(1, 300), st.integers(1, 40), st.integers(1, 12))
def test_windows_of_frames_lie_in_order_inside_the_video_unless_it_is_too_short(
    stored, frames, count
):
    begin = windows.start_frames(stored, frames, count)
    assert begin.shape == (count,)
    assert begin[0] == 0
    assert (np.diff(begin) >= 0).all()
    assert begin[-1] + frames <= max(stored, frames)


@pytest.mark.parametrize("times", [(5.0, 4.0), (0.0, np.inf), (np.nan, 4.0)])
def test_a_clip_that_ends_before_it_begins_is_refused(times):
    with pytest.raises(UserError, match="must end after it begins"):
        windows.start_seconds(*times, 16, 5.0, 4)


def test_no_windows_of_nothing():
    with pytest.raises(ValueError, match="0 windows"):
        windows.start_seconds(0.0, 9.0, 16, 5.0, 0)
    with pytest.raises(ValueError, match="of 0 frames"):
        windows.start_frames(0, 16, 4)
