"""Maxima over windows against XLA's reduction, and against the published pools."""

from __future__ import annotations

import math

import golden_rules
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from common.backbones.convolution_3d import whole
from common.backbones.pooling import max_pool, max_pool_of_phases

PACK = golden_rules.Pack("mil_nce")


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


def _of_phases(x):
    return max_pool_of_phases(
        *(x[..., row::2, column::2, :] for row in (0, 1) for column in (0, 1))
    )


@pytest.mark.slow
@pytest.mark.parametrize("size", [(4, 6), (2, 2), (8, 4)], ids=str)
def test_the_pooling_of_phases_is_that_of_the_whole(size):
    x = jax.random.normal(jax.random.key(0), (2, 3, *size, 5))

    @jax.jit
    def both(x):
        results = []
        for pool in (_of_phases, lambda x: max_pool(x, (1, 3, 3), (1, 2, 2))):
            y, backward = jax.vjp(pool, x)
            results.append((y, *backward(jnp.cos(y))))
        return results

    for apart, wanted in zip(*both(x), strict=True):
        np.testing.assert_allclose(apart, wanted, rtol=1e-6)


def test_of_equal_pixels_the_pooling_of_phases_gives_the_gradient_to_one():
    phases = (jnp.ones((1, 4, 4, 2)),) * 4
    gradients = jax.grad(lambda phases: max_pool_of_phases(*phases).sum())(phases)
    assert sorted(set(np.unique(whole(gradients)))) == [0, 1]
    assert whole(gradients).sum() == 4 * 4 * 2
