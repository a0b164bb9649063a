"""Reads only what is used of a record: its context, the sampled frames, the sound.

`find` notes where the parts of a serialized record lie, by walking its protocol buffer; `load`
gives a record to the views whose frames and sound are read only when they are asked for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import google_crc32c
import numpy as np

from common.data import records

if TYPE_CHECKING:
    import tensorflow as tf

    from common.data.shards import RecordSet

CONTEXT, FRAME, FLOW, SOUND = range(4)  # kinds of parts
_LISTS = {records.IMAGE: FRAME, records.FLOW: FLOW}
_MODALITIES = {"audio": SOUND, "flow": FLOW, "frames": FRAME}
_KEYS = {FRAME: records.IMAGE, FLOW: records.FLOW, SOUND: records.WAVEFORM}
_LENGTH_DELIMITED = 2


@dataclasses.dataclass(frozen=True)
class StoredFrames:
    """Encoded frames that have not been read: their number, and how to read some of them."""

    count: tf.Tensor  # () int64
    read: Callable[[tf.Tensor], tf.Tensor]  # int64 (T,) -> string (T,)


@dataclasses.dataclass(frozen=True)
class StoredSound:
    """A waveform that has not been read: ``read(*place)``, inside a ``tf.numpy_function``."""

    read: Callable[..., np.ndarray]  # -> float32 (N,)
    place: Sequence[tf.Tensor]


def find(record: bytes) -> np.ndarray | None:
    """Returns kind, start, length and checksum of every part of a record, int64 (parts, 4).

    None for a record that is laid out in another way than writers of these records do: then it can
    only be parsed as a whole.
    """
    rows: list[tuple[int, int, int]] = []
    try:
        for field, begin, start, end in _fields(record, 0, len(record)):
            if field == 1:
                rows.append((CONTEXT, begin, end - begin))
            elif field == 2:
                for _, _, entry_start, entry_end in _fields(record, start, end):
                    rows += _list_parts(record, entry_start, entry_end)
    except (ValueError, IndexError):
        return None
    kinds = [kind for kind, _, _ in rows]
    if kinds.count(CONTEXT) != 1 or kinds.count(SOUND) > 1:
        return None
    return np.array(
        [(*row, google_crc32c.value(record[row[1] : row[1] + row[2]])) for row in rows], np.int64
    )


def _list_parts(record: bytes, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yields kind, start and length of the values of one entry of the feature lists."""
    fields = {field: (first, last) for field, _, first, last in _fields(record, start, end)}
    if fields.keys() != {1, 2}:
        raise ValueError("an entry of a map has a key and a value")
    key = record[slice(*fields[1])].decode(errors="replace")
    if key == records.WAVEFORM:
        yield SOUND, *_only_value(record, *_only(record, *fields[2], field=1), kind=2)
    elif key in _LISTS:
        for field, _, first, last in _fields(record, *fields[2]):
            if field != 1:
                raise ValueError("a feature list has features only")
            yield _LISTS[key], *_only_value(record, first, last, kind=1)


def _only_value(record: bytes, start: int, end: int, kind: int) -> tuple[int, int]:
    """Returns start and length of the single value (or packed values) of a Feature."""
    first, last = _only(record, *_only(record, start, end, field=kind), field=1)
    return first, last - first


def _only(record: bytes, start: int, end: int, field: int) -> tuple[int, int]:
    ((number, _, first, last),) = _fields(record, start, end)
    if number != field:
        raise ValueError("another field than expected")
    return first, last


def _fields(record: bytes, at: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yields number, begin, and start and end of the contents of each field of a message."""
    while at < end:
        begin = at
        tag = record[at]
        if tag & 7 != _LENGTH_DELIMITED or tag > 0x7F:
            raise ValueError("only messages, strings and packed numbers occur")
        at, length, shift = at + 1, 0, 0
        while True:
            byte = record[at]
            at, length, shift = at + 1, length | (byte & 0x7F) << shift, shift + 7
            if byte < 0x80:
                break
        if at + length > end:
            raise ValueError("a field ends after its message")
        yield tag >> 3, begin, at, at + length
        at += length


def load(
    record_sets: Sequence[RecordSet],
    source: tf.Tensor,
    number: tf.Tensor,
    modalities: Collection[str],
    default_frame_rate: float,
    default_audio_rate: int,
) -> Mapping[str, Any]:
    """Returns what `common.data.records.parse` does, with frames and sound still to be read.

    "frames" and "flow" are `StoredFrames` and "waveform" is `StoredSound`; the functions of
    `common.data.decode` and `common.data.sampling` take both forms.

    Args:
        record_sets: those that have parts noted; others are never asked for.
        source: which of them, () int64.
        number: of the record, () int64.
        modalities: as `records.parse`.
        default_frame_rate: as `records.parse`.
        default_audio_rate: as `records.parse`.
    """
    from common.tf import tf

    kinds = [kind for modality, kind in _MODALITIES.items() if modality in modalities]

    def head(source: np.ndarray, number: np.ndarray) -> tuple[bytes, *tuple[np.ndarray, ...]]:
        return _read_head(record_sets[source], int(number), kinds)

    def taken(source: np.ndarray, number: np.ndarray, part_R4: np.ndarray) -> np.ndarray:
        found = record_sets[source].read_parts(int(number), part_R4)
        return np.array(found, object)

    def sound(source: np.ndarray, number: np.ndarray, part_R4: np.ndarray) -> np.ndarray:
        return np.frombuffer(record_sets[source].read_parts(int(number), part_R4)[0], "<f4")

    at = [source, number]
    types = [tf.string, *(tf.int64 for _ in kinds)]
    context, *tables = tf.numpy_function(head, at, types, stateful=False)
    context = tf.ensure_shape(context, ())
    rates = (default_frame_rate, default_audio_rate)
    record = dict(records.parse_context(context, modalities, *rates))
    stored = {
        kind: tf.ensure_shape(table, (None, 4)) for kind, table in zip(kinds, tables, strict=True)
    }

    def frames(part_T4: tf.Tensor) -> StoredFrames:
        def read(index_T: tf.Tensor) -> tf.Tensor:
            wanted = [*at, tf.gather(part_T4, index_T)]
            return tf.numpy_function(taken, wanted, tf.string, stateful=False)

        return StoredFrames(tf.shape(part_T4, tf.int64)[0], read)

    if "frames" in modalities:
        record["frames"] = frames(stored[FRAME])
    if "flow" in modalities:
        record["flow"] = frames(stored[FLOW])
    if "audio" in modalities:
        record["waveform"] = StoredSound(sound, (*at, stored[SOUND]))
    return record


def _read_head(
    record_set: RecordSet, number: int, kinds: Collection[int]
) -> tuple[bytes, *tuple[np.ndarray, ...]]:
    """Returns the context of a record and where its parts of each kind lie, int64 (K, 4) each."""
    part_P4 = record_set.parts(number)
    kind_P = part_P4[:, 0]
    tables = [part_P4[kind_P == kind] for kind in kinds]
    for kind, part_K4 in zip(kinds, tables, strict=True):
        if not part_K4[:, 2].any():
            raise record_set.bad(number, f"the record has no values in {_KEYS[kind]}")
    (context,) = record_set.read_parts(number, part_P4[kind_P == CONTEXT])
    return context, *tables
