"""Temporal Shift ResNet v2: a video network at the cost of an image network."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from common import target
from common.backbones import convolution_3d
from common.backbones.resnet_blocks import BottleneckResNet, Mix, PointwiseConv, spatial_mean

SHIFTED_FRACTION = 0.125  # of the channels, in each direction
STILL_SCALE = 0.3  # what shifted channels of a still image are multiplied by


def temporal_shift(x_BTHWC: jax.Array) -> jax.Array:
    """Moves an eighth of the channels one frame back and an eighth one frame on.

    As in the published networks of BraVe and MMV, the two shifted groups also swap places: the
    output is [last eighth, of the next frame | middle, unmoved | first eighth, of the previous
    frame], zero beyond the ends of the clip. A port that leaves them in place needs other kernels.

    Args:
        x_BTHWC: (B, T, H, W, C).

    Returns:
        The same shape and dtype. Networks with fewer than eight channels have none to shift.
    """
    n = int(x_BTHWC.shape[-1] * SHIFTED_FRACTION)
    if n == 0:
        return x_BTHWC
    beyond = jnp.zeros_like(x_BTHWC[:, :1, ..., :n])
    from_next = jnp.concatenate([x_BTHWC[:, 1:, ..., -n:], beyond], 1)
    from_previous = jnp.concatenate([beyond, x_BTHWC[:, :-1, ..., :n]], 1)
    return jnp.concatenate([from_next, x_BTHWC[..., n:-n], from_previous], -1)


def _shifts_kernel(channels: int) -> bool:
    """Whether the kernel looks at other frames, and no channel moves.

    On TPUs channels lie in lanes, and to cut off an eighth of them copies everything several times.
    """
    return target.platform() == "tpu" and int(channels * SHIFTED_FRACTION) > 0


def _shifted_kernel(conv: PointwiseConv) -> jax.Array:
    """That of one convolution over three frames, two thirds of whose weights are zero.

    Where clips do not fill registers those of the three frames are side by side, (1, 1, C, 3 D).
    """
    channels = conv.in_features
    if not _shifts_kernel(channels):
        return conv.kernel[...]
    n = int(channels * SHIFTED_FRACTION)
    kernel_CD, channel = conv.kernel[0, 0], jnp.arange(channels)[:, None]
    previous = jnp.where(channel < n, jnp.roll(kernel_CD, n, 0), 0)
    following = jnp.where(channel >= channels - n, jnp.roll(kernel_CD, -n, 0), 0)
    same = jnp.where((channel >= n) & (channel < channels - n), kernel_CD, 0)
    if convolution_3d.fills_registers():
        return jnp.stack([previous, same, following])[:, None, None]
    return jnp.concatenate([previous, same, following], 1)[None, None]


def _convolve_shifted(conv: PointwiseConv, kernel: jax.Array, x_BTHWC: jax.Array) -> jax.Array:
    """Applies ``conv``, with that kernel, to `temporal_shift` of clips.

    Where clips do not fill a TPU's registers, what comes out is shifted: a quarter as many
    channels. Pairs of pixels (`pixel_pairs`) stay pairs.
    """
    if not _shifts_kernel(conv.in_features):
        return conv.convolve(kernel, temporal_shift(x_BTHWC))
    y_BTHWE = conv.convolve(kernel, x_BTHWC)
    if convolution_3d.fills_registers():
        return y_BTHWE
    previous, same, following = jnp.split(y_BTHWE, 3, -1)
    still = ((0, 0),) * 3
    previous = jnp.pad(previous, ((0, 0), (1, 0), *still))[:, :-1]
    following = jnp.pad(following, ((0, 0), (0, 1), *still))[:, 1:]
    return previous + same + following


SHIFTED = Mix(_shifted_kernel, _convolve_shifted)


def still_shift(x: jax.Array, scale: float = STILL_SCALE) -> jax.Array:
    """`temporal_shift` for images that stand for still videos ("deflated", arXiv:2006.16228).

    All frames are the same, so the shifted groups are the image's own; `scale` makes up for the
    zeros that a video has beyond its ends.

    Args:
        x: (..., C).
        scale: factor of the shifted groups.

    Returns:
        The same shape and dtype.
    """
    n = int(x.shape[-1] * SHIFTED_FRACTION)
    if n == 0:
        return x
    first, middle, last = x[..., :n], x[..., n:-n], x[..., -n:]
    return jnp.concatenate([last * scale, middle, first * scale], -1)


def _still_kernel(conv: PointwiseConv) -> jax.Array:
    """That which makes of channels what ``conv`` makes of `still_shift` of them."""
    return jnp.swapaxes(still_shift(jnp.swapaxes(conv.kernel[...], -1, -2)), -1, -2)


STILL = Mix(_still_kernel, PointwiseConv.convolve)


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
        return self.trunk.endpoints(video_BTHWC, SHIFTED)

    def __call__(self, video_BTHWC: jax.Array) -> jax.Array:
        """Embeds videos (B, T, H, W, C) with values in [0, 1] as (B, D), at least float32."""
        return spatial_mean(self.endpoints(video_BTHWC)["last"])

    def embed_images(self, images_NHWC: jax.Array) -> jax.Array:
        """Embeds images (N, H, W, C) as if each were a still video: (N, D), at least float32."""
        return spatial_mean(self.trunk.endpoints(images_NHWC[:, None], STILL)["last"])
