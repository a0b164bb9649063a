"""Batches of noise in the right shapes, to measure everything but the data; needs no TensorFlow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import jax


def batches(
    spec: Mapping[str, jax.ShapeDtypeStruct], rows: np.ndarray, seed: int
) -> Iterator[dict[str, np.ndarray]]:
    """Yields one random batch for ever.

    Args:
        spec: shape and dtype of each entry of an example (integers, or floats in [0, 1)).
        rows: of the batch that are wanted; what is in a row depends on its number and the seed.
        seed: of the noise.

    Yields:
        The same arrays every time, of shape (rows, *shape).
    """
    generators = [np.random.default_rng((seed, row)) for row in rows.tolist()]
    batch = {
        name: np.stack([_noise(generator, entry) for generator in generators])
        for name, entry in spec.items()
    }
    while True:
        yield dict(batch)


def _noise(generator: np.random.Generator, entry: jax.ShapeDtypeStruct) -> np.ndarray:
    if np.issubdtype(entry.dtype, np.integer):
        limits = np.iinfo(entry.dtype)
        return generator.integers(limits.min, limits.max, entry.shape, entry.dtype, endpoint=True)
    return generator.random(entry.shape, np.float32).astype(entry.dtype)
