"""The forms of convolution against the plain ones."""

from __future__ import annotations

import functools

import golden_rules
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common import flops, target
from common.backbones import convolution_3d
from common.backbones.convolution_3d import convolve, convolve_apart, same_padding, whole

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
@pytest.mark.parametrize("form", ["folded", "joint"])
@pytest.mark.parametrize("name", ["plain_stem", "i3d_stem", "full", "space", "point_at_stride"])
def test_a_convolution_apart_has_even_and_odd_pixels_of_the_whole_one(name, form):
    size, stride, padding = _KERNELS[name]
    sizes = (5, 4 * stride[1], 6 * stride[2])
    padding = padding or same_padding(sizes, size, stride)
    with golden_rules.x64():
        x = jax.random.normal(jax.random.key(0), (2, *sizes, 3), jnp.float64)
        kernel = jax.random.normal(jax.random.key(1), (*size, 3, 4), jnp.float64)
        given = (stride, padding, form)
        y, *phases = jax.jit(lambda *of: (convolve(*of, *given), *convolve_apart(*of, *given)))(
            x, kernel
        )
        np.testing.assert_allclose(phases[0], y[:, :, ::2, ::2], rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(whole(tuple(phases)), y, rtol=1e-10, atol=1e-10)
