"""Maxima over windows of videos, in the forms that run fast."""

from __future__ import annotations

import functools
import itertools
import math

import jax
import jax.numpy as jnp

from common import target
from common.backbones.convolution_3d import Phases, Triple, clips_in_rows, same_padding


def max_pool(x_BTHWC: jax.Array, size: Triple, stride: Triple, pooling: str = "same") -> jax.Array:
    """Takes the maximum over windows: (B, ceil(T / stride), ceil(H / stride), ...).

    One axis after the other, by comparing strided slices: the gradient of XLA's window reduction
    takes several times as long on a CPU. Of equal values one gets the gradient.

    Args:
        x_BTHWC: any values. The published network pads with zeros, this one with minus infinity;
            the same for what follows a ReLU.
        size: of the windows.
        stride: between them.
        pooling: "same" begins where TensorFlow does; "torch" as the published PyTorch code, which
            pads (size - stride) // 2 before and so begins later where size 3 at stride 2 meets an
            odd number.
    """
    for axis, (k, s) in enumerate(zip(size, stride, strict=True), start=1):
        if k == s == 1:
            continue
        missing = sum(same_padding((x_BTHWC.shape[axis],), (k,), (s,))[0])
        before = missing // 2 if pooling == "same" else (k - s) // 2
        x_BTHWC = _max_along(x_BTHWC, axis, k, s, (before, missing - before))
    return x_BTHWC


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def _max_along(x: jax.Array, axis: int, size: int, stride: int, padding: tuple[int, int]):
    return _max_and_place(x, axis, size, stride, padding)[0]


def _max_and_place(x, axis, size, stride, padding):
    """Returns each window's maximum, and the place in the window where it lies, as int8."""
    padded = _pad_axis(x, axis, padding, -jnp.inf)
    last = (padded.shape[axis] - size) // stride * stride
    taps = [jax.lax.slice_in_dim(padded, tap, tap + last + 1, stride, axis) for tap in range(size)]
    return largest(*taps)


def largest(*values: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the largest at each place, and as int8 its number; of equal ones the first's."""
    maximum, number = values[0], jnp.zeros(values[0].shape, jnp.int8)
    for another, value in enumerate(values[1:], start=1):
        number = jnp.where(maximum >= value, number, jnp.int8(another))
        maximum = jnp.where(maximum >= value, maximum, value)
    return maximum, number


def _keep_place(x, axis, size, stride, padding):
    maximum, place = _max_and_place(x, axis, size, stride, padding)
    return maximum, (place, x.shape[axis])


def _max_gradient(axis, size, stride, padding, kept, dy):
    """Gathers for every value of x what the windows that took it have got.

    The values at 0, stride, 2 stride, ... meet the same places of their windows, and so do those
    one further on, and so on; in the end they are laid side by side.
    """
    place, n = kept
    reach = (size - 1) // stride  # windows before its own that a value lies in
    count = math.ceil(n / stride)
    furthest = (padding[0] + stride - 1) // stride  # own window of the first values, at most
    after = max(count + furthest - dy.shape[axis], 0)
    dy = _pad_axis(dy, axis, (reach, after), 0)
    place = _pad_axis(place, axis, (reach, after), -1)
    if target.platform() != "tpu":
        # Else XLA computes both anew, zeros and all, for each of the slices.
        dy, place = jax.lax.optimization_barrier((dy, place))
    offsets = []
    for position in range(stride):
        first, offset = divmod(position + padding[0], stride)
        got = 0
        for tap in range(offset, size, stride):
            begin = reach + first - tap // stride
            where, what = (
                jax.lax.slice_in_dim(a, begin, begin + count, 1, axis) for a in (place, dy)
            )
            got = got + jnp.where(where == tap, what, 0)
        offsets.append(got)
    if stride == 1:
        return (offsets[0],)
    # Left to itself the compiler has them lie otherwise, and copies what it lays together.
    together = clips_in_rows(jnp.stack(list(map(clips_in_rows, offsets)), axis + 1))
    dx = together.reshape(*dy.shape[:axis], count * stride, *dy.shape[axis + 1 :])
    return (jax.lax.slice_in_dim(dx, 0, n, 1, axis),)


_max_along.defvjp(_keep_place, _max_gradient)


def _pad_axis(x: jax.Array, axis: int, padding: tuple[int, int], value: float) -> jax.Array:
    paddings = [(0, 0)] * x.ndim
    paddings[axis] = padding
    return jnp.pad(x, paddings, constant_values=value)


@jax.custom_vjp
def max_pool_of_phases(
    even_even: jax.Array, even_odd: jax.Array, odd_even: jax.Array, odd_odd: jax.Array
) -> jax.Array:
    """Takes the maximum of 3x3 pixels at stride 2 of phases (..., H, W, C): (..., H, W, C).

    Windows begin at the even rows and columns; beyond the last ones lies minus infinity. Of equal
    values one gets the gradient. That gathers, as that of `max_pool`; the compiler for TPUs does
    not even estimate what the scattering one of XLA's window reduction takes.
    """
    return _max_and_row_and_column(even_even, even_odd, odd_even, odd_odd)[0]


_DOWN, _RIGHT = -3, -2  # axes


def _max_and_row_and_column(even_even, even_odd, odd_even, odd_odd):
    """Returns the maxima and where in their window of 3x3 they lie, as int8."""
    left, row_left = largest(even_even, odd_even, _neighbour(even_even, _DOWN, 1, -jnp.inf))
    middle, row_middle = largest(even_odd, odd_odd, _neighbour(even_odd, _DOWN, 1, -jnp.inf))
    y, column = largest(left, middle, _neighbour(left, _RIGHT, 1, -jnp.inf))
    row_right = _neighbour(row_left, _RIGHT, 1, 0)
    row = jnp.where(column == 0, row_left, jnp.where(column == 1, row_middle, row_right))
    return y, 3 * row + column


def _neighbour(x: jax.Array, axis: int, distance: int, beyond: float) -> jax.Array:
    """Returns at each place what lies one place further on (1) or before it (-1), or here (0)."""
    if distance == 0:
        return x
    padded = _pad_axis(x, axis, (0, 1) if distance > 0 else (1, 0), beyond)
    start = max(distance, 0)
    return jax.lax.slice_in_dim(padded, start, start + x.shape[axis], 1, axis)


def _gradients_of_phases(place: jax.Array, dy: jax.Array) -> Phases:
    """Gathers for every pixel what the windows have got that took it.

    Even rows (or columns) are the first of their own window and the last of the one before; odd
    ones are the middle of their own.
    """
    place, dy = jax.lax.optimization_barrier((place, dy))  # else computed anew for each pixel
    windows_of = (((0, 0), (2, -1)), ((1, 0),))  # (place in the window, where that window lies)

    def got(rows, columns):
        parts = []
        for (row, down), (column, right) in itertools.product(rows, columns):
            at = _neighbour(_neighbour(place, _DOWN, down, -1), _RIGHT, right, -1)
            what = _neighbour(_neighbour(dy, _DOWN, down, 0), _RIGHT, right, 0)
            parts.append(jnp.where(at == 3 * row + column, what, 0))
        return sum(parts)

    return tuple(got(*of) for of in itertools.product(windows_of, repeat=2))


max_pool_of_phases.defvjp(_max_and_row_and_column, _gradients_of_phases)
