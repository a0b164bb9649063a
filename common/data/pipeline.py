"""From record sets to batches on the devices, in an order that is a function of (seed, step).

TensorFlow's ``tf.data`` only executes: it maps draw numbers to bytes to examples, in parallel and
in order, and holds nothing worth saving. What cannot be read is left out by name: the draw is
given to the next of a fixed list of other records, so that the result is the same in every run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import logging
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from common.data import fake, parts, sources, stream
from common.data.order import Order
from common.data.prefetch import SAMPLE_ID, DeviceBatches
from common.data.records import deserialize
from common.data.shards import BadRecord, RecordSet
from common.data.stream import Stream, unreadable
from common.errors import UserError

if TYPE_CHECKING:
    import jax
    import tensorflow as tf

    from common.method import Views

_GRACE = 1000  # draws that count at least when the share of bad ones is judged
_FOREVER = np.iinfo(np.int64).max
_READS_FAR_AWAY = 64  # at a time, of files on another machine
_DRAWS_TOGETHER = 1024  # whose order takes as long to compute as that of a few

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class BadClip:
    """A clip that was left out: where it is, what it is called and why."""

    shard: str
    number: int
    id: str
    why: str

    def __str__(self) -> str:
        name = f" ({self.id})" if self.id else ""
        return f"{self.shard}, record {self.number}{name}: {self.why}"


@dataclasses.dataclass
class BadClips:
    """What was left out since this process started reading."""

    seen: int = 0  # draws so far
    count: int = 0  # of them given to another record
    clips: dict[tuple[int, int], BadClip] = dataclasses.field(default_factory=dict)

    @property
    def share(self) -> float:
        """Share of the draws that were given to another record."""
        return self.count / max(self.seen, 1)


class TrainData:
    """The training batches of one process."""

    def __init__(self, config: Any, views: Views, rows: np.ndarray | None = None):
        """Opens the sources that ``config.data.train`` names.

        Args:
            config: keys ``seed``, ``batch_size`` and ``data``; see configs/base.py.
            views: turns records into examples.
            rows: of every batch, ascending, that this process reads; None: all of them. See
                `common.sharding.local_rows`.

        Raises:
            UserError: a source cannot be opened.
        """
        self.bad = BadClips()
        self._config, self._views = config, views
        mixture = sources.split_mixture(config.data.train)
        self._fake = mixture[0][0] == sources.FAKE
        self._sources = [] if self._fake else [sources.open_source(*part) for part in mixture]
        for source in self._sources:
            if missing := views.modalities - source.modalities:
                raise UserError(
                    f"{source.name} holds no {', '.join(sorted(missing))}, which {config.method} "
                    f"needs; it has {', '.join(sorted(source.modalities))}."
                )
        self._order = Order(
            [len(source.records) for source in self._sources] or [1],
            [weight for _, weight in mixture],
            config.batch_size,
            config.seed,
            config.data.block_size,
        )
        self._rows = np.arange(config.batch_size) if rows is None else rows
        self._eager_example: Any = None
        # A step is asked for twice: when its records are read, and when its batch is put together.
        self._order_of = functools.lru_cache(maxsize=4)(self._draw)

    @property
    def num_records(self) -> int:
        """Records in all sources together; 0 for the fake source."""
        return sum(len(source.records) for source in self._sources)

    def batches(self, start_step: int) -> Iterator[dict[str, np.ndarray]]:
        """Yields this process's part of the batches of steps `start_step`, `start_step` + 1, ...

        Every entry of ``views.spec()`` with a batch axis, and `SAMPLE_ID`, which names the records
        that the examples were made of. Equal for equal (seed, step), whatever the number of
        threads and processes and wherever reading started.

        Raises:
            UserError: more than ``config.data.max_bad_share`` of the draws could not be read, or
                none of the records that could stand in for one.
        """
        spec = self._views.spec()
        if self._fake:
            for batch in fake.batches(spec, self._rows, self._config.seed):
                yield batch | {SAMPLE_ID: np.zeros((len(self._rows), 2), np.int64)}
        with contextlib.closing(Stream(self._examples(start_step))) as examples:
            for step in itertools.count(start_step):
                yield self._batch(step, examples, spec)

    def _batch(
        self, step: int, examples: Stream, spec: Mapping[str, jax.ShapeDtypeStruct]
    ) -> dict[str, np.ndarray]:
        number_B, source_B, record_BK = self._draws(step)
        ids_B2 = np.stack([source_B, record_BK[:, 0]], axis=1)
        batch = {
            name: np.empty((len(ids_B2), *entry.shape), entry.dtype) for name, entry in spec.items()
        }
        for row, number in enumerate(number_B.tolist()):
            self.bad.seen += 1
            example = examples.take(number)
            if example is None:
                example, ids_B2[row, 1] = self._missing(number, source_B[row], record_BK[row])
            for name, array in batch.items():
                array[row] = example[name]
        return batch | {SAMPLE_ID: ids_B2}

    def _draws(self, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns this process's draw numbers (B,), sources (B,) and records (B, K) of a step."""
        size = self._order.batch_size
        steps = max(1, _DRAWS_TOGETHER // size)
        begin = step // steps * steps
        drawn = self._order_of(begin * size, (begin + steps) * size)
        first = (step - begin) * size
        return tuple(entry[first : first + size][self._rows] for entry in drawn)

    def _draw(self, begin: int, end: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        number_N = np.arange(begin, end)
        return number_N, *self._order.draws(number_N)

    def _examples(self, start_step: int) -> tf.data.Dataset:
        """Returns the examples with their draw numbers, in order and some at a time.

        A bad one is an error in the place of all that would have been returned with it.
        """
        from common.tf import tf

        def draw(step: tf.Tensor) -> tuple[tf.Tensor, ...]:
            number = tf.TensorSpec((None,), tf.int64)
            path = tf.TensorSpec((None,), tf.string)
            seed = tf.TensorSpec((None, 2), tf.int32)
            signature = (number, seed, number, number, path, number, number)
            drawn = tf.numpy_function(self._locate_step, [step], [s.dtype for s in signature])
            return tuple(map(tf.ensure_shape, drawn, [s.shape for s in signature]))

        options = tf.data.Options()
        reads = self._reads()
        # A thread that waits for a file decodes nothing meanwhile, so there is one for each read.
        options.threading.private_threadpool_size = reads
        options.threading.max_intra_op_parallelism = 1
        options.autotune.enabled = False
        options.deterministic = True
        size = stream.together(self._views.spec())
        examples = (
            tf.data.Dataset.range(start_step, _FOREVER)
            .map(draw)
            .unbatch()
            # Without AutoGraph: it traces slowly and hides what its callees raise.
            .map(
                tf.autograph.experimental.do_not_convert(self._numbered_example),
                num_parallel_calls=reads,
                deterministic=True,
            )
        )
        # A batch of one would be a copy for nothing.
        return (examples.batch(size) if size > 1 else examples).with_options(options)

    def _reads(self) -> int:
        """Returns how many examples are read at a time."""
        data = self._config.data
        threads = data.threads or os.cpu_count() or 1
        remote = any(source.records.remote for source in self._sources)
        return data.reads or (max(threads, _READS_FAR_AWAY) if remote else threads)

    def _locate_step(self, step: np.ndarray) -> tuple[np.ndarray, ...]:
        number_B, source_B, record_BK = self._draws(int(step))
        return number_B, *self._locate(number_B, source_B, record_BK[:, 0])

    def _locate(
        self, number_B: np.ndarray, source_B: np.ndarray, record_B: np.ndarray
    ) -> tuple[np.ndarray, ...]:
        """Returns seeds (B, 2) and by example source, record, path, offset and length (B,)."""
        path_B = np.empty(len(record_B), object)
        offset_B, length_B = np.empty((2, len(record_B)), np.int64)
        for source in np.unique(source_B):
            mine_B = source_B == source
            path_B[mine_B], offset_B[mine_B], length_B[mine_B] = self._sources[
                source
            ].records.locate_all(record_B[mine_B])
        seed_B2 = _seeds(self._config.seed, number_B)
        return seed_B2, source_B, record_B, path_B, offset_B, length_B

    def _numbered_example(
        self, number: tf.Tensor, *draw: tf.Tensor
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        return number, self._example(*draw)

    def _example(
        self,
        seed: tf.Tensor,
        source: tf.Tensor,
        record: tf.Tensor,
        path: tf.Tensor,
        offset: tf.Tensor,
        length: tf.Tensor,
    ) -> dict[str, tf.Tensor]:
        """Reads, parses and decodes one draw, inside a graph."""
        from common.tf import tf

        data = self._config.data
        wanted = (self._views.modalities, data.default_frame_rate, data.default_audio_rate)
        spec = self._views.spec()

        def read_by(way: sources.Parse | None) -> dict[str, tf.Tensor]:
            if way is None:
                sets = [source.records for source in self._sources]
                entries = parts.load(sets, source, record, *wanted)
            else:
                entries = way(_read_record(path, offset, length), *wanted)
            example = self._views.example(entries, seed)
            return {name: tf.ensure_shape(example[name], spec[name].shape) for name in spec}

        # One branch per way of reading, not per source: a mixture of folders has a single one.
        way_of_source = [None if s.in_parts else s.parse for s in self._sources]
        ways = list(dict.fromkeys(way_of_source))
        if len(ways) == 1:
            return read_by(ways[0])
        branches = [functools.partial(read_by, way) for way in ways]
        return tf.switch_case(tf.constant([ways.index(w) for w in way_of_source])[source], branches)

    def _missing(
        self, number: int, source: int, record_K: np.ndarray
    ) -> tuple[dict[str, np.ndarray], int]:
        """Returns the example of a draw that is bad, or was lost with a bad one, and its record."""
        try:
            return self._example_now(number, source, record_K[0]), record_K[0]
        except unreadable() as error:
            return self._stand_in(number, source, record_K, error)

    def _stand_in(
        self, number: int, source: int, record_K: np.ndarray, error: Exception
    ) -> tuple[dict[str, np.ndarray], int]:
        """Returns the example of the first reserve that can be read, and its record number."""
        why = self._why(source, record_K[0], error)
        self._leave_out(source, record_K[0], why)
        reasons = [why]
        for record in record_K[1:]:
            try:
                return self._example_now(number, source, record), record
            except unreadable() as another:
                reasons.append(self._why(source, record, another))
        names = [self._sources[source].records.name(record) for record in record_K]
        listing = "\n".join(f"  {name}: {why}" for name, why in zip(names, reasons, strict=True))
        raise UserError(
            f"{self._sources[source].name}: a record and all that could stand in for it cannot be "
            f"read. Check the data with python -m common.inspect.\n{listing}"
        )

    def _example_now(self, number: int, source: int, record: int) -> dict[str, np.ndarray]:
        from common.tf import tf

        if self._eager_example is None:
            self._eager_example = tf.function(self._example, autograph=False)
        place = self._locate(np.array([number]), np.array([source]), np.array([record]))
        example = self._eager_example(*(tf.constant(entry[0]) for entry in place))
        return {name: value.numpy() for name, value in example.items()}

    def _why(self, source: int, record: int, error: Exception) -> str:
        """Returns what is wrong with a record, in the words of the first check that fails."""
        try:
            self._sources[source].records.read(record)
        except BadRecord as bad:
            return bad.why
        line = stream.message(error)  # with the error's type in front where it came from Python
        number = self._sources[source].records.name(record).rpartition(":")[2]
        return line.rpartition(f", record {number}: ")[2]

    def _leave_out(self, source: int, record: int, why: str) -> None:
        """Counts and logs a clip that is left out.

        Raises:
            UserError: there are too many.
        """
        bad, cap = self.bad, self._config.data.max_bad_share
        bad.count += 1
        if (source, record) not in bad.clips:
            records_ = self._sources[source].records
            shard, number = records_.name(record).rsplit(":", 1)
            clip = BadClip(shard, int(number), _id_of(records_, record), why)
            bad.clips[source, record] = clip
            _log.warning("left out: %s", clip)
        if bad.count > cap * max(bad.seen, _GRACE):
            listing = "\n".join(f"  {clip}" for clip in list(bad.clips.values())[-5:])
            raise UserError(
                f"{bad.count} of {bad.seen} clips could not be read, more than "
                f"config.data.max_bad_share={cap} allows (of at least {_GRACE}). Mend the data "
                f"(python -m common.inspect finds what is damaged) or raise it. The last:\n"
                f"{listing}"
            )


def device_batches(
    batches: Iterator[Mapping[str, np.ndarray]], sharding: jax.sharding.Sharding, prefetch: int
) -> DeviceBatches:
    """Returns the batches on the devices, `prefetch` of them ahead; close it when done.

    `SAMPLE_ID` stays on the host; every other entry becomes a global array of that sharding.
    """
    return DeviceBatches(batches, sharding, prefetch)


def _seeds(seed: int, number_B: np.ndarray) -> np.ndarray:
    """Returns int32 (B, 2) from run seed and draw number, which may not fit into one int32."""
    high_B, low_B = number_B >> 31, number_B & 0x7FFFFFFF
    first_B = (seed + high_B * 0x9E3779B1) & 0x7FFFFFFF
    return np.stack([first_B, low_B], axis=1).astype(np.int32)


def _read_record(path: tf.Tensor, offset: tf.Tensor, length: tf.Tensor) -> tf.Tensor:
    """Reads one record in a graph, through any file system and without Python's lock.

    TensorFlow verifies both checksums; that the length is the index's shows an index that belongs
    to another file.
    """
    from common.tf import tf

    shard = tf.raw_ops.TFRecordDatasetV2(
        filenames=[path], compression_type="", buffer_size=0, byte_offsets=[offset]
    )
    one = {"output_types": [tf.string], "output_shapes": [[]]}
    first = tf.raw_ops.TakeDataset(input_dataset=shard, count=1, **one)
    (serialized,) = tf.raw_ops.DatasetToSingleElement(dataset=first, **one)
    same = tf.strings.length(serialized, unit="BYTE") == tf.cast(length, tf.int32)
    with tf.control_dependencies([tf.debugging.Assert(same, ["not the record of the index"])]):
        return tf.identity(serialized)


def _id_of(records_: RecordSet, record: int) -> str:
    """Returns the clip's own name where it can still be read."""
    with contextlib.suppress(BadRecord, ValueError):
        return deserialize(records_.read(record)).id
    return ""
