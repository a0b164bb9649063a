"""How parameters begin."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
from flax import nnx


def truncated_fan_in(key: jax.Array, shape: Sequence[int], dtype=None) -> jax.Array:
    """Kernels of convolutions and dense layers: a normal of scale 1/sqrt(fan-in), cut at 2 sigma.

    This is Haiku's default, which BraVe and MMV were trained with. The standard deviation is that
    of the normal *before* it is cut, so the values spread 0.88/sqrt(fan-in);
    ``jax.nn.initializers.variance_scaling`` corrects for that and is not the same.

    Args:
        key: PRNG key.
        shape: kernel shape, output features last; the fan-in is the product of the rest.
        dtype: of the result; JAX's default float if None.

    Returns:
        An array of `shape`.
    """
    deviation = 1 / math.sqrt(math.prod(shape[:-1]))
    return deviation * jax.random.truncated_normal(key, -2.0, 2.0, tuple(shape), dtype)


def torch_linear(
    in_features: int,
    out_features: int,
    *,
    dtype: jax.typing.DTypeLike | None = None,
    rngs: nnx.Rngs,
) -> nnx.Linear:
    """A dense layer that begins as PyTorch's: weights and biases uniform within 1/sqrt(inputs).

    ``dtype`` is that of its arithmetic; None follows inputs and parameters.
    """
    bound = 1 / math.sqrt(in_features)

    def uniform(key: jax.Array, shape: Sequence[int], dtype: jax.typing.DTypeLike) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return nnx.Linear(
        in_features, out_features, kernel_init=uniform, bias_init=uniform, dtype=dtype, rngs=rngs
    )
