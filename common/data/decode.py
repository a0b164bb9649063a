"""JPEG frames to uint8 clips: only the sampled frames, only the window, no larger than needed.

Runs inside tf.data. Windows are int32 (4,): top, left, height, width in pixels of the stored frame.
Random windows and resizing follow BraVe (Recasens et al., 2021,
https://github.com/google-deepmind/brave), except that pixels are rounded to uint8 where the
published code keeps float32: they differ by up to 0.9 levels, on average by a quarter of one.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from common.data.parts import StoredFrames
from common.tf import empty_for_tf, tf

cv2.setNumThreads(1)  # tf.data already runs one clip per core

_PADDING = 16  # pixels left out on every side by the fallback window
_SCALES = (8, 4, 2)  # at which JPEG can be decoded without its high frequencies


def count(frames: tf.Tensor | StoredFrames) -> tf.Tensor:
    """Returns the number of stored frames, int64."""
    return frames.count if isinstance(frames, StoredFrames) else tf.size(frames, tf.int64)


def take(frames: tf.Tensor | StoredFrames, indices_T: tf.Tensor) -> tf.Tensor:
    """Returns the encoded frames (T,) at `indices_T`; their number stays statically known."""
    is_stored = isinstance(frames, StoredFrames)
    taken = frames.read(indices_T) if is_stored else tf.gather(frames, indices_T)
    return tf.ensure_shape(taken, indices_T.shape)


def frame_shape(frame: tf.Tensor) -> tf.Tensor:
    """Returns height and width, int32 (2,), of one encoded frame (JPEG or PNG)."""
    return tf.cond(
        tf.io.is_jpeg(frame),
        lambda: tf.io.extract_jpeg_shape(frame)[:2],
        lambda: tf.shape(tf.io.decode_image(frame, channels=3, expand_animations=False))[:2],
    )


def random_window(shape: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Draws a window of 0.3 to 1.0 of the area with an aspect ratio of 0.5 to 2.

    Where 20 attempts find none, it is the centred square that leaves 16 pixels on every side.

    Args:
        shape: int32 (2,), height and width.
        seed: int32 (2,).
    """
    begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
        tf.concat([shape, [3]], 0),
        tf.constant([[[0.0, 0.0, 1.0, 1.0]]]),
        seed,
        min_object_covered=0.3,
        aspect_ratio_range=(0.5, 2.0),
        area_range=(0.3, 1.0),
        max_attempts=20,
        use_image_if_no_bounding_boxes=True,
    )
    window = tf.concat([begin[:2], size[:2]], 0)
    failed = tf.reduce_all(size[:2] == shape)  # it then returns the whole image
    return tf.where(failed, padded_center_window(shape), window)


def padded_center_window(shape: tf.Tensor) -> tf.Tensor:
    """Returns the centred square that leaves 16 pixels of the shorter side on either end.

    Images of 32 pixels or less have no such square; theirs is as large as fits.
    """
    short = tf.reduce_min(shape)
    side = tf.where(short > 2 * _PADDING, short - 2 * _PADDING, short)
    begin = (shape - side) // 2
    return tf.concat([begin, [side, side]], 0)


def decode_clip(
    frames_T: tf.Tensor, window: tf.Tensor, size: int, reduced: bool = True
) -> tf.Tensor:
    """Decodes one window of every frame and resizes it to a square.

    Bilinear with half-pixel centres and no antialiasing, rounded to the nearest level.

    Args:
        frames_T: string (T,), encoded; T must be statically known.
        window: int32 (4,).
        size: side of the result in pixels.
        reduced: where the target is at most half the window, decode at 1/2, 1/4 or 1/8 scale. The
            window then moves to multiples of the scale, which shifts its edges by less than it.

    Returns:
        uint8 (T, size, size, 3).
    """
    return tf.cond(
        tf.io.is_jpeg(frames_T[0]),
        lambda: _decode_jpegs(frames_T, window, (size, size), reduced),
        lambda: _decode_others(frames_T, window, (size, size)),
    )


def _decode_jpegs(
    frames_T: tf.Tensor, window: tf.Tensor, shape: tuple[int, int], reduced: bool
) -> tf.Tensor:
    def at_scale(scale: int) -> Callable[[], tf.Tensor]:
        cut = window // scale
        return lambda: _resize(
            [
                tf.io.decode_and_crop_jpeg(frame, cut, channels=3, ratio=scale)
                for frame in tf.unstack(frames_T)
            ],
            shape,
        )

    if not reduced:
        return at_scale(1)()
    room = tf.reduce_min(window[2:] // tf.constant(shape))
    return tf.case([(room >= scale, at_scale(scale)) for scale in _SCALES], default=at_scale(1))


def _decode_others(frames_T: tf.Tensor, window: tf.Tensor, shape: tuple[int, int]) -> tf.Tensor:
    top, left, height, width = tf.unstack(window)
    images = [
        tf.io.decode_image(frame, channels=3, expand_animations=False)
        for frame in tf.unstack(frames_T)
    ]
    return _resize([i[top : top + height, left : left + width] for i in images], shape)


def _resize(images: list[tf.Tensor], shape: tuple[int, int]) -> tf.Tensor:
    height, width = shape

    # OpenCV's integer bilinear filter takes a quarter of the time of TensorFlow's and rounding.
    def resize(*images_HWC: np.ndarray) -> np.ndarray:
        clip = empty_for_tf((len(images_HWC), height, width, 3), np.uint8)
        for image_HWC, frame_HWC in zip(images_HWC, clip, strict=True):
            cv2.resize(image_HWC, (width, height), frame_HWC, interpolation=cv2.INTER_LINEAR)
        return clip

    clip_THWC = tf.numpy_function(resize, images, tf.uint8, stateful=False)
    return tf.ensure_shape(clip_THWC, (len(images), height, width, 3))
