"""What MIL-NCE's towers see of a record: a clip, and the narrations said around it."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from common.data.text import PADDING, Vocabulary
from common.errors import UserError
from mil_nce import narration

if TYPE_CHECKING:
    import jax
    import tensorflow as tf

CROPS = ("position", "resize")

# Streams of the host's randomness.
_PLACE, _WINDOW = 0, 1


class MilNceViews:
    """The host side of MIL-NCE (Miech et al., 2020, arXiv:1912.06430, section 3.2).

    An example is a uint8 clip ``video`` (T, S, S, 3) and the int32 ids ``text`` (K, W) of K
    neighbouring narrations, 0 for padding. One narration is drawn; the clip begins anywhere in its
    span, which is at least ``text.min_time`` seconds, so that the clip fits. The drawn one is not
    marked: which of the candidates belong is what MIL-NCE leaves open.

    Where records are not as they should be:
      Narrations outside the video are left out (ingest and inspect count them), and cut where they
      reach beyond it; those of unknown time may belong to any part of it.
      A narration without a word of the vocabulary is never the drawn one, but may be among its
      neighbours, as padding.
      A record without narrations in the video, or none of whose has a known word, or whose pictures
      are too small to be cut, cannot be used: the pipeline counts and names it as unreadable.
      A video that is too short for a clip is repeated from its start.
    """

    modalities = frozenset({"frames", "captions"})

    def __init__(self, config: Any):
        """Checks the settings; the vocabulary is read when it is first needed.

        Args:
            config: a whole config; ``config.model`` and ``config.data.reduced_decode`` are used.

        Raises:
            UserError: a setting is impossible.
        """
        self._model = config.model
        self._reduced = config.data.reduced_decode
        video = self._model.video
        if video.crop not in CROPS:
            raise UserError(
                f"config.model.video.crop is {video.crop!r}; it must be one of {', '.join(CROPS)}."
            )
        least = {"video": {"num_frames": 1, "size": 1}}
        least["text"] = {"max_words": 1, "candidates": 1, "min_time": 0}
        for group, keys in least.items():
            for key, smallest in keys.items():
                if not self._model[group][key] >= smallest:
                    raise UserError(
                        f"config.model.{group}.{key} is {self._model[group][key]}; it must be at "
                        f"least {smallest}."
                    )
        if not self._model.frame_rate > 0:
            raise UserError(
                f"config.model.frame_rate is {self._model.frame_rate}; it must be above 0."
            )

    @functools.cached_property
    def vocabulary(self) -> Vocabulary:
        """The words of ``config.model.text.vocabulary``.

        Raises:
            UserError: none is named, or it cannot be read.
        """
        if not self._model.text.vocabulary:
            raise UserError(
                "config.model.text.vocabulary names no file. `python -m common.vocabulary` makes "
                "one; a text file of a word per line or an .npy array of words will do."
            )
        return Vocabulary.read(self._model.text.vocabulary)

    def spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns shape and dtype of every entry of an example."""
        import jax

        video, text = self._model.video, self._model.text
        shape = (video.num_frames, video.size, video.size, 3)
        return {
            "video": jax.ShapeDtypeStruct(shape, np.uint8),
            "text": jax.ShapeDtypeStruct((text.candidates, text.max_words), np.int32),
        }

    def example(self, record: Mapping[str, tf.Tensor], seed: tf.Tensor) -> dict[str, tf.Tensor]:
        """Draws a narration of one parsed record and cuts a clip to it; runs in tf.data."""
        from common.data import decode, sampling
        from common.tf import tf

        def uniform(stream: int) -> tf.Tensor:
            folded = tf.random.experimental.stateless_fold_in(seed, stream)
            return tf.random.stateless_uniform((2,), folded)

        model, num_stored = self._model, decode.count(record["frames"])
        rates = (record["frame_rate"], model.frame_rate)
        start, text_KW = tf.numpy_function(
            self.draw,
            [
                record["captions"],
                record["caption_starts"],
                record["caption_ends"],
                tf.cast(num_stored, tf.float64) / tf.cast(record["frame_rate"], tf.float64),
                sampling.frames_at_rate(num_stored, *rates),
                uniform(_PLACE),
            ],
            [tf.int64, tf.int32],
            stateful=False,
        )
        start = tf.ensure_shape(start, ())
        indices_T = sampling.clip_indices(start, model.video.num_frames, 1, num_stored, *rates)
        frames_T = decode.take(record["frames"], indices_T)
        window = tf.numpy_function(
            functools.partial(square_window, size=model.video.size, crop=model.video.crop),
            [decode.frame_shape(frames_T[0]), uniform(_WINDOW)],
            tf.int32,
            stateful=False,
        )
        window = tf.ensure_shape(window, (4,))
        clip_TSSC = decode.decode_clip(frames_T, window, model.video.size, self._reduced)
        text_KW = tf.ensure_shape(text_KW, (model.text.candidates, model.text.max_words))
        return {"video": clip_TSSC, "text": text_KW}

    def draw(
        self,
        captions: np.ndarray,
        start_C: np.ndarray,
        end_C: np.ndarray,
        duration: float,
        available: int,
        uniform_2: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draws a narration, its candidates, and where a clip to it begins.

        Args:
            captions: text or UTF-8 bytes (C,).
            start_C: seconds, NaN where not known.
            end_C: seconds, NaN where not known.
            duration: of the video, seconds.
            available: frames of the video at the clip's rate.
            uniform_2: two draws from [0, 1): of the narration, and of the beginning.

        Returns:
            The frame at the clip's rate, int64 (), and ids of the candidates, int32 (K, W).

        Raises:
            ValueError: there is no narration that could be drawn.
        """
        text = self._model.text
        index_C, start_C, end_C = narration.inside(start_C, end_C, float(duration))
        if not len(index_C):
            raise ValueError(
                f"it has no narrations within its {duration:.1f} s ({len(captions)} in all)"
            )
        said = [captions[index] for index in index_C]
        ids_CW = self.vocabulary.ids(said, text.max_words, text.lower)
        known = np.flatnonzero(ids_CW[:, 0] != PADDING)
        if not len(known):
            raise ValueError(
                f"none of its {len(said)} narrations has a word of the vocabulary {text.vocabulary}"
            )
        row = known[_pick(uniform_2[0], len(known))]
        rows_K = narration.candidates(start_C, end_C, row, text.candidates)
        span = narration.widened(start_C[row], end_C[row], text.min_time, float(duration))
        first, last = narration.first_frames(
            *span, self._model.video.num_frames, self._model.frame_rate, int(available)
        )
        return np.int64(first + _pick(uniform_2[1], last - first + 1)), ids_CW[rows_K]


def square_window(shape: np.ndarray, uniform_2: np.ndarray, size: int, crop: str) -> np.ndarray:
    """Returns a square of a picture at random: top, left, height and width in pixels, int32.

    Args:
        shape: height and width of the picture.
        uniform_2: two draws from [0, 1).
        size: side of the clip.
        crop: "position", as published for training: `size` pixels are cut and none is resized.
            "resize": the side is the picture's shorter one.

    Raises:
        ValueError: the picture is smaller than what is to be cut.
    """
    height, width = map(int, shape)
    side = size if crop == "position" else min(height, width)
    if side > min(height, width):
        raise ValueError(
            f"its pictures of {width}x{height} pixels are smaller than config.model.video.size="
            f"{size}; config.model.video.crop='resize' would enlarge them"
        )
    top, left = (_pick(u, room - side + 1) for u, room in zip(uniform_2, shape, strict=True))
    return np.array([top, left, side, side], np.int32)


def _pick(uniform: float, number: int) -> int:
    """Turns a draw from [0, 1) into one from ``range(number)``."""
    return min(int(float(uniform) * int(number)), int(number) - 1)
