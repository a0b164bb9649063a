"""Batch normalisation with running statistics as Haiku or PyTorch keeps them."""

from __future__ import annotations

import functools
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

# One array (..., C), or several of the same channels, whose values count as those of one.
Arrays = jax.Array | tuple[jax.Array, ...]


class BatchNorm(nnx.Module):
    """Normalises the last axis over all others (Ioffe and Szegedy, 2015, arXiv:1502.03167).

    The running statistics are zero-debiased averages as Haiku keeps them: after c updates they are
    the weighted mean of exactly those c batches, free of the initial value. Haiku stores the biased
    sum as well (`hidden`); it is mean * (1 - decay^c), so `count` says the same in one integer.

    With ``statistics="torch"`` they are PyTorch's instead: moving averages that start at mean 0 and
    variance 1 and forget them by and by, of variances that are unbiased, n / (n - 1) times those
    that training normalises with. PyTorch's momentum is 1 - `decay`.

    Statistics span the whole array: those of a batch that is sharded over devices under ``jax.jit``
    are those of the global batch. They are computed in float32, or float64 for float64 inputs.

    ``model.train()`` and ``model.eval()`` toggle `use_running_average`.
    """

    def __init__(
        self,
        num_features: int,
        *,
        decay: float = 0.9,
        eps: float = 1e-5,
        statistics: Literal["haiku", "torch"] = "haiku",
        dtype: jnp.dtype | None = None,
    ):
        self.decay = decay
        self.eps = eps
        self.statistics = statistics
        self.dtype = dtype
        self.use_running_average = False
        self.scale = nnx.Param(jnp.ones(num_features, jnp.float32))
        self.offset = nnx.Param(jnp.zeros(num_features, jnp.float32))
        # Mean 0 and variance 1 make an untrained network usable in evaluation mode; the first
        # update replaces them whole. (Haiku starts at variance 0, which divides by sqrt(eps).)
        self.mean = nnx.BatchStat(jnp.zeros(num_features, jnp.float32))
        self.var = nnx.BatchStat(jnp.ones(num_features, jnp.float32))
        self.count = nnx.BatchStat(jnp.zeros((), jnp.int32))

    def __call__(self, x: Arrays) -> Arrays:
        """Normalises x of shape (..., C); returns the same shape in the compute dtype.

        The last axis may hold those of several places side by side, (..., k C).
        """
        dtype = self.dtype or jax.tree.leaves(x)[0].dtype
        scale, offset = self.scale[...], self.offset[...]
        if self.use_running_average:
            y = apply(x, scale, offset, self.mean[...], self.var[...], self.eps)
        else:
            y, mean, var = normalize(x, scale, offset, self.eps)
            self.update(mean, var, count(x, scale.size))
        return jax.tree.map(lambda y: y.astype(dtype), y)

    def update(self, mean: jax.Array, var: jax.Array, num_values: int) -> None:
        """Takes one batch, of `num_values` per channel, into the running statistics."""
        mean, var = jax.lax.stop_gradient((mean, var))
        decay = jnp.asarray(self.decay, mean.dtype)
        if self.statistics == "torch":
            old_weight, total = decay, 1
            var = var * (num_values / max(num_values - 1, 1))
        else:
            old_weight = decay * (1 - decay ** self.count[...])
            total = 1 - decay ** (self.count[...] + 1)
        for running, value in ((self.mean, mean), (self.var, var)):
            average = (old_weight * running[...] + (1 - decay) * value) / total
            running[...] = average.astype(running[...].dtype)
        self.count[...] = self.count[...] + 1


def apply(
    x: Arrays,
    scale: jax.Array,
    offset: jax.Array,
    mean: jax.Array,
    var: jax.Array,
    eps: float,
) -> Arrays:
    """Normalises x (..., k C) with statistics (C,); at least float32."""
    factor, shift = factor_and_shift(scale, offset, mean, var, eps)
    return jax.tree.map(lambda x: x * _repeated(factor, x) + _repeated(shift, x), _wide(x))


def factor_and_shift(
    scale: jax.Array, offset: jax.Array, mean: jax.Array, var: jax.Array, eps: float
) -> tuple[jax.Array, jax.Array]:
    """Returns what x is multiplied by and what is added then, of each channel, to normalise it."""
    factor = scale * jax.lax.rsqrt(var + eps)
    return factor, offset - mean * factor


def _wide(x: Arrays) -> Arrays:
    return jax.tree.map(lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float32)), x)


def _repeated(of_channels: jax.Array, x: jax.Array) -> jax.Array:
    side_by_side = x.shape[-1] // of_channels.size
    return of_channels if side_by_side == 1 else jnp.tile(of_channels, side_by_side)


def _sum(x: Arrays, channels: int) -> jax.Array:
    """Sums (..., k C) over all places of each channel: (C,)."""

    def of_one(x):
        sums = x.sum(tuple(range(x.ndim - 1)))
        return sums if sums.size == channels else sums.reshape(-1, channels).sum(0)

    return sum(of_one(x) for x in jax.tree.leaves(x))


def count(x: Arrays, channels: int) -> int:
    """Returns how many values each channel has."""
    return sum(x.size for x in jax.tree.leaves(x)) // channels


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def normalize(
    x: Arrays, scale: jax.Array, offset: jax.Array, eps: float
) -> tuple[Arrays, jax.Array, jax.Array]:
    """Returns normalised x with its mean and variance, through which no gradient flows.

    The gradient keeps x alone, in its own type: what JAX derives by itself keeps the differences
    from the mean as well and passes over the array more often.
    """
    wide, number = _wide(x), count(x, scale.size)
    mean = _sum(wide, scale.size) / number
    # One pass over x. Rounding can leave a tiny negative value where x is constant.
    squares = _sum(jax.tree.map(jnp.square, wide), scale.size)
    var = jnp.maximum(squares / number - jnp.square(mean), 0)
    return apply(wide, scale, offset, mean, var, eps), mean, var


def _keep_input(x, scale, offset, eps):
    y, mean, var = normalize(x, scale, offset, eps)
    return (y, mean, var), (x, scale, offset, mean, var)


def _gradients(eps, kept, cotangents):
    x, scale, offset, mean, var = kept
    dy, _, _ = cotangents
    # Sums of dy and dy * x, and one factor for each of them: the fewer operations an element takes,
    # the longer a processor keeps up with its memory.
    products = jax.tree.map(lambda x, dy: dy * x.astype(dy.dtype), x, dy)
    doffset, dy_x = _sum(dy, scale.size), _sum(products, scale.size)
    dscale = jax.lax.rsqrt(var + eps) * (dy_x - mean * doffset)
    dx = gradient_by_input(eps, kept, dy, dscale, doffset)
    return dx, dscale.astype(scale.dtype), doffset.astype(offset.dtype)


def gradient_by_input(
    eps: float,
    kept: tuple[Arrays | jax.Array, ...],
    dy: Arrays,
    dscale: jax.Array,
    doffset: jax.Array,
) -> Arrays:
    """That of `normalize`: Ioffe and Szegedy (2015), section 3, put together.

    Args:
        eps: of `normalize`.
        kept: x, scale and offset that were given to it, mean and variance that it returned.
        dy: the gradient by its result; at least float32.
        dscale: the gradient by scale.
        doffset: the gradient by offset.
    """
    x, scale, _, mean, var = kept
    number = count(x, scale.size)
    inverse = jax.lax.rsqrt(var + eps)
    of_dy = scale * inverse
    of_x = of_dy * inverse * dscale / number
    of_1 = of_x * mean - of_dy * doffset / number

    def of_one(x, dy):
        wide = x.astype(dy.dtype)
        dx = _repeated(of_dy, x) * dy - _repeated(of_x, x) * wide + _repeated(of_1, x)
        return dx.astype(x.dtype)

    return jax.tree.map(of_one, x, dy)


normalize.defvjp(_keep_input, _gradients)
