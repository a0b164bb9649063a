"""MIL-NCE: a clip finds its narration among misaligned candidates (arXiv:1912.06430)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from common.data import clip_input, word_vectors
from common.data.device_augment import flip_horizontally, normalise, sample_events
from common.errors import UserError
from common.method import Batch, Embeddings, Encoder, TextInput, VideoInput
from common.precision import compute_dtype
from mil_nce.loss import POSITIVES, mil_nce_loss
from mil_nce.model import MilNceModel
from mil_nce.views import MilNceViews

SPACE = "video and text"


class MilNce:
    """The members of `common.method.Method` for MIL-NCE."""

    title = "MIL-NCE"

    def __init__(self, config: Any):
        """Checks the config.

        Raises:
            UserError: a setting is impossible, or the vocabulary cannot be used.
        """
        model = config.model
        if model.positives not in POSITIVES:
            raise UserError(
                f"config.model.positives is {model.positives!r}; it must be one of "
                f"{', '.join(POSITIVES)}."
            )
        frames = {
            "video.num_frames": model.video.num_frames,
            "evaluation_frames": model.evaluation_frames,
        }
        clip_input.check("video", model.video.input, frames)
        self._config = config
        self._dtype = compute_dtype(config.compute_dtype)
        self.views = MilNceViews(config)
        self._vectors_VD = self._checked_words()  # read once: models are built many times
        shapes = nnx.eval_shape(lambda: self.build(nnx.Rngs(0)))
        self.encoders = self._encoders(shapes)

    def build(self, rngs: nnx.Rngs) -> MilNceModel:
        """Makes both towers."""
        return MilNceModel(
            self._config.model,
            rngs,
            compute_dtype=self._dtype,
            remat=self._config.remat == "block",
            vectors_VD=self._vectors_VD,
        )

    def augment(self, batch: Batch, keys_B: jax.Array) -> dict[str, jax.Array]:
        """Scales the clips to [0, 1] and mirrors some; words stay as they are."""
        flip_B = sample_events(keys_B, self._config.model.flip)
        return {
            "video": self._pictures(flip_horizontally(batch["video"], flip_B)),
            "text": batch["text"],
        }

    def embed(self, model: MilNceModel, inputs: Batch) -> Embeddings:
        """Embeddings of the clips and of their candidates; see `MilNceModel.__call__`."""
        return model(inputs)

    def objective(self, embeddings: Embeddings) -> tuple[jax.Array, dict[str, jax.Array]]:
        """MIL-NCE over the whole batch; see `mil_nce_loss`."""
        return mil_nce_loss(embeddings["video"], embeddings["text"], self._config.model.positives)

    def _pictures(self, video_BTHWC: jax.Array) -> jax.Array:
        """What the video network takes of uint8 clips."""
        return clip_input.of(normalise(video_BTHWC), self._config.model.video.input)

    def _checked_words(self) -> np.ndarray | None:
        """Checks the vocabulary, where there is one, and returns the vectors stored with it.

        Published weights may be used without.
        """
        text = self._config.model.text
        for key in ("words", "evaluation_words"):
            if text[key] < 1:
                raise UserError(f"config.model.text.{key} is {text[key]}; it must be at least 1.")
        if not text.vocabulary:
            return None
        vocabulary = self.views.vocabulary
        words = len(vocabulary.words)
        if words > text.words:
            raise UserError(
                f"config.model.text.words is {text.words}, but {text.vocabulary} has {words} "
                f"words; set it to {words} or more."
            )
        vectors_VD = word_vectors.load(text.vocabulary, vocabulary)
        if vectors_VD is not None and vectors_VD.shape[1] != text.word_dim:
            dim = vectors_VD.shape[1]
            raise UserError(
                f"config.model.text.word_dim is {text.word_dim}, but the vectors in "
                f"{text.vocabulary} have {dim} numbers; set it to {dim}."
            )
        return vectors_VD

    def _encoders(self, shapes: MilNceModel) -> dict[str, Encoder]:
        """The video network's features, and both towers in the space they share."""
        model = self._config.model
        frames = VideoInput(
            num_frames=model.evaluation_frames,
            frame_rate=model.frame_rate,
            stride=1,
            size=model.video.size,
        )

        def tokenise(sentences: Sequence[str]) -> np.ndarray:
            words, lower = model.text.evaluation_words, model.text.lower
            return self.views.vocabulary.ids(sentences, words, lower)

        def words(ids_NW: np.ndarray) -> list[str]:
            return self.views.vocabulary.sentences(ids_NW)

        def known(ids_NW: np.ndarray) -> np.ndarray:
            return self.views.vocabulary.known(ids_NW)

        return {
            "video": Encoder(
                frames,
                shapes.video.num_features,
                lambda model, video_BTHWC: model.video(self._pictures(video_BTHWC)),
            ),
            "video_joint": Encoder(
                frames,
                model.embedding_dim,
                lambda model, video_BTHWC: model.embed_video(self._pictures(video_BTHWC)),
                space=SPACE,
            ),
            "text": Encoder(
                TextInput(model.text.evaluation_words, tokenise, words, known),
                model.embedding_dim,
                lambda model, ids_BW: model.embed_text(ids_BW),
                space=SPACE,
            ),
        }
