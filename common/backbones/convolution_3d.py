"""Convolution and pooling of videos, in the forms that run fast."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

CONVOLUTIONS = ("joint", "folded")

Triple = tuple[int, int, int]  # of time, height and width
Padding = tuple[tuple[int, int], ...]  # before and after, of each axis


def same_padding(sizes: Sequence[int], size: Triple, stride: Triple) -> Padding:
    """TensorFlow's "SAME": ceil(n / stride) windows, an odd zero at the end."""
    missing = [
        max((math.ceil(n / s) - 1) * s + k - n, 0)
        for n, k, s in zip(sizes, size, stride, strict=True)
    ]
    return tuple((m // 2, m - m // 2) for m in missing)


def max_pool(x_BTHWC: jax.Array, size: Triple, stride: Triple, pooling: str = "same") -> jax.Array:
    """Takes the maximum over windows: (B, ceil(T / stride), ceil(H / stride), ...).

    One axis after the other, by comparing strided slices: the gradient of XLA's window reduction
    takes several times as long on a CPU. Of equal values one gets the gradient.

    Args:
        x_BTHWC: any values. The published network pads with zeros, this one with minus infinity;
            the same for what follows a ReLU.
        size: of the windows.
        stride: between them.
        pooling: "same" begins where TensorFlow does; "torch" as the published PyTorch code, which
            pads (size - stride) // 2 before and so begins later where size 3 at stride 2 meets an
            odd number.
    """
    for axis, (k, s) in enumerate(zip(size, stride, strict=True), start=1):
        if k == s == 1:
            continue
        n = x_BTHWC.shape[axis]
        out = math.ceil(n / s)
        missing = max((out - 1) * s + k - n, 0)
        before = missing // 2 if pooling == "same" else (k - s) // 2
        padding = [(0, 0)] * x_BTHWC.ndim
        padding[axis] = (before, missing - before)
        padded = jnp.pad(x_BTHWC, padding, constant_values=-jnp.inf)
        taps = [
            jax.lax.slice_in_dim(padded, tap, tap + (out - 1) * s + 1, s, axis) for tap in range(k)
        ]
        x_BTHWC = functools.reduce(lambda x, y: jnp.where(x >= y, x, y), taps)
    return x_BTHWC


def _convolve(x: jax.Array, kernel: jax.Array, stride: Sequence[int], padding) -> jax.Array:
    spatial = "THW"[-len(stride) :]
    names = (f"N{spatial}C", f"{spatial}IO", f"N{spatial}C")
    return jax.lax.conv_general_dilated(x, kernel, stride, padding, dimension_numbers=names)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolve_images(
    x_BTHWC: jax.Array, kernel: jax.Array, stride: tuple[int, int], padding: Padding
) -> jax.Array:
    """Convolves every image of clips with a kernel (kh, kw, C, C').

    Its gradient by the kernel is made of matrix products. What XLA makes of it, a convolution with
    kernels as large as images, takes up to ten times as long on a CPU.
    """
    images = x_BTHWC.reshape(-1, *x_BTHWC.shape[2:])
    y = _convolve(images, kernel, stride, padding)
    return y.reshape(*x_BTHWC.shape[:2], *y.shape[1:])


def _keep_inputs(x_BTHWC, kernel, stride, padding):
    return _convolve_images(x_BTHWC, kernel, stride, padding), (x_BTHWC, kernel)


def _gradients(stride, padding, inputs, dy_BTHWC):
    x_BTHWC, kernel = inputs
    images = x_BTHWC.reshape(-1, *x_BTHWC.shape[2:])
    dy = dy_BTHWC.reshape(-1, *dy_BTHWC.shape[2:])
    (dx,) = jax.vjp(lambda x: _convolve(x, kernel, stride, padding), images)[1](dy)
    size = kernel.shape[:2]
    batch, frames, height, width, _ = dy_BTHWC.shape
    if batch * height * width < _LARGE:
        return dx.reshape(x_BTHWC.shape), _kernel_gradient(images, dy, size, stride, padding)

    def add_frame(frame: int, dkernel: jax.Array) -> jax.Array:
        x, dy = (jax.lax.dynamic_index_in_dim(a, frame, 1, False) for a in (x_BTHWC, dy_BTHWC))
        return dkernel + _kernel_gradient(x, dy, size, stride, padding)

    dkernel = jax.lax.fori_loop(0, frames, add_frame, jnp.zeros_like(kernel))
    return dx.reshape(x_BTHWC.shape), dkernel


_convolve_images.defvjp(_keep_inputs, _gradients)
# Results of a convolution, in pixels, from which on its kernel's gradient is added up frame by
# frame: the copies that it takes then stay in the cache.
_LARGE = 1024


def _kernel_gradient(
    x_NHWC: jax.Array,
    dy_NHWD: jax.Array,
    size: tuple[int, int],
    stride: tuple[int, int],
    padding: Padding,
) -> jax.Array:
    """Returns (kh, kw, C, D): a matrix product for each row of the kernel."""
    x_NHWC = jnp.pad(x_NHWC, ((0, 0), *padding, (0, 0)))
    _, height, width, out_channels = dy_NHWD.shape
    channels = x_NHWC.shape[-1]
    if size[1] == 1:
        seen = x_NHWC[:, :, : (width - 1) * stride[1] + 1 : stride[1]]
    else:
        # What a row of the kernel sees lies together in memory.
        rows = x_NHWC.reshape(*x_NHWC.shape[:2], 1, -1)
        begins = (column * stride[1] * channels for column in range(width))
        windows = [rows[..., begin : begin + size[1] * channels] for begin in begins]
        seen = jnp.concatenate(windows, 2)
    dy_RD = dy_NHWD.reshape(-1, out_channels)
    last = (height - 1) * stride[0] + 1
    products = [
        seen[:, row : row + last : stride[0]].reshape(len(dy_RD), -1).T @ dy_RD
        for row in range(size[0])
    ]
    return jnp.stack(products).reshape(*size, channels, out_channels)


def _over_time(
    x_BTHWC: jax.Array, kernel: jax.Array, stride: Triple, padding: Padding
) -> jax.Array:
    """Convolves images whose rows are frames and whose columns are all their pixels."""
    batch, frames, height, width, channels = x_BTHWC.shape
    rows = x_BTHWC.reshape(batch, 1, frames, height * width, channels)
    y = _convolve_images(rows, kernel[:, 0], (stride[0], 1), (padding[0], (0, 0)))
    return y.reshape(batch, -1, height, width, y.shape[-1])


def _over_space(
    x_BTHWC: jax.Array, kernel: jax.Array, stride: Triple, padding: Padding
) -> jax.Array:
    """Convolves images whose channels are those of the kernel's frames side by side."""
    padded = jnp.pad(x_BTHWC, ((0, 0), padding[0], (0, 0), (0, 0), (0, 0)))
    out = (padded.shape[1] - len(kernel)) // stride[0] + 1
    last = (out - 1) * stride[0] + 1
    taps = [padded[:, tap : tap + last : stride[0]] for tap in range(len(kernel))]
    folded = kernel.transpose(1, 2, 0, 3, 4).reshape(*kernel.shape[1:3], -1, kernel.shape[-1])
    return _convolve_images(jnp.concatenate(taps, -1), folded, stride[1:], padding[1:])


def convolve(
    x_BTHWC: jax.Array, kernel: jax.Array, stride: Triple, padding: Padding, convolution: str
) -> jax.Array:
    """Convolves videos with a kernel (kt, kh, kw, C, C').

    "joint" is one 3-D convolution. "folded" is the same sum as a 2-D convolution: over space with
    the kernel's frames side by side in the channels, or over time with the pixels in a row where
    the kernel has only one. On a CPU, XLA runs those two to ten times as fast.
    """
    size = kernel.shape[:3]
    if size == stride == (1, 1, 1):
        return jnp.einsum("bthwc,cd->bthwd", x_BTHWC, kernel[0, 0, 0])
    if convolution == "joint":
        return _convolve(x_BTHWC, kernel, stride, padding)
    over = _over_time if size[1:] == stride[1:] == (1, 1) else _over_space
    return over(x_BTHWC, kernel, stride, padding)


class Conv3D(nnx.Module):
    """A convolution over time and space without bias; its padding is "SAME" unless given."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        size: Triple,
        stride: Triple = (1, 1, 1),
        padding: Padding | None = None,
        *,
        convolution: str | None,
        kernel_init: Callable[..., jax.Array],
        dtype: jnp.dtype | None,
        rngs: nnx.Rngs,
    ):
        self.stride = stride
        self.padding = padding
        self.convolution = convolution
        self.dtype = dtype
        shape = (*size, in_channels, out_channels)
        self.kernel = nnx.Param(kernel_init(rngs.params(), shape, jnp.float32))

    def __call__(self, x_BTHWC: jax.Array) -> jax.Array:
        """Maps (B, T, H, W, C) to (B, T', H', W', C') in the compute dtype."""
        kernel = self.kernel[...]
        dtype = self.dtype or jnp.promote_types(x_BTHWC.dtype, kernel.dtype)
        padding = self.padding or same_padding(x_BTHWC.shape[1:4], kernel.shape[:3], self.stride)
        form = self.convolution or ("folded" if jax.default_backend() == "cpu" else "joint")
        return convolve(x_BTHWC.astype(dtype), kernel.astype(dtype), self.stride, padding, form)
