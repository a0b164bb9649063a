"""The core of contrastive objectives: every example of the batch against every other one.

The scores of all pairs would be an array of B x B x K. Here they are made tile by tile, in the
forward pass and once more in the backward pass, so memory grows with the batch and not its square.
Where the batch is split over a mesh (`common.sharding`), columns travel round a ring of all devices
and take their sums along; no device ever holds more than its own share and its neighbour's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from common.sharding import AXES

BLOCK = 1024
_Tile = Callable[[Any, Any, Any, Any], tuple[Any, Any]]
_Side = tuple[Any, Any]  # what stays and what is accumulated, of all rows or all columns


class Negatives(NamedTuple):
    """What `negatives` returns: arrays (B,), minus infinity where there is no other example.

    The maxima have no gradient.
    """

    rows_B: jax.Array  # log-sum-exp of x_i with the y of all other examples
    columns_B: jax.Array  # log-sum-exp of the y of example j with all other x
    row_max_B: jax.Array
    column_max_B: jax.Array


def positives(x_BD: jax.Array, y_BKD: jax.Array) -> jax.Array:
    """Scores of every x with the K y of its own example, (B, K), in at least float32."""
    return _dot("bd,bkd->bk", *_widen(x_BD, y_BKD))


@functools.partial(jax.jit, static_argnames="block")
def negatives(x_BD: jax.Array, y_BKD: jax.Array, block: int = BLOCK) -> Negatives:
    """Log-sum-exp of the scores x_i . y_jk over k and all other examples, of rows and of columns.

    Scores of an example with itself are left out: an objective adds its `positives` in whatever way
    it counts them. A temperature is a factor of ``x_BD``. Everything is at least float32.

    The mesh is part of the type of an array inside `jax.jit`, and is found there: arrays that come
    from a batch split over `common.sharding.AXES` take the ring, all others are local.

    Args:
        x_BD: one embedding of every example.
        y_BKD: K embeddings of every example to compare with.
        block: at most so many rows by so many columns (of K scores) at a time. What is returned
            does not depend on it but for rounding.
    """
    mesh = jax.typeof(x_BD).sharding.mesh
    if not set(AXES) <= set(mesh.axis_names):
        mesh = None
    rows_B, columns_B, *maxima = _negatives(block, mesh, *_widen(x_BD, y_BKD))
    return Negatives(rows_B, columns_B, *map(jax.lax.stop_gradient, maxima))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _negatives(block: int, mesh: Any, x_BD: jax.Array, y_BKD: jax.Array) -> tuple[jax.Array, ...]:
    number_B = _numbers(x_BD)
    nothing = (jnp.full(x_BD.shape[0], -jnp.inf, x_BD.dtype), jnp.zeros_like(x_BD[:, 0]))
    rows, columns = _all_pairs(
        _add_tile, ((x_BD, number_B), nothing), ((y_BKD, number_B), nothing), block, mesh
    )
    return _log_sum(*rows), _log_sum(*columns), rows[0], columns[0]


def _forward(block: int, mesh: Any, x_BD: jax.Array, y_BKD: jax.Array) -> tuple[Any, Any]:
    result = _negatives(block, mesh, x_BD, y_BKD)
    return result, (x_BD, y_BKD, *result[:2])


def _backward(block: int, mesh: Any, residuals: Any, pulls: Any) -> tuple[jax.Array, jax.Array]:
    x_BD, y_BKD, rows_B, columns_B = residuals
    number_B = _numbers(x_BD)
    return _all_pairs(
        _pull_tile,
        ((x_BD, number_B, rows_B, pulls[0]), jnp.zeros_like(x_BD)),
        ((y_BKD, number_B, columns_B, pulls[1]), jnp.zeros_like(y_BKD)),
        block,
        mesh,
    )


_negatives.defvjp(_forward, _backward)


@functools.partial(jax.jit, static_argnames=("function", "block"))
def sum_over_others(
    function: Callable[..., jax.Array],
    x_BD: jax.Array,
    y_BD: jax.Array,
    a_B: jax.Array,
    b_B: jax.Array,
    block: int = BLOCK,
) -> jax.Array:
    """Sums ``function(x_i . y_j, a_i, b_j)`` over all j other than i: (B,), at least float32.

    The counterpart of `negatives` for objectives that add up pairs one by one.

    Args:
        function: of three arrays that broadcast, elementwise; found again by its identity, so it
            should not be made anew for every call.
        x_BD, y_BD: two embeddings of every example.
        a_B, b_B: a number of every example.
        block: as for `negatives`.
    """
    mesh = jax.typeof(x_BD).sharding.mesh
    if not set(AXES) <= set(mesh.axis_names):
        mesh = None
    return _sums(function, block, mesh, *_widen(x_BD, y_BD, a_B, b_B))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _sums(function: Any, block: int, mesh: Any, x_BD: Any, y_BD: Any, a_B: Any, b_B: Any) -> Any:
    def add_tile(row: Any, sum_I: jax.Array, column: Any, nothing: Any) -> tuple[Any, Any]:
        (x_ID, a_I, number_I), (y_JD, b_J, number_J) = row, column
        terms_IJ = function(_dot("id,jd->ij", x_ID, y_JD), a_I[:, None], b_J)
        counted_IJ = _others(number_I, number_J)[..., 0]
        return sum_I + jnp.where(counted_IJ, terms_IJ, 0).sum(1), nothing

    number_B = _numbers(x_BD)
    rows = (x_BD, a_B, number_B), jnp.zeros_like(a_B)
    return _all_pairs(add_tile, rows, ((y_BD, b_B, number_B), ()), block, mesh)[0]


def _sums_forward(function: Any, block: int, mesh: Any, *arrays: Any) -> tuple[Any, Any]:
    return _sums(function, block, mesh, *arrays), arrays


def _sums_backward(function: Any, block: int, mesh: Any, arrays: Any, pull_B: Any) -> Any:
    def pull_tile(row: Any, of_rows: Any, column: Any, of_columns: Any) -> tuple[Any, Any]:
        (x_ID, a_I, number_I, pull_I), (y_JD, b_J, number_J) = row, column
        (dx_ID, da_I), (dy_JD, db_J) = of_rows, of_columns
        scores_IJ = _dot("id,jd->ij", x_ID, y_JD)
        _, derivatives = jax.vjp(function, scores_IJ, a_I[:, None], b_J[None])
        counted_IJ = _others(number_I, number_J)[..., 0]
        pulls_IJ = jnp.where(counted_IJ, pull_I[:, None], 0)
        dscores_IJ, da_I1, db_1J = derivatives(pulls_IJ)
        dx_ID += _dot("ij,jd->id", dscores_IJ, y_JD)
        dy_JD += _dot("ij,id->jd", dscores_IJ, x_ID)
        return (dx_ID, da_I + da_I1[:, 0]), (dy_JD, db_J + db_1J[0])

    x_BD, y_BD, a_B, b_B = arrays
    number_B = _numbers(x_BD)
    zeros = jax.tree.map(jnp.zeros_like, ((x_BD, a_B), (y_BD, b_B)))
    rows, columns = (x_BD, a_B, number_B, pull_B), (y_BD, b_B, number_B)
    (dx, da), (dy, db) = _all_pairs(pull_tile, (rows, zeros[0]), (columns, zeros[1]), block, mesh)
    return dx, dy, da, db


_sums.defvjp(_sums_forward, _sums_backward)


def _add_tile(row: Any, row_state: Any, column: Any, column_state: Any) -> tuple[Any, Any]:
    """Adds a tile of scores to the maxima and sums of its rows and columns."""
    (x_ID, number_I), (y_JKD, number_J) = row, column
    scores_IJK = _dot("id,jkd->ijk", x_ID, y_JKD)
    scores_IJK = jnp.where(_others(number_I, number_J), scores_IJK, -jnp.inf)
    return _add(row_state, scores_IJK, (1, 2)), _add(column_state, scores_IJK, (0, 2))


def _add(state: Any, scores_IJK: jax.Array, axes: tuple[int, int]) -> tuple[jax.Array, jax.Array]:
    """Brings maxima, and sums of exponentials relative to them, up to date."""
    old_max, old_sum = state
    new_max = jnp.maximum(old_max, scores_IJK.max(axes))
    zero = _finite(new_max)
    terms_IJK = jnp.exp(scores_IJK - jnp.expand_dims(zero, axes))
    return new_max, old_sum * jnp.exp(old_max - zero) + terms_IJK.sum(axes)


def _log_sum(max_B: jax.Array, sum_B: jax.Array) -> jax.Array:
    return _finite(max_B) + jnp.log(sum_B)


def _finite(max_B: jax.Array) -> jax.Array:
    """What exponents are relative to: infinity minus infinity would not be a number."""
    return jnp.where(jnp.isfinite(max_B), max_B, 0)


def _pull_tile(row: Any, dx_ID: jax.Array, column: Any, dy_JKD: jax.Array) -> tuple[Any, Any]:
    """Adds to the gradients of rows and columns what one tile of scores gives."""
    (x_ID, number_I, rows_I, pull_I), (y_JKD, number_J, columns_J, pull_J) = row, column
    scores_IJK = _dot("id,jkd->ijk", x_ID, y_JKD)
    of_rows_IJK = pull_I[:, None, None] * jnp.exp(scores_IJK - rows_I[:, None, None])
    of_columns_IJK = pull_J[:, None] * jnp.exp(scores_IJK - columns_J[:, None])
    # Selected last: what is left out may be anything, even not a number.
    pull_IJK = jnp.where(_others(number_I, number_J), of_rows_IJK + of_columns_IJK, 0)
    dx_ID += _dot("ijk,jkd->id", pull_IJK, y_JKD)
    return dx_ID, dy_JKD + _dot("ijk,id->jkd", pull_IJK, x_ID)


def _numbers(x_BD: jax.Array) -> jax.Array:
    """Numbers of the examples, from 1; padding has the number 0."""
    return 1 + jnp.arange(x_BD.shape[0])


def _others(number_I: jax.Array, number_J: jax.Array) -> jax.Array:
    """Which scores of a tile are of two different examples, (I, J, 1)."""
    number_I1, number_1J = number_I[:, None], number_J[None]
    return ((number_I1 != number_1J) & (number_I1 > 0) & (number_1J > 0))[..., None]


def _all_pairs(tile: _Tile, rows: _Side, columns: _Side, block: int, mesh: Any) -> tuple[Any, Any]:
    """Shows every block of rows every block of columns; returns what rows and columns accumulated.

    Args:
        tile: takes what stays and what is accumulated of a block of rows, then of columns; returns
            both accumulated anew.
        rows, columns: trees of arrays whose first axis is the batch.
        block: the largest size of a block.
        mesh: what the batch is split over, or None.
    """

    def local(rows: _Side, columns: _Side) -> tuple[Any, Any]:
        size = jax.tree.leaves(rows)[0].shape[0]
        (row, row_state), (column, column_state) = _cut((rows, columns), -(-size // block))

        def meet(carry: Any, _: None) -> tuple[Any, None]:
            row_state, column, column_state = carry
            # They leave before anything is computed, so that they can travel meanwhile.
            arriving = _shift(column, mesh)
            row_state, column_state = _tiles(tile, (row, row_state), (column, column_state))
            return (row_state, arriving, _shift(column_state, mesh)), None

        # One meeting per device; after the last one, columns are back home.
        (row_state, _, column_state), _ = jax.lax.scan(
            meet, (row_state, column, column_state), length=_devices(mesh)
        )
        return _join((row_state, column_state), size)

    if mesh is None:
        return local(rows, columns)
    split = PartitionSpec(AXES)
    return jax.shard_map(local, mesh=mesh, in_specs=split, out_specs=split)(rows, columns)


def _devices(mesh: Any) -> int:
    return 1 if mesh is None else mesh.shape[AXES[0]] * mesh.shape[AXES[1]]


def _shift(tree: Any, mesh: Any) -> Any:
    """Hands arrays to the device before, and takes those of the device after."""
    devices = _devices(mesh)
    if devices == 1:
        return tree
    ring = [(device, (device - 1) % devices) for device in range(devices)]
    return jax.tree.map(lambda x: jax.lax.ppermute(x, AXES, ring), tree)


def _tiles(tile: _Tile, rows: _Side, columns: _Side) -> tuple[Any, Any]:
    """`_all_pairs` of arrays cut into blocks, (blocks, block, ...), on one device."""
    row, row_state = rows

    def meet_all(row_state: Any, column_side: _Side) -> tuple[Any, Any]:
        column, column_state = column_side

        def meet(column_state: Any, row_side: _Side) -> tuple[Any, Any]:
            row_state, column_state = tile(*row_side, column, column_state)
            return column_state, row_state

        column_state, row_state = jax.lax.scan(meet, column_state, (row, row_state))
        return row_state, column_state

    return jax.lax.scan(meet_all, row_state, columns)


def _cut(tree: Any, blocks: int) -> Any:
    """Cuts the first axis of every leaf into blocks of one size, with zeros at the end."""

    def cut(x: jax.Array) -> jax.Array:
        block = -(-x.shape[0] // blocks)
        padding = [(0, blocks * block - x.shape[0])] + [(0, 0)] * (x.ndim - 1)
        return jnp.pad(x, padding).reshape(blocks, block, *x.shape[1:])

    return jax.tree.map(cut, tree)


def _join(tree: Any, size: int) -> Any:
    """The inverse of `_cut`."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:size], tree)


def _widen(*arrays: jax.Array) -> list[jax.Array]:
    """Gives all arrays one type, at least float32."""
    dtype = jnp.promote_types(jnp.result_type(*arrays), jnp.float32)
    return [x.astype(dtype) for x in arrays]


def _dot(subscripts: str, *arrays: jax.Array) -> jax.Array:
    # Scores are exponents: at the default precision of TPUs and recent GPUs, those of a few tens
    # would be off by a percent of their exponentials and more.
    return jnp.einsum(subscripts, *arrays, precision=jax.lax.Precision.HIGHEST)
