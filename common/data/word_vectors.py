"""Vectors of words from published files, as the table of a vocabulary.

Three formats are told apart by their contents, each plain or as ``.gz``: word2vec's text and binary
forms (https://code.google.com/archive/p/word2vec; fastText writes the text form) and GloVe's text
(https://nlp.stanford.edu/projects/glove). Files are streamed: only wanted words are kept. `save`
keeps the table with its words in one ``.npz``.
"""

from __future__ import annotations

import gzip
import io
import logging
import os
import zlib
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from common.data import files, text
from common.data.text import Vocabulary
from common.errors import UserError

UNKNOWN = ("normal", "zeros")

_CHUNK = 1 << 20  # bytes read at once
_LONGEST_WORD = 10_000  # bytes; a longer one is no word, and the file something else
_GZIP_MAGIC = b"\x1f\x8b"
_PRINTABLE = frozenset(range(32, 127)) | frozenset(b"\t")
_NUMBERS = frozenset(b"0123456789+-.eE ")
_TEXT_BYTES = 32

_log = logging.getLogger(__name__)


def read(
    path: str | os.PathLike, vocabulary: Vocabulary, unknown: str = "normal", seed: int = 0
) -> np.ndarray:
    """Returns the float32 table (vocabulary.num_ids, D) of a file's vectors; row 0 is zeros.

    Words are looked up as they are written; of a word that the file has twice the first one counts.

    Args:
        path: the file.
        vocabulary: which words, in which order.
        unknown: what becomes of words that the file lacks, which are counted and logged: "normal"
            draws them from a normal of mean 0 and the root mean square of the vectors found;
            "zeros" makes them like padding.
        seed: of the draws.

    Raises:
        UserError: the file cannot be read or is malformed (the message names the line, or the entry
            of a binary file), or it has none of the words.
    """
    if unknown not in UNKNOWN:
        raise ValueError(f"unknown={unknown!r}; it must be one of {', '.join(UNKNOWN)}")
    row_of = {word.encode(errors="replace"): row for row, word in enumerate(vocabulary.words, 1)}
    found: dict[int, np.ndarray] = {}
    try:
        for word, vector_D in _entries(path, row_of):
            found.setdefault(row_of[word], vector_D)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if not found:
        raise UserError(
            f"{path} has none of the {len(vocabulary.words)} words of the vocabulary, such as "
            f"{', '.join(map(repr, vocabulary.words[:3]))}; do both use the same case of letters?"
        )
    vectors_FD = np.stack(list(found.values()))
    table_VD = np.zeros((vocabulary.num_ids, vectors_FD.shape[1]), np.float32)
    if unknown == "normal":
        scale = np.sqrt(np.mean(np.square(vectors_FD, dtype=np.float64)))
        noise_VD = np.random.default_rng(seed).standard_normal(table_VD.shape, np.float32)
        table_VD[1:] = np.float32(scale) * noise_VD[1:]
    table_VD[list(found)] = vectors_FD
    _log.info(
        "%s has %d of %d words; the others are %s",
        path,
        len(found),
        len(row_of),
        "drawn at random" if unknown == "normal" else "zeros",
    )
    return table_VD


def save(path: str | os.PathLike, vocabulary: Vocabulary, table_VD: np.ndarray) -> None:
    """Writes words and table to an ``.npz`` that `load` and `Vocabulary.read` read."""
    buffer = io.BytesIO()
    np.savez(buffer, words=np.array(vocabulary.words, np.str_), vectors=table_VD)
    files.write_whole(os.fspath(path), buffer.getbuffer())


def load(path: str | os.PathLike, vocabulary: Vocabulary) -> np.ndarray | None:
    """Returns the float32 table (vocabulary.num_ids, D) that is stored with a vocabulary's words.

    None: the file is one of words alone.

    Raises:
        UserError: the file cannot be read, or the table is not one of this vocabulary.
    """
    table_VD = text.archived(path, "vectors") if text.is_archive(path) else None
    if table_VD is None:
        return None
    if table_VD.ndim != 2 or table_VD.dtype.kind != "f" or len(table_VD) != vocabulary.num_ids:
        raise UserError(
            f"{path}: the array 'vectors' has shape {table_VD.shape} and type {table_VD.dtype}; "
            f"with {len(vocabulary.words)} words it must be of floats and have "
            f"{vocabulary.num_ids} rows, the first for the padding."
        )
    return _checked(table_VD.astype(np.float32, copy=False), f"{path}, array 'vectors'")


def _entries(
    path: str | os.PathLike, wanted: dict[bytes, int]
) -> Iterator[tuple[bytes, np.ndarray]]:
    """Yields the wanted words of a file with their vectors."""
    with _open(path) as file:
        first = file.readline(_CHUNK)
        after = file.read(_LONGEST_WORD)
    header = first.split()
    has_header = len(header) == 2 and all(part.isdigit() for part in header)
    if not has_header:
        yield from _text(path, wanted, None, len(header) - 1)
        return
    number, dim = map(int, header)
    if number < 1 or dim < 1:
        raise UserError(f"{path}, line 1: {number} words of {dim} numbers cannot be.")
    reader = _binary if _is_binary(after, dim) else _text
    yield from reader(path, wanted, number, dim)


def _open(path: str | os.PathLike) -> BinaryIO:
    with open(path, "rb") as file:
        packed = file.read(2) == _GZIP_MAGIC
    return io.BufferedReader(gzip.open(path), _CHUNK) if packed else open(path, "rb", _CHUNK)


def _is_binary(after_header: bytes, dim: int) -> bool:
    """Tells word2vec's forms apart: whether the first word is followed by anything but text."""
    line = after_header.lstrip(b"\n").partition(b"\n")[0].rstrip()
    _, _, numbers = line.partition(b" ")
    if len(numbers) >= _TEXT_BYTES:  # so much text is text, be it damaged
        return not _PRINTABLE.issuperset(numbers)
    return len(numbers.split()) != dim or not _NUMBERS.issuperset(numbers)


def _text(
    path: str | os.PathLike, wanted: dict[bytes, int], number: int | None, dim: int
) -> Iterator[tuple[bytes, np.ndarray]]:
    """Reads lines of a word and `dim` numbers, after a header where `number` of them is given."""
    if dim < 1:
        raise UserError(f"{path}, line 1: expected a word and its numbers, separated by spaces.")
    lines = 0
    with _open(path) as file:
        for place, line in enumerate(file, 1):
            if place == 1 and number is not None:
                continue
            line, lines = line.rstrip(), lines + 1
            if line.count(b" ") < dim:
                raise UserError(
                    f"{path}, line {place}: expected a word and {dim} numbers, got {line[:60]!r}."
                )
            # From the right: GloVe has words with spaces in them.
            word, *numbers = line.rsplit(b" ", dim)
            if word in wanted:
                yield word, _vector(numbers, f"{path}, line {place}")
    if number is not None and lines != number:
        raise UserError(
            f"{path} has {lines} words, but its first line says {number}; it is not whole."
        )


def _vector(numbers: list[bytes], where: str) -> np.ndarray:
    try:
        vector_D = np.array([float(value) for value in numbers], np.float32)
    except ValueError as error:
        raise UserError(f"{where}: {error}.") from error
    return _checked(vector_D, where)


def _checked(vectors: np.ndarray, where: str) -> np.ndarray:
    if not np.isfinite(vectors).all():
        raise UserError(f"{where}: it has numbers that are not finite.")
    return vectors


def _binary(
    path: str | os.PathLike, wanted: dict[bytes, int], number: int, dim: int
) -> Iterator[tuple[bytes, np.ndarray]]:
    """Reads entries of a word, a space and `dim` little-endian float32, maybe with line ends."""
    size = 4 * dim
    with _open(path) as file:
        file.readline()
        data, at = b"", 0
        for place in range(1, number + 1):
            while (space := data.find(b" ", at)) < 0 or len(data) < space + 1 + size:
                if space < 0 and len(data) - at > _LONGEST_WORD:
                    raise UserError(f"{path}, entry {place}: expected a word and a space.")
                chunk = file.read(_CHUNK)
                if not chunk:
                    raise UserError(
                        f"{path} ends in entry {place} of the {number} that its first line says; "
                        "it is not whole."
                    )
                data, at = data[at:] + chunk, 0
            word = data[at:space].lstrip(b"\n")
            at = space + 1 + size
            if word in wanted:
                vector_D = np.frombuffer(data, "<f4", dim, space + 1).astype(np.float32)
                yield word, _checked(vector_D, f"{path}, entry {place}")
        if (data[at:] + file.read(_CHUNK)).strip():
            raise UserError(f"{path} goes on after the {number} entries that its first line says.")
