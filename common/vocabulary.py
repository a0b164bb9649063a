"""Makes the vocabulary of a text tower: ``python -m common.vocabulary --output=words.txt``.

The words are those of the captions in record folders (``--source``), the most frequent first, or of
a file that has them already (``--words``). With ``--vectors`` the result is an ``.npz`` that also
holds the words' vectors, with which the table of a text tower begins. With ``--pieces=N`` the
captions' words are cut into N pieces at most, which are learned, for a text tower that is a
transformer; the result is a ``vocab.txt`` like BERT's. Nothing is overwritten.
"""

from __future__ import annotations

import os
import pathlib
import shlex
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from absl import flags

from common import launch
from common.errors import UserError

if TYPE_CHECKING:
    from common.data.text import Vocabulary

FLAGS = flags.FLAGS

_COUNTING = ("min_count", "max_size", "lower")


def define_flags() -> None:
    """Defines the command line."""
    flags.DEFINE_string("output", None, "file to make: words.txt, or words.npz", required=True)
    flags.DEFINE_string("words", "", "a vocabulary: a word per line, .npy or .npz")
    flags.DEFINE_string("source", "", "folders of records whose captions are counted: A[,B]")
    flags.DEFINE_integer("min_count", 1, "--source: words that occur less often are left out", 1)
    flags.DEFINE_integer("max_size", None, "--source: words to keep at most; default: all", 1)
    flags.DEFINE_boolean("lower", True, "--source: make letters lower case first")
    flags.DEFINE_integer("pieces", None, "--source: learn so many word pieces instead of words", 1)
    flags.DEFINE_string("vectors", "", "vectors of words: word2vec or GloVe, plain or .gz")
    flags.DEFINE_enum(
        "unknown", "normal", ["normal", "zeros"], "vectors of words that --vectors lacks"
    )


def main(_: list[str]) -> None:
    """Makes the vocabulary and says what to type next."""
    output = pathlib.Path(FLAGS.output)
    _check_flags(output)
    if FLAGS.pieces:
        _learn_pieces(output)
        return
    from common.data import word_vectors
    from common.data.text import Vocabulary

    vocabulary = _counted() if FLAGS.source else Vocabulary.read(FLAGS.words)
    size = len(vocabulary.words)
    settings = {"vocabulary": output, "words": size}
    if FLAGS.source:
        settings["lower"] = FLAGS.lower
    if FLAGS.vectors:
        table_VD = word_vectors.read(FLAGS.vectors, vocabulary, FLAGS.unknown)  # logs what it lacks
        word_vectors.save(output, vocabulary, table_VD)
        settings["word_dim"] = table_VD.shape[1]
        print(f"{output}: {size} words with vectors of {table_VD.shape[1]} numbers")
    else:
        vocabulary.write(output)
        print(f"{output}: {size} words")
    values = shlex.join(f"--config.model.text.{key}={value}" for key, value in settings.items())
    print(f"Train with it: python -m common.train --config=configs/mil_nce_howto100m.py {values}")


def _check_flags(output: pathlib.Path) -> None:
    """Says what is wrong before anything slow is done."""
    if FLAGS["unknown"].present and not FLAGS.vectors:
        raise UserError("--unknown is of --vectors, which are not given.")
    if bool(FLAGS.words) == bool(FLAGS.source):
        raise UserError(
            "Give either --words=FILE, a vocabulary that exists, or --source=RECORDS, whose "
            "captions are counted."
        )
    counting = [f"--{name}" for name in _COUNTING if FLAGS[name].present]
    if FLAGS.words and counting:
        raise UserError(f"{counting[0]} is about counting and goes with --source, not --words.")
    _check_pieces(counting)
    if FLAGS.vectors and not os.path.isfile(FLAGS.vectors):
        raise UserError(f"--vectors: there is no file {FLAGS.vectors}.")
    if FLAGS.vectors and output.suffix != ".npz":
        raise UserError(
            f"--output={output}: words with vectors are an .npz; name it {output.stem}.npz."
        )
    if not FLAGS.vectors and output.suffix in (".npy", ".npz"):
        raise UserError(
            f"--output={output}: words without vectors are a text file; name it {output.stem}.txt, "
            "or give --vectors=FILE."
        )
    if output.exists():
        raise UserError(f"{output} exists already; nothing was written. Name another --output.")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        writable = os.access(output.parent, os.W_OK)
    except OSError as error:
        raise UserError(f"--output={output} cannot be written: {error}") from error
    if not writable:
        raise UserError(f"--output={output} cannot be written: {output.parent} is read-only.")


def _check_pieces(counting: list[str]) -> None:
    """Says which flags mean nothing for word pieces."""
    if FLAGS.pieces is None:
        return
    if FLAGS.words:
        raise UserError("--pieces are learned from captions and go with --source, not --words.")
    if others := counting + ["--vectors"] * bool(FLAGS.vectors):
        raise UserError(
            f"{others[0]} is about whole words; --pieces are always lower case, as many as it says "
            "and without vectors. Leave one of the two out."
        )


def _learn_pieces(output: pathlib.Path) -> None:
    """Learns word pieces of all captions and writes them.

    Raises:
        UserError: a source cannot be opened or has no captions, or the pieces are too few.
    """
    from common.data.word_pieces import WordPieces

    pieces = WordPieces.train(_captions(), FLAGS.pieces, f"the captions of {FLAGS.source}")
    pieces.write(output)
    print(f"{output}: {pieces.num_ids} word pieces")


def _counted() -> Vocabulary:
    """Counts the words of all captions.

    Raises:
        UserError: a source cannot be opened or has no captions, or no word remains.
    """
    from common.data.text import Vocabulary

    vocabulary = Vocabulary.count(_captions(), FLAGS.min_count, FLAGS.max_size, FLAGS.lower)
    if not vocabulary.words:
        raise UserError(
            f"No word occurs {FLAGS.min_count} times in the captions of {FLAGS.source}; lower "
            "--min_count, or look into the records: python -m common.inspect."
        )
    return vocabulary


def _captions() -> Iterator[str]:
    """Yields the captions of all records; those that cannot be read are counted and named."""
    import tqdm

    from common.data import shards, sources
    from common.evaluation import captioned

    opened = [sources.open_source(name) for name, _ in sources.split_mixture(FLAGS.source)]
    for source in opened:
        if "captions" not in source.modalities:
            raise UserError(f"--source: {source.name} has no captions.")
    total, bad = sum(len(source.records) for source in opened), []
    with tqdm.tqdm(total=total, unit="record", disable=not sys.stderr.isatty()) as bar:
        for source in opened:
            for number in range(len(source.records)):
                try:
                    yield from captioned.of_record(source, number)[1]
                except (shards.BadRecord, ValueError):
                    bad.append(source.records.name(number))
                bar.update()
    print(f"{total - len(bad)} of {total} records read")
    if bad:
        print(f"Left out, for they cannot be read: {len(bad)}; the first is {bad[0]}")


if __name__ == "__main__":
    launch.run(main, define_flags)
