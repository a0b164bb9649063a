"""Attention divided into space and time, in the form that runs fast on TPUs.

It computes what `common.backbones.divided_attention` does, on tokens that lie otherwise: every
frame holds a copy of the class token behind its patches, and then padding up to whole registers of
eight rows. So frames, rows of eight and groups of heads that fill 128 lanes can be reordered by
moving registers; cutting off the class token, or one head of 64 numbers, would move what is in
them.

Axes: B clips, F frames, G rows of S = 8 positions, D numbers of a token; P groups of J heads that
have L numbers together; R rows that look and Q that are looked at.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint

from common.backbones.products import dot
from common.target import LANES, ROWS


def from_tokens(x_BMD: jax.Array, frames: int) -> jax.Array:
    """Lays tokens (B, 1 + F * N, D), the class token first, out as (B, F, G, 8, D)."""
    batch, _, width = x_BMD.shape
    patches_BFND = x_BMD[:, 1:].reshape(batch, frames, -1, width)
    class_BF1D = jnp.broadcast_to(x_BMD[:, None, :1], (batch, frames, 1, width))
    x_BFND = jnp.concatenate([patches_BFND, class_BF1D], 2)
    missing = -x_BFND.shape[2] % ROWS
    x_BFND = jnp.pad(x_BFND, ((0, 0), (0, 0), (0, missing), (0, 0)))
    x_BFGSD = x_BFND.reshape(batch, frames, -1, ROWS, width)
    # Left to itself the compiler puts eights of clips into the rows of registers here, and then
    # copies in every block.
    return with_layout_constraint(x_BFGSD, Layout(tuple(range(x_BFGSD.ndim))))


def class_token(x_BFGSD: jax.Array, patches: int) -> jax.Array:
    """The class token of tokens with so many patches a frame: (B, 1, D)."""
    return x_BFGSD[:, :1, patches // ROWS, patches % ROWS]


class Heads:
    """Where the numbers of each head lie in lanes."""

    def __init__(self, heads: int, width: int):
        self.size = width // heads
        together = max(LANES // self.size, 1)
        self.together = together if heads % together == 0 else 1
        self.groups = heads // self.together
        self.lanes = self.together * self.size
        head_of_lane = jnp.arange(self.lanes) // self.size
        self.of_JL = head_of_lane == jnp.arange(self.together)[:, None]

    def alone(self, x: jax.Array) -> jax.Array:
        """Repeats (..., L) for each head with all others' numbers zero: (..., J, L)."""
        return jnp.where(self.of_JL, x[..., None, :], 0)

    def spread(self, x: jax.Array) -> jax.Array:
        """Gives every lane (..., L) the number of its head, of (..., J)."""
        return sum(x[..., j, None] * self.of_JL[j] for j in range(self.together))

    def split(self, x_BFGSD: jax.Array, order: tuple[int, ...]) -> jax.Array:
        """Splits the last axis in groups and lanes and reorders (B, F, G, S, P, L)."""
        x = x_BFGSD.reshape(*x_BFGSD.shape[:4], self.groups, self.lanes)
        return x.transpose(order)


_SPACE = (0, 1, 4, 2, 3, 5)  # B F P G S L
_TIME = (0, 4, 2, 1, 3, 5)  # B P G F S L


def space_attention(
    q_BFGSD: jax.Array, k_BFGSD: jax.Array, v_BFGSD: jax.Array, heads: Heads, patches: int
) -> jax.Array:
    """What every token sees of its own frame and the class token: (B, F, G, S, D).

    Args:
        q_BFGSD, k_BFGSD, v_BFGSD: queries, which come scaled, keys and values.
        heads: how D is divided.
        patches: of a frame.
    """
    q, k, v = (heads.split(x, _SPACE) for x in (q_BFGSD, k_BFGSD, v_BFGSD))
    tokens = q.shape[3] * ROWS
    q_BFPRL, k_BFPQL, v_BFPQL = (x.reshape(*x.shape[:3], tokens, heads.lanes) for x in (q, k, v))
    q_BFPJRL = jnp.moveaxis(heads.alone(q_BFPRL), -2, -3)
    y_BFPJRL = _attend(q_BFPJRL, k_BFPQL, v_BFPQL, jnp.arange(tokens) <= patches)
    y_BFPRL = jnp.where(heads.of_JL[:, None], y_BFPJRL, 0).sum(-3)
    return y_BFPRL.reshape(q.shape).transpose(0, 1, 3, 4, 2, 5).reshape(q_BFGSD.shape)


@jax.custom_vjp
def _attend(q_BFPJRL, k_BFPQL, v_BFPQL, real_Q):
    return _attend_forward(q_BFPJRL, k_BFPQL, v_BFPQL, real_Q)[0]


def _attend_forward(q_BFPJRL, k_BFPQL, v_BFPQL, real_Q):
    seen = dot("bfpjrl,bfpql->bfpjrq", q_BFPJRL, k_BFPQL)
    seen = jnp.where(real_Q, seen, -jnp.inf)
    seen = jnp.exp(seen - seen.max(-1, keepdims=True))
    total = seen.sum(-1, keepdims=True)
    seen = seen.astype(q_BFPJRL.dtype)
    y = (dot("bfpjrq,bfpql->bfpjrl", seen, v_BFPQL) / total).astype(q_BFPJRL.dtype)
    return y, (q_BFPJRL, k_BFPQL, v_BFPQL, y, seen, total)


def _attend_backward(kept, dy):
    """The derivative of softmax, with weights that are not yet divided by their sums."""
    q, k, v, y, seen, total = kept
    dy = (dy / total).astype(q.dtype)
    mean = (dy.astype(total.dtype) * y).sum(-1, keepdims=True)
    dseen = dot("bfpjrl,bfpql->bfpjrq", dy, v) - mean
    dseen = (seen * dseen).astype(q.dtype)
    dq = dot("bfpjrq,bfpql->bfpjrl", dseen, k)
    dk = dot("bfpjrq,bfpjrl->bfpql", dseen, q)
    dv = dot("bfpjrq,bfpjrl->bfpql", seen, dy)
    return *(x.astype(q.dtype) for x in (dq, dk, dv)), None


_attend.defvjp(_attend_forward, _attend_backward)


def time_attention(
    q_BFGSD: jax.Array,
    k_BFGSD: jax.Array,
    v_BFGSD: jax.Array,
    heads: Heads,
    patches: int,
    real_BF: jax.Array | None = None,
) -> jax.Array:
    """What every token sees of its own position in every frame and the class token.

    Eight positions of all frames look at one another, and see nothing of other positions.

    Args:
        q_BFGSD, k_BFGSD, v_BFGSD: queries, which come scaled, keys and values.
        heads: how D is divided.
        patches: of a frame.
        real_BF: which frames are there; None: all are.
    """
    q, k, v = (heads.split(x, _TIME) for x in (q_BFGSD, k_BFGSD, v_BFGSD))
    rows = q.shape[3] * ROWS
    q_BPGRL, k_BPGQL, v_BPGQL = (x.reshape(*x.shape[:3], rows, heads.lanes) for x in (q, k, v))
    k_BPGJQL, v_BPGJQL = (jnp.moveaxis(heads.alone(x), -2, -3) for x in (k_BPGQL, v_BPGQL))
    own_k_BPJL, own_v_BPJL = (
        heads.alone(x[:, :, patches // ROWS, 0, patches % ROWS]) for x in (k, v)
    )
    position = jnp.arange(rows) % ROWS
    sees = (position[:, None] == position)[:, None]  # R, J, Q
    if real_BF is not None:
        real_BQ = jnp.repeat(real_BF, ROWS, 1)
        sees = sees & real_BQ[:, None, None, None, None]
    seen = jnp.where(sees, dot("bpgrl,bpgjql->bpgrjq", q_BPGRL, k_BPGJQL), -jnp.inf)
    own = dot("bpgrl,bpjl->bpgrj", q_BPGRL, own_k_BPJL)
    highest = jax.lax.stop_gradient(jnp.maximum(own, seen.max(-1)))
    own, seen = jnp.exp(own - highest), jnp.exp(seen - highest[..., None])
    total = own + seen.sum(-1)
    y = dot("bpgrjq,bpgjql->bpgrl", seen.astype(q.dtype), v_BPGJQL)
    y = y + dot("bpgrj,bpjl->bpgrl", own.astype(q.dtype), own_v_BPJL)
    y = (y * heads.spread(1 / total)).astype(q.dtype)
    return y.reshape(q.shape).transpose(0, 3, 2, 4, 1, 5).reshape(q_BFGSD.shape)


def class_attention(
    q_B1D: jax.Array,
    k_BFGSD: jax.Array,
    v_BFGSD: jax.Array,
    heads: Heads,
    patches: int,
    real_BF: jax.Array | None = None,
) -> jax.Array:
    """What the class token sees, itself and every patch of every frame: (B, 1, D).

    Args:
        q_B1D: its query, which comes scaled.
        k_BFGSD, v_BFGSD: keys and values of all tokens.
        heads: how D is divided.
        patches: of a frame.
        real_BF: which frames are there; None: all are.
    """
    k, v = (heads.split(x, _SPACE) for x in (k_BFGSD, v_BFGSD))
    q_BPJL = heads.alone(q_B1D.reshape(len(q_B1D), heads.groups, heads.lanes))
    frames, groups = k.shape[1], k.shape[3]
    position = jnp.arange(groups * ROWS).reshape(groups, ROWS)
    first = jnp.arange(frames)[:, None, None] == 0
    sees = (position < patches) | ((position == patches) & first)  # F, G, S
    if real_BF is not None:
        sees = sees & real_BF[..., None, None]
        sees = jnp.expand_dims(sees, (1, 2))
    seen = jnp.where(sees, dot("bpjl,bfpgsl->bpjfgs", q_BPJL, k), -jnp.inf)
    highest = jax.lax.stop_gradient(seen.max((3, 4, 5), keepdims=True))
    seen = jnp.exp(seen - highest)
    total_BPJ = seen.sum((3, 4, 5))
    y_BPJL = dot("bpjfgs,bfpgsl->bpjl", seen.astype(q_BPJL.dtype), v) / total_BPJ[..., None]
    y_BPL = jnp.where(heads.of_JL, y_BPJL, 0).sum(2)
    return y_BPL.reshape(q_B1D.shape).astype(q_B1D.dtype)


def with_class_token(y_BFGSD: jax.Array, class_B1D: jax.Array, patches: int) -> jax.Array:
    """Puts a class token into every frame."""
    groups = y_BFGSD.shape[2]
    position = jnp.arange(groups * ROWS).reshape(groups, ROWS, 1)
    return jnp.where(position == patches, class_B1D[:, :, None, None], y_BFGSD)
