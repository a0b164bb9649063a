"""ResNet v2 on log-mel spectrograms."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from common.backbones.resnet_blocks import BottleneckResNet, spatial_mean


class AudioResNet(nnx.Module):
    """Image ResNet v2 that takes a spectrogram as a picture of one channel (arXiv:1603.05027).

    The audio network of BraVe and MMV.

    Args:
        blocks: residual blocks per unit; (3, 4, 6, 3) is depth 50.
        width: multiplies every channel count.
        dtype: compute dtype; None follows inputs and parameters.
        remat: recompute residual blocks in the backward pass.
        rngs: source of the initial weights.
    """

    def __init__(
        self,
        blocks: Sequence[int] = (3, 4, 6, 3),
        width: float = 1.0,
        *,
        dtype: jnp.dtype | None = None,
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        self.trunk = BottleneckResNet(1, blocks, width, dtype=dtype, remat=remat, rngs=rngs)
        self.num_features = self.trunk.num_features

    def endpoints(self, log_mel_BFM: jax.Array) -> dict[str, jax.Array]:
        """Feature maps (B, f, m, C) by name: "stem", "unit_0", ..., "last"."""
        maps = self.trunk.endpoints(log_mel_BFM[:, None, :, :, None])
        return {name: x.squeeze(1) for name, x in maps.items()}

    def __call__(self, log_mel_BFM: jax.Array) -> jax.Array:
        """Embeds log-mel spectrograms (B, frames, bins) as (B, D), at least float32."""
        return spatial_mean(self.endpoints(log_mel_BFM)["last"])
