"""The stem of a ResNet: a 7x7 convolution at stride 2 and a 3x3 maximum at stride 2."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from common import target
from common.backbones import convolution_3d
from common.backbones.initializers import truncated_fan_in

_KERNEL = 7
_BLOCK = 4  # pixels of input, on a side, that become one pixel of the pooled output


def max_pool(x_NHWC: jax.Array) -> jax.Array:
    """Takes the maximum of 3x3 pixels at stride 2, with "SAME" padding by minus infinity."""
    return convolution_3d.max_pool(x_NHWC[:, None], (1, 3, 3), (1, 2, 2))[:, 0]


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
        """Maps (B, T, H, W, C) to (B, T, ceil(H / 4), ceil(W / 4), C')."""
        batch, frames, height, width, channels = x_BTHWC.shape
        x_NHWC = x_BTHWC.reshape(-1, height, width, channels)
        if target.platform() == "tpu" and height % _BLOCK == width % _BLOCK == 0:
            dtype = self.dtype or jnp.promote_types(x_BTHWC.dtype, self.kernel[...].dtype)
            kernel = self.kernel[...].astype(dtype)
            x = x_BTHWC if convolution_3d.fills_registers() else x_NHWC
            y = max_pool_in_blocks(convolve_in_blocks(x.astype(dtype), kernel))
        else:
            y = max_pool(super().__call__(x_NHWC))
        return y.reshape(batch, frames, *y.shape[-3:])


def convolve_in_blocks(x: jax.Array, kernel_UVCD: jax.Array) -> jax.Array:
    """Convolves with 7x7 pixels at stride 2 ("SAME"), so that a TPU's lanes and products are full.

    Three channels fill 3 of 128 lanes, and 64 half of them. Here 4x4 pixels of the input lie side
    by side in the channels, and so do the 2x2 pixels of the output that they become; between them
    is a convolution of 3x3 blocks, most of whose weights are zero or occur several times.

    Args:
        x: images (N, H, W, C), or clips (B, T, H, W, C), whose sides are multiples of four.
        kernel_UVCD: (7, 7, C, D), of the same dtype.

    Returns:
        (..., H / 4, W / 4, 4 D): of the output the pixels (0, 0), (0, 1), (1, 0) and (1, 1) of
        each block of two by two, D channels each.
    """
    *batch, height, width, channels = x.shape
    taps = jnp.asarray(_taps(), kernel_UVCD.dtype)
    kernel = jnp.einsum(
        "praU,qsbV,UVcd->pqrscabd", taps, taps, kernel_UVCD, precision=jax.lax.Precision.HIGHEST
    )
    kernel = kernel.reshape(*([1] * (len(batch) - 1)), 3, 3, _BLOCK * _BLOCK * channels, -1)
    blocks = x.reshape(*batch, height // _BLOCK, _BLOCK, width // _BLOCK, _BLOCK, channels)
    blocks = jnp.swapaxes(blocks, -4, -3)
    blocks = blocks.reshape(*blocks.shape[:-3], _BLOCK * _BLOCK * channels)
    return convolution_3d.convolve_joint(blocks, kernel, (1,) * (x.ndim - 2), "SAME")


@functools.cache
def _taps() -> np.ndarray:
    """Returns which tap of the kernel takes which pixel of the input to which of the output.

    Axes: block of inputs (before, own, after), pixel in it, pixel of the output's block, tap.
    Output 2 i + a begins two pixels before pixel 4 i + 2 a of the input.
    """
    block, pixel, output = np.ogrid[-1:2, 0:_BLOCK, 0:2]
    tap = _BLOCK * block + pixel - 2 * output + 2
    return tap[..., None] == np.arange(_KERNEL)


@jax.custom_vjp
def max_pool_in_blocks(x: jax.Array) -> jax.Array:
    """Does what `max_pool` does to what `convolve_in_blocks` returns: (..., H, W, C / 4).

    Its gradient gathers, as that of `max_pool`; the compiler for TPUs does not even estimate what
    the scattering gradient of XLA's window reduction takes.
    """
    return _max_and_place(x)[0]


def _max_and_place(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the maxima and where in their window of 3x3 they lie, as int8."""
    upper, lower = jnp.split(x, 2, -1)
    maximum, row = _max_of_three(upper, lower, _neighbour(upper, -3, 1, -jnp.inf))
    left, right = jnp.split(maximum, 2, -1)
    row_left, row_right = jnp.split(row, 2, -1)
    y, column = _max_of_three(left, right, _neighbour(left, -2, 1, -jnp.inf))
    row = jnp.where(
        column == 0, row_left, jnp.where(column == 1, row_right, _neighbour(row_left, -2, 1, 0))
    )
    return y, 3 * row + column


def _max_of_three(*values: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the largest and its number; of equal ones the first."""
    maximum, place = values[0], jnp.zeros(values[0].shape, jnp.int8)
    for number, value in enumerate(values[1:], start=1):
        place = jnp.where(maximum >= value, place, jnp.int8(number))
        maximum = jnp.where(maximum >= value, maximum, value)
    return maximum, place


def _neighbour(x: jax.Array, axis: int, distance: int, beyond: float) -> jax.Array:
    """Returns at each place what lies one place further on (1) or before it (-1), or here (0)."""
    if distance == 0:
        return x
    paddings = [(0, 0)] * x.ndim
    paddings[axis] = (0, 1) if distance > 0 else (1, 0)
    start = max(distance, 0)
    padded = jnp.pad(x, paddings, constant_values=beyond)
    return jax.lax.slice_in_dim(padded, start, start + x.shape[axis], 1, axis)


def _gradient_in_blocks(place: jax.Array, dy: jax.Array) -> tuple[jax.Array]:
    """Gathers for every pixel what the windows have got that took it.

    A block's first row (or column) is the first of its own window and the last of the one before;
    its second is the middle of its own.
    """
    windows_of = (((0, 0), (2, -1)), ((1, 0),))  # (place in the window, where that window lies)
    pixels = []
    for rows in windows_of:
        for columns in windows_of:
            got = jnp.zeros_like(dy)
            for row, down in rows:
                for column, right in columns:
                    at = _neighbour(_neighbour(place, -3, down, -1), -2, right, -1)
                    what = _neighbour(_neighbour(dy, -3, down, 0), -2, right, 0)
                    got = got + jnp.where(at == 3 * row + column, what, 0)
            pixels.append(got)
    return (jnp.concatenate(pixels, -1),)


max_pool_in_blocks.defvjp(_max_and_place, _gradient_in_blocks)
