"""Runs an encoder over clips in fixed batches, on all devices of this process."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from common.method import Encoder

Prepare = Callable[[jax.Array, jax.Array], jax.Array]
"""Changes raw clips (B, ...) on the device, given their (video, clip) numbers (B, 2)."""


class Embedder:
    """An encoder with its weights, for one batch size."""

    def __init__(
        self,
        encoder: Encoder,
        model: nnx.Module | None,
        batch_size: int,
        prepare: Prepare | None = None,
    ):
        """Makes the embedder.

        Args:
            encoder: what to run.
            model: its weights; None for encoders that have none.
            batch_size: clips per call; rounded up to a multiple of the number of devices.
            prepare: augmentation before the encoder.
        """
        devices = np.array(jax.local_devices())
        self.batch_size = -(-batch_size // len(devices)) * len(devices)
        mesh = jax.sharding.Mesh(devices, ("data",))
        self._split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
        everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        self._graphdef: Any = None
        state: Any = ()
        if model is not None:
            model.eval()
            self._graphdef, state = nnx.split(model)
        self._state = jax.device_put(state, everywhere)
        self._run, self._prepare, self._dim = encoder.embed, prepare, encoder.dim

    def __call__(self, clips: np.ndarray, ids_B2: np.ndarray) -> np.ndarray:
        """Returns features, float32 (B, D), of exactly `batch_size` clips."""
        clips, ids_B2 = jax.device_put((clips, ids_B2.astype(np.int32)), self._split)
        return np.asarray(
            _embed(self._run, self._prepare, self._graphdef, self._state, clips, ids_B2)
        )

    def all(self, clips: np.ndarray) -> np.ndarray:
        """Returns features, float32 (N, D), of any number of clips; the last batch is padded."""
        parts = [np.zeros((0, self._dim), np.float32)]
        for start in range(0, len(clips), self.batch_size):
            part = clips[start : start + self.batch_size]
            padding = np.repeat(part[-1:], self.batch_size - len(part), axis=0)
            ids_B2 = np.zeros((self.batch_size, 2), np.int32)
            parts.append(self(np.concatenate([part, padding]), ids_B2)[: len(part)])
        return np.concatenate(parts)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _embed(
    run: Any, prepare: Prepare | None, graphdef: Any, state: Any, clips: jax.Array, ids: jax.Array
) -> jax.Array:
    """One compiled program serves all weights of an architecture: they are an argument."""
    if prepare is not None:
        clips = prepare(clips, ids)
    model = None if graphdef is None else nnx.merge(graphdef, state)
    return run(model, clips).astype(jnp.float32)


@functools.cache  # one object per seed, so that what is compiled with it is found again
def training_augmentation(seed: int) -> Prepare:
    """Returns the augmentation of published training features: flip, colour, grey, no blur.

    A clip's draws depend on the seed and on its own numbers alone, not on its batch.
    """
    from common.data import device_augment

    def augment(video_BTHWC: jax.Array, ids_B2: jax.Array) -> jax.Array:
        def key_of(ids_2: jax.Array) -> jax.Array:
            return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), ids_2[0]), ids_2[1])

        augmented = device_augment.augment_clips(video_BTHWC, jax.vmap(key_of)(ids_B2), blur=False)
        # Encoders take raw pixels: the range of uint8, here without its steps.
        return augmented * 255.0

    return augment
