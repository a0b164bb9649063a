"""Measures whether embeddings collapse: whether they stop using their dimensions.

Two numbers per embedding, both near 0 for collapsed ones and at most 1: how far the normalised
embeddings spread per dimension (Chen & He, 2021, arXiv:2011.10566, figure 2), and the participation
ratio of their covariance's eigenvalues as a share of the dimensions that could be used.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from common.method import Embeddings

_log = logging.getLogger(__name__)

_CAUSES = (
    "Usual causes: a learning rate that is too high or has no warm-up, no batch norm in the "
    "projector or predictor, weight decay on norms, a batch that is too small, views that share a "
    "trivial cue. Training goes on; look at collapse/* in the metrics."
)


def measure(embeddings: Embeddings) -> dict[str, jax.Array]:
    """Returns the spread and the rank share of every embedding.

    Args:
        embeddings: float arrays (B, D) by name, or (B, K, D) where an example has several.

    Returns:
        ``collapse/spread/NAME`` and ``collapse/rank/NAME``, float32 scalars in [0, 1].
    """
    measures = {}
    for name, values_BD in embeddings.items():
        values_BD = jax.lax.stop_gradient(values_BD).astype(jnp.float32)
        values_BD = values_BD.reshape(-1, values_BD.shape[-1])
        # A constant that a method puts beside its embeddings, as the bias of a sigmoid loss.
        most_D, least_D = jnp.split(jnp.concatenate([values_BD, -values_BD], 1).max(axis=0), 2)
        constant_D = (most_D == -least_D) & (most_D != 0)
        values_BD = jnp.where(constant_D, 0, values_BD)
        batch, dims = len(values_BD), jnp.maximum((~constant_D).sum(), 1)
        norms_B1 = jnp.linalg.norm(values_BD, axis=1, keepdims=True)
        unit_BD = values_BD / jnp.maximum(norms_B1, 1e-12)
        centred_BD = unit_BD - unit_BD.mean(axis=0)
        # Isotropic unit vectors have a standard deviation of 1 / sqrt(D) per dimension.
        measures[f"collapse/spread/{name}"] = unit_BD.std(axis=0).sum() / dims**0.5
        # tr(C)^2 / tr(C^2) needs no eigenvalues, and the smaller Gram matrix gives both traces.
        small = centred_BD.T if values_BD.shape[1] < batch else centred_BD
        gram = small @ small.T
        ratio = jnp.trace(gram) ** 2 / jnp.maximum(jnp.sum(gram**2), 1e-30)
        usable = jnp.maximum(jnp.minimum(dims, batch - 1), 1)
        measures[f"collapse/rank/{name}"] = ratio / usable
    return measures


class Watch:
    """Warns when embeddings collapse, at most once in `patience` steps."""

    def __init__(self, threshold: float, patience: int):
        """Sets the share below which to warn, and the steps between two warnings.

        The first `patience` steps pass without warning: networks at initialisation map everything
        to nearly the same place.
        """
        self._threshold = threshold
        self._patience = patience
        self._quiet_until = patience

    def see(self, step: int, metrics: Mapping[str, float]) -> bool:
        """Looks at the metrics of ``step``; returns whether it warned."""
        low = {
            name: float(value)
            for name, value in metrics.items()
            if name.startswith("collapse/") and value < self._threshold
        }
        if not low or step < self._quiet_until:
            return False
        self._quiet_until = step + self._patience
        listed = ", ".join(f"{name}={value:.3f}" for name, value in sorted(low.items()))
        _log.warning(
            "step %d: embeddings are collapsing: %s (config.collapse_warning=%g). %s",
            step, listed, self._threshold, _CAUSES,
        )  # fmt: skip
        return True
