"""Stored flow is DMVR's: x then y, uint8 of [-1, 1], 1 being 20 pixels per frame."""

import cv2
import numpy as np
import pytest

from common.data import convert, flow
from common.errors import UserError


def decode(jpeg):
    """As DMVR reads it: RGB, first two channels, 2 x / 255 - 1."""
    bgr = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    return bgr[..., ::-1][..., :2].astype(np.float32) * 2 / 255 - 1


def test_a_picture_of_motion_reads_back_in_order_and_scale():
    motion = np.zeros((32, 40, 2), np.float32)
    motion[..., 0], motion[..., 1] = 5.0, -10.0
    jpeg = cv2.imencode(".jpg", flow.to_image(motion), [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
    read = decode(jpeg) * flow.PIXELS_AT_ONE
    np.testing.assert_allclose(read.mean((0, 1)), [5.0, -10.0], atol=0.3)


def test_motion_beyond_the_scale_is_cut_off():
    coded = flow.to_image(np.full((2, 2, 2), 1000.0, np.float32))
    assert (coded[..., 1:] == 255).all() and (coded[..., 0] == 128).all()


@pytest.mark.parametrize("kind", ["dis", "tvl1"])
@pytest.mark.parametrize("shift", [(3, 0), (0, -2), (-4, 2)])
def test_a_shifted_texture_moves_by_its_shift(kind, shift):
    rng = np.random.default_rng(0)
    texture = cv2.GaussianBlur(rng.integers(0, 256, (120, 140), np.uint8), (0, 0), 2)
    texture = cv2.normalize(texture, None, 0, 255, cv2.NORM_MINMAX)
    before = texture[20:100, 20:120]
    x, y = shift
    after = texture[20 - y : 100 - y, 20 - x : 120 - x]
    motion = flow.estimator(kind)(before, after)[10:-10, 10:-10]
    np.testing.assert_allclose(np.median(motion, (0, 1)), shift, atol=0.3)


def test_there_are_as_many_flow_frames_as_frames_and_stills_do_not_move():
    sink = convert._FrameSink(convert.Settings(flow="dis"))
    rng = np.random.default_rng(0)
    for repeats in (1, 3, 1):
        sink.add(rng.integers(0, 256, (24, 24, 3), np.uint8), repeats)
    assert len(sink.flow_jpeg) == len(sink.frames_jpeg) == 5
    for still in (1, 2):  # frames 1 to 3 show one picture
        np.testing.assert_allclose(decode(sink.flow_jpeg[still]), 0, atol=0.01)
    assert sink.flow_jpeg[4] == sink.flow_jpeg[3]  # the last repeats the one before
    assert np.abs(decode(sink.flow_jpeg[3])).max() > 0.02


def test_without_opencv_contrib_tvl1_names_the_package(monkeypatch):
    monkeypatch.delattr(cv2, "optflow", raising=False)
    with pytest.raises(UserError, match="opencv-contrib-python"):
        flow.estimator("tvl1")
