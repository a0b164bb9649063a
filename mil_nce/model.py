"""MIL-NCE's networks: a video tower and a text tower that meet in one space."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from common.backbones.i3d import I3D
from common.backbones.initializers import torch_linear
from common.backbones.s3d import S3D
from common.backbones.tsm_resnet import TSMResNet
from common.errors import UserError
from mil_nce.text_tower import TextTower

# Each backbone with the config keys that its constructor takes. Whatever stands here maps a video
# in [0, 1] to (B, num_features); a new one is an import and a line.
_BACKBONES = {
    "s3d": (S3D, ("stem", "pooling")),
    "i3d": (I3D, ()),
    "tsm_resnet": (TSMResNet, ("blocks", "width")),
}


class MilNceModel(nnx.Module):
    """The two towers of MIL-NCE (Miech et al., 2020, arXiv:1912.06430, section 3.3).

    Args:
        config: the keys of ``config.model`` in ``configs/mil_nce_base.py``.
        rngs: source of the initial weights.
        compute_dtype: of convolutions and dense layers; None follows inputs and parameters.
        remat: recompute blocks of the video network in the backward pass.
        vectors_VD: with which the word table begins; see `TextTower`.

    Raises:
        UserError: there is no such backbone.
    """

    def __init__(
        self,
        config: Any,
        rngs: nnx.Rngs,
        compute_dtype: jnp.dtype | None = None,
        remat: bool = False,
        vectors_VD: np.ndarray | None = None,
    ):
        video, text = config.video, config.text
        if video.backbone not in _BACKBONES:
            raise UserError(
                f"config.model.video.backbone is {video.backbone!r}; it must be one of "
                f"{', '.join(_BACKBONES)}."
            )
        network, keys = _BACKBONES[video.backbone]
        settings = {key: video[key] for key in keys}
        self.video = network(**settings, dtype=compute_dtype, remat=remat, rngs=rngs)
        self.video_projection = torch_linear(
            self.video.num_features, config.embedding_dim, dtype=compute_dtype, rngs=rngs
        )
        self.text = TextTower(
            text.words + 1,
            word_dim=text.word_dim,
            hidden=text.hidden,
            embedding_dim=config.embedding_dim,
            frozen=text.frozen,
            masked=text.masked,
            vectors_VD=vectors_VD,
            dtype=compute_dtype,
            rngs=rngs,
        )

    def embed_video(self, video_BTHWC: jax.Array) -> jax.Array:
        """Embeds videos in [0, 1] in the joint space: (B, D), at least float32."""
        embedding_BD = self.video_projection(self.video(video_BTHWC))
        return embedding_BD.astype(jnp.promote_types(embedding_BD.dtype, jnp.float32))

    def embed_text(self, ids_BW: jax.Array) -> jax.Array:
        """Embeds sentences, given as ids of words, in the joint space: (B, D)."""
        return self.text(ids_BW)

    def __call__(self, inputs: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Embeds clips and all their candidate narrations.

        Args:
            inputs: ``video`` (B, T, H, W, 3) in [0, 1] and ``text``, int32 ids (B, K, W).

        Returns:
            ``video`` (B, D) and ``text`` (B, K, D).
        """
        batch, candidates, words = inputs["text"].shape
        text_ND = self.embed_text(inputs["text"].reshape(-1, words))
        return {
            "video": self.embed_video(inputs["video"]),
            "text": text_ND.reshape(batch, candidates, -1),
        }
