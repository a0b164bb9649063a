"""Frozen in Time: images and videos with captions, one model of both (arXiv:2104.00650)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from common.data import clip_input
from common.data.device_augment import flip_horizontally, normalise, sample_events
from common.errors import UserError
from common.method import Batch, Embeddings, Encoder, TextInput, VideoInput
from common.precision import compute_dtype
from frozen.loss import DIRECTIONS, LOSSES, max_margin_loss, sigmoid_loss, softmax_loss
from frozen.model import GREATEST_SCALE, FrozenModel
from frozen.views import FrozenViews

SPACE = "video and text"
# Means and deviations of the colours that pictures are brought to, by name.
COLOURS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
_UNKNOWN_PIECES = 30_522  # rows of the text network's table where no word pieces are named


class Frozen:
    """The members of `common.method.Method` for Frozen in Time."""

    title = "Frozen in Time"

    def __init__(self, config: Any):
        """Checks the config.

        Raises:
            UserError: a setting is impossible, or the word pieces cannot be read.
        """
        model = config.model
        choices = {"loss": LOSSES, "directions": tuple(DIRECTIONS), "colours": tuple(COLOURS)}
        for key, names in choices.items():
            if model[key] not in names:
                raise UserError(
                    f"config.model.{key} is {model[key]!r}; it must be one of {', '.join(names)}."
                )
        learned = model.learn_temperature and model.loss != "max_margin"
        least = 1 / GREATEST_SCALE if learned else 0.0
        if not model.temperature > least:  # where it begins at the bound, it would never learn
            raise UserError(
                f"config.model.temperature is {model.temperature}; it must be above {least:g}."
            )
        most = model.text.positions
        for key in ("max_pieces", "evaluation_pieces"):
            if not 2 <= model.text[key] <= most:
                raise UserError(
                    f"config.model.text.{key} is {model.text[key]}; it must be from 2 to "
                    f"config.model.text.positions, {most}."
                )
        if not 1 <= model.evaluation_frames <= model.video.max_frames:
            raise UserError(
                f"config.model.evaluation_frames is {model.evaluation_frames}; it must be from 1 "
                f"to config.model.video.max_frames, {model.video.max_frames}."
            )
        frames = {
            "video.num_frames": model.video.num_frames,
            "evaluation_frames": model.evaluation_frames,
        }
        clip_input.check("video", model.video.input, frames)
        if model.video.input == "difference" and model.video.short == "mask":
            raise UserError(
                "config.model.video.short='mask' counts frames, and with config.model.video.input="
                "'difference' the network is given none. Use short='repeat': frames that repeat "
                "have no difference."
            )
        self._config = config
        self._dtype = compute_dtype(config.compute_dtype)
        self.views = FrozenViews(config)
        named = model.text.pieces
        self._num_pieces = self.views.pieces.num_ids if named else _UNKNOWN_PIECES
        shapes = nnx.eval_shape(lambda: self.build(nnx.Rngs(0)))
        self.encoders = self._encoders(shapes)

    def build(self, rngs: nnx.Rngs) -> FrozenModel:
        """Makes both towers."""
        return FrozenModel(
            self._config.model,
            self._num_pieces,
            rngs,
            compute_dtype=self._dtype,
            remat=self._config.remat == "block",
        )

    def augment(self, batch: Batch, keys_B: jax.Array) -> dict[str, jax.Array]:
        """Mirrors some clips and brings their colours to what the network knows."""
        flip_B = sample_events(keys_B, self._config.model.flip)
        video_BTHWC = flip_horizontally(batch["video"], flip_B)
        return {**batch, "video": self._pictures(video_BTHWC), "dropout": keys_B}

    def embed(self, model: FrozenModel, inputs: Batch) -> Embeddings:
        """Embeddings of clips and captions; see `FrozenModel.__call__`."""
        return model(inputs)

    def objective(self, embeddings: Embeddings) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The loss that ``config.model.loss`` names, over the whole batch."""
        model, both = self._config.model, (embeddings["text"], embeddings["video"])
        if model.loss == "softmax":
            return softmax_loss(*both, model.directions)
        if model.loss == "max_margin":
            return max_margin_loss(*both, model.margin, model.margin_off_diagonal)
        return sigmoid_loss(*both)

    def _pictures(self, video_BTHWC: jax.Array) -> jax.Array:
        """What the video network takes of uint8 clips."""
        mean_C, deviation_C = map(jnp.asarray, COLOURS[self._config.model.colours])
        colours_BTHWC = (normalise(video_BTHWC) - mean_C) / deviation_C
        return clip_input.of(colours_BTHWC, self._config.model.video.input)

    def _encoders(self, shapes: FrozenModel) -> dict[str, Encoder]:
        """The video network's features, and both towers in the space they share."""
        model = self._config.model
        frames = VideoInput(
            num_frames=model.evaluation_frames,
            frame_rate=0.0,
            stride=1,
            size=model.video.size,
            segments=True,
            resize=model.video.resize,
        )

        def tokenise(sentences: Sequence[str]) -> np.ndarray:
            return self.views.pieces.ids(sentences, model.text.evaluation_pieces)

        def words(ids_NL: np.ndarray) -> list[str]:
            return self.views.pieces.sentences(ids_NL)

        def known(ids_NL: np.ndarray) -> np.ndarray:
            return self.views.pieces.known(ids_NL)

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
                similarity="cosine",
            ),
            "text": Encoder(
                TextInput(model.text.evaluation_pieces, tokenise, words, known),
                model.embedding_dim,
                lambda model, ids_BL: model.embed_text(ids_BL),
                space=SPACE,
                similarity="cosine",
            ),
        }
