"""BraVe's objective: each view predicts the projection of the other (arXiv:2103.16559, eq. 1-3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

MIN_NORM = 1e-5


def brave_loss(
    embeddings: Mapping[str, jax.Array], views: Sequence[str], decorrelation: float = 0.0
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Mean over all terms: broad predicts narrow and narrow predicts broad, for each broad view.

    The paper writes a sum; the published code takes the mean, so that another broad view does not
    raise the scale, and so do we. Targets are projections behind a stop-gradient.

    Args:
        embeddings: for each view v projections ``z_<v>``, ``z_narrow_<v>`` and predictions
            ``h_<v>``, ``h_narrow_<v>``, all (B, D).
        views: names of the broad views.
        decorrelation: weight of `correlation` of the projections, mean over views, in the loss. 0
            is BraVe as published.

    Returns:
        The loss, and metrics ``loss``, ``loss_b_to_n_<v>``, ``loss_n_to_b_<v>``: scalars of at
        least float32. Every term lies in [0, 2] and is about 1 for unrelated directions. With each
        goes an ``agreement_...``, see there: the loss also falls where all embeddings become alike.
        With a decorrelation also ``correlation``, before its weight.
    """
    terms, agreements, correlations = {}, {}, []
    for view in views:
        z_broad, z_narrow = embeddings[f"z_{view}"], embeddings[f"z_narrow_{view}"]
        h_broad, h_narrow = embeddings[f"h_{view}"], embeddings[f"h_narrow_{view}"]
        stop = jax.lax.stop_gradient
        terms[f"loss_b_to_n_{view}"] = regression_loss(h_broad, stop(z_narrow))
        terms[f"loss_n_to_b_{view}"] = regression_loss(h_narrow, stop(z_broad))
        agreements[f"agreement_b_to_n_{view}"] = agreement(h_broad, z_narrow)
        agreements[f"agreement_n_to_b_{view}"] = agreement(h_narrow, z_broad)
        correlations += [correlation(z_broad), correlation(z_narrow)] if decorrelation else []
    loss = sum(terms.values()) / len(terms)
    metrics = {**terms, **agreements}
    if correlations:
        metrics["correlation"] = sum(correlations) / len(correlations)
        loss += decorrelation * metrics["correlation"]
    return loss, {"loss": loss, **metrics}


def correlation(z_BD: jax.Array) -> jax.Array:
    """How much each dimension of projections repeats the others over the batch.

    The covariance term of VICReg (Bardes et al., 2022, arXiv:2105.04906, eq. 4) of standardised
    dimensions: per dimension the sum of its squared correlations with all others. From 0 for
    independent dimensions (and about D / B by chance) to D - 1 for dimensions that are all alike.
    """
    z_BD = z_BD.astype(jnp.promote_types(z_BD.dtype, jnp.float32))
    z_BD = (z_BD - z_BD.mean(0)) * jax.lax.rsqrt(z_BD.var(0) + MIN_NORM)
    products_DD = z_BD.T @ z_BD / z_BD.shape[0]
    others = jnp.sum(products_DD**2) - jnp.sum(jnp.diagonal(products_DD) ** 2)
    return others / z_BD.shape[1]


def regression_loss(x_BD: jax.Array, y_BD: jax.Array) -> jax.Array:
    """Half the squared distance of the normalised rows, averaged over rows: 1 - cosine.

    Norms are floored at 1e-5, so rows of zeros have a finite loss and gradient.
    """
    difference_BD = _normalise(x_BD) - _normalise(y_BD)
    return 0.5 * jnp.square(difference_BD).sum(-1).mean()


def agreement(x_BD: jax.Array, y_BD: jax.Array) -> jax.Array:
    """Correlation of the normalised rows about their means over the batch; no gradient.

    0 where a prediction tells nothing of its own example, however close all directions lie, and 1
    where it tells everything. A loss that falls while this stays at 0 is a loss that collapses.
    """
    x_BD, y_BD = (_normalise(jax.lax.stop_gradient(rows_BD)) for rows_BD in (x_BD, y_BD))
    x_BD, y_BD = x_BD - x_BD.mean(axis=0), y_BD - y_BD.mean(axis=0)
    power = jnp.sum(x_BD**2) * jnp.sum(y_BD**2)
    return jnp.sum(x_BD * y_BD) / jnp.sqrt(jnp.maximum(power, 1e-30))


def _normalise(x_BD: jax.Array) -> jax.Array:
    """Rows divided by their norm, or by the floor where the norm is below it."""
    x_BD = x_BD.astype(jnp.promote_types(x_BD.dtype, jnp.float32))
    square_B1 = jnp.square(x_BD).sum(-1, keepdims=True)
    small_B1 = square_B1 <= MIN_NORM**2
    # The inner where keeps the gradient of the square root finite at zero: a branch that is not
    # taken still multiplies its gradient by 0, and 0 * inf is not a number.
    norm_B1 = jnp.where(small_B1, MIN_NORM, jnp.sqrt(jnp.where(small_B1, 1.0, square_B1)))
    return x_BD / norm_B1
