"""Matrix products whose gradients are cheap."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from common import target


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def dot(subscripts: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """An einsum that sums in float32 at least, and whose gradients multiply in its inputs' dtype.

    What JAX derives would widen the other factor to the float32 of the result's gradient.
    """
    wide = jnp.promote_types(jnp.result_type(a, b), jnp.float32)
    return jnp.einsum(subscripts, a, b, preferred_element_type=wide)


def _dot_forward(subscripts, a, b):
    return dot(subscripts, a, b), (a, b)


def _dot_backward(subscripts, kept, dy):
    a, b = kept
    of_a, of_b, of_y = subscripts.replace("->", ",").split(",")
    da = dot(f"{of_y},{of_b}->{of_a}", dy.astype(b.dtype), b)
    db = dot(f"{of_y},{of_a}->{of_b}", dy.astype(a.dtype), a)
    return da.astype(a.dtype), db.astype(b.dtype)


dot.defvjp(_dot_forward, _dot_backward)


def dense(layer: nnx.Linear, x: jax.Array, columns: slice = slice(None)) -> jax.Array:
    """The outputs of a dense layer, or some of them, by `affine`.

    Args:
        layer: with a bias.
        x: (..., I); computed in the layer's dtype, None follows ``x`` and the parameters.
        columns: which outputs.

    Returns:
        (..., O).
    """
    operands = x, layer.kernel[:, columns], layer.bias[columns]
    return affine(*nnx.nn.dtypes.promote_dtype(operands, dtype=layer.dtype))


@jax.custom_vjp
def affine(x: jax.Array, kernel_IO: jax.Array, bias_O: jax.Array) -> jax.Array:
    """``x @ kernel_IO + bias_O`` for x (..., I), with a gradient that is cheap."""
    return x @ kernel_IO + bias_O


def _affine_forward(x, kernel_IO, bias_O):
    return affine(x, kernel_IO, bias_O), (x, kernel_IO)


def _affine_backward(kept, dy):
    x, kernel_IO = kept
    if target.platform() != "tpu":
        # Otherwise XLA for CPUs computes both anew wherever they are used, in dy the gradients of
        # all later residuals, and in the order of whatever is made of them.
        x, dy = jax.lax.optimization_barrier((x, dy))
    rows = tuple(range(x.ndim - 1))
    over_rows = ((rows, rows), ((), ()))
    # XLA copies the first factor column by column, and computes it anew at that: the narrower one.
    if x.shape[-1] > dy.shape[-1]:
        dkernel_IO = jax.lax.dot_general(dy, x, over_rows).T
    else:
        dkernel_IO = jax.lax.dot_general(x, dy, over_rows)
    return dy @ kernel_IO.T, dkernel_IO, dy.sum(rows)


affine.defvjp(_affine_forward, _affine_backward)
