"""What a source string means, and how to read a record of each kind of source.

A source is a folder of record shards, a glob of shards, ``tfds:NAME[:SPLIT]`` or ``fake``. Several
are mixed by weight: ``/data/a/train@0.7,/data/b/train@0.3``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING

from common.data import records
from common.data.shards import RecordSet
from common.errors import UserError

if TYPE_CHECKING:
    import tensorflow as tf

FAKE = "fake"
_TFDS = "tfds:"

Parse = Callable[["tf.Tensor", Collection[str], float, int], Mapping[str, "tf.Tensor"]]
"""As `common.data.records.parse`: serialized record to its entries, inside a graph."""


@dataclasses.dataclass(frozen=True)
class Source:
    """One record set of a mixture."""

    name: str  # as the user wrote it
    weight: float
    records: RecordSet
    parse: Parse
    modalities: frozenset[str] = records.MODALITIES  # that its records may have

    @property
    def in_parts(self) -> bool:
        """Whether records can be read part by part; see `common.data.parts`."""
        return self.parse is records.parse and self.records.has_parts


def split_mixture(text: str) -> list[tuple[str, float]]:
    """Returns the sources of a mixture and their weights; a weight not given is 1.

    Raises:
        UserError: nothing is named, or a weight is not a number above 0.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise UserError(
            "config.data.train names no source; give a folder of record shards, for example "
            "--config.data.train=/data/records/train (python -m common.ingest makes one)."
        )
    mixture = []
    for part in parts:
        name, at, number = part.rpartition("@")
        if not at:
            name, number = part, "1"
        try:
            weight = float(number)
        except ValueError:
            weight = 0.0
        if not 0 < weight < float("inf"):
            raise UserError(
                f"{part!r} in config.data.train: {number!r} after '@' must be a weight above 0. "
                "If the '@' belongs to the path, write a weight behind it: PATH@1."
            )
        mixture.append((name, weight))
    if len(mixture) > 1 and FAKE in [name for name, _ in mixture]:
        raise UserError(f"{FAKE!r} cannot be mixed with other sources: {text}")
    return mixture


def open_source(name: str, weight: float = 1.0) -> Source:
    """Opens one source for random reading.

    Raises:
        UserError: it does not exist, is incomplete or cannot be read.
    """
    if name.startswith(_TFDS):
        from common.data import tfds_source

        return tfds_source.open_source(name, weight)
    return Source(name, weight, RecordSet.open(name), records.parse)
