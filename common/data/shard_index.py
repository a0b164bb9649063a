"""The side file of a shard: where its records lie, and where the parts of each record lie.

With the parts, a clip of 16 frames is read without the other 234 of its record. Every part has its
own checksum, so what is used is verified and what is not is not even read. Parts are noted when
records are written; for shards of other writers only the records are.

Layout, little-endian: header; per record offset, length and begin of its table of parts (int64; 0
for none), under one checksum; then the tables, each its checksum (uint32) and uint32 rows `PARTS`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
import struct
from collections.abc import Sequence

import google_crc32c
import numpy as np

from common.data import files
from common.errors import UserError

SUFFIX = ".index"
PARTS = ("kind", "start", "length", "checksum")  # the columns of a table; see `common.data.parts`

_MAGIC = b"ZOEINDX2"
_HEADER = struct.Struct("<8sQQI")  # magic, shard bytes, records, CRC-32C of the list of records
_CHECKSUM = struct.Struct("<I")

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Index:
    """Where the records of one shard lie.

    A damaged stretch is listed like a record, so that numbers stay stable and reading it fails with
    its name: nothing disappears from the count.
    """

    offsets: np.ndarray  # int64, of the first byte of each frame
    lengths: np.ndarray  # int64, bytes of payload
    # Where `read_parts` finds the table of each record, and the bytes it takes; 0 for no table.
    path: str = ""
    table_starts: np.ndarray | None = None
    table_lengths: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.offsets)


def read(path: str, shard_size: int) -> Index | None:
    """Returns the index at `path` when it is whole and of a shard of that size."""
    try:
        with files.File(path) as file:
            header = file.read(0, _HEADER.size)
            if len(header) == _HEADER.size:
                magic, size, count, crc = _HEADER.unpack(header)
                # A damaged count must not ask for more memory than there is.
                listed = file.read(_HEADER.size, min(24 * count, file.size))
                whole = magic == _MAGIC and google_crc32c.value(listed) == crc
                if whole and len(listed) == 24 * count and size == shard_size:
                    offsets, lengths, starts = np.frombuffer(listed, "<i8").reshape(3, count)
                    ends = np.append(starts[1:], file.size)
                    sizes = np.where(starts > 0, ends - starts, 0)
                    return Index(offsets, lengths, path, starts, sizes)
    except UserError:
        return None
    _log.warning("%s is damaged or of another file; the shard is scanned again.", path)
    return None


def write(path: str, index: Index, shard_size: int, tables: Sequence[np.ndarray] | None) -> None:
    """Writes an index, with the table of parts of every record where they are given."""
    blocks = []
    for table in tables or ():
        rows = table.astype("<u4").tobytes()
        blocks.append(_CHECKSUM.pack(google_crc32c.value(rows)) + rows)
    starts = np.zeros(len(index), np.int64)
    if tables is not None:
        sizes = [len(block) for block in blocks]
        starts = _HEADER.size + 24 * len(index) + np.cumsum([0, *sizes])[:-1]
    listed = np.stack([index.offsets, index.lengths, starts]).astype("<i8").tobytes()
    header = _HEADER.pack(_MAGIC, shard_size, len(index), google_crc32c.value(listed))
    if path.startswith(_cache_folder()):
        os.makedirs(os.path.dirname(path), exist_ok=True)
    files.write_whole(path, b"".join([header, listed, *blocks]))


def read_parts(file: files.File, start: int, length: int) -> np.ndarray | None:
    """Returns one table of parts, int64 (rows, columns); None where the index is damaged."""
    block = file.read(start, length)
    rows = block[_CHECKSUM.size :]
    if len(block) < length or _CHECKSUM.pack(google_crc32c.value(rows)) != block[:4]:
        return None
    return np.frombuffer(rows, "<u4").reshape(-1, len(PARTS)).astype(np.int64)


def places(shard: str | os.PathLike) -> tuple[str, str]:
    """Returns where the index of a shard may lie: beside it, or in the user's cache."""
    shard = os.fspath(shard)
    absolute = shard if files.is_remote(shard) else os.path.abspath(shard)
    name = hashlib.sha256(os.fsencode(absolute)).hexdigest() + SUFFIX
    return shard + SUFFIX, os.path.join(_cache_folder(), name)


def _cache_folder() -> str:
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.path.join(base, "zoetrope", "index")
