"""Promises of decoding: the published windows and pixels, to within rounding."""

import io

import golden_rules
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from common.data import decode, records
from common.data.shards import RecordSet
from common.tf import tf

PACK = golden_rules.Pack("brave")


def encode(image, format="JPEG", **options):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format, **options)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def picture():
    """A smooth picture whose red and green grow with the column and the row."""
    y, x = np.mgrid[:120, :160]
    image = np.stack([x, 2 * y, 0 * x + 60], axis=-1).astype(np.uint8)
    return encode(image, quality=95)


@pytest.mark.parametrize("shape", [(64, 90), (100, 41), (360, 640)])
def test_the_fallback_window_is_the_published_one(shape):
    stored = PACK.stored("crop_windows")["pad_center_{}x{}".format(*shape)]
    found = decode.padded_center_window(tf.constant(shape))
    np.testing.assert_array_equal(found, stored)


def test_tiny_images_have_a_fallback_window_too():
    np.testing.assert_array_equal(
        decode.padded_center_window(tf.constant((20, 30))), [0, 5, 20, 20]
    )


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 400), st.integers(1, 400), st.integers(-(2**31), 2**31 - 1))
def test_random_windows_lie_inside_the_image_and_are_a_function_of_the_seed(height, width, seed):
    def draw():
        return decode.random_window(tf.constant((height, width)), tf.constant((seed, 7))).numpy()

    top, left, rows, columns = draw()
    assert top >= 0 and top + rows <= height and left >= 0 and left + columns <= width
    assert rows > 0 and columns > 0
    np.testing.assert_array_equal(draw(), (top, left, rows, columns))


def test_random_windows_have_the_published_sizes_and_proportions():
    windows = np.stack(
        [decode.random_window(tf.constant((256, 340)), tf.constant((n, 0))) for n in range(300)]
    )
    share = windows[:, 2] * windows[:, 3] / (256 * 340)
    aspect = windows[:, 3] / windows[:, 2]
    assert 0.29 < share.min() < 0.33 and 0.9 < share.max() <= 1.0
    assert 0.49 < aspect.min() < 0.6 and 1.7 < aspect.max() < 2.02
    assert len(np.unique(windows, axis=0)) > 290


@pytest.mark.parametrize("case", ["resize_a", "resize_b", "resize_c", "resize_d"])
def test_resizing_is_the_published_one_to_within_rounding(case):
    frames = PACK.inputs(case)["frames"]
    stored = PACK.stored(case)["free"]
    found = decode._resize(list(tf.constant(frames)), (20, 26)).numpy()
    error = np.abs(found.astype(np.float32) - stored)
    assert error.max() < 0.9 and error.mean() < 0.3


def test_published_records_are_decoded_and_cut_as_published():
    stored = PACK.stored("record_file")
    store = RecordSet.open(golden_rules.__file__.replace("golden_rules.py", "brave/*.tfrecord"))
    assert len(store) == 2
    for number in range(2):
        record = records.parse(tf.constant(store.read(number)), {"frames", "audio"}, 25.0, 48000)
        assert tf.size(record["frames"]) == stored["num_frames"][number]
        assert tf.size(record["waveform"]) == stored["audio_length"][number]
    first = records.parse(tf.constant(store.read(0)), {"frames"}, 25.0, 48000)["frames"]
    window = tf.constant(stored["crop_window"], tf.int32)
    clip = decode._decode_jpegs(decode.take(first, tf.range(2)), window, (16, 20), False)
    assert np.abs(clip.numpy() - stored["crop_resized"]).max() <= 3.0
    whole = tf.constant((0, 0, *stored["decoded_first"].shape[:2]))
    image = decode._decode_jpegs(first[:1], whole, stored["decoded_first"].shape[:2], False)[0]
    assert np.abs(image.numpy().astype(int) - stored["decoded_first"].astype(int)).max() <= 3


def test_png_frames_give_the_same_clip_as_jpeg_frames(picture):
    pixels = np.array(Image.open(io.BytesIO(picture)))
    window = tf.constant((10, 21, 90, 101))
    of_jpeg = decode.decode_clip(tf.constant([picture] * 2), window, 48, reduced=False)
    of_png = decode.decode_clip(tf.constant([encode(pixels, "PNG")] * 2), window, 48)
    # TensorFlow decodes JPEG with libjpeg's fast integer transform, Pillow with the exact one.
    error = np.abs(of_jpeg.numpy().astype(int) - of_png.numpy().astype(int))
    assert error.max() <= 6 and error.mean() < 1.5
    for frame in (picture, encode(pixels, "PNG")):
        assert list(decode.frame_shape(tf.constant(frame)).numpy()) == [120, 160]


@pytest.mark.parametrize("window", [(0, 0, 120, 160), (13, 27, 100, 81), (50, 3, 66, 99)])
@pytest.mark.parametrize("size", [8, 16, 30, 60])
def test_reduced_decoding_shows_the_same_part_of_the_picture(picture, window, size):
    frames = tf.constant([picture])
    full = decode.decode_clip(frames, tf.constant(window), size, reduced=False).numpy()
    reduced = decode.decode_clip(frames, tf.constant(window), size, reduced=True).numpy()
    scale = max([s for s in (8, 4, 2) if min(window[2:]) // size >= s], default=1)
    if scale == 1:
        np.testing.assert_array_equal(full, reduced)
        return
    # Colour grows by one level per column and two per row: an edge that moves by less than the
    # scale changes it by less than that, beside the rounding of the JPEG.
    error = np.abs(full.astype(int) - reduced.astype(int))[..., :2]
    assert error[..., 0].max() <= scale + 4 and error[..., 1].max() <= 2 * scale + 4
    assert not np.array_equal(full, reduced)


def test_a_frame_that_is_no_picture_is_an_error():
    with pytest.raises(tf.errors.InvalidArgumentError):
        decode.decode_clip(tf.constant([b"not a picture"]), tf.constant((0, 0, 8, 8)), 8)
