"""Takes examples from tf.data, several at a time, and knows which of them an error has cost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import jax
    import tensorflow as tf

# Every handing over costs about as much as a small example; but those that come with a bad one are
# made again, and large ones are not worth another copy.
_MOST, _BYTES = 8, 1 << 20


def together(spec: Mapping[str, jax.ShapeDtypeStruct]) -> int:
    """Returns how many examples are best handed over at once; `spec` is that of the views."""
    size = sum(math.prod(one.shape) * np.dtype(one.dtype).itemsize for one in spec.values())
    return max(1, min(_MOST, _BYTES // max(1, size)))


class Stream:
    """Examples by their draw numbers, asked for in order."""

    def __init__(self, dataset: tf.data.Dataset):
        """Starts to read.

        Args:
            dataset: of draw numbers, increasing, and examples; batched or not. An error takes the
                place of a bad example, and of the whole batch that it is in.
        """
        self._iterator = dataset.as_numpy_iterator()
        self._number_K = np.empty(0, np.int64)  # at hand
        self._examples: Mapping[str, np.ndarray] = {}
        self._at = 0  # the next of them

    def close(self) -> None:
        """Ends the reading."""
        self._iterator = None

    def take(self, number: int) -> dict[str, Any] | None:
        """Returns the example of a draw, or None where an error has cost it.

        Meets at most one error, so that asking ends even where everything is bad.
        """
        if self._at == len(self._number_K):
            try:
                number_K, examples = next(self._iterator)
            except unreadable():
                return None
            if not np.ndim(number_K):
                examples = {name: value[None] for name, value in examples.items()}
            self._number_K, self._examples, self._at = np.atleast_1d(number_K), examples, 0
        if self._number_K[self._at] != number:
            return None
        self._at += 1
        return {name: value_K[self._at - 1] for name, value_K in self._examples.items()}


def message(error: Exception) -> str:
    """Returns the line of an error of TensorFlow's that says what happened.

    Before it may stand where a graph was made; after it, the whole graph.
    """
    paragraphs = str(getattr(error, "message", error)).strip().split("\n\n")
    before = ("Graph execution error:", "Detected at node", "  File ")
    told = [part for part in paragraphs if not part.startswith(before)]
    return (told or paragraphs)[0].strip().splitlines()[0]


def unreadable() -> tuple[type[Exception], ...]:
    """Errors that are a record's own; memory or a cancelled run is not among them."""
    from common.tf import tf

    return (
        tf.errors.DataLossError,
        tf.errors.FailedPreconditionError,
        tf.errors.InternalError,
        tf.errors.InvalidArgumentError,
        tf.errors.NotFoundError,
        tf.errors.OutOfRangeError,
        tf.errors.PermissionDeniedError,
        tf.errors.UnknownError,
    )
