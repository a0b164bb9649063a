"""Self-gating of feature maps, alone and behind a batch norm."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from common import target
from common.backbones import batch_norm
from common.backbones.batch_norm import Arrays, BatchNorm
from common.backbones.initializers import torch_linear
from common.backbones.resnet_blocks import spatial_mean


class SelfGate(nnx.Module):
    """Weighs each channel by what the whole clip holds (Xie et al., 2018, arXiv:1712.04851)."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.dense = torch_linear(channels, channels, rngs=rngs)

    def __call__(self, x_BTHWC: Arrays) -> Arrays:
        """Returns x_BTHWC, or several such of one clip, times a factor in (0, 1) per channel."""
        gate_BC = _gate(_mean(x_BTHWC), self.dense.kernel[...], self.dense.bias[...])
        return _weighed(x_BTHWC, gate_BC)

    def after(self, norm: BatchNorm, x_BTHWC: Arrays) -> tuple[Arrays, Arrays]:
        """Returns what ``norm`` and a rectifier make of x_BTHWC, and that weighed.

        On TPUs the gradients by the gate, by the norm's parameters and by its input go by the same
        four sums for every clip and channel, of one pass over x and what comes back. On CPUs each
        sum is a pass.
        """
        if target.platform() != "tpu" or norm.use_running_average:
            y_BTHWC = jax.tree.map(nnx.relu, norm(x_BTHWC))
            return y_BTHWC, self(y_BTHWC)
        dtype = norm.dtype or jax.tree.leaves(x_BTHWC)[0].dtype
        of_norm = x_BTHWC, norm.scale[...], norm.offset[...]
        dense = self.dense.kernel[...], self.dense.bias[...]
        result, mean, var = _rectified_and_gated(*of_norm, *dense, norm.eps, dtype)
        norm.update(mean, var, batch_norm.count(x_BTHWC, norm.scale.size))
        before, _, _ = _rectified(*of_norm, norm.eps, dtype)
        return before, result  # the compiler drops what nothing looks at


def _rectified(x, scale, offset, eps, dtype):
    y, mean, var = batch_norm.normalize(x, scale, offset, eps)
    return jax.tree.map(lambda y: nnx.relu(y.astype(dtype)), y), mean, var


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _rectified_and_gated(x, scale, offset, kernel_CC, bias_C, eps, dtype):
    """Returns what is gated, mean and variance, through which no gradient flows."""
    return _forward(x, scale, offset, kernel_CC, bias_C, eps, dtype)[0]


def _forward(x, scale, offset, kernel_CC, bias_C, eps, dtype):
    y, mean, var = _rectified(x, scale, offset, eps, dtype)
    means_BC, dense = _mean(y), (kernel_CC, bias_C)
    result = _weighed(y, _gate(means_BC, *dense))
    return (result, mean, var), ((x, scale, offset, mean, var), means_BC, dense)


def _backward(eps, dtype, kept, cotangents):
    of_norm, means_BC, dense = kept
    x, scale, offset, mean, var = of_norm
    y = batch_norm.apply(x, scale, offset, mean, var, eps)
    positive = jax.tree.map(lambda y: y.astype(dtype) > 0, y)
    back = jax.tree.map(lambda d: d.astype(mean.dtype), cotangents[0])
    # Of 1, x, what comes back, and both multiplied, where something is let through.
    n_BC = _sums(jax.tree.map(jnp.ones_like, back), positive)
    x_BC = _sums(x, positive)
    back_BC = _sums(back, positive)
    back_x_BC = _sums(jax.tree.map(jnp.multiply, back, x), positive)
    # There, what was gated is factor * x + shift.
    factor, shift = batch_norm.factor_and_shift(scale, offset, mean, var, eps)
    gate_BC, pull = jax.vjp(_gate, means_BC, *dense)
    by_mean_BC, *by_dense = pull((factor * back_x_BC + shift * back_BC).astype(gate_BC.dtype))
    by_place_BC = by_mean_BC / batch_norm.count(x, means_BC.size)
    doffset = (gate_BC * back_BC + by_place_BC * n_BC).sum(0)
    along_x = (gate_BC * back_x_BC + by_place_BC * x_BC).sum(0)
    dscale = jax.lax.rsqrt(var + eps) * (along_x - mean * doffset)
    dy = jax.tree.map(lambda d: d * _of_clips(gate_BC) + _of_clips(by_place_BC), back)
    dy = jax.tree.map(lambda d, p: jnp.where(p, d, 0), dy, positive)
    dx = batch_norm.gradient_by_input(eps, of_norm, dy, dscale, doffset)
    return dx, dscale.astype(scale.dtype), doffset.astype(offset.dtype), *by_dense


_rectified_and_gated.defvjp(_forward, _backward)


def _gate(means_BC: jax.Array, kernel_CC: jax.Array, bias_C: jax.Array) -> jax.Array:
    return nnx.sigmoid(means_BC @ kernel_CC + bias_C)


def _mean(x_BTHWC: Arrays) -> jax.Array:
    """Over all places of a clip, of which arrays have equally many: (B, C), at least float32."""
    means = [spatial_mean(x) for x in jax.tree.leaves(x_BTHWC)]
    return sum(means) / len(means)


def _sums(x_BTHWC: Arrays, where_BTHWC: Arrays) -> jax.Array:
    """Over some places of a clip: (B, C), at least float32."""

    def of_one(x, where):
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        return jnp.where(where, wide, 0).sum((1, 2, 3))

    return sum(map(of_one, *map(jax.tree.leaves, (x_BTHWC, where_BTHWC))))


def _of_clips(x_BC: jax.Array) -> jax.Array:
    return x_BC[:, None, None, None]


def _weighed(x_BTHWC: Arrays, gate_BC: jax.Array) -> Arrays:
    return jax.tree.map(lambda x: x * _of_clips(gate_BC).astype(x.dtype), x_BTHWC)
