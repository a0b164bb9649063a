"""Words to numbers: a vocabulary and the tokeniser of MIL-NCE (Miech et al., 2020).

A word's id is its place in the vocabulary plus one; 0 pads. The released ``s3d_dict.npy`` is read
as it is. An ``.npz`` may hold the words' vectors beside them; see `common.data.word_vectors.load`.
"""

from __future__ import annotations

import collections
import io
import logging
import os
import re
import unicodedata
from collections.abc import Iterable, Sequence

import numpy as np

from common.data import files
from common.errors import UserError

PADDING = 0  # the id that stands for no word

_WORD = re.compile(r"[\w']+")
_NPY_MAGIC = b"\x93NUMPY"
_NPZ_MAGIC = b"PK\x03\x04"

_log = logging.getLogger(__name__)


def tokenise(sentence: str, lower: bool = False) -> list[str]:
    """Returns the words of a sentence: runs of letters, digits, underscores and apostrophes.

    A hyphen separates words, "don't" is one. The published training code keeps the case of letters,
    the published release lowers it. Letters and their accents are composed first (NFC), as they are
    in most texts.
    """
    sentence = unicodedata.normalize("NFC", sentence)
    return _WORD.findall(sentence.lower() if lower else sentence)


class Vocabulary:
    """Words in a fixed order; the id of ``words[i]`` is ``i + 1``.

    Where a word occurs twice the later place counts, as in the published code.
    """

    def __init__(self, words: Iterable[str]):
        self.words = tuple(words)
        self._ids = {word: place for place, word in enumerate(self.words, 1)}
        if twice := len(self.words) - len(self._ids):
            _log.warning("the vocabulary has %d words twice; their later places count", twice)

    @property
    def num_ids(self) -> int:
        """Number of ids, with that of the padding: the rows of a table of words."""
        return len(self.words) + 1

    def ids(self, sentences: Sequence[str | bytes], max_words: int, lower: bool) -> np.ndarray:
        """Turns sentences into int32 ids (N, max_words), as published.

        Unknown words are left out, what is longer is cut, what is shorter padded with 0 at its end.

        Args:
            sentences: text, or its UTF-8 bytes as TensorFlow gives it.
            max_words: known words that are kept of a sentence.
            lower: whether letters are made lower case first.
        """
        ids_NW = np.full((len(sentences), max_words), PADDING, np.int32)
        for row_W, sentence in zip(ids_NW, sentences, strict=True):
            if isinstance(sentence, bytes):
                sentence = sentence.decode(errors="replace")
            known = [self._ids[word] for word in tokenise(sentence, lower) if word in self._ids]
            row_W[: len(known)] = known[:max_words]
        return ids_NW

    def sentences(self, ids_NW: np.ndarray) -> list[str]:
        """Returns the words that rows of ids stand for; "" for padding alone."""
        return [" ".join(self.words[place - 1] for place in row if place) for row in ids_NW]

    def known(self, ids_NW: np.ndarray) -> np.ndarray:
        """Returns which rows of ids have a word, bool (N,): unknown words have no ids."""
        return (ids_NW != PADDING).any(axis=1)

    @classmethod
    def count(
        cls,
        sentences: Iterable[str],
        min_count: int = 1,
        max_size: int | None = None,
        lower: bool = False,
    ) -> Vocabulary:
        """Makes the vocabulary of a text: the most frequent words first, equals by alphabet.

        Args:
            sentences: the text, read once.
            min_count: words that occur less often are left out.
            max_size: words that are kept at most; None keeps all.
            lower: whether letters are made lower case first.
        """
        counts: collections.Counter[str] = collections.Counter()
        for sentence in sentences:
            counts.update(tokenise(sentence, lower))
        frequent = [word for word, number in counts.items() if number >= min_count]
        return cls(sorted(frequent, key=lambda word: (-counts[word], word))[:max_size])

    @classmethod
    def read(cls, path: str | os.PathLike) -> Vocabulary:
        """Reads a text file of a word per line, an ``.npy`` of words, or ``words`` in an ``.npz``.

        Raises:
            UserError: it cannot be read or is neither; nothing in it is executed.
        """
        if is_archive(path):
            vocabulary = cls(_checked_words(path, archived(path, "words")))
        else:
            with files.File(path) as file:
                data = file.read(0, file.size)
            is_array = data.startswith(_NPY_MAGIC)
            vocabulary = cls(_array_words(path, data) if is_array else _line_words(path, data))
        if not vocabulary.words:
            raise UserError(f"{path} has no words; a vocabulary is a text file of one word a line.")
        return vocabulary

    def write(self, path: str | os.PathLike) -> None:
        """Writes the words to a text file, one per line, which `read` reads.

        Raises:
            UserError: a word is empty or has a space in it.
        """
        for place, word in enumerate(self.words, 1):
            if word.split() != [word]:
                raise UserError(
                    f"word {place} of the vocabulary, {word!r}, cannot be written to {path}: a "
                    "text file holds one word without spaces per line."
                )
        data = "".join(f"{word}\n" for word in self.words).encode()
        files.write_whole(os.fspath(path), data)


def is_archive(path: str | os.PathLike) -> bool:
    """Returns whether a file is an ``.npz``, by its contents.

    Raises:
        UserError: it cannot be read.
    """
    with files.File(path) as file:
        return file.read(0, len(_NPZ_MAGIC)) == _NPZ_MAGIC


def archived(path: str | os.PathLike, name: str) -> np.ndarray | None:
    """Returns an array of an ``.npz`` file, or None where it has none of that name.

    Raises:
        UserError: it cannot be read; nothing in it is executed.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return arrays.get(name)
    except Exception as error:  # damaged input can make the reader fail in any way
        raise UserError(f"{path} cannot be read as an .npz of arrays: {error}") from error


def _line_words(path: str | os.PathLike, data: bytes) -> list[str]:
    try:
        lines = data.decode("utf-8-sig").replace("\r\n", "\n").split("\n")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UserError(f"{path}, line {line}: a vocabulary must be text in UTF-8.") from error
    if lines[-1] == "":
        lines.pop()  # what follows the last line end
    for number, line in enumerate(lines, 1):
        if line.split() != [line]:
            raise UserError(f"{path}, line {number}: {line[:80]!r} must be one word.")
    return lines


def _array_words(path: str | os.PathLike, data: bytes) -> list[str]:
    try:
        words = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, TypeError) as error:
        raise UserError(f"{path} cannot be read as an array of words: {error}") from error
    return _checked_words(path, words)


def _checked_words(path: str | os.PathLike, words: np.ndarray | None) -> list[str]:
    if words is None:
        raise UserError(f"{path} has no array 'words'; python -m common.vocabulary writes one.")
    if words.ndim != 1 or words.dtype.kind != "U":
        raise UserError(
            f"{path} holds an array of shape {words.shape} and type {words.dtype}; a vocabulary is "
            "one-dimensional and of text."
        )
    return words.tolist()
