"""Record shards: TFRecord files read at random through a small index of offsets beside each.

A TFRecord file is a sequence of frames: payload length (uint64), masked CRC-32C of the length
(uint32), payload, masked CRC-32C of the payload (uint32), all little-endian. Every read checks both
sums, so a flipped byte is an error that names shard and record, never a changed example.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import logging
import os
import pathlib
import re
import struct
import tempfile
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import google_crc32c
import numpy as np

from common.errors import UserError

INDEX_SUFFIX = ".index"
_HEADER = 12  # length and its checksum
_FOOTER = 4  # checksum of the payload
_INDEX_MAGIC = b"ZOEINDX1"
_INDEX_HEADER = struct.Struct("<8sQQI")  # magic, shard bytes, records, CRC-32C of what follows
_SEARCH_BYTES = 1 << 20
_SHARD_NAME = re.compile(r".*(\.tfrecords?|-\d{5,}-of-\d{5,})$")
_NUMBERED = re.compile(r"(?P<stem>.*)-(?P<number>\d{5,})-of-(?P<count>\d{5,})(\.tfrecords?)?$")

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


@dataclasses.dataclass(frozen=True)
class Index:
    """Where the records of one shard lie.

    A damaged stretch is listed like a record, so that numbers stay stable and reading it fails with
    its name: nothing disappears from the count.
    """

    offsets: np.ndarray  # int64, of the first byte of each frame
    lengths: np.ndarray  # int64, bytes of payload

    def __len__(self) -> int:
        return len(self.offsets)


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
    with _File(path) as shard:
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
    """Scans a shard and writes its index beside it, whole or not at all; returns the index.

    Raises:
        OSError: the folder cannot be written.
        UserError: the shard cannot be read.
    """
    index, _ = scan(path)
    _write_index(str(path) + INDEX_SUFFIX, index, _size(path))
    return index


def load_index(path: str | os.PathLike) -> Index:
    """Returns the index of a shard, made by one scan where it is missing, stale or damaged.

    A new index is kept beside the shard, or under ``$XDG_CACHE_HOME/zoetrope`` where the folder
    cannot be written.

    Raises:
        UserError: the shard cannot be read.
    """
    size = _size(path)
    places = (str(path) + INDEX_SUFFIX, _cached_index(path))
    for place in places:
        index = _read_index(place, size)
        if index is not None:
            return index
    index, problems = scan(path)
    for problem in problems:
        _log.warning("%s, record %d at byte %d: %s", path, *problem)
    for place in places:
        try:
            _write_index(place, index, size)
            break
        except _os_errors():
            continue
    return index


def stored_index(path: str | os.PathLike) -> Index | None:
    """Returns the index that lies beside a shard, or None where it is damaged or of another file.

    Unlike `load_index` it never writes.
    """
    return _read_index(str(path) + INDEX_SUFFIX, _size(path))


def read_record(path: str | os.PathLike, number: int, offset: int, length: int) -> bytes:
    """Returns the payload of one record of a shard, both checksums verified.

    Raises:
        BadRecord: the record is damaged, or not where `offset` and `length` say.
        UserError: the shard cannot be read.
    """
    with _File(path) as shard:
        return _read_frame(shard, str(path), number, offset, length)


class RecordSet:
    """All records of a folder or glob of shards, addressed by one number each."""

    def __init__(self, paths: Sequence[str], parts: Sequence[tuple[int, int]] | None = None):
        """Opens shards; record numbers follow their order.

        Args:
            paths: of the shards.
            parts: first record and end of what is used of each shard; all of it by default.
        """
        self.paths = list(paths)
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            indices = list(pool.map(load_index, self.paths))
        used = [slice(*part) for part in parts] if parts else [slice(None)] * len(indices)
        offsets = [index.offsets[part] for index, part in zip(indices, used, strict=True)]
        lengths = [index.lengths[part] for index, part in zip(indices, used, strict=True)]
        self._skipped = [part.start or 0 for part in used]
        self._starts = np.cumsum([0] + [len(shard) for shard in offsets])
        self._offsets, self._lengths = np.concatenate(offsets), np.concatenate(lengths)

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

    def __len__(self) -> int:
        return len(self._offsets)

    def locate(self, record: int) -> tuple[str, int, int]:
        """Returns path, byte offset of the frame and payload length of a record."""
        path, _ = self._place(record)
        return path, int(self._offsets[record]), int(self._lengths[record])

    def name(self, record: int) -> str:
        """Returns "SHARD:NUMBER", which finds the record again."""
        path, number = self._place(record)
        return f"{os.path.basename(path)}:{number}"

    def _place(self, record: int) -> tuple[str, int]:
        shard = int(np.searchsorted(self._starts, record, side="right")) - 1
        return self.paths[shard], record - int(self._starts[shard]) + self._skipped[shard]

    def read(self, record: int) -> bytes:
        """Returns the payload of a record, both checksums verified.

        Raises:
            BadRecord: the record is damaged, cut off, or not where the index says.
        """
        path, offset, length = self.locate(record)
        _, number = self._place(record)
        try:
            return read_record(path, number, offset, length)
        except (UserError, *_os_errors()) as error:
            raise BadRecord(path, number, str(error)) from error


def find_shards(source: str | os.PathLike) -> list[str]:
    """Returns the sorted shard paths of a folder, a glob or a single file.

    Raises:
        UserError: nothing is there, or a numbered set in a folder is not complete.
    """
    source = os.fspath(source)
    files = _files(source)
    if any(character in source for character in "*?["):
        paths = [path for path in _glob(source) if not path.endswith(INDEX_SUFFIX)]
    elif files.isdir(source):
        names = sorted(name.rstrip("/") for name in files.listdir(source))
        shards = [name for name in names if _SHARD_NAME.match(name)]
        paths = [os.path.join(source, name) for name in shards]
        _check_complete(source, shards)
        if not paths:
            inner = [name for name in names if files.isdir(os.path.join(source, name))]
            hint = f" Did you mean one of its folders {inner}?" if inner else ""
            raise UserError(
                f"{source} holds no record shards (*.tfrecord or NAME-00000-of-00010).{hint}"
            )
    else:
        paths = [source] if files.exists(source) else []
    if not paths:
        raise UserError(f"No record shards at {source}; give a folder of shards or a glob.")
    return sorted(paths)


def _check_complete(folder: str, names: Iterable[str]) -> None:
    seen: dict[tuple[str, int], set[int]] = {}
    for name in names:
        if match := _NUMBERED.match(name):
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


def _frame_length(shard: _File, offset: int) -> tuple[int, str]:
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


def _next_frame(shard: _File, offset: int) -> int:
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


def _read_frame(shard: _File, path: str, number: int, offset: int, length: int) -> bytes:
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


def _read_index(path: str, shard_size: int) -> Index | None:
    """Returns the index at `path` when it is whole and of a shard of that size."""
    try:
        with _File(path) as file:
            data = file.read(0, file.size)
    except UserError:
        return None
    if len(data) >= _INDEX_HEADER.size:
        magic, size, count, crc = _INDEX_HEADER.unpack_from(data)
        pairs = data[_INDEX_HEADER.size :]
        whole = magic == _INDEX_MAGIC and len(pairs) == 16 * count
        if whole and google_crc32c.value(pairs) == crc and size == shard_size:
            offsets, lengths = np.frombuffer(pairs, "<i8").reshape(2, count).astype(np.int64)
            return Index(offsets, lengths)
    _log.warning("%s is damaged or of another file; the shard is scanned again.", path)
    return None


def _write_index(path: str, index: Index, shard_size: int) -> None:
    pairs = np.stack([index.offsets, index.lengths]).astype("<i8").tobytes()
    header = (_INDEX_MAGIC, shard_size, len(index), google_crc32c.value(pairs))
    data = _INDEX_HEADER.pack(*header) + pairs
    if "://" in path:
        with _files(path).GFile(path, "wb") as file:  # object stores show a file only when whole
            file.write(data)
        return
    if path.startswith(_cache_folder()):
        os.makedirs(os.path.dirname(path), exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=os.path.dirname(path) or ".", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _cache_folder() -> str:
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.path.join(base, "zoetrope", "index")


def _cached_index(path: str | os.PathLike) -> str:
    absolute = os.fspath(path) if "://" in os.fspath(path) else os.path.abspath(path)
    return os.path.join(_cache_folder(), hashlib.sha256(absolute.encode()).hexdigest() + ".index")


class _File:
    """One open file, local or on any file system TensorFlow knows, read at given offsets."""

    def __init__(self, path: str | os.PathLike):
        self.path = os.fspath(path)
        self._remote: Any = None
        self._descriptor = -1
        try:
            self.size = _size(path)
            if "://" in self.path:
                self._remote = _files(self.path).GFile(self.path, "rb")
            else:
                self._descriptor = os.open(self.path, os.O_RDONLY)
        except _os_errors() as error:
            raise UserError(f"{self.path} cannot be read: {error}") from error

    def read(self, offset: int, length: int) -> bytes:
        if self._remote is None:
            return os.pread(self._descriptor, length, offset)
        self._remote.seek(offset)
        return self._remote.read(length)

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *_: object) -> None:
        if self._remote is not None:
            self._remote.close()
        else:
            os.close(self._descriptor)


class _LocalFiles:
    """The calls of `tf.io.gfile` that local paths need, without the seconds TensorFlow costs."""

    isdir = staticmethod(os.path.isdir)
    exists = staticmethod(os.path.exists)
    listdir = staticmethod(os.listdir)


def _files(path: str) -> Any:
    if "://" not in path:
        return _LocalFiles
    from common.tf import tf

    return tf.io.gfile


def _glob(pattern: str) -> list[str]:
    if "://" in pattern:
        return _files(pattern).glob(pattern)
    import glob

    return glob.glob(pattern, recursive=True)


def _size(path: str | os.PathLike) -> int:
    path = os.fspath(path)
    try:
        if "://" in path:
            return _files(path).stat(path).length
        return pathlib.Path(path).stat().st_size
    except _os_errors() as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def _os_errors() -> tuple[type[BaseException], ...]:
    """Errors of files: TensorFlow's own kind only when a remote path has already loaded it."""
    import sys

    if "tensorflow" in sys.modules:
        return (OSError, sys.modules["tensorflow"].errors.OpError)
    return (OSError,)
