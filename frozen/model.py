"""Frozen in Time's networks: one transformer for images and videos, one for text, one space."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from common.backbones.bert import Bert
from common.backbones.inception import chosen
from common.backbones.initializers import torch_linear
from common.backbones.space_time_transformer import SpaceTimeTransformer
from common.weights import vit_layout

_LEAST_NORM = 1e-8  # below which embeddings are not made longer, as published
GREATEST_SCALE = 100.0  # that a learned temperature may reach, as in CLIP
_FIRST_BIAS = -10.0  # of the sigmoid loss (Zhai et al., 2023, arXiv:2303.15343)


class FrozenModel(nnx.Module):
    """The two towers of Frozen in Time (Bain et al., 2021, arXiv:2104.00650, section 3.1).

    Args:
        config: the keys of ``config.model`` in ``configs/frozen_base.py``.
        num_pieces: rows of the table of word pieces.
        rngs: source of the initial weights.
        compute_dtype: of dense layers; None follows inputs and parameters.
        remat: recompute blocks of both transformers in the backward pass.
    """

    def __init__(
        self,
        config: Any,
        num_pieces: int,
        rngs: nnx.Rngs,
        compute_dtype: jnp.dtype | None = None,
        remat: bool = False,
    ):
        video, text = config.video, config.text
        # How weights of fewer frames are fitted to this model when they are read.
        self.temporal_resize = chosen(
            "temporal_resize", video.temporal_resize, vit_layout.TEMPORAL_RESIZES
        )
        shared = {"dtype": compute_dtype, "remat": remat, "rngs": rngs}
        self.video = SpaceTimeTransformer(
            size=video.grid_size,
            patch=video.patch,
            width=video.width,
            depth=video.depth,
            heads=video.heads,
            mlp_ratio=video.mlp_ratio,
            num_frames=video.max_frames,
            activation=video.activation,
            pre_norm=video.pre_norm,
            eps=video.eps,
            time_start=video.time_start,
            **shared,
        )
        self.text = Bert(
            num_pieces,
            width=text.width,
            depth=text.depth,
            heads=text.heads,
            hidden=text.hidden,
            positions=text.positions,
            token_types=text.token_types,
            dropout=text.dropout,
            initializer_range=text.initializer_range,
            **shared,
        )
        self.video_projection = torch_linear(
            self.video.num_features, config.embedding_dim, dtype=compute_dtype, rngs=rngs
        )
        self.text_projection = torch_linear(
            self.text.num_features, config.embedding_dim, dtype=compute_dtype, rngs=rngs
        )
        # The max-margin loss compares cosines.
        self._fixed_scale = 1.0 if config.loss == "max_margin" else 1 / config.temperature
        learned = config.learn_temperature and config.loss != "max_margin"
        first = jnp.array(math.log(self._fixed_scale), jnp.float32)
        self.log_scale = nnx.Param(first) if learned else None
        sigmoid = config.loss == "sigmoid"
        self.bias = nnx.Param(jnp.array(_FIRST_BIAS, jnp.float32)) if sigmoid else None

    def embed_video(self, video_BTHWC: jax.Array, frames_B: jax.Array | None = None) -> jax.Array:
        """Embeds normalised clips in the joint space: (B, D), at least float32, of any length.

        ``frames_B`` says how many frames of each are real; None: all.
        """
        return _wide(self.video_projection(self.video(video_BTHWC, frames_B)))

    def embed_text(self, ids_BL: jax.Array, keys_B: jax.Array | None = None) -> jax.Array:
        """Embeds captions, given as ids of word pieces, in the joint space: (B, D).

        ``keys_B`` are of the dropout, where there is one.
        """
        return _wide(self.text_projection(nnx.relu(self.text(ids_BL, keys_B)[:, 0])))

    def __call__(self, inputs: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Embeds clips and captions so that their inner products are the objective's scores.

        Args:
            inputs: ``video`` (B, T, H, W, 3), normalised; ``text``, int32 ids (B, L); ``dropout``,
                a PRNG key per example; ``frames``, int32 (B,), where some clips are padded.

        Returns:
            ``video``, of length 1, and ``text``, divided by the temperature, both (B, D). The
            sigmoid loss's bias is one more dimension of both.
        """
        video_BD = _unit(self.embed_video(inputs["video"], inputs.get("frames")))
        text_BD = _unit(self.embed_text(inputs["text"], inputs["dropout"])) * self._scale()
        if self.bias is not None:
            one_B1 = jnp.ones_like(video_BD[:, :1])
            video_BD = jnp.concatenate([video_BD, one_B1], 1)
            text_BD = jnp.concatenate([text_BD, one_B1 * self.bias[...]], 1)
        return {"video": video_BD, "text": text_BD}

    def _scale(self) -> jax.Array | float:
        if self.log_scale is None:
            return self._fixed_scale
        return jnp.minimum(jnp.exp(self.log_scale[...]), GREATEST_SCALE)


def _wide(x_BD: jax.Array) -> jax.Array:
    return x_BD.astype(jnp.promote_types(x_BD.dtype, jnp.float32))


def _unit(x_BD: jax.Array) -> jax.Array:
    """Gives embeddings the length 1; next to none stay short."""
    square_B1 = jnp.square(x_BD).sum(1, keepdims=True)
    # The root of 0 has no derivative.
    norm_B1 = jnp.sqrt(jnp.maximum(square_B1, _LEAST_NORM**2))
    return x_BD / norm_B1
