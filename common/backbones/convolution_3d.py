"""Convolution and pooling of videos, in the forms that run fast."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from common import target

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
        missing = max((math.ceil(n / s) - 1) * s + k - n, 0)
        before = missing // 2 if pooling == "same" else (k - s) // 2
        x_BTHWC = _max_along(x_BTHWC, axis, k, s, (before, missing - before))
    return x_BTHWC


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def _max_along(x: jax.Array, axis: int, size: int, stride: int, padding: tuple[int, int]):
    return _max_and_place(x, axis, size, stride, padding)[0]


def _max_and_place(x, axis, size, stride, padding):
    """Returns each window's maximum, and the place in the window where it lies, as int8."""
    padded = _pad_axis(x, axis, padding, -jnp.inf)
    last = (padded.shape[axis] - size) // stride * stride
    taps = [jax.lax.slice_in_dim(padded, tap, tap + last + 1, stride, axis) for tap in range(size)]
    return largest(*taps)


def largest(*values: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the largest at each place, and as int8 its number; of equal ones the first's."""
    maximum, number = values[0], jnp.zeros(values[0].shape, jnp.int8)
    for another, value in enumerate(values[1:], start=1):
        number = jnp.where(maximum >= value, number, jnp.int8(another))
        maximum = jnp.where(maximum >= value, maximum, value)
    return maximum, number


def _keep_place(x, axis, size, stride, padding):
    maximum, place = _max_and_place(x, axis, size, stride, padding)
    return maximum, (place, x.shape[axis])


def _max_gradient(axis, size, stride, padding, kept, dy):
    """Gathers for every value of x what the windows that took it have got.

    The values at 0, stride, 2 stride, ... meet the same places of their windows, and so do those
    one further on, and so on; in the end they are laid side by side.
    """
    place, n = kept
    reach = (size - 1) // stride  # windows before its own that a value lies in
    count = math.ceil(n / stride)
    furthest = (padding[0] + stride - 1) // stride  # own window of the first values, at most
    after = max(count + furthest - dy.shape[axis], 0)
    dy = _pad_axis(dy, axis, (reach, after), 0)
    place = _pad_axis(place, axis, (reach, after), -1)
    if target.platform() != "tpu":
        # Else XLA computes both anew, zeros and all, for each of the slices.
        dy, place = jax.lax.optimization_barrier((dy, place))
    offsets = []
    for position in range(stride):
        first, offset = divmod(position + padding[0], stride)
        got = 0
        for tap in range(offset, size, stride):
            begin = reach + first - tap // stride
            where, what = (
                jax.lax.slice_in_dim(a, begin, begin + count, 1, axis) for a in (place, dy)
            )
            got = got + jnp.where(where == tap, what, 0)
        offsets.append(got)
    if stride == 1:
        return (offsets[0],)
    together = jnp.stack(offsets, axis + 1)
    dx = together.reshape(*dy.shape[:axis], count * stride, *dy.shape[axis + 1 :])
    return (jax.lax.slice_in_dim(dx, 0, n, 1, axis),)


_max_along.defvjp(_keep_place, _max_gradient)


def _pad_axis(x: jax.Array, axis: int, padding: tuple[int, int], value: float) -> jax.Array:
    paddings = [(0, 0)] * x.ndim
    paddings[axis] = padding
    return jnp.pad(x, paddings, constant_values=value)


def fills_registers() -> bool:
    """Whether clips fill the rows of a TPU's registers, so that five axes are better than four.

    Between convolutions over time and space, which all have the clips in rows and the channels in
    lanes, no layout changes. With other numbers of clips than eights, rows would stay empty.
    """
    return target.platform() == "tpu" and target.share() > 0 and target.share() % 8 == 0


def frame_by_frame(see: Callable[[jax.Array], jax.Array], x_BTHWC: jax.Array) -> jax.Array:
    """Applies what sees every frame alone, such as pooling in space, to (B, T, H, W, C).

    On TPUs all frames stand in a row, so that as many as there are fill the lanes, which few
    channels would leave empty.
    """
    if target.platform() != "tpu":
        return see(x_BTHWC)
    batch, frames, *rest = x_BTHWC.shape
    y = see(x_BTHWC.reshape(batch * frames, 1, *rest))
    return y.reshape(batch, frames, *y.shape[2:])


def promoted(dtype: jnp.dtype | None, x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, ...]:
    """Returns both in the dtype that a layer computes in; None is the one that holds both."""
    dtype = dtype or jnp.promote_types(x.dtype, kernel.dtype)
    return x.astype(dtype), kernel.astype(dtype)


def convolve_joint(x: jax.Array, kernel: jax.Array, stride: Sequence[int], padding) -> jax.Array:
    """Convolves images (N, H, W, C) or videos (B, T, H, W, C) by what XLA has for it."""
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
    y = convolve_joint(images, kernel, stride, padding)
    return y.reshape(*x_BTHWC.shape[:2], *y.shape[1:])


def _keep_inputs(x_BTHWC, kernel, stride, padding):
    return _convolve_images(x_BTHWC, kernel, stride, padding), (x_BTHWC, kernel)


def _gradients(stride, padding, inputs, dy_BTHWC):
    x_BTHWC, kernel = inputs
    images = x_BTHWC.reshape(-1, *x_BTHWC.shape[2:])
    dy = dy_BTHWC.reshape(-1, *dy_BTHWC.shape[2:])
    (dx,) = jax.linear_transpose(lambda x: convolve_joint(x, kernel, stride, padding), images)(dy)
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
    seen = jnp.concatenate(taps, -1)
    if target.platform() == "cpu":
        return _convolve_images(seen, folded, stride[1:], padding[1:])
    y = convolve_joint(seen.reshape(-1, *seen.shape[2:]), folded, stride[1:], padding[1:])
    return y.reshape(*seen.shape[:2], *y.shape[1:])


def convolve(
    x_BTHWC: jax.Array, kernel: jax.Array, stride: Triple, padding: Padding, convolution: str
) -> jax.Array:
    """Convolves videos with a kernel (kt, kh, kw, C, C').

    "joint" is one 3-D convolution. "folded" is the same sum as a 2-D convolution: over space with
    the kernel's frames side by side in the channels, or over time with the pixels in a row where
    the kernel has only one. On a CPU, XLA runs those two to ten times as fast, and on a GPU they
    are faster too; on a TPU the one over space where there are few channels: frames in a row fill
    its lanes, and they do not.
    """
    size = kernel.shape[:3]
    if size == stride == (1, 1, 1):
        return jnp.einsum("bthwc,cd->bthwd", x_BTHWC, kernel[0, 0, 0])
    if convolution == "joint":
        return convolve_joint(x_BTHWC, kernel, stride, padding)
    over = _over_time if size[1:] == stride[1:] == (1, 1) else _over_space
    return over(x_BTHWC, kernel, stride, padding)


_FEW = 4  # channels, as many as pixels have


def quickest_form(in_channels: int) -> str:
    """Returns the form of `convolve` that runs fastest on the machine that it is compiled for."""
    few = target.platform() == "tpu" and in_channels <= _FEW
    return "folded" if few or target.platform() in ("cpu", "gpu") else "joint"


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
        x_BTHWC, kernel = promoted(self.dtype, x_BTHWC, self.kernel[...])
        padding = self.padding or same_padding(x_BTHWC.shape[1:4], kernel.shape[:3], self.stride)
        form = self.convolution or quickest_form(kernel.shape[3])
        return convolve(x_BTHWC, kernel, self.stride, padding, form)
