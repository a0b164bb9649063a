"""What Frozen in Time's towers see of a record: frames spread over all of it, and a caption."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from common.data.word_pieces import WordPieces
from common.errors import UserError

if TYPE_CHECKING:
    import jax
    import tensorflow as tf

SAMPLINGS = ("whole", "published")
SHORT = ("repeat", "mask")
_ATTEMPTS = 10  # to find a window, as in torchvision

# Streams of the host's randomness.
_CAPTION, _FRAMES, _WINDOW = range(3)


class FrozenViews:
    """The host side of Frozen in Time (Bain et al., 2021, arXiv:2104.00650, section 3.3).

    An example is a uint8 clip ``video`` (T, S, S, 3) and the int32 ids ``text`` (L,) of one of the
    record's captions, drawn anew every time. The video is cut into T equal parts and a frame drawn
    from each; an image is a video of one frame. Clips that may have fewer frames than T
    (``video.short="mask"``) come with how many they have: ``frames``, int32.

    Where the published code fails or shows black frames:
      The last frame of a part is drawn like the others (``video.sampling="published"`` never takes
      it, but where a part has no other one).
      A video of fewer than T frames repeats its last one, or is masked; published are zeros.
      A record without a caption cannot be used: the pipeline counts and names it as unreadable.
    """

    modalities = frozenset({"frames", "captions"})

    def __init__(self, config: Any):
        """Checks the settings; the word pieces are read when they are first needed.

        Args:
            config: a whole config; ``config.model`` and ``config.data.reduced_decode`` are used.

        Raises:
            UserError: a setting is impossible.
        """
        self._model = config.model
        self._reduced = config.data.reduced_decode
        video = self._model.video
        for key, choices in (("sampling", SAMPLINGS), ("short", SHORT)):
            if video[key] not in choices:
                raise UserError(
                    f"config.model.video.{key} is {video[key]!r}; it must be one of "
                    f"{', '.join(choices)}."
                )
        if not 1 <= video.num_frames <= video.max_frames:
            raise UserError(
                f"config.model.video.num_frames is {video.num_frames}; it must be from 1 to "
                f"config.model.video.max_frames, {video.max_frames}."
            )
        least, most = video.crop_area
        if not 0 < least <= most <= 1:
            raise UserError(
                f"config.model.video.crop_area is {video.crop_area}; it must be two shares of the "
                "picture, the smaller one first."
            )

    @functools.cached_property
    def pieces(self) -> WordPieces:
        """The word pieces of ``config.model.text.pieces``.

        Raises:
            UserError: none are named, or they cannot be read.
        """
        if not self._model.text.pieces:
            raise UserError(
                "config.model.text.pieces names no file. It is the vocab.txt or tokenizer.json of "
                "the text network's training; for one that begins untrained, `python -m "
                "common.vocabulary --pieces=N` makes one of your captions."
            )
        return WordPieces.read(self._model.text.pieces)

    def spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns shape and dtype of every entry of an example."""
        import jax

        video, text = self._model.video, self._model.text
        spec = {
            "video": jax.ShapeDtypeStruct((video.num_frames, video.size, video.size, 3), np.uint8),
            "text": jax.ShapeDtypeStruct((text.max_pieces,), np.int32),
        }
        if video.short == "mask":
            spec["frames"] = jax.ShapeDtypeStruct((), np.int32)
        return spec

    def example(self, record: Mapping[str, tf.Tensor], seed: tf.Tensor) -> dict[str, tf.Tensor]:
        """Draws a caption, frames and a window of one parsed record; runs in tf.data."""
        from common.data import decode
        from common.tf import tf

        def uniform(stream: int, number: int) -> tf.Tensor:
            folded = tf.random.experimental.stateless_fold_in(seed, stream)
            return tf.random.stateless_uniform((number,), folded)

        video, text = self._model.video, self._model.text
        index_T, real, ids_L = tf.numpy_function(
            self.draw,
            [
                record["captions"],
                decode.count(record["frames"]),
                uniform(_CAPTION, 1),
                uniform(_FRAMES, video.num_frames),
            ],
            [tf.int64, tf.int32, tf.int32],
            stateful=False,
        )
        frames_T = decode.take(record["frames"], tf.ensure_shape(index_T, (video.num_frames,)))
        window = tf.numpy_function(
            functools.partial(random_window, area=video.crop_area, aspect=video.crop_aspect),
            [decode.frame_shape(frames_T[0]), uniform(_WINDOW, 4 * _ATTEMPTS)],
            tf.int32,
            stateful=False,
        )
        window = tf.ensure_shape(window, (4,))
        example = {
            "video": decode.decode_clip(frames_T, window, video.size, self._reduced),
            "text": tf.ensure_shape(ids_L, (text.max_pieces,)),
        }
        if video.short == "mask":
            example["frames"] = tf.ensure_shape(real, ())
        return example

    def draw(
        self, captions: np.ndarray, num_stored: int, caption_1: np.ndarray, frame_T: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Draws a caption and the frames of a clip.

        Args:
            captions: text or UTF-8 bytes (C,).
            num_stored: frames of the record.
            caption_1, frame_T: draws from [0, 1).

        Returns:
            The stored frames, int64 (T,); how many of them are real, int32; and ids of the
            caption, int32 (L,).

        Raises:
            ValueError: there is no caption.
        """
        said = [caption for caption in captions if caption.strip()]
        if not said:
            raise ValueError("it has no caption")
        caption = said[int(float(caption_1[0]) * len(said))]
        index_T, real = frame_indices(
            int(num_stored), frame_T, self._model.video.sampling == "published"
        )
        return index_T, np.int32(real), self.pieces.ids([caption], self._model.text.max_pieces)[0]


def frame_indices(
    num_stored: int, uniform_T: np.ndarray, published: bool = False
) -> tuple[np.ndarray, int]:
    """Draws a frame from each of T equal parts of a video; repeats the last where there are fewer.

    Args:
        num_stored: frames of the video, at least 1.
        uniform_T: draws from [0, 1).
        published: leave out the last frame of each part, as the published code does; a part of one
            frame, at which it fails, yields that.

    Returns:
        Which frames, int64 (T,), and how many are of the video's own.
    """
    real = min(len(uniform_T), num_stored)
    edge_P = np.linspace(0, num_stored, real + 1).astype(np.int64)
    room_P = np.maximum(np.diff(edge_P) - published, 1)
    index_P = edge_P[:-1] + np.minimum(
        (uniform_T[:real].astype(np.float64) * room_P).astype(np.int64), room_P - 1
    )
    return index_P[np.minimum(np.arange(len(uniform_T)), real - 1)], real


def random_window(
    shape: np.ndarray,
    uniform_4A: np.ndarray,
    area: tuple[float, float],
    aspect: tuple[float, float],
) -> np.ndarray:
    """Draws a window as torchvision's ``RandomResizedCrop``: top, left, height, width, int32.

    Args:
        shape: height and width of the picture.
        uniform_4A: draws from [0, 1), four for each attempt to find one that fits.
        area: least and largest share of the picture.
        aspect: least and largest width over height; their logarithm is drawn.

    Returns:
        The first window that fits, or the largest one of a possible aspect in the middle.
    """
    height, width = map(int, shape)
    logs = [math.log(value) for value in aspect]
    for of_area, of_aspect, of_top, of_left in uniform_4A.reshape(-1, 4).astype(float):
        target = (area[0] + of_area * (area[1] - area[0])) * height * width
        ratio = math.exp(logs[0] + of_aspect * (logs[1] - logs[0]))
        h, w = round(math.sqrt(target / ratio)), round(math.sqrt(target * ratio))
        if 0 < h <= height and 0 < w <= width:
            top, left = int(of_top * (height - h + 1)), int(of_left * (width - w + 1))
            return np.array([min(top, height - h), min(left, width - w), h, w], np.int32)
    h = min(height, round(width / aspect[0]))
    w = min(width, round(height * aspect[1]))
    return np.array([(height - h) // 2, (width - w) // 2, h, w], np.int32)
