"""The stem of a ResNet: a 7x7 convolution at stride 2 and a 3x3 maximum at stride 2."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from common import target
from common.backbones import convolution_3d, pixel_pairs
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
        """Maps (B, T, H, W, C) to (B, T, ceil(H / 4), ceil(W / 4), C').

        On TPUs (B, T, H / 4, W / 8, 2 C') where pairs of pixels fill lanes (`pixel_pairs`).
        """
        batch, frames, height, width, channels = x_BTHWC.shape
        x_NHWC = x_BTHWC.reshape(-1, height, width, channels)
        if target.platform() == "tpu" and height % _BLOCK == width % _BLOCK == 0:
            x_NHWC, kernel = convolution_3d.promoted(self.dtype, x_NHWC, self.kernel[...])
            y = max_pool_of_phases(*convolve_in_phases(x_NHWC, kernel))
            if pixel_pairs.fill(y.shape[2], self.out_features):
                # While frames lie in lanes this moves nothing; the compiler would do it later.
                y = jax.lax.optimization_barrier(pixel_pairs.joined(y))
        else:
            y = max_pool(super().__call__(x_NHWC))
        return y.reshape(batch, frames, *y.shape[-3:])


def convolve_in_phases(x_NHWC: jax.Array, kernel: jax.Array) -> list[jax.Array]:
    """Convolves with 7x7 pixels at stride 2 ("SAME"), even and odd rows and columns by themselves.

    A maximum over each two by two of them is then one over four arrays. To take strided slices of
    one array, and to lay their gradients side by side again, costs a TPU more than all the rest.

    Args:
        x_NHWC: images whose sides are multiples of four.
        kernel: (7, 7, C, D), of the same dtype.

    Returns:
        Of the result the pixels (even, even), (even, odd), (odd, even) and (odd, odd), each
        (N, H / 4, W / 4, D).
    """
    # Result 2 i + odd begins two pixels before pixel 4 i + 2 odd.
    padding = [(2 - 2 * odd, 1 + 2 * odd) for odd in (0, 1)]
    return [
        convolution_3d.convolve_joint(x_NHWC, kernel, (_BLOCK, _BLOCK), (rows, columns))
        for rows in padding
        for columns in padding
    ]


@jax.custom_vjp
def max_pool_of_phases(
    even_even: jax.Array, even_odd: jax.Array, odd_even: jax.Array, odd_odd: jax.Array
) -> jax.Array:
    """Does what `max_pool` does to what `convolve_in_phases` takes apart: (N, H, W, C).

    Its gradient gathers, as that of `max_pool`; the compiler for TPUs does not even estimate what
    the scattering gradient of XLA's window reduction takes.
    """
    return _max_and_place(even_even, even_odd, odd_even, odd_odd)[0]


def _max_and_place(even_even, even_odd, odd_even, odd_odd):
    """Returns the maxima and where in their window of 3x3 they lie, as int8."""
    left, row_left = convolution_3d.largest(
        even_even, odd_even, _neighbour(even_even, 1, 1, -jnp.inf)
    )
    middle, row_middle = convolution_3d.largest(
        even_odd, odd_odd, _neighbour(even_odd, 1, 1, -jnp.inf)
    )
    y, column = convolution_3d.largest(left, middle, _neighbour(left, 2, 1, -jnp.inf))
    row = jnp.where(
        column == 0, row_left, jnp.where(column == 1, row_middle, _neighbour(row_left, 2, 1, 0))
    )
    return y, 3 * row + column


def _neighbour(x: jax.Array, axis: int, distance: int, beyond: float) -> jax.Array:
    """Returns at each place what lies one place further on (1) or before it (-1), or here (0)."""
    if distance == 0:
        return x
    paddings = [(0, 0)] * x.ndim
    paddings[axis] = (0, 1) if distance > 0 else (1, 0)
    start = max(distance, 0)
    padded = jnp.pad(x, paddings, constant_values=beyond)
    return jax.lax.slice_in_dim(padded, start, start + x.shape[axis], 1, axis)


def _gradients(place: jax.Array, dy: jax.Array) -> tuple[jax.Array, ...]:
    """Gathers for every pixel what the windows have got that took it.

    Even rows (or columns) are the first of their own window and the last of the one before; odd
    ones are the middle of their own.
    """
    place, dy = jax.lax.optimization_barrier((place, dy))  # else computed anew for each pixel
    windows_of = (((0, 0), (2, -1)), ((1, 0),))  # (place in the window, where that window lies)

    def got(rows, columns):
        parts = []
        for row, down in rows:
            for column, right in columns:
                at = _neighbour(_neighbour(place, 1, down, -1), 2, right, -1)
                what = _neighbour(_neighbour(dy, 1, down, 0), 2, right, 0)
                parts.append(jnp.where(at == 3 * row + column, what, 0))
        return sum(parts)

    return tuple(got(rows, columns) for rows in windows_of for columns in windows_of)


max_pool_of_phases.defvjp(_max_and_place, _gradients)
