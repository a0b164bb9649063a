"""Batches of noise in the right shapes, to measure everything but the data; needs no TensorFlow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import jax


def batches(
    spec: Mapping[str, jax.ShapeDtypeStruct], batch_size: int, seed: int
) -> Iterator[dict[str, np.ndarray]]:
    """Yields one random batch for ever.

    Args:
        spec: shape and dtype of each entry of an example (integers, or floats in [0, 1)).
        batch_size: examples in a batch.
        seed: of the noise.

    Yields:
        The same arrays every time, of shape (batch_size, *shape).
    """
    generator = np.random.default_rng(seed)
    batch = {}
    for name, entry in spec.items():
        shape = (batch_size, *entry.shape)
        if np.issubdtype(entry.dtype, np.integer):
            limits = np.iinfo(entry.dtype)
            noise = generator.integers(limits.min, limits.max, shape, entry.dtype, endpoint=True)
        else:
            noise = generator.random(shape, np.float32).astype(entry.dtype)
        batch[name] = noise
    while True:
        yield dict(batch)
