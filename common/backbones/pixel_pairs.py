"""Two pixels side by side in the channels, where those of one would leave lanes of a TPU empty.

A TPU works on registers of 8 by 128 numbers with the channels in lanes: 64 channels take the time
of 128. So here each two neighbouring pixels of a row share registers: (B, T, H, W, C) becomes
(B, T, H, W / 2, 2 C), the left one's channels first, and a convolution one of pairs, a part of
whose weights is zero. What takes such pairs tells them by the number of channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from common import target
from common.backbones import convolution_3d


def fill(width: int, channels: int) -> bool:
    """Whether rows of so many pixels can be pairs, and so many channels leave room for two."""
    return convolution_3d.fills_registers() and width % 2 == 0 and 2 * channels <= target.LANES


def joined(x: jax.Array) -> jax.Array:
    """Makes pairs of (..., W, C): (..., W / 2, 2 C)."""
    return x.reshape(*x.shape[:-2], x.shape[-2] // 2, -1)


def apart(x: jax.Array, channels: int) -> jax.Array:
    """Undoes `joined`; what has so many channels already stays as it is."""
    return x if x.shape[-1] == channels else x.reshape(*x.shape[:-2], -1, channels)


def convolve(x_BTHWC: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Convolves pixels, or pairs as their pixels are, with "SAME" padding.

    Args:
        x_BTHWC: (B, T, H, W / 2, 2 C), or pixels (B, T, H, W, C), of the dtype of the kernel.
        kernel: (kt, kh, kw, C, D), where kw is 1 or 3.
        stride: of height and width, 1 or 2.

    Returns:
        At stride 1 pairs again (B, T, H, W / 2, 2 D), at 2 pixels (B, T, ceil(H / 2), W / 2, D);
        of pixels always pixels.
    """
    depth, height, width, channels = kernel.shape[:4]
    if x_BTHWC.shape[-1] == channels:
        return convolution_3d.convolve_joint(x_BTHWC, kernel, (1, stride, stride), "SAME")
    kernel = _kernel_of_pairs(kernel, stride)
    times_and_rows = convolution_3d.same_padding(
        x_BTHWC.shape[1:4], (depth, height, 1), (1, stride, 1)
    )[:2]
    columns = (0, 0) if width == 1 else (1, 1) if stride == 1 else (0, 1)
    return convolution_3d.convolve_joint(
        x_BTHWC, kernel, (1, stride, 1), (*times_and_rows, columns)
    )


def convolve_together(xs_BTHWC: Sequence[jax.Array], kernels: Sequence[jax.Array]) -> jax.Array:
    """Sums convolutions at stride 1 of as many inputs, all pixels or all pairs; see `convolve`.

    One that takes the channels of all inputs: a result of many channels is not written to be read
    and added to, and its gradient is read once for all of them.
    """
    if xs_BTHWC[0].shape[-1] != kernels[0].shape[-2]:
        kernels = [_kernel_of_pairs(kernel, 1) for kernel in kernels]
    x_BTHWC, kernel = jnp.concatenate(xs_BTHWC, -1), jnp.concatenate(kernels, -2)
    return convolution_3d.convolve_joint(x_BTHWC, kernel, (1, 1, 1), "SAME")


def _kernel_of_pairs(kernel: jax.Array, stride: int) -> jax.Array:
    """Returns (kt, kh, pairs that are seen, 2 C, 2 D), at stride 2 with one D.

    At stride 1 the first pixel of the kernel is one before that of the result; at stride 2 it is
    the left one of the result's pair, and the odd zero of "SAME" padding comes at the end.
    """
    width, results = kernel.shape[2], 3 - stride
    if width == 1:
        pairs, before = np.arange(1), 0
    else:
        pairs, before = (np.arange(-1, 2), 1) if stride == 1 else (np.arange(2), 0)
    pair, pixel, result = np.ix_(pairs, range(2), range(results))
    tap = 2 * pair + pixel - result + before
    taps = jnp.asarray(tap[..., None] == np.arange(width), kernel.dtype)
    exact = jax.lax.Precision.HIGHEST
    kernel = jnp.einsum("paqw,thwcd->thpacqd", taps, kernel, precision=exact)
    *seen, _, channels, _, features = kernel.shape
    return kernel.reshape(*seen, 2 * channels, results * features)
