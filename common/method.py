"""The contract between a method and everything else.

A method is one package (``brave/``, ``mil_nce/``, ...) whose ``method.py`` holds one class with the
members of `Method`. The loop, evaluation, export and search use nothing else of it, and the method
uses nothing of them. ``common/methods.py`` lists the methods, one import line each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:  # keeps `--help` fast: neither JAX, Flax nor TensorFlow is imported here
    import jax
    import numpy as np
    import tensorflow as tf
    from flax import nnx

Batch = Mapping[str, "jax.Array"]
"""One global batch on the device: every leaf has the batch as its first axis."""

Embeddings = Mapping[str, "jax.Array"]
"""What the objective compares: named float32 arrays of shape (B, D), or (B, K, D) where an example
has several."""

DOT, COSINE = "dot", "cosine"  # how features of one space are compared; see `Encoder`


class Views(Protocol):
    """What the encoders see of a record while training: the host side of a method."""

    modalities: frozenset[str]
    """Parts of a record that are read; a subset of ``common.data.records.MODALITIES``."""

    def spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shape and dtype of every entry of one example (no batch axis); needs no TensorFlow."""
        ...

    def example(self, record: Mapping[str, tf.Tensor], seed: tf.Tensor) -> dict[str, tf.Tensor]:
        """Turns one parsed record (see ``common.data.records.parse``) into one example.

        Frames may not have been read yet: count them with ``common.data.decode.count`` and choose
        them with ``common.data.decode.take``, which reads no others.
        Runs inside ``tf.data``. ``seed`` is an int32 (2,) tensor, a pure function of (run seed,
        sample number); all randomness comes from it through ``tf.random.stateless_*``. Pixels stay
        uint8, sound int16 and token ids int32: scaling and augmentation belong to `Method.augment`.
        """
        ...


@dataclasses.dataclass(frozen=True)
class VideoInput:
    """What a video encoder takes: uint8 clips of shape (B, num_frames, size, size, 3).

    With `segments` a clip is the whole video, one frame from each of `num_frames` equal parts;
    `frame_rate` and `stride` then do not count, and a single picture is a clip of one frame, so
    the encoder also takes (B, 1, size, size, 3). `common.evaluation.segments` says which frames.

    With `resize` the short side of a frame is resized to it, the square of that side in the middle
    is cut out, and the square resized to `size`.
    """

    num_frames: int
    frame_rate: float  # frames per second at which `stride` counts
    stride: int  # frames between two sampled ones
    size: int  # pixels
    segments: bool = False
    resize: int = 0  # pixels; 0 leaves it to what cuts the clips


@dataclasses.dataclass(frozen=True)
class AudioInput:
    """What an audio encoder takes: int16 mono PCM of shape (B, num_samples)."""

    num_samples: int
    sample_rate: int  # Hz


@dataclasses.dataclass(frozen=True)
class TextInput:
    """What a text encoder takes: int32 token ids of shape (B, max_words)."""

    max_words: int
    tokenise: Callable[[Sequence[str]], np.ndarray]  # sentences to token ids; raises UserError
    words: Callable[[np.ndarray], list[str]]  # rows of token ids to the sentences they stand for
    known: Callable[[np.ndarray], np.ndarray]  # rows of ids to whether any word is known, bool


@dataclasses.dataclass(frozen=True)
class Encoder:
    """One trained network as evaluation, export and search see it.

    ``embed(model, inputs)`` maps raw inputs (as `inputs` describes them, unscaled) to float32
    features of shape (B, `dim`), in evaluation mode and without augmentation. It is pure and can be
    jitted with the model's state as argument.

    Encoders with the same `space` map into one, and have the same `similarity`, which says how well
    inputs belong together: `DOT` is the dot product of their features, `COSINE` that of the
    features divided by their norms, these no less than 1e-8. Features come undivided, so that the
    parts of a video are averaged first. An empty `space` means that features are not made to be
    compared.
    """

    inputs: VideoInput | AudioInput | TextInput
    dim: int
    embed: Callable[[nnx.Module, jax.Array], jax.Array]
    space: str = ""
    similarity: str = DOT


class Method(Protocol):
    """A training method. Built as ``Method(config)``; impossible configs raise `UserError`."""

    title: str
    """What people call it."""

    views: Views
    """The host side: one record to one example."""

    encoders: Mapping[str, Encoder]
    """The networks worth keeping, by name: "video", "audio", "text", ..."""

    def build(self, rngs: nnx.Rngs) -> nnx.Module:
        """Makes the whole trainable model, parameters in float32."""
        ...

    def augment(self, batch: Batch, keys_B: jax.Array) -> dict[str, jax.Array]:
        """Turns a raw batch into model inputs on the device, inside jit.

        ``keys_B`` holds one PRNG key per example, a pure function of (run seed, step, position in
        the global batch), so the result does not depend on the number of devices or microbatches.
        """
        ...

    def embed(self, model: nnx.Module, inputs: Batch) -> Embeddings:
        """Runs the networks in the mode that `model` is in.

        In training mode normalisation statistics in `model` are updated. Validation runs the same
        in evaluation mode.
        """
        ...

    def objective(self, embeddings: Embeddings) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Loss and scalar metrics, a pure function of the embeddings of the whole batch.

        Apart from `embed` so that the loop can compute embeddings in microbatches while the loss
        still sees the full batch.
        """
        ...


MethodFactory = Callable[[Any], Method]
