"""The forms of convolution and pooling against the plain ones, and against the published pools."""

from __future__ import annotations

import functools
import math

import golden_rules
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from common import flops, target
from common.backbones import convolution_3d
from common.backbones.convolution_3d import convolve, max_pool, same_padding

PACK = golden_rules.Pack("mil_nce")

_KERNELS = {
    "plain_stem": ((3, 7, 7), (2, 2, 2), ((1, 1), (3, 3), (3, 3))),
    "space_to_depth_stem": ((2, 4, 4), (1, 1, 1), ((0, 1), (1, 2), (1, 2))),
    "i3d_stem": ((7, 7, 7), (2, 2, 2), None),
    "full": ((3, 3, 3), (1, 1, 1), None),
    "space": ((1, 3, 3), (1, 1, 1), None),
    "time": ((3, 1, 1), (1, 1, 1), None),
    "point": ((1, 1, 1), (1, 1, 1), None),
    "point_at_stride": ((1, 1, 1), (1, 2, 2), None),
    "time_at_stride": ((3, 1, 1), (2, 1, 1), None),
}


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(5, 7, 6), (1, 8, 9)], ids=str)
@pytest.mark.parametrize("name", _KERNELS)
def test_the_forms_of_a_convolution_agree_in_value_and_gradients(name, sizes):
    size, stride, padding = _KERNELS[name]
    padding = padding or same_padding(sizes, size, stride)
    with golden_rules.x64():
        x = jax.random.normal(jax.random.key(0), (2, *sizes, 3), jnp.float64)
        kernel = jax.random.normal(jax.random.key(1), (*size, 3, 4), jnp.float64)

        @functools.partial(jax.jit, static_argnums=2)
        def results(x, kernel, form):
            y, backward = jax.vjp(lambda *args: convolve(*args, stride, padding, form), x, kernel)
            return y, *backward(jnp.cos(y))

        both = (results(x, kernel, form) for form in ("folded", "joint"))
        for folded, joint in zip(*both, strict=True):
            np.testing.assert_allclose(folded, joint, rtol=1e-10, atol=1e-10)


def test_forms_are_chosen_for_the_machine_that_a_program_is_made_for():
    chosen = {}
    for platform in ("cpu", "gpu", "tpu", target.NONE):
        with target.described(platform):
            chosen[platform] = convolution_3d.quickest_form(3), convolution_3d.quickest_form(64)
    folded, joint = ("folded",) * 2, ("joint",) * 2
    wanted = {"cpu": folded, "gpu": folded, "tpu": ("folded", "joint"), target.NONE: joint}
    assert chosen == wanted


def test_a_folded_convolution_over_time_does_no_more_products_than_a_joint_one():
    x, kernel = jnp.ones((2, 5, 4, 4, 3)), jnp.ones((3, 1, 1, 3, 4))

    def counted(form):
        padding = same_padding(x.shape[1:4], kernel.shape[:3], (1, 1, 1))
        loss = lambda *args: convolve(*args, (1, 1, 1), padding, form).sum()  # noqa: E731
        return flops.count(jax.make_jaxpr(jax.grad(loss, (0, 1)))(x, kernel))

    # Its kernel's gradient multiplies with the zeros around clips.
    assert counted("folded") <= counted("joint") * 15 / 13


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain_stem", "space", "time", "point_at_stride"])
def test_a_kernels_gradient_added_up_by_frame_is_that_of_all_frames_at_once(name, monkeypatch):
    size, stride, padding = _KERNELS[name]
    sizes = (5, 7, 6)
    padding = padding or same_padding(sizes, size, stride)
    with golden_rules.x64():
        x = jax.random.normal(jax.random.key(0), (2, *sizes, 3), jnp.float64)
        kernel = jax.random.normal(jax.random.key(1), (*size, 3, 4), jnp.float64)
        found = []
        for large in (1, 10**9):
            monkeypatch.setattr(convolution_3d, "_LARGE", large)

            def loss(kernel):
                y = jax.checkpoint(lambda k: convolve(x, k, stride, padding, "folded"))(kernel)
                return jnp.sin(y).sum()

            jaxpr = str(jax.make_jaxpr(jax.grad(loss))(kernel))
            assert ("scan" in jaxpr or "while" in jaxpr) == (large == 1)
            found.append(jax.jit(jax.grad(loss))(kernel))
        np.testing.assert_allclose(*found, rtol=1e-10, atol=1e-10)


def test_gradients_in_bfloat16_are_near_those_in_float32():
    size, stride, padding = _KERNELS["space"]
    padding = same_padding((4, 8, 8), size, stride)

    def gradients(dtype):
        x = jax.random.normal(jax.random.key(0), (2, 4, 8, 8, 3)).astype(dtype)
        kernel = jax.random.normal(jax.random.key(1), (*size, 3, 4)).astype(dtype)
        loss = lambda *args: convolve(*args, stride, padding, "folded").astype("float32").sum()  # noqa: E731
        return jax.jit(jax.grad(loss, (0, 1)))(x, kernel)

    for narrow, wide in zip(gradients(jnp.bfloat16), gradients(jnp.float32), strict=True):
        assert narrow.dtype == jnp.bfloat16
        assert golden_rules.error_of_max(narrow.astype("float32"), wide) < 0.02


@settings(max_examples=50, deadline=None)
@given(n=st.integers(1, 40), size=st.integers(1, 7), stride=st.integers(1, 3))
def test_same_padding_is_xlas(n, size, stride):
    wanted = jax.lax.padtype_to_pads((n,), (size,), (stride,), "SAME")
    assert list(same_padding((n,), (size,), (stride,))) == wanted


@pytest.mark.slow
@pytest.mark.parametrize("case", [f"pool_{number}" for number in range(5)])
def test_torch_pools_are_the_published_ones(case):
    options = PACK.case(case)["options"]
    x = jnp.asarray(PACK.inputs(case)["x"])
    pooled = max_pool(x, options["kernel"], options["stride"], "torch")
    np.testing.assert_array_equal(pooled, PACK.stored(case)["out"])


_POOLS = [((1, 3, 3), (1, 2, 2)), ((3, 3, 3), (2, 2, 2)), ((2, 2, 2), (2, 2, 2))]


@pytest.mark.slow
@pytest.mark.parametrize("size", [(3, 3, 3), (5, 6, 9), (1, 1, 2)], ids=str)
@pytest.mark.parametrize(("window", "stride"), [*_POOLS, ((3, 3, 3), (1, 1, 1))], ids=str)
def test_same_pools_and_their_gradients_are_those_of_the_window_reduction(window, stride, size):
    x = jax.random.normal(jax.random.key(0), (2, *size, 3))

    def value_and_gradient(pool):
        y, backward = jax.vjp(pool, x)
        return y, *backward(jnp.cos(y))

    both = (
        jax.jit(value_and_gradient, static_argnums=0)(pool)
        for pool in (
            lambda x: max_pool(x, window, stride),
            lambda x: nnx.max_pool(x, window, strides=stride, padding="SAME"),
        )
    )
    for ours, wanted in zip(*both, strict=True):
        np.testing.assert_allclose(ours, wanted, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("window", "stride"), _POOLS, ids=str)
def test_both_poolings_agree_at_even_sizes(window, stride):
    x = jax.random.normal(jax.random.key(0), (1, 4, 14, 6, 2))
    both = [max_pool(x, window, stride, pooling) for pooling in ("same", "torch")]
    np.testing.assert_array_equal(*both)


@pytest.mark.parametrize("pooling", ["same", "torch"])
@pytest.mark.parametrize(("window", "stride"), _POOLS, ids=str)
def test_of_equal_values_in_a_window_one_gets_the_gradient(window, stride, pooling):
    @jax.jit
    def gradient(x):
        return jax.grad(lambda x: max_pool(x, window, stride, pooling).sum())(x)

    for seed in range(10):
        x = np.random.default_rng(seed).integers(0, 3, (1, 5, 6, 7, 2)).astype(np.float32)
        dx = np.asarray(gradient(x))
        windows = math.prod(math.ceil(n / s) for n, s in zip((5, 6, 7), stride, strict=True))
        assert dx.sum() == 2 * windows
        assert np.array_equal(dx, np.round(dx)) and dx.min() >= 0
