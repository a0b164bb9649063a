"""Record shards: TFRecord files read at random through a small index of offsets beside each.

A TFRecord file is a sequence of frames: payload length (uint64), masked CRC-32C of the length
(uint32), payload, masked CRC-32C of the payload (uint32), all little-endian. Every read checks both
sums, so a flipped byte is an error that names shard and record, never a changed example.
"""

from __future__ import annotations

import concurrent.futures
import itertools
import logging
import os
import re
import struct
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import google_crc32c
import numpy as np

from common.data import files, parts, shard_index
from common.data.shard_index import Index
from common.errors import UserError

INDEX_SUFFIX = shard_index.SUFFIX
_HEADER = 12  # length and its checksum
_FOOTER = 4  # checksum of the payload
_SEARCH_BYTES = 1 << 20
_SHARD_NAME = re.compile(r".*(\.tfrecords?|-\d{5,}-of-\d{5,})$")
NUMBERED = re.compile(r"(?P<stem>.*)-(?P<number>\d{5,})-of-(?P<count>\d{5,})(\.tfrecords?)?$")

_readers = itertools.count()
_log = logging.getLogger(__name__)


class BadRecord(Exception):
    """A record that cannot be read; `shard`, `number` and `why` say which and what is wrong."""

    def __init__(self, shard: str, number: int, why: str):
        super().__init__(f"{shard}, record {number}: {why}")
        self.shard, self.number, self.why = shard, number, why


class Problem(NamedTuple):
    """Something wrong in a shard: record number, byte offset and description."""

    number: int
    offset: int
    why: str


def frame(record: bytes) -> bytes:
    """Wraps one payload as it stands in a TFRecord file."""
    length = struct.pack("<Q", len(record))
    return b"".join((length, _checksum(length), record, _checksum(record)))


def scan(path: str | os.PathLike, verify: bool = False) -> tuple[Index, list[Problem]]:
    """Walks a shard from header to header, without reading the payloads unless `verify`.

    After a damaged header the walk goes on at the next one whose checksum holds.

    Raises:
        UserError: the file cannot be read, or is compressed.
    """
    with files.File(path) as shard:
        if shard.read(0, 2) == b"\x1f\x8b":
            raise UserError(f"{path} is gzip-compressed; unpack it: records are read at random.")
        offsets, lengths, problems = [], [], []
        offset = 0
        while offset < shard.size:
            number = len(offsets)
            length, why = _frame_length(shard, offset)
            if why:
                end = _next_frame(shard, offset + 1)
                length = max(end - offset - _HEADER - _FOOTER, 0)
                problems.append(Problem(number, offset, why))
            else:
                end = offset + _HEADER + length + _FOOTER
                if verify:
                    try:
                        _read_frame(shard, str(path), number, offset, length)
                    except BadRecord as error:
                        problems.append(Problem(number, offset, error.why))
            offsets.append(offset)
            lengths.append(length)
            offset = end
    return Index(np.array(offsets, np.int64), np.array(lengths, np.int64)), problems


def write_index(path: str | os.PathLike) -> Index:
    """Reads a whole shard and writes its index beside it, with the parts of every record.

    Raises:
        OSError: the folder cannot be written.
        UserError: the shard cannot be read.
    """
    index, problems = scan(path)
    bad = {problem.number for problem in problems}
    tables: list[np.ndarray] | None = []
    with files.File(path) as shard:
        for number, (offset, length) in enumerate(zip(index.offsets, index.lengths, strict=True)):
            try:
                table = (
                    None
                    if number in bad
                    else parts.find(_read_frame(shard, str(path), number, int(offset), int(length)))
                )
            except BadRecord:
                table = None
            if table is None:  # then the shard is read record by record
                tables = None
                break
            tables.append(table)
    beside, _ = shard_index.places(path)
    shard_index.write(beside, index, files.size(path), tables)
    return index


def load_index(path: str | os.PathLike) -> Index:
    """Returns the index of a shard, made by one scan where it is missing, stale or damaged.

    A new index is kept beside the shard, or under ``$XDG_CACHE_HOME/zoetrope`` where the folder
    cannot be written. Only headers are scanned, so it does not know the parts of the records.

    Raises:
        UserError: the shard cannot be read.
    """
    size = files.size(path)
    places = shard_index.places(path)
    for place in places:
        index = shard_index.read(place, size)
        if index is not None:
            return index
    index, problems = scan(path)
    for problem in problems:
        _log.warning("%s, record %d at byte %d: %s", path, *problem)
    for place in places:
        try:
            shard_index.write(place, index, size, None)
            break
        except files.errors():
            continue
    return index


def stored_index(path: str | os.PathLike) -> Index | None:
    """Returns the index that lies beside a shard, or None where it is damaged or of another file.

    Unlike `load_index` it never writes.
    """
    beside, _ = shard_index.places(path)
    return shard_index.read(beside, files.size(path))


def read_record(path: str | os.PathLike, number: int, offset: int, length: int) -> bytes:
    """Returns the payload of one record of a shard, both checksums verified.

    Raises:
        BadRecord: the record is damaged, or not where `offset` and `length` say.
        UserError: the shard cannot be read.
    """
    with files.File(path) as shard:
        return _read_frame(shard, str(path), number, offset, length)


class RecordSet:
    """All records of a folder or glob of shards, addressed by one number each."""

    def __init__(self, paths: Sequence[str], ranges: Sequence[tuple[int, int]] | None = None):
        """Opens shards; record numbers follow their order.

        Args:
            paths: of the shards.
            ranges: first record and end of what is used of each shard; all of it by default.
        """
        self.paths = list(paths)
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            indices = list(pool.map(load_index, self.paths))
        used = [slice(*range_) for range_ in ranges] if ranges else [slice(None)] * len(indices)
        offsets = [index.offsets[part] for index, part in zip(indices, used, strict=True)]
        lengths = [index.lengths[part] for index, part in zip(indices, used, strict=True)]
        self._skipped = [part.start or 0 for part in used]
        self._starts = np.cumsum([0] + [len(shard) for shard in offsets])
        self._offsets, self._lengths = np.concatenate(offsets), np.concatenate(lengths)
        self._indices = indices
        self._reader = next(_readers)  # what another set has kept open may have been replaced since
        self.has_parts = all(
            index.table_starts is not None and index.table_starts.all() for index in indices
        )

    @classmethod
    def open(cls, source: str | os.PathLike) -> RecordSet:
        """Opens a folder that holds shards, a glob of shards, or one shard.

        Raises:
            UserError: there are no shards, or some of a numbered set are missing from the folder.
        """
        records = cls(find_shards(source))
        if not len(records):
            raise UserError(f"The shards of {source} hold no records.")
        return records

    @property
    def remote(self) -> bool:
        """Whether any of the shards is on another machine, as far as its name says."""
        return any(map(files.is_remote, self.paths))

    def __len__(self) -> int:
        return len(self._offsets)

    def locate(self, record: int) -> tuple[str, int, int]:
        """Returns path, byte offset of the frame and payload length of a record."""
        path = self.paths[self._place(record)[0]]
        return path, int(self._offsets[record]), int(self._lengths[record])

    def locate_all(self, record_B: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns what `locate` does of many records, the paths as bytes."""
        shard_B = np.searchsorted(self._starts, record_B, side="right") - 1
        path_B = np.array([os.fsencode(path) for path in self.paths], object)[shard_B]
        return path_B, self._offsets[record_B], self._lengths[record_B]

    def name(self, record: int) -> str:
        """Returns "SHARD:NUMBER", which finds the record again."""
        path, number = self._named(record)
        return f"{os.path.basename(path)}:{number}"

    def bad(self, record: int, why: str) -> BadRecord:
        """Returns the error that says what is wrong with a record."""
        return BadRecord(*self._named(record), why)

    def read(self, record: int) -> bytes:
        """Returns the payload of a record, both checksums verified.

        Raises:
            BadRecord: the record is damaged, cut off, or not where the index says.
        """
        path, offset, length = self.locate(record)
        try:
            return read_record(path, self._named(record)[1], offset, length)
        except (UserError, *files.errors()) as error:
            raise self.bad(record, str(error)) from error

    def parts(self, record: int) -> np.ndarray:
        """Returns the table of a record's parts, int64 (P, 4); see `common.data.parts.find`.

        Only where `has_parts`.

        Raises:
            BadRecord: the index is damaged.
        """
        shard, number = self._place(record)
        index = self._indices[shard]
        start, length = index.table_starts[number], index.table_lengths[number]
        table = shard_index.read_parts(self._open(index.path), int(start), int(length))
        if table is None:
            raise self.bad(record, f"its index is damaged; delete {index.path} to renew it")
        return table

    def read_parts(self, record: int, part_P4: np.ndarray) -> list[bytes]:
        """Returns the bytes of some parts of a record, the checksum of each verified.

        Raises:
            BadRecord: a part is damaged, cut off, or not where the index says.
        """
        path, offset, _ = self.locate(record)
        starts = part_P4[:, 1] + offset + _HEADER
        try:
            found = _read_many(self._open(path), starts.tolist(), part_P4[:, 2].tolist())
        except (UserError, *files.errors()) as error:
            raise self.bad(record, str(error)) from error
        for data, checksum in zip(found, part_P4[:, 3].tolist(), strict=True):
            if google_crc32c.value(data) != checksum:
                raise self.bad(
                    record,
                    "the checksum of a part does not match (damaged file, or changed since its "
                    "index was written)",
                )
        return found

    def _open(self, path: str) -> files.File:
        """Returns an open file; only local ones can be read by several threads at once."""
        if files.is_remote(path):
            return files.File(path)
        return files.kept_open(path, self._reader)

    def _place(self, record: int) -> tuple[int, int]:
        """Returns the number of the shard, and of the record within it."""
        shard = int(np.searchsorted(self._starts, record, side="right")) - 1
        return shard, int(record) - int(self._starts[shard]) + self._skipped[shard]

    def _named(self, record: int) -> tuple[str, int]:
        shard, number = self._place(record)
        return self.paths[shard], number


def _read_many(shard: files.File, starts: list[int], lengths: list[int]) -> list[bytes]:
    """Reads some stretches of a shard; a remote one at once, since every request takes a while."""
    if not shard.remote:
        return [shard.read(at, length) for at, length in zip(starts, lengths, strict=True)]
    first = min(starts)
    last = max(at + length for at, length in zip(starts, lengths, strict=True))
    span = shard.read(first, last - first)
    return [span[a - first : a - first + n] for a, n in zip(starts, lengths, strict=True)]


def find_shards(source: str | os.PathLike) -> list[str]:
    """Returns the sorted shard paths of a folder, a glob or a single file.

    Raises:
        UserError: nothing is there, or a numbered set in a folder is not complete.
    """
    source = os.fspath(source)
    try:
        return _find_shards(source)
    except files.errors() as error:
        raise UserError(f"{source} cannot be read: {error}") from error


def _find_shards(source: str) -> list[str]:
    system = files.gfile(source)
    if any(character in source for character in "*?[") and not system.exists(source):
        paths = [path for path in system.glob(source) if not path.endswith(INDEX_SUFFIX)]
    elif system.isdir(source):
        names = sorted(name.rstrip("/") for name in system.listdir(source))
        shards = [name for name in names if _SHARD_NAME.match(name)]
        paths = [os.path.join(source, name) for name in shards]
        _check_complete(source, shards)
        if not paths:
            visible = [name for name in names if not name.startswith(".")]
            inner = [name for name in visible if system.isdir(os.path.join(source, name))]
            hint = f" Did you mean one of its folders {inner}?" if inner else ""
            raise UserError(
                f"{source} holds no record shards (*.tfrecord or NAME-00000-of-00010).{hint}"
            )
    else:
        paths = [source] if system.exists(source) else []
    if not paths:
        raise UserError(f"No record shards at {source}; give a folder of shards or a glob.")
    return sorted(paths)


def _check_complete(folder: str, names: Iterable[str]) -> None:
    seen: dict[tuple[str, int], set[int]] = {}
    for name in names:
        if match := NUMBERED.match(name):
            key = (match["stem"], int(match["count"]))
            seen.setdefault(key, set()).add(int(match["number"]))
    for (stem, count), numbers in seen.items():
        missing = sorted(set(range(count)) - numbers)
        if missing:
            raise UserError(
                f"{folder}: {len(missing)} of the {count} shards of {stem!r} are missing, first "
                f"number {missing[0]:05d}. Copy them, or name the ones you want with a glob."
            )


def _checksum(data: bytes) -> bytes:
    crc = google_crc32c.value(data)
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)


def _frame_length(shard: files.File, offset: int) -> tuple[int, str]:
    """Returns the payload length of the frame at `offset` and what is wrong with it, or ""."""
    header = shard.read(offset, _HEADER)
    if len(header) < _HEADER:
        return 0, "the shard ends inside this record's header (truncated file)"
    if _checksum(header[:8]) != header[8:]:
        return 0, "the checksum of the record's length does not match (damaged file)"
    (length,) = struct.unpack("<Q", header[:8])
    if offset + _HEADER + length + _FOOTER > shard.size:
        return 0, "the shard ends inside this record (truncated file)"
    return length, ""


def _next_frame(shard: files.File, offset: int) -> int:
    """Returns the offset of the next whole frame at or after `offset`, or the end of the shard."""
    while offset < shard.size:
        chunk = shard.read(offset, _SEARCH_BYTES + _HEADER)
        # No record has 4 GiB, so the upper half of a length is four zero bytes.
        zeros = chunk.find(b"\0\0\0\0", 4)
        while 0 <= zeros - 4 < _SEARCH_BYTES:
            length, why = _frame_length(shard, offset + zeros - 4)
            if not why and length:
                return offset + zeros - 4
            zeros = chunk.find(b"\0\0\0\0", zeros + 1)
        offset += _SEARCH_BYTES
    return shard.size


def _read_frame(shard: files.File, path: str, number: int, offset: int, length: int) -> bytes:
    found, why = _frame_length(shard, offset)
    if why:
        raise BadRecord(path, number, why)
    if found != length:
        raise BadRecord(
            path, number, f"the index is of another file; delete {path}{INDEX_SUFFIX} to renew it"
        )
    data = shard.read(offset + _HEADER, length + _FOOTER)
    payload = data[:length]
    if _checksum(payload) != data[length:]:
        raise BadRecord(path, number, "the checksum of the record does not match (damaged file)")
    return payload
