"""The pre-activation bottleneck ResNet that the video and the audio network have in common."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from common import target
from common.backbones import batch_norm, convolution_3d, pixel_pairs
from common.backbones.batch_norm import BatchNorm
from common.backbones.initializers import truncated_fan_in
from common.backbones.resnet_stem import Stem


class FrameConv(nnx.Conv):
    """A convolution of every frame by itself."""

    def __call__(self, x_BTHWC: jax.Array) -> jax.Array:
        """Maps (B, T, H, W, C) to (B, T, ceil(H / stride), ceil(W / stride), C').

        Of pairs of pixels it makes what `pixel_pairs.convolve` says.
        """
        return self.convolve(self.kernel[...], x_BTHWC)

    def convolve(self, kernel: jax.Array, x_BTHWC: jax.Array) -> jax.Array:
        """Does the same with another kernel (kh, kw, C, C'), on TPUs also one of several frames."""
        x_BTHWC, kernel = convolution_3d.promoted(self.dtype, x_BTHWC, kernel)
        if convolution_3d.fills_registers():
            of_frames = kernel if kernel.ndim == 5 else kernel[None]
            return pixel_pairs.convolve(x_BTHWC, of_frames, self.strides[0])
        x_NHWC = x_BTHWC.reshape(-1, *x_BTHWC.shape[2:])
        y = convolution_3d.convolve_joint(x_NHWC, kernel, self.strides, "SAME")
        return y.reshape(*x_BTHWC.shape[:2], *y.shape[1:])


class PointwiseConv(FrameConv):
    """A 1x1 convolution, where that is faster as the matrix product it is.

    On CPUs XLA's convolutions, and above all their gradients, are several times slower than its
    matrix products. On TPUs it lays out in memory alike what convolutions, but not what products,
    read and write.
    """

    def convolve(self, kernel: jax.Array, x_BTHWC: jax.Array) -> jax.Array:
        """Maps (B, T, H, W, C) to (B, T, ceil(H / stride), ceil(W / stride), C')."""
        if target.platform() == "tpu":
            return super().convolve(kernel, x_BTHWC)
        down, right = self.strides
        seen = x_BTHWC[:, :, ::down, ::right]
        return jnp.einsum(
            "bthwc,cd->bthwd", *convolution_3d.promoted(self.dtype, seen, kernel[0, 0])
        )


@dataclasses.dataclass(frozen=True)
class Mix:
    """How blocks apply their first convolution, where networks of videos look at other frames.

    Attributes:
        kernel: its kernel for `convolve`; on TPUs (..., C, C') where C are those channels that
            `convolve` is given, in their order.
        convolve: maps (B, T, H, W, C) to (B, T, H, W, C') with that kernel.
    """

    kernel: Callable[[PointwiseConv], jax.Array]
    convolve: Callable[[PointwiseConv, jax.Array, jax.Array], jax.Array]


EACH_FRAME = Mix(lambda conv: conv.kernel[...], PointwiseConv.convolve)


def _conv(in_channels: int, out_channels: int, size: int, stride: int, dtype, rngs) -> FrameConv:
    # Padding is XLA's "SAME": at stride 2 the extra pixel is at the bottom and right, unlike the
    # symmetric padding of PyTorch's ResNets.
    layer = FrameConv if size > 1 else PointwiseConv
    return layer(
        in_channels,
        out_channels,
        (size, size),
        (stride, stride),
        padding="SAME",
        use_bias=False,
        kernel_init=truncated_fan_in,
        dtype=dtype,
        rngs=rngs,
    )


class Bottleneck(nnx.Module):
    """Residual block of ResNet v2 (He et al., 2016, arXiv:1603.05027), stride on the 3x3.

    The shortcut of a block that changes the shape sees each frame by itself. Pairs of pixels
    (`pixel_pairs`) come out as pairs, but of a stride.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, project: bool, *, dtype, rngs
    ):
        inner = out_channels // 4
        self.shortcut_conv = (
            _conv(in_channels, out_channels, 1, stride, dtype, rngs) if project else None
        )
        self.norm_0 = BatchNorm(in_channels, dtype=dtype)
        self.conv_0 = _conv(in_channels, inner, 1, 1, dtype, rngs)
        self.norm_1 = BatchNorm(inner, dtype=dtype)
        self.conv_1 = _conv(inner, inner, 3, stride, dtype, rngs)
        self.norm_2 = BatchNorm(inner, dtype=dtype)
        self.conv_2 = _conv(inner, out_channels, 1, 1, dtype, rngs)

    def __call__(self, x_BTHWC: jax.Array, mix: Mix = EACH_FRAME) -> jax.Array:
        """Maps (B, T, H, W, C) to (B, T, H/stride, W/stride, C'); `mix` applies conv_0."""
        kernel, convolve = mix.kernel(self.conv_0), functools.partial(mix.convolve, self.conv_0)
        if self.shortcut_conv is None:
            x = _norm_and_convolve(self.norm_0, kernel, convolve, x_BTHWC)
            return x_BTHWC + self.conv_2(self._inside(x))
        pre = nnx.relu(self.norm_0(x_BTHWC))
        x = self._inside(convolve(kernel, pre))
        if convolution_3d.fills_registers() and self.shortcut_conv.strides[0] == 1:
            return _convolve_together([self.conv_2, self.shortcut_conv], [x, pre])
        return self.shortcut_conv(pre) + self.conv_2(x)

    def _inside(self, x_BTHWC: jax.Array) -> jax.Array:
        """What lies between the first and the last convolution."""
        return nnx.relu(self.norm_2(self.conv_1(nnx.relu(self.norm_1(x_BTHWC)))))


def _convolve_together(convs: Sequence[PointwiseConv], xs: Sequence[jax.Array]) -> jax.Array:
    """Sums what convolutions of stride 1 make of an input each, as one convolution."""
    given = [
        convolution_3d.promoted(conv.dtype, x, conv.kernel[...][None])
        for conv, x in zip(convs, xs, strict=True)
    ]
    return pixel_pairs.convolve_together(*zip(*given, strict=True))


def _norm_and_convolve(
    norm: BatchNorm,
    kernel: jax.Array,
    convolve: Callable[[jax.Array, jax.Array], jax.Array],
    x: jax.Array,
) -> jax.Array:
    """Normalises, rectifies and convolves; `convolve` is linear in kernel and input.

    On TPUs the gradients of batch norm's own parameters come from those of the kernel. Of r =
    max(0, s n + o), where n has mean 0 and variance 1, the gradient by s is the sum over all places
    with r > 0 of n times what comes back through the convolution, that by o the same with 1 in
    place of n. And the sum of any input times what comes back is that of the kernel times the
    gradient which it has with that input. So nothing of the size of x is made for sums alone.
    """
    if target.platform() != "tpu" or norm.use_running_average:
        return convolve(kernel, nnx.relu(norm(x)))
    dtype = norm.dtype or x.dtype

    @jax.custom_vjp
    def norm_and_convolve(x, scale, offset, kernel):
        return forward(x, scale, offset, kernel)[0]

    def forward(x, scale, offset, kernel):
        y, mean, var = batch_norm.normalize(x, scale, offset, norm.eps)
        result = convolve(kernel, nnx.relu(y.astype(dtype)))
        return (result, mean, var), (kernel, (x, scale, offset, mean, var))

    def backward(kept, cotangents):
        kernel, of_norm = kept
        x, scale, offset, mean, var = of_norm
        ones, zeros = jnp.ones_like(scale), jnp.zeros_like(offset)
        normal = batch_norm.apply(x, ones, zeros, mean, var, norm.eps).astype(dtype)
        positive = batch_norm.apply(*of_norm, norm.eps).astype(dtype) > 0

        def of_kernel(given: jax.Array) -> jax.Array:
            see = jax.linear_transpose(lambda kernel: convolve(kernel, given), kernel)
            return see(cotangents[0])[0].astype(mean.dtype)

        by_normal = of_kernel(jnp.where(positive, normal, 0))
        by_one = of_kernel(positive.astype(dtype))
        dscale, doffset = (
            (kernel * by).sum((*range(kernel.ndim - 2), -1)) for by in (by_normal, by_one)
        )
        dkernel = scale[:, None] * by_normal + offset[:, None] * by_one
        (back,) = jax.linear_transpose(lambda given: convolve(kernel, given), normal)(cotangents[0])
        dy = jnp.where(positive, back, 0).astype(mean.dtype)
        dx = batch_norm.gradient_by_input(norm.eps, of_norm, dy, dscale, doffset)
        return dx, dscale, doffset, dkernel.astype(kernel.dtype)

    norm_and_convolve.defvjp(forward, backward)
    of_dtype = kernel.astype(dtype)  # which is what is convolved with
    result, mean, var = norm_and_convolve(x, norm.scale[...], norm.offset[...], of_dtype)
    norm.update(mean, var, x.size // mean.size)
    return result


def rematerialised(block: Bottleneck, x_BTHWC: jax.Array, mix: Mix) -> jax.Array:
    """Calls `block`, keeping only its input for the backward pass, which computes it again.

    The running statistics that the block updates leave the recomputed region as outputs, so they
    are updated once, as without rematerialisation.
    """
    graphdef, parameters, rest = nnx.split(block, nnx.Param, ...)

    @jax.checkpoint
    def pure(parameters, rest, x_BTHWC):
        block = nnx.merge(graphdef, parameters, rest)
        y_BTHWC = block(x_BTHWC, mix)
        return y_BTHWC, nnx.split(block, nnx.Param, ...)[2]

    y_BTHWC, rest = pure(parameters, rest, x_BTHWC)
    nnx.update(block, rest)
    return y_BTHWC


class BottleneckResNet(nnx.Module):
    """ResNet v2 trunk on the frames of clips: stem, units of bottlenecks, final norm and ReLU.

    Args:
        in_channels: of the frames.
        blocks: residual blocks in each unit; (3, 4, 6, 3) is ResNet-50. Units put out 256, 512,
            1024, ... channels times `width`; all but the first halve the resolution.
        width: multiplies every channel count; fractions are rounded to whole fours.
        dtype: compute dtype; None follows inputs and parameters.
        remat: recompute each block in the backward pass instead of storing its activations.
        rngs: source of the initial weights.
    """

    def __init__(
        self,
        in_channels: int,
        blocks: Sequence[int],
        width: float,
        *,
        dtype: jnp.dtype | None,
        remat: bool,
        rngs: nnx.Rngs,
    ):
        self.remat = remat
        channels = _channels(64, width)
        self.stem = Stem(in_channels, channels, dtype=dtype, rngs=rngs)
        units = []
        for index, count in enumerate(blocks):
            unit = []
            out_channels = _channels(256 * 2**index, width)
            for block in range(count):
                stride = 2 if block == 0 and index > 0 else 1
                unit.append(
                    Bottleneck(channels, out_channels, stride, block == 0, dtype=dtype, rngs=rngs)
                )
                channels = out_channels
            units.append(nnx.List(unit))
        self.units = nnx.List(units)
        self.norm = BatchNorm(channels, dtype=dtype)
        self.num_features = channels

    def endpoints(self, video_BTHWC: jax.Array, mix: Mix = EACH_FRAME) -> dict[str, jax.Array]:
        """Feature maps (B, T, h, w, C) by name: "stem", "unit_0", ..., "last".

        The first has been pooled, the last normalised and rectified. `mix` is how blocks apply
        their first convolution.
        """
        x = self.stem(video_BTHWC)
        found = {"stem": pixel_pairs.apart(x, self.stem.out_features)}
        for index, unit in enumerate(self.units):
            for block in unit:
                x = rematerialised(block, x, mix) if self.remat else block(x, mix)
            found[f"unit_{index}"] = pixel_pairs.apart(x, block.conv_2.out_features)
        found["last"] = nnx.relu(self.norm(found[f"unit_{index}"]))
        return found


def _channels(base: int, width: float) -> int:
    """`base` times `width`, rounded to the multiple of four that a bottleneck needs, at least 4."""
    return max(4, 4 * round(base * width / 4))


def spatial_mean(x: jax.Array) -> jax.Array:
    """Mean over every axis but the first and the last, in at least float32."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return x.mean(tuple(range(1, x.ndim - 1)))
