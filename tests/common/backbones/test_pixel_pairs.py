"""Pairs of pixels are convolved and normalised as their pixels are."""

from __future__ import annotations

import golden_rules
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common import target
from common.backbones import convolution_3d, pixel_pairs
from common.backbones.batch_norm import BatchNorm


@pytest.mark.slow
@settings(max_examples=12, deadline=None)
@given(
    frames=st.integers(1, 3),
    height=st.integers(1, 7),
    half_width=st.integers(1, 4),
    size=st.sampled_from([(1, 1, 1), (3, 1, 1), (1, 3, 3), (3, 3, 3)]),
    stride=st.sampled_from([1, 2]),
)
def test_a_convolution_of_pairs_is_that_of_their_pixels(frames, height, half_width, size, stride):
    with golden_rules.x64():
        x_key, kernel_key, weight_key = jax.random.split(jax.random.key(0), 3)
        x = jax.random.normal(x_key, (2, frames, height, 2 * half_width, 3), jnp.float64)
        kernel = jax.random.normal(kernel_key, (*size, 3, 5), jnp.float64)

        def of_pixels(x, kernel):
            return convolution_3d.convolve_joint(x, kernel, (1, stride, stride), "SAME")

        def of_pairs(x, kernel):
            return pixel_pairs.apart(pixel_pairs.convolve(pixel_pairs.joined(x), kernel, stride), 5)

        weights = jax.random.normal(weight_key, of_pixels(x, kernel).shape, jnp.float64)
        results = [
            (convolve(x, kernel), jax.grad(lambda *a, f=convolve: (f(*a) * weights).sum(), (0, 1)))
            for convolve in (of_pixels, of_pairs)
        ]
        np.testing.assert_allclose(results[0][0], results[1][0], atol=1e-12)
        for pixels, pairs in zip(*(grad(x, kernel) for _, grad in results), strict=True):
            np.testing.assert_allclose(pairs, pixels, atol=1e-12)


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_of_pairs_is_that_of_their_pixels(training):
    with golden_rules.x64():
        x = 3 + jax.random.normal(jax.random.key(0), (2, 3, 4, 6, 5), jnp.float64)
        pixels, pairs = BatchNorm(5), BatchNorm(5)
        (pixels.train if training else pixels.eval)()
        (pairs.train if training else pairs.eval)()
        normal = pixel_pairs.apart(pairs(pixel_pairs.joined(x)), 5)
        np.testing.assert_allclose(normal, pixels(x), atol=1e-12)
        for statistic in ("mean", "var", "count"):
            np.testing.assert_allclose(
                getattr(pairs, statistic)[...], getattr(pixels, statistic)[...], rtol=1e-6
            )


@pytest.mark.parametrize(
    ("clips", "width", "channels", "fill"),
    [(8, 56, 64, True), (16, 2, 32, True), (8, 55, 64, False), (8, 56, 128, False), (4, 56, 64, 0)],
)
def test_pairs_are_made_where_one_pixel_leaves_half_of_the_lanes_empty(
    clips, width, channels, fill
):
    with target.described("tpu"), target.sharing(clips):
        assert pixel_pairs.fill(width, channels) == fill
    assert not pixel_pairs.fill(width, channels)  # this is no TPU
