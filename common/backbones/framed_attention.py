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

import functools

import jax
import jax.numpy as jnp

from common.backbones.memory_order import lying
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
    return _in_this_order(x_BFND.reshape(batch, frames, -1, ROWS, width))


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

    def rows_alone(self, x: jax.Array) -> jax.Array:
        """Does so to all rows (..., R, L): (..., J, R, L)."""
        return jnp.moveaxis(self.alone(x), -2, -3)

    def spread(self, x: jax.Array) -> jax.Array:
        """Gives every lane the number of its head, of (..., J, R): (..., R, L)."""
        return sum(x[..., j, :, None] * self.of_JL[j] for j in range(self.together))

    def sums(self, x: jax.Array) -> jax.Array:
        """Sums the lanes of each head, of (..., R, L): (..., J, R)."""
        return jnp.stack([(x * self.of_JL[j]).sum(-1) for j in range(self.together)], -2)

    def split(self, x_BFGSD: jax.Array, order: tuple[int, ...]) -> jax.Array:
        """Splits the last axis in groups and lanes and reorders (B, F, G, S, P, L)."""
        x = x_BFGSD.reshape(*x_BFGSD.shape[:4], self.groups, self.lanes)
        return _in_this_order(x.transpose(order))


def _in_this_order(x: jax.Array) -> jax.Array:
    """Has it lie in memory as its axes say; left to itself a compiler finds an order of its own.

    It puts eights of clips into the rows of registers, and copies in every block.
    """
    return lying(x, range(x.ndim))


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
    y_BFPRL = _attend(heads, q_BFPRL, k_BFPQL, v_BFPQL, None, jnp.arange(tokens) <= patches)
    return y_BFPRL.reshape(q.shape).transpose(0, 1, 3, 4, 2, 5).reshape(q_BFGSD.shape)


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
    class_BPJL = tuple(heads.alone(x[:, :, patches // ROWS, 0, patches % ROWS]) for x in (k, v))
    position = jnp.arange(rows) % ROWS
    sees_RQ = position[:, None] == position
    if real_BF is not None:
        sees_RQ = sees_RQ & jnp.repeat(real_BF, ROWS, 1)[:, None, None, None, None]
    y_BPGRL = _attend(heads, q_BPGRL, k_BPGQL, v_BPGQL, class_BPJL, sees_RQ)
    return y_BPGRL.reshape(q.shape).transpose(0, 3, 2, 4, 1, 5).reshape(q_BFGSD.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(
    heads: Heads,
    q_BMNRL: jax.Array,
    k_BMNQL: jax.Array,
    v_BMNQL: jax.Array,
    class_BMJL: tuple[jax.Array, jax.Array] | None,
    sees_RQ: jax.Array,
) -> jax.Array:
    """What rows see of others, and of a class token that is not among those: (B, M, N, R, L).

    Args:
        heads: which lanes belong together.
        q_BMNRL, k_BMNQL, v_BMNQL: of groups of heads, M in frames or N in rows of positions.
        class_BMJL: key and value of the class token, of each head alone; None: it has none.
        sees_RQ: which rows see which, an array that broadcasts to (B, M, N, J, R, Q).
    """
    return _attend_forward(heads, q_BMNRL, k_BMNQL, v_BMNQL, class_BMJL, sees_RQ)[0]


def _attend_forward(heads, q, k, v, of_class, sees):
    seen = jnp.where(sees, dot("bmnjrl,bmnql->bmnjrq", heads.rows_alone(q), k), -jnp.inf)
    highest, own = seen.max(-1), None
    if of_class is not None:
        own = dot("bmnrl,bmjl->bmnjr", q, of_class[0])
        highest = jnp.maximum(own, highest)
        own = jnp.exp(own - highest)
    seen = jnp.exp(seen - highest[..., None])
    total = seen.sum(-1)
    seen = seen.astype(q.dtype)
    # Summed over heads, of which each adds to its own lanes: nothing is chosen afterwards.
    y = dot("bmnjrq,bmnjql->bmnrl", seen, heads.rows_alone(v))
    if of_class is not None:
        total, own = total + own, own.astype(q.dtype)
        y = y + dot("bmnjr,bmjl->bmnrl", own, of_class[1])
    y = (y * heads.spread(1 / total)).astype(q.dtype)
    return y, (q, k, v, of_class, y, seen, own, total)


def _attend_backward(heads, kept, dy):
    """The derivative of softmax, with weights that are not yet divided by their sums."""
    q, k, v, of_class, y, seen, own, total = kept
    dtype = q.dtype
    dy = (dy * heads.spread(1 / total)).astype(dtype)
    mean = heads.sums(dy.astype(total.dtype) * y)
    q_alone, k_alone, dy_alone = map(heads.rows_alone, (q, k, dy))
    dseen = dot("bmnjrl,bmnql->bmnjrq", dy_alone, v) - mean[..., None]
    dseen = (seen * dseen).astype(dtype)
    dq = dot("bmnjrq,bmnjql->bmnrl", dseen, k_alone)
    dk = dot("bmnjrq,bmnjrl->bmnql", dseen, q_alone)
    dv = dot("bmnjrq,bmnjrl->bmnql", seen, dy_alone)
    dclass = None
    if of_class is not None:
        down = own * (dot("bmnrl,bmjl->bmnjr", dy, of_class[1]) - mean)
        down = down.astype(dtype)
        dq = dq + dot("bmnjr,bmjl->bmnrl", down, of_class[0])
        of_heads = functools.partial(dot, "bmnjr,bmnrl->bmjl")
        dclass = of_heads(down, q).astype(dtype), of_heads(own, dy).astype(dtype)
    return *(x.astype(dtype) for x in (dq, dk, dv)), dclass, None


_attend.defvjp(_attend_forward, _attend_backward)


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
