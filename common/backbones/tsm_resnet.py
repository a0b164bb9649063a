"""Temporal Shift ResNet v2: a video network at the cost of an image network."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from common.backbones.resnet_blocks import BottleneckResNet, spatial_mean

SHIFTED_FRACTION = 0.125  # of the channels, in each direction
STILL_SCALE = 0.3  # what shifted channels of a still image are multiplied by


def temporal_shift(x_NHWC: jax.Array, num_frames: int) -> jax.Array:
    """Moves an eighth of the channels one frame back and an eighth one frame on.

    As in the published networks of BraVe and MMV, the two shifted groups also swap places: the
    output is [last eighth, of the next frame | middle, unmoved | first eighth, of the previous
    frame], zero beyond the ends of the clip. A port that leaves them in place needs other kernels.

    Args:
        x_NHWC: (B * num_frames, H, W, C), the frames of a clip next to each other.
        num_frames: frames of one clip.

    Returns:
        The same shape and dtype. Networks with fewer than eight channels have none to shift.
    """
    n = int(x_NHWC.shape[-1] * SHIFTED_FRACTION)
    if n == 0:
        return x_NHWC
    x_BTHWC = x_NHWC.reshape(-1, num_frames, *x_NHWC.shape[1:])
    beyond = jnp.zeros_like(x_BTHWC[:, :1, ..., :n])
    from_next = jnp.concatenate([x_BTHWC[:, 1:, ..., -n:], beyond], 1)
    from_previous = jnp.concatenate([beyond, x_BTHWC[:, :-1, ..., :n]], 1)
    shifted = jnp.concatenate([from_next, x_BTHWC[..., n:-n], from_previous], -1)
    return shifted.reshape(x_NHWC.shape)


def still_shift(x_NHWC: jax.Array, scale: float = STILL_SCALE) -> jax.Array:
    """`temporal_shift` for images that stand for still videos ("deflated", arXiv:2006.16228).

    All frames are the same, so the shifted groups are the image's own; `scale` makes up for the
    zeros that a video has beyond its ends.

    Args:
        x_NHWC: (N, H, W, C).
        scale: factor of the shifted groups.

    Returns:
        The same shape and dtype.
    """
    n = int(x_NHWC.shape[-1] * SHIFTED_FRACTION)
    if n == 0:
        return x_NHWC
    first, middle, last = x_NHWC[..., :n], x_NHWC[..., n:-n], x_NHWC[..., -n:]
    return jnp.concatenate([last * scale, middle, first * scale], -1)


class TSMResNet(nnx.Module):
    """ResNet v2 with a temporal shift in every block (Lin et al., 2019, arXiv:1811.08383).

    The network of BraVe and MMV. It is convolutional in time and space, so it can be evaluated on
    longer and larger clips than it was trained on.

    Args:
        in_channels: 3 for RGB, 2 for optical flow.
        blocks: residual blocks per unit; (3, 4, 6, 3) is depth 50.
        width: multiplies every channel count.
        dtype: compute dtype; None follows inputs and parameters.
        remat: recompute residual blocks in the backward pass.
        rngs: source of the initial weights.
    """

    def __init__(
        self,
        in_channels: int = 3,
        blocks: Sequence[int] = (3, 4, 6, 3),
        width: float = 1.0,
        *,
        dtype: jnp.dtype | None = None,
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        self.trunk = BottleneckResNet(
            in_channels, blocks, width, dtype=dtype, remat=remat, rngs=rngs
        )
        self.num_features = self.trunk.num_features

    def endpoints(self, video_BTHWC: jax.Array) -> dict[str, jax.Array]:
        """Feature maps (B, T, h, w, C) by name: "stem", "unit_0", ..., "last"."""
        batch, frames = video_BTHWC.shape[:2]
        images_NHWC = video_BTHWC.reshape(batch * frames, *video_BTHWC.shape[2:])
        shift = functools.partial(temporal_shift, num_frames=frames)
        maps = self.trunk.endpoints(images_NHWC, shift)
        return {name: x.reshape(batch, frames, *x.shape[1:]) for name, x in maps.items()}

    def __call__(self, video_BTHWC: jax.Array) -> jax.Array:
        """Embeds videos (B, T, H, W, C) with values in [0, 1] as (B, D), at least float32."""
        return spatial_mean(self.endpoints(video_BTHWC)["last"])

    def embed_images(self, images_NHWC: jax.Array) -> jax.Array:
        """Embeds images (N, H, W, C) as if each were a still video: (N, D), at least float32."""
        return spatial_mean(self.trunk.endpoints(images_NHWC, still_shift)["last"])
