"""FLOPs are counted in the program that was asked for, the same for every device."""

import functools

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_method import Toy, get_config

from common import flops
from common.program import build


def of(function, *shapes):
    return flops.count(jax.make_jaxpr(function)(*(jnp.zeros(shape) for shape in shapes)))


def by_xla(function, *shapes):
    """What XLA counts on a CPU, for programs of a single product."""
    lowered = jax.jit(function).lower(*(jnp.zeros(shape) for shape in shapes))
    return lowered.cost_analysis()["flops"]


def convolve(x, kernel, **options):
    names = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, dimension_numbers=names, **options)


def test_a_matrix_product_is_two_operations_per_number_and_column():
    assert of(jnp.matmul, (3, 5), (5, 7)) == 2 * 3 * 5 * 7
    assert of(lambda a, b: jnp.einsum("bik,bjk->bij", a, b), (2, 3, 5), (2, 7, 5)) == 2 * 210


@pytest.mark.slow
@settings(deadline=None, max_examples=25)
@given(
    st.integers(5, 9), st.integers(1, 4), st.integers(1, 3), st.integers(1, 2),
    st.sampled_from(["SAME", "VALID"]),
)  # fmt: skip
def test_convolutions_and_gradients_are_what_xla_counts(size, taps, stride, dilation, padding):
    if padding == "VALID" and (taps - 1) * dilation >= size:
        return
    forward = functools.partial(
        convolve, window_strides=(stride, 1), rhs_dilation=(dilation, 1), padding=padding
    )
    shapes = (2, size, 6, 3), (taps, 2, 3, 4)
    assert of(forward, *shapes) == by_xla(forward, *shapes)
    # They are dilated themselves: by the stride, and by each other.
    x, kernel = map(jnp.zeros, shapes)
    out = forward(x, kernel).shape

    def of_input(kernel, dy):
        return jax.linear_transpose(lambda x: forward(x, kernel), x)(dy)

    def of_kernel(x, dy):
        return jax.linear_transpose(lambda kernel: forward(x, kernel), kernel)(dy)

    for gradient, other in ((of_input, shapes[1]), (of_kernel, shapes[0])):
        assert of(gradient, other, out) == by_xla(gradient, other, out)


def test_groups_see_their_own_channels_alone():
    forward = functools.partial(
        convolve, window_strides=(1, 1), padding="SAME", feature_group_count=2
    )
    assert of(forward, (1, 4, 4, 6), (1, 1, 3, 8)) == 2 * 16 * 8 * 3


def test_bodies_of_loops_count_as_often_as_they_run_and_the_dearest_branch_counts():
    def looped(x):
        return jax.lax.scan(lambda carry, _: (carry @ x, None), x, length=6)[0]

    assert of(looped, (3, 3)) == 6 * 2 * 27
    assert of(lambda x: jax.lax.fori_loop(0, 4, lambda _, y: y @ x, x), (3, 3)) == 4 * 2 * 27

    def either(x):
        return jax.lax.cond(x[0, 0] > 0, lambda: x @ x @ x, lambda: x @ x)

    assert of(either, (3, 3)) == 2 * 2 * 27


def test_what_is_computed_again_counts_again():
    def loss(x, remat):
        square = lambda x: jnp.tanh(x @ x) @ x  # noqa: E731
        return (jax.checkpoint(square) if remat else square)(x).sum()

    once, twice = (of(jax.grad(functools.partial(loss, remat=r)), (4, 4)) for r in (False, True))
    assert twice > once > 0


def test_microbatches_ask_for_as_much_as_the_whole_batch():
    whole, parts = (build(Toy(), get_config(microbatches=m)).flops for m in (1, 4))
    assert whole == parts > 0
