"""The stem of a ResNet: a 7x7 convolution at stride 2 and a 3x3 maximum at stride 2."""

from __future__ import annotations

import jax
from flax import nnx

from common import target
from common.backbones import convolution_3d, pixel_pairs, pooling
from common.backbones.initializers import truncated_fan_in

_KERNEL = 7
_BLOCK = 4  # pixels of input, on a side, that become one pixel of the pooled output


def max_pool(x_NHWC: jax.Array) -> jax.Array:
    """Takes the maximum of 3x3 pixels at stride 2, with "SAME" padding by minus infinity."""
    return pooling.max_pool(x_NHWC[:, None], (1, 3, 3), (1, 2, 2))[:, 0]


class Stem(nnx.Conv):
    """Convolution and pooling, "SAME" padding in both and no norm in between.

    Args:
        in_channels: of the images.
        out_channels: of the result.
        dtype: compute dtype; None follows inputs and kernel.
        rngs: source of the initial kernel.
    """

    def __init__(self, in_channels: int, out_channels: int, *, dtype, rngs: nnx.Rngs):
        super().__init__(
            in_channels,
            out_channels,
            (_KERNEL, _KERNEL),
            2,
            use_bias=False,
            kernel_init=truncated_fan_in,
            dtype=dtype,
            rngs=rngs,
        )

    def __call__(self, x_BTHWC: jax.Array) -> jax.Array:
        """Maps (B, T, H, W, C) to (B, T, ceil(H / 4), ceil(W / 4), C').

        On TPUs (B, T, H / 4, W / 8, 2 C') where pairs of pixels fill lanes (`pixel_pairs`).
        """
        batch, frames, height, width, channels = x_BTHWC.shape
        x_NHWC = x_BTHWC.reshape(-1, height, width, channels)
        if target.platform() == "tpu" and height % _BLOCK == width % _BLOCK == 0:
            x_NHWC, kernel = convolution_3d.promoted(self.dtype, x_NHWC, self.kernel[...])
            padding = convolution_3d.same_padding((height, width), kernel.shape[:2], (2, 2))
            phases = convolution_3d.convolve_joint_apart(x_NHWC, kernel, (2, 2), padding)
            y = pooling.max_pool_of_phases(*phases)
            if pixel_pairs.fill(y.shape[2], self.out_features):
                # While frames lie in lanes this moves nothing; the compiler would do it later.
                y = jax.lax.optimization_barrier(pixel_pairs.joined(y))
        else:
            y = max_pool(super().__call__(x_NHWC))
        return y.reshape(batch, frames, *y.shape[-3:])
