"""Attention of clips, divided into space and time, around one class token.

Axes: B clips, F frames, N positions of a frame, H heads, K numbers of a head. G counts frames as
well, and M positions, where they are looked at rather than looking. The class token's own query,
key and value are apart, of shape (B, H, K). Queries come scaled. Softmax is computed in float32,
or in float64 for float64 inputs; the result has the inputs' dtype.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from common.backbones import framed_attention as framed
from common.backbones.inception import chosen
from common.backbones.initializers import torch_linear
from common.backbones.products import dense, dot


class Grid(NamedTuple):
    """What the tokens of a clip stand for, beside its class token."""

    frames: int
    patches: int  # of each frame


def class_token(x: jax.Array, grid: Grid) -> jax.Array:
    """The class token (B, 1, D) of tokens as `DividedAttention` takes them."""
    return framed.class_token(x, grid.patches) if x.ndim == 5 else x[:, :1]


# Axes of (B, F, N, H, K) in the order in which the one to look along comes before the last. In any
# other, matrix products begin by copying.
_ORDERS = {"space": (0, 1, 3, 2, 4), "time": (0, 2, 3, 1, 4)}


def class_attention(
    q_BHK: jax.Array,
    keys: tuple[jax.Array, jax.Array],
    values: tuple[jax.Array, jax.Array],
    real_BSHT: jax.Array | None = None,
) -> jax.Array:
    """What the class token sees: itself and every patch of every frame.

    Args:
        q_BHK: its query.
        keys: its key (B, H, K) and those of patches (B, S, H, T, K), where S and T are frames and
            positions or the other way round.
        values: the same of values.
        real_BSHT: which patches are there, an array that broadcasts to that; None: all are.

    Returns:
        (B, H, K).
    """
    own_BH = dot("bhk,bhk->bh", q_BHK, keys[0])
    seen_BSHT = dot("bhk,bshtk->bsht", q_BHK, keys[1])
    if real_BSHT is not None:
        seen_BSHT = jnp.where(real_BSHT, seen_BSHT, -jnp.inf)
    highest_BH = jax.lax.stop_gradient(jnp.maximum(own_BH, seen_BSHT.max((1, 3))))
    own_BH = jnp.exp(own_BH - highest_BH)
    seen_BSHT = jnp.exp(seen_BSHT - highest_BH[:, None, :, None])
    total_BH = own_BH + seen_BSHT.sum((1, 3))
    y_BHK = dot("bsht,bshtk->bhk", seen_BSHT.astype(q_BHK.dtype), values[1])
    y_BHK = y_BHK + own_BH[..., None] * values[0]
    return (y_BHK / total_BH[..., None]).astype(q_BHK.dtype)


def time_attention(
    q_BNHFK: jax.Array,
    keys: tuple[jax.Array, jax.Array],
    values: tuple[jax.Array, jax.Array],
    real_BF: jax.Array | None = None,
) -> jax.Array:
    """What patches see in time: the class token, and their own position in every frame.

    Args:
        q_BNHFK: queries of patches.
        keys: of the class token (B, H, K), and of patches (B, N, H, G, K).
        values: the same of values.
        real_BF: which frames are there; None: all are.

    Returns:
        (B, N, H, F, K).
    """
    k_BNHGK, v_BNHGK = (_class_first(*tokens) for tokens in (keys, values))
    logits_BNHFG = dot("bnhfk,bnhgk->bnhfg", q_BNHFK, k_BNHGK)
    if real_BF is not None:
        real_BG = jnp.pad(real_BF, ((0, 0), (1, 0)), constant_values=True)
        logits_BNHFG = jnp.where(real_BG[:, None, None, None], logits_BNHFG, -jnp.inf)
    weights_BNHFG = jax.nn.softmax(logits_BNHFG).astype(v_BNHGK.dtype)
    return dot("bnhfg,bnhgk->bnhfk", weights_BNHFG, v_BNHGK).astype(q_BNHFK.dtype)


def _class_first(own_BHK: jax.Array, x_BNHGK: jax.Array) -> jax.Array:
    """Puts the class token before the frames of every position."""
    batch, positions, heads, _, size = x_BNHGK.shape
    own_BNHGK = jnp.broadcast_to(own_BHK[:, None, :, None], (batch, positions, heads, 1, size))
    return jnp.concatenate([own_BNHGK, x_BNHGK], 3)


@jax.custom_vjp
def space_attention(
    q_BFHNK: jax.Array,
    keys: tuple[jax.Array, jax.Array],
    values: tuple[jax.Array, jax.Array],
) -> jax.Array:
    """What patches see in space: the class token, and every position of their own frame.

    The class token is added to the sums instead of being copied beside the patches of each frame,
    and the gradient is written out: both spare passes over the (B, F, H, N, M) weights.

    Args:
        q_BFHNK: queries of patches.
        keys: of the class token (B, H, K), and of patches (B, F, H, M, K).
        values: the same of values.

    Returns:
        (B, F, H, N, K).
    """
    return _space_forward(q_BFHNK, keys, values)[0]


def _space_forward(q_BFHNK, keys, values):
    own_BFHN = dot("bfhnk,bhk->bfhn", q_BFHNK, keys[0])
    seen_BFHNM = dot("bfhnk,bfhmk->bfhnm", q_BFHNK, keys[1])
    highest_BFHN = jnp.maximum(own_BFHN, seen_BFHNM.max(-1))
    own_BFHN = jnp.exp(own_BFHN - highest_BFHN)
    seen_BFHNM = jnp.exp(seen_BFHNM - highest_BFHN[..., None])
    total_BFHN = own_BFHN + seen_BFHNM.sum(-1)
    seen_BFHNM = seen_BFHNM.astype(q_BFHNK.dtype)
    y_BFHNK = dot("bfhnm,bfhmk->bfhnk", seen_BFHNM, values[1])
    y_BFHNK = y_BFHNK + own_BFHN[..., None] * values[0][:, None, :, None]
    y_BFHNK = (y_BFHNK / total_BFHN[..., None]).astype(q_BFHNK.dtype)
    return y_BFHNK, (q_BFHNK, keys, values, y_BFHNK, own_BFHN, seen_BFHNM, total_BFHN)


def _space_backward(kept, dy_BFHNK):
    """The derivative of softmax, with weights that are not yet divided by their sums."""
    q_BFHNK, keys, values, y_BFHNK, own_BFHN, seen_BFHNM, total_BFHN = kept
    dtype = q_BFHNK.dtype
    dy_BFHNK = (dy_BFHNK / total_BFHN[..., None]).astype(dtype)
    mean_BFHN = dot("bfhnk,bfhnk->bfhn", dy_BFHNK, y_BFHNK)
    dseen_BFHNM = dot("bfhnk,bfhmk->bfhnm", dy_BFHNK, values[1]) - mean_BFHN[..., None]
    dseen_BFHNM = (seen_BFHNM * dseen_BFHNM).astype(dtype)
    down_BFHN = own_BFHN * (dot("bfhnk,bhk->bfhn", dy_BFHNK, values[0]) - mean_BFHN)
    dq_BFHNK = dot("bfhnm,bfhmk->bfhnk", dseen_BFHNM, keys[1])
    dq_BFHNK = dq_BFHNK + down_BFHN[..., None] * keys[0][:, None, :, None]
    own_sum = functools.partial(dot, "bfhn,bfhnk->bhk")
    seen_sum = functools.partial(dot, "bfhnm,bfhnk->bfhmk")
    dkeys = own_sum(down_BFHN.astype(dtype), q_BFHNK), seen_sum(dseen_BFHNM, q_BFHNK)
    dvalues = own_sum(own_BFHN.astype(dtype), dy_BFHNK), seen_sum(seen_BFHNM, dy_BFHNK)
    return jax.tree.map(lambda x: x.astype(dtype), (dq_BFHNK, dkeys, dvalues))


space_attention.defvjp(_space_forward, _space_backward)


class DividedAttention(nnx.Module):
    """Multi-head attention along space or time, in which the class token sees all tokens.

    Args:
        axis: "space": patches see their own frame; "time": their own position in every frame. Both
            see the class token.
        width, heads: D and into how many parts it is divided.
        dtype: compute dtype; None follows inputs and parameters.
        rngs: source of the initial weights.
    """

    def __init__(
        self, axis: str, width: int, heads: int, *, dtype: jnp.dtype | None, rngs: nnx.Rngs
    ):
        self.axis, self.heads = chosen("axis", axis, tuple(_ORDERS)), heads
        self.qkv = torch_linear(width, 3 * width, dtype=dtype, rngs=rngs)
        self.output = torch_linear(width, width, dtype=dtype, rngs=rngs)

    def __call__(self, x_BMD: jax.Array, grid: Grid, real_BF: jax.Array | None = None) -> jax.Array:
        """Maps tokens (B, 1 + F * N, D), the class token first, to as many.

        Tokens (B, F, G, S, D), as `common.backbones.framed_attention` lays them out, stay so.
        """
        if x_BMD.ndim == 5:
            return self._framed(x_BMD, grid, real_BF)
        q_BMD, k_BMD, v_BMD = jnp.split(dense(self.qkv, x_BMD), 3, -1)
        (q_BHK, q), keys, values = (self._apart(x, grid) for x in (q_BMD, k_BMD, v_BMD))
        if self.axis == "time":
            y = time_attention(q * self._scale, keys, values, real_BF)
        else:
            y = space_attention(q * self._scale, keys, values)
        y_BFNHK = y.transpose(np.argsort(_ORDERS[self.axis]))
        own_BHK = self._look(q_BHK, keys, values, real_BF)
        y_BMD = jnp.concatenate(
            [x.reshape(len(x_BMD), -1, x_BMD.shape[-1]) for x in (own_BHK, y_BFNHK)], 1
        )
        return dense(self.output, y_BMD)

    def class_token(
        self, x_BMD: jax.Array, grid: Grid, real_BF: jax.Array | None = None
    ) -> jax.Array:
        """The class token of the result alone, (B, 1, D); patches get no queries."""
        of_q, of_k, of_v = self._columns
        q_B1D = dense(self.qkv, class_token(x_BMD, grid), of_q)
        if x_BMD.ndim == 5:
            k, v = (dense(self.qkv, x_BMD, columns) for columns in (of_k, of_v))
            heads = framed.Heads(self.heads, x_BMD.shape[-1])
            y_B1D = framed.class_attention(q_B1D * self._scale, k, v, heads, grid.patches, real_BF)
            return dense(self.output, y_B1D)
        kv_BME = dense(self.qkv, x_BMD, slice(of_k.start, of_v.stop))
        keys, values = (self._apart(x, grid) for x in jnp.split(kv_BME, 2, -1))
        q_BHK = q_B1D.reshape(len(x_BMD), self.heads, -1)
        return dense(self.output, self._look(q_BHK, keys, values, real_BF).reshape(q_B1D.shape))

    def _framed(self, x_BFGSD, grid, real_BF):
        q, k, v = (dense(self.qkv, x_BFGSD, columns) for columns in self._columns)
        q, heads, patches = q * self._scale, framed.Heads(self.heads, q.shape[-1]), grid.patches
        if self.axis == "time":
            y = framed.time_attention(q, k, v, heads, patches, real_BF)
        else:
            y = framed.space_attention(q, k, v, heads, patches)
        own_B1D = framed.class_token(q, patches)
        own_B1D = framed.class_attention(own_B1D, k, v, heads, patches, real_BF)
        return dense(self.output, framed.with_class_token(y, own_B1D, patches))

    def _look(self, q_BHK, keys, values, real_BF):
        """What the class token sees."""
        if real_BF is not None:
            real_BF = jnp.expand_dims(real_BF, (2, 3) if self.axis == "space" else (1, 2))
        return class_attention(q_BHK * self._scale, keys, values, real_BF)

    @property
    def _columns(self) -> tuple[slice, ...]:
        """Where queries, keys and values stand in what the dense layer puts out."""
        width = self.output.in_features
        return tuple(slice(i * width, (i + 1) * width) for i in range(3))

    @property
    def _scale(self) -> float:
        return (self.output.in_features // self.heads) ** -0.5

    def _apart(self, x_BMD: jax.Array, grid: Grid) -> tuple[jax.Array, jax.Array]:
        """The class token by heads, and the patches by heads with the axis to look along last."""
        x_BMHK = x_BMD.reshape(*x_BMD.shape[:2], self.heads, -1)
        x_BFNHK = x_BMHK[:, 1:].reshape(len(x_BMD), *grid, *x_BMHK.shape[2:])
        return x_BMHK[:, 0], x_BFNHK.transpose(_ORDERS[self.axis])
