"""S3D-G: Inception-v1 for video with separable convolutions and self-gating."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from common import target
from common.backbones.convolution_3d import Conv3D, Phases, promoted, same_padding
from common.backbones.inception import ConvUnit, InceptionV1, chosen
from common.errors import UserError

STEMS = ("plain", "space_to_depth", "space_to_depth_torch")


def space_to_depth(video_BTHWC: jax.Array) -> jax.Array:
    """Moves blocks of 2x2x2 into the channels: (B, T/2, H/2, W/2, 8 C).

    The order of the new channels is frame, row, column, colour.

    Raises:
        UserError: T, H or W is odd.
    """
    _check_even(video_BTHWC)
    batch, *sizes, channels = video_BTHWC.shape
    t, h, w = (size // 2 for size in sizes)
    blocks = video_BTHWC.reshape(batch, t, 2, h, 2, w, 2, channels)
    return blocks.transpose(0, 1, 3, 5, 2, 4, 6, 7).reshape(batch, t, h, w, 8 * channels)


class BlockConv(Conv3D):
    """A convolution over what `space_to_depth` makes of a video, given the video."""

    def __call__(self, video_BTHWC: jax.Array, apart: bool = False) -> jax.Array | Phases:
        """Maps (B, T, H, W, C) to (B, T / 2, H / 2, W / 2, C') in the compute dtype.

        If `apart`, to phases of it as `Conv3D`. On TPUs the blocks are not made, which takes longer
        there than the convolution: at stride 2 the same weights see the same pixels.

        Raises:
            UserError: T, H or W is odd.
        """
        if target.platform() != "tpu":
            return super().__call__(space_to_depth(video_BTHWC))
        _check_even(video_BTHWC)
        video_BTHWC, kernel = promoted(self.dtype, video_BTHWC, self.kernel[...])
        *size, channels, out_channels = kernel.shape
        blocks = [n // 2 for n in video_BTHWC.shape[1:4]]
        padding = self.padding or same_padding(blocks, tuple(size), (1, 1, 1))
        pixels = kernel.reshape(*size, 2, 2, 2, channels // 8, out_channels)
        pixels = pixels.transpose(0, 3, 1, 4, 2, 5, 6, 7)
        pixels = pixels.reshape(*(2 * n for n in size), channels // 8, out_channels)
        padding = tuple((2 * before, 2 * after) for before, after in padding)
        return self._convolve(video_BTHWC, pixels, (2, 2, 2), padding, "folded", apart)


def _check_even(video_BTHWC: jax.Array) -> None:
    sizes = video_BTHWC.shape[1:4]
    if any(size % 2 for size in sizes):
        raise UserError(
            f"A video of {sizes[0]} frames of {sizes[1]}x{sizes[2]} pixels cannot be cut into "
            "2x2x2 blocks. With a space-to-depth stem all three must be even; stem='plain' takes "
            "any."
        )


class S3D(InceptionV1):
    """S3D with self-gating (Xie et al., 2018, arXiv:1712.04851), the video network of MIL-NCE.

    It is convolutional in time and space: it takes clips of any length and size.

    Args:
        stem: "plain" is a 3x7x7 convolution at stride 2, as the published training code builds.
            "space_to_depth" is a 2x4x4 convolution on blocks of 2x2x2, as in the released weights;
            T, H and W must be even. "space_to_depth_torch" differs in training only: the published
            PyTorch code computes one plane, row and column more and drops them after the norm, so
            that its batch statistics include them; DeepMind's original has none of that.
        pooling: "same" as the original, "torch" as the published PyTorch code; they differ where a
            pool meets an odd number of frames, rows or columns, see `pooling.max_pool`.
        convolution: "joint" or "folded", the same numbers at another speed, see
            `convolution_3d.convolve`; None takes what is quicker on the machine.
        initializer: of convolutions, "uniform" (PyTorch's default) or "kaiming_normal".
        dtype: compute dtype; None follows inputs and parameters. Norms and gates are float32.
        remat: recompute each block in the backward pass instead of storing its activations.
        rngs: source of the initial weights.
    """

    def __init__(
        self,
        stem: str = "plain",
        pooling: str = "same",
        convolution: str | None = None,
        *,
        initializer: str = "uniform",
        dtype: jnp.dtype | None = None,
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        self.stem = chosen("stem", stem, STEMS)
        super().__init__(
            self._make_stem,
            separable=True,
            gated=True,
            pooling=pooling,
            convolution=convolution,
            initializer=initializer,
            dtype=dtype,
            remat=remat,
            rngs=rngs,
        )

    def _make_stem(self, unit) -> ConvUnit:
        if self.stem == "plain":
            # Symmetric, unlike "SAME", which has one zero less before at even sizes.
            return unit(3, 64, (3, 7, 7), (2, 2, 2), ((1, 1), (3, 3), (3, 3)))
        padding = None if self.stem == "space_to_depth" else ((1, 1), (2, 2), (2, 2))
        return unit(24, 64, (2, 4, 4), padding=padding, kind=BlockConv)

    def _stem(self, video_BTHWC: jax.Array) -> jax.Array | Phases:
        if self.stem != "space_to_depth_torch":
            return super()._stem(video_BTHWC)
        return self._run(ConvUnit.__call__, self.conv1, video_BTHWC)[:, 1:, 1:, 1:]
