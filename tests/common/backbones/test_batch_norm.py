"""Running statistics, precision and modes of batch normalisation."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from common import state
from common.backbones.batch_norm import BatchNorm


def _batches(seed, count, shape=(6, 3), scale=2.0, shift=1.0):
    generator = np.random.default_rng(seed)
    return [
        (shift + scale * generator.standard_normal(shape)).astype(np.float32) for _ in range(count)
    ]


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), count=st.integers(1, 12))
def test_running_statistics_are_haikus_zero_debiased_averages(seed, count):
    norm = BatchNorm(3)
    hidden = np.zeros((2, 3))
    for step, batch in enumerate(_batches(seed, count), start=1):
        norm(jnp.asarray(batch))
        hidden = 0.9 * hidden + 0.1 * np.stack([batch.mean(0), batch.var(0)])
        average = hidden / (1 - 0.9**step)
        np.testing.assert_allclose(norm.mean[...], average[0], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(norm.var[...], average[1], rtol=1e-4, atol=1e-5)
        assert norm.count[...] == step


def test_one_batch_leaves_no_trace_of_the_initial_statistics():
    norm = BatchNorm(3)
    (batch,) = _batches(0, 1, shift=100.0)
    norm(jnp.asarray(batch))
    np.testing.assert_allclose(norm.mean[...], batch.mean(0), rtol=1e-6)


def test_training_normalises_with_the_batch_and_evaluation_with_the_running_statistics():
    norm = BatchNorm(3)
    first, second = _batches(1, 2, shape=(4, 2, 5, 3))
    norm.scale[...] = jnp.array([1.0, 2.0, 3.0])
    norm.offset[...] = jnp.array([0.0, -1.0, 1.0])
    trained = norm(jnp.asarray(first))
    flat = first.reshape(-1, 3)
    wanted = (first - flat.mean(0)) / np.sqrt(flat.var(0) + 1e-5) * [1, 2, 3] + [0, -1, 1]
    np.testing.assert_allclose(trained, wanted, rtol=1e-4, atol=1e-4)
    norm.eval()
    evaluated = norm(jnp.asarray(second))
    wanted = (second - flat.mean(0)) / np.sqrt(flat.var(0) + 1e-5) * [1, 2, 3] + [0, -1, 1]
    np.testing.assert_allclose(evaluated, wanted, rtol=1e-4, atol=1e-4)
    assert norm.count[...] == 1, "evaluation must not touch the statistics"
    norm.train()
    norm(jnp.asarray(second))
    assert norm.count[...] == 2


def test_a_fresh_norm_passes_its_input_in_evaluation_mode():
    norm = BatchNorm(3)
    norm.eval()
    (batch,) = _batches(2, 1)
    np.testing.assert_allclose(norm(jnp.asarray(batch)), batch, rtol=1e-4)


def test_statistics_of_bfloat16_inputs_are_float32():
    norm = BatchNorm(1, dtype=jnp.bfloat16)
    # 4096 values around 10: their sum needs more bits than bfloat16 has.
    values = 10 + np.random.default_rng(3).standard_normal((4096, 1))
    values = np.asarray(jnp.asarray(values, jnp.bfloat16), np.float64)
    result = norm(jnp.asarray(values, jnp.bfloat16))
    assert result.dtype == jnp.bfloat16
    assert norm.mean[...].dtype == jnp.float32
    np.testing.assert_allclose(norm.mean[...], values.mean(0), rtol=1e-5)
    np.testing.assert_allclose(norm.var[...], values.var(0), rtol=1e-3)


@pytest.mark.parametrize("value", [0.0, 1000.1, -3e4])
def test_a_constant_channel_stays_finite(value):
    result = BatchNorm(1)(jnp.full((64, 1), value, jnp.float32))
    assert np.isfinite(result).all()


def test_torch_statistics_are_moving_averages_of_unbiased_variances():
    norm = BatchNorm(3, statistics="torch")
    mean, var = np.zeros(3), np.ones(3)
    for batch in _batches(4, 3):
        norm(jnp.asarray(batch))
        mean = 0.9 * mean + 0.1 * batch.mean(0)
        var = 0.9 * var + 0.1 * batch.var(0, ddof=1)
    np.testing.assert_allclose(norm.mean[...], mean, rtol=1e-5)
    np.testing.assert_allclose(norm.var[...], var, rtol=1e-5)
    assert norm.count[...] == 3


def test_torch_statistics_of_a_single_value_stay_finite():
    norm = BatchNorm(1, statistics="torch")
    norm(jnp.full((1, 1), 5.0))
    np.testing.assert_allclose(norm.var[...], [0.9], rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=lambda dtype: dtype.__name__)
def test_gradients_are_those_jax_derives_from_the_definition(dtype):
    x = jnp.asarray(_batches(5, 1, shape=(4, 2, 5, 3), shift=3.0)[0], dtype)
    norm = BatchNorm(3)
    norm.scale[...] = jnp.array([1.0, -2.0, 0.5])
    graph, (params, rest) = nnx.graphdef(norm), state.split(norm)

    def ours(x, params):
        return state.merge(graph, params, rest)(x)

    def definition(x, params):
        x = x.astype(jnp.float32)
        x = (x - x.mean((0, 1, 2))) / jnp.sqrt(x.var((0, 1, 2)) + norm.eps)
        return (x * params["scale"] + params["offset"]).astype(dtype)

    both = []
    for function in (ours, definition):
        y, backward = jax.vjp(function, x, params)
        both.append(jax.tree.leaves((y, backward(jnp.sin(3 * x)))))
    tolerance = 1e-4 if dtype == jnp.float32 else 2e-2
    for found, wanted in zip(*both, strict=True):
        assert found.dtype == wanted.dtype
        found, wanted = (leaf.astype(jnp.float32) for leaf in (found, wanted))
        np.testing.assert_allclose(found, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.slow
def test_several_arrays_are_normalised_as_the_one_that_they_make_together():
    parts = [jnp.asarray(batch) for batch in _batches(6, 3, shape=(4, 2, 3))]

    def results(x, together):
        norm = BatchNorm(3)
        norm.scale[...] = jnp.array([1.0, -2.0, 0.5])
        graph, (params, rest) = nnx.graphdef(norm), state.split(norm)

        def loss(x, params):
            norm = state.merge(graph, params, rest)
            return jnp.sin(together(norm(x))).sum(), state.split(norm)[1]

        (value, rest), (dx, dparams) = jax.value_and_grad(loss, (0, 1), has_aux=True)(x, params)
        return jax.tree.leaves((value, rest, together(dx), dparams))

    one = results(jnp.concatenate(parts), lambda x: x)
    several = results(tuple(parts), jnp.concatenate)
    for found, wanted in zip(several, one, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
