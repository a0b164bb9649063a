"""BraVe's objective against published numbers, and what must hold of it."""

from __future__ import annotations

import golden_rules
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brave.loss import agreement, brave_loss, correlation, regression_loss

PACK = golden_rules.Pack("brave")


def _pair(case):
    inputs = PACK.inputs(case)
    x, y = inputs["x"].astype(np.float64), inputs["y"].astype(np.float64)
    if case.endswith("n4"):  # norms below the floor
        x[1], y[2] = 0.0, y[2] * 1e-7
    return x, y


@pytest.mark.parametrize("case", ["regression_loss_n1", "regression_loss_n4"])
def test_the_regression_loss_and_its_gradients_are_the_published_ones(case):
    stored = PACK.stored(case)
    tolerance = PACK.case(case)["tolerance"]["float64"]["rtol_of_max"]
    with golden_rules.x64():
        x, y = map(jnp.asarray, _pair(case))
        loss, (dx, dy) = jax.value_and_grad(regression_loss, argnums=(0, 1))(x, y)
    assert golden_rules.error_of_max(loss, stored["loss"]) < tolerance
    assert golden_rules.error_of_max(dx, stored["dx"]) < tolerance
    assert golden_rules.error_of_max(dy, stored["dy"]) < tolerance


def _embeddings(views, seed=0, batch=4, dim=8, dtype=jnp.float32):
    generator = np.random.default_rng(seed)
    names = [
        f"{kind}_{middle}{view}" for view in views for kind in "zh" for middle in ("", "narrow_")
    ]
    return {n: jnp.asarray(generator.standard_normal((batch, dim)), dtype) for n in names}


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000), views=st.integers(1, 3))
def test_the_loss_is_the_mean_of_one_minus_cosine_in_both_directions(seed, views):
    names = [f"view_{i}" for i in range(views)]
    embeddings = _embeddings(names, seed)
    loss, metrics = brave_loss(embeddings, names)

    def distance(x, y):
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        return (1 - (x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)).mean()

    wanted = {}
    for name in names:
        wanted[f"loss_b_to_n_{name}"] = distance(
            embeddings[f"h_{name}"], embeddings[f"z_narrow_{name}"]
        )
        wanted[f"loss_n_to_b_{name}"] = distance(
            embeddings[f"h_narrow_{name}"], embeddings[f"z_{name}"]
        )
    wanted["loss"] = np.mean(list(wanted.values()))
    agreements = {name.replace("loss", "agreement") for name in wanted} - {"agreement"}
    assert metrics.keys() == wanted.keys() | agreements
    for name, value in wanted.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5)
    assert loss == metrics["loss"]


def test_no_gradient_reaches_the_targets():
    embeddings = _embeddings(["audio"])
    gradients = jax.grad(lambda e: brave_loss(e, ["audio"])[0])(embeddings)
    assert not np.any(gradients["z_audio"]) and not np.any(gradients["z_narrow_audio"])
    assert np.any(gradients["h_audio"]) and np.any(gradients["h_narrow_audio"])


def test_embeddings_in_bfloat16_are_compared_in_float32():
    embeddings = _embeddings(["audio"], dtype=jnp.bfloat16)
    loss, metrics = brave_loss(embeddings, ["audio"])
    widened = {name: x.astype(jnp.float32) for name, x in embeddings.items()}
    assert loss.dtype == jnp.float32
    assert {value.dtype.name for value in metrics.values()} == {"float32"}
    np.testing.assert_array_equal(loss, brave_loss(widened, ["audio"])[0])


def test_embeddings_of_zeros_have_a_finite_loss_and_gradient():
    embeddings = jax.tree.map(jnp.zeros_like, _embeddings(["audio"]))
    loss, gradients = jax.value_and_grad(lambda e: brave_loss(e, ["audio"])[0])(embeddings)
    assert np.isfinite(loss)
    assert all(np.isfinite(g).all() for g in gradients.values())


def test_agreement_tells_learning_from_a_falling_loss():
    rng = np.random.default_rng(0)
    own_BD, other_BD = rng.standard_normal((2, 512, 16))
    np.testing.assert_allclose(agreement(own_BD, own_BD), 1.0, rtol=1e-5)
    assert abs(agreement(own_BD, other_BD)) < 0.1
    # All nearly the same direction: the loss is near its best, and nothing was learnt.
    alike_BD, unlike_BD = own_BD + 20, other_BD + 20
    assert regression_loss(alike_BD, unlike_BD) < 0.01
    assert abs(agreement(alike_BD, unlike_BD)) < 0.1
    assert agreement(np.zeros((4, 8)), np.ones((4, 8))) == 0.0


@pytest.mark.slow
def test_correlation_counts_how_often_dimensions_repeat_each_other():
    signs = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]], np.float32)  # independent
    np.testing.assert_allclose(correlation(jnp.array(signs)), 0, atol=1e-6)
    alike = jnp.array(signs[:, :1] * [[1.0, -2.0, 3.0, 10.0]]) + 5.0
    np.testing.assert_allclose(correlation(alike), 3, rtol=1e-3)  # each repeats three others
    generator = np.random.default_rng(0)
    z = generator.standard_normal((50, 6)) @ generator.standard_normal((6, 6))
    wanted = (np.corrcoef(z.T) ** 2).sum() / 6 - 1
    np.testing.assert_allclose(correlation(jnp.array(z, jnp.float32)), wanted, rtol=1e-3)


@pytest.mark.slow
def test_decorrelation_is_added_with_its_weight_and_reaches_both_projections():
    embeddings = _embeddings(["audio"], batch=16)
    plain, metrics = brave_loss(embeddings, ["audio"])
    assert "correlation" not in metrics
    run = jax.value_and_grad(lambda e: brave_loss(e, ["audio"], 0.5), has_aux=True)
    (loss, metrics), gradients = run(embeddings)
    both = (correlation(embeddings["z_audio"]) + correlation(embeddings["z_narrow_audio"])) / 2
    np.testing.assert_allclose(metrics["correlation"], both, rtol=1e-6)
    np.testing.assert_allclose(loss, plain + 0.5 * both, rtol=1e-6)
    for name in ("z_audio", "z_narrow_audio"):
        assert np.abs(gradients[name]).max() > 1e-4
