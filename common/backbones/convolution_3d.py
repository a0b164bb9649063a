"""Convolution of videos, in the forms that run fast."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from common import target
from common.backbones.memory_order import lying

CONVOLUTIONS = ("joint", "folded")

Triple = tuple[int, int, int]  # of time, height and width
Padding = tuple[tuple[int, int], ...]  # before and after, of each axis

# Pixels at (even, even), (even, odd), (odd, even) and (odd, odd) rows and columns, each (..., H, W,
# C) with half of either. The maximum over 3x3 pixels at stride 2 compares pixels of one array with
# others, and its gradient lays pixels side by side: on a TPU that costs more than the convolution
# before it. Of four arrays, which that convolution writes as well, it compares whole ones. What
# works pixel by pixel takes them as the tree of arrays that they are.
Phases = tuple[jax.Array, jax.Array, jax.Array, jax.Array]


def same_padding(sizes: Sequence[int], size: Sequence[int], stride: Sequence[int]) -> Padding:
    """TensorFlow's "SAME": ceil(n / stride) windows, an odd zero at the end."""
    missing = [
        max((math.ceil(n / s) - 1) * s + k - n, 0)
        for n, k, s in zip(sizes, size, stride, strict=True)
    ]
    return tuple((m // 2, m - m // 2) for m in missing)


def fills_registers() -> bool:
    """Whether clips fill the rows of a TPU's registers, so that five axes are better than four.

    Between convolutions over time and space, which all have the clips in rows and the channels in
    lanes, no layout changes. With other numbers of clips than eights, rows would stay empty.
    """
    return target.platform() == "tpu" and target.share() > 0 and target.share() % 8 == 0


def clips_in_rows(x: jax.Array) -> jax.Array:
    """Has clips, (B, ..., C), lie in the rows of registers and channels in lanes.

    As they do between convolutions where they fill those, see `fills_registers`; elsewhere x is
    left to the compiler.
    """
    if not fills_registers():
        return x
    last = x.ndim - 1
    return lying(x, (*range(1, last), 0, last))


def frame_by_frame(
    see: Callable[[jax.Array | Phases], jax.Array], x_BTHWC: jax.Array | Phases
) -> jax.Array:
    """Applies what sees every frame alone, such as pooling in space, to (B, T, H, W, C).

    On TPUs all frames stand in a row where channels do not fill the lanes, which as many frames as
    there are do.
    """
    batch, frames, *_, channels = jax.tree.leaves(x_BTHWC)[0].shape
    if target.platform() != "tpu" or channels >= target.LANES:
        return see(x_BTHWC)
    y = see(jax.tree.map(lambda x: x.reshape(batch * frames, 1, *x.shape[2:]), x_BTHWC))
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


def convolve_joint_apart(
    x: jax.Array, kernel: jax.Array, stride: Sequence[int], padding: Padding
) -> Phases:
    """Does what `convolve_joint` does, whose result must have even sides."""
    *times, down, right = stride
    strides = (*times, 2 * down, 2 * right)
    # Pixel 2 i + odd begins a stride further on than pixel 2 i.
    rows, columns = (
        [(before - step * odd, after - step * (1 - odd)) for odd in (0, 1)]
        for step, (before, after) in zip((down, right), padding[-2:], strict=True)
    )
    return tuple(
        convolve_joint(x, kernel, strides, (*padding[:-2], row, column))
        for row in rows
        for column in columns
    )


def whole(x: jax.Array | Phases) -> jax.Array:
    """Lays phases side by side: (..., 2 H, 2 W, C); what is whole already stays as it is."""
    if not isinstance(x, tuple):
        return x
    rows = [jnp.stack(pair, -2) for pair in (x[:2], x[2:])]
    *lead, height, width, _, channels = rows[0].shape
    return jnp.stack(rows, -4).reshape(*lead, 2 * height, 2 * width, channels)


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


def _frames_in_channels(
    x_BTHWC: jax.Array, kernel: jax.Array, stride: Triple, padding: Padding
) -> tuple[jax.Array, jax.Array]:
    """Returns images (B, T', H, W, kt C) and a kernel (kh, kw, kt C, C') for them.

    The channels of an image are those of the frames that the kernel sees, side by side. Where the
    stride divides the kernel, its frames come in groups that are put side by side first: fewer
    arrays to put together, and on a TPU no copy, as frames lie beside channels there.
    """
    step, around, depth, frames = stride[0], padding[0], len(kernel), x_BTHWC.shape[1]
    group = 1 if any(n % step for n in (depth, frames, *around)) else step
    step, depth, around = step // group, depth // group, tuple(n // group for n in around)
    groups = x_BTHWC.reshape(len(x_BTHWC), frames // group, group, *x_BTHWC.shape[2:])
    groups = groups.transpose(0, 1, 3, 4, 2, 5)
    padded = groups.reshape(*groups.shape[:4], -1)
    padded = jnp.pad(padded, ((0, 0), around, (0, 0), (0, 0), (0, 0)))
    last = (padded.shape[1] - depth) // step * step + 1
    taps = [padded[:, tap : tap + last : step] for tap in range(depth)]
    folded = kernel.transpose(1, 2, 0, 3, 4).reshape(*kernel.shape[1:3], -1, kernel.shape[-1])
    return jnp.concatenate(taps, -1), folded


def _over_space(
    x_BTHWC: jax.Array, kernel: jax.Array, stride: Triple, padding: Padding
) -> jax.Array:
    """Convolves images whose channels are those of the kernel's frames side by side."""
    seen, folded = _frames_in_channels(x_BTHWC, kernel, stride, padding)
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

    One pixel of one frame is a matrix product, but not where clips fill a TPU's registers: XLA lays
    out in memory alike what convolutions read and write, products otherwise.
    """
    size = kernel.shape[:3]
    if size == stride == (1, 1, 1) and not fills_registers():
        return jnp.einsum("bthwc,cd->bthwd", x_BTHWC, kernel[0, 0, 0])
    if convolution == "joint":
        return convolve_joint(x_BTHWC, kernel, stride, padding)
    over = _over_time if size[1:] == stride[1:] == (1, 1) else _over_space
    return over(x_BTHWC, kernel, stride, padding)


def convolve_apart(
    x_BTHWC: jax.Array, kernel: jax.Array, stride: Triple, padding: Padding, convolution: str
) -> Phases:
    """Does what `convolve` does, whose result must have even sides; each (B, T', H', W', C').

    Where the kernel sees one frame, all of them stand in a row.
    """
    if convolution == "joint" and len(kernel) > 1:
        return convolve_joint_apart(x_BTHWC, kernel, stride, padding)
    seen, folded = _frames_in_channels(x_BTHWC, kernel, stride, padding)
    images = seen.reshape(-1, *seen.shape[2:])
    phases = convolve_joint_apart(images, folded, stride[1:], padding[1:])
    return tuple(y.reshape(*seen.shape[:2], *y.shape[1:]) for y in phases)


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

    def __call__(self, x_BTHWC: jax.Array, apart: bool = False) -> jax.Array | Phases:
        """Maps (B, T, H, W, C) to (B, T', H', W', C') in the compute dtype.

        If `apart`, on TPUs to phases of it where its sides are even.
        """
        x_BTHWC, kernel = promoted(self.dtype, x_BTHWC, self.kernel[...])
        padding = self.padding or same_padding(x_BTHWC.shape[1:4], kernel.shape[:3], self.stride)
        form = self.convolution or quickest_form(kernel.shape[3])
        return self._convolve(x_BTHWC, kernel, self.stride, padding, form, apart)

    def _convolve(self, x_BTHWC, kernel, stride, padding, form, apart):
        sides = (
            (n + sum(around) - k) // step + 1
            for n, around, k, step in zip(
                x_BTHWC.shape[2:4], padding[1:], kernel.shape[1:3], stride[1:], strict=True
            )
        )
        apart = apart and target.platform() == "tpu" and all(side % 2 == 0 for side in sides)
        return (convolve_apart if apart else convolve)(x_BTHWC, kernel, stride, padding, form)
