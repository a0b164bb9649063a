"""How many floating-point operations a program asks for, counted in what JAX was told to compute.

XLA counts as well, but for the compiled program: there convolutions and matrix products may have
become calls of a library, as on NVIDIA GPUs, which it counts as nothing, and bodies of loops count
once. Here only products count, of matrices and of convolutions; beside them all else is little.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np


def count(jaxpr: Any) -> float:
    """Returns the FLOPs of all products in a jaxpr, a multiplication and an addition being two.

    Of branches the dearest counts. Bodies of loops count as often as they run; of loops that do not
    say how often, once. What rematerialisation computes twice counts twice.

    Args:
        jaxpr: ``jax.make_jaxpr(f)(...)`` or ``jax.jit(f).trace(...).jaxpr``.
    """
    return _sum(jaxpr, _flops)


def count_bytes(jaxpr: Any) -> float:
    """Returns the bytes that the products of a jaxpr read and write, one after the other.

    It is what must move where everything else is done on the way; loops and branches count as in
    `count`.
    """
    return _sum(jaxpr, _bytes)


def _sum(jaxpr: Any, of_product: Callable[[Any], float]) -> float:
    equations = getattr(jaxpr, "jaxpr", jaxpr).eqns
    return float(sum(_of_equation(equation, of_product) for equation in equations))


def _flops(product: Any) -> float:
    if product.primitive.name == "conv_general_dilated":
        return _of_convolution(product)
    (axes, _), _ = product.params["dimension_numbers"]
    contracted = math.prod(product.invars[0].aval.shape[axis] for axis in axes)
    return 2.0 * math.prod(product.outvars[0].aval.shape) * contracted


def _bytes(product: Any) -> float:
    arrays = [variable.aval for variable in (*product.invars, *product.outvars)]
    return float(sum(array.size * array.dtype.itemsize for array in arrays))


def _of_equation(equation: Any, of_product: Callable[[Any], float]) -> float:
    params, name = equation.params, equation.primitive.name
    if name in ("dot_general", "conv_general_dilated"):
        return of_product(equation)
    inner = [_sum(jaxpr, of_product) for jaxpr in _inner(params.values())]
    if name == "cond":
        return max(inner, default=0.0)
    times = params["length"] if name == "scan" else 1
    if name == "shard_map":  # its body is what one device does
        times = params["mesh"].size
    return times * sum(inner)


def _inner(values: Any) -> Iterator[Any]:
    """Yields the jaxprs among the parameters of an equation."""
    for value in values:
        if hasattr(value, "eqns") or hasattr(value, "jaxpr"):
            yield value
        elif isinstance(value, tuple | list):
            yield from _inner(value)


def _of_convolution(equation: Any) -> float:
    """Counts what meets a value of the input, and not what meets padding or what dilation adds."""
    params, (x, kernel) = equation.params, (operand.aval for operand in equation.invars)
    places, shape = params["dimension_numbers"], equation.outvars[0].aval.shape
    pairs = [
        _meetings(x.shape[i], kernel.shape[k], shape[o], stride, padding[0], dilation, between)
        for i, k, o, stride, padding, dilation, between in zip(
            places.lhs_spec[2:],
            places.rhs_spec[2:],
            places.out_spec[2:],
            params["window_strides"],
            params["padding"],
            params["rhs_dilation"],
            params["lhs_dilation"],
            strict=True,
        )
    ]
    batch, channels = (shape[axis] for axis in places.out_spec[:2])
    # Batch groups cut the input's batch: each output channel sees only its part.
    return 2.0 * batch * channels * kernel.shape[places.rhs_spec[1]] * math.prod(pairs)


def _meetings(
    size: int, taps: int, windows: int, stride: int, before: int, dilation: int, between: int
) -> int:
    """Counts the pairs of a window and a tap of it that lie on a value of the input."""
    at_WK = np.add.outer(np.arange(windows) * stride - before, np.arange(taps) * dilation)
    inside_WK = (at_WK >= 0) & (at_WK <= (size - 1) * between) & (at_WK % between == 0)
    return int(inside_WK.sum())
