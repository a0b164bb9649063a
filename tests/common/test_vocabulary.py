"""The vocabulary command: what records or a file say, as a file that a text tower takes."""

import pathlib
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

from common import methods, vocabulary
from common.data import records, shards, word_vectors
from common.data.text import Vocabulary
from common.data.word_pieces import WordPieces
from common.errors import UserError
from configs import mil_nce_base

ROOT = pathlib.Path(__file__).parents[2]
NAN = float("nan")


def write_records(folder, *captions, damage=False):
    """A clip for every caption, whose frames are no pictures; the last one may be damaged."""
    folder.mkdir()
    clips = [
        records.Clip(id=f"{n}", frames_jpeg=[b"\xff\xd8"], captions=[(text, NAN, NAN)])
        for n, text in enumerate(captions)
    ]
    data = bytearray(b"".join(shards.frame(records.serialize(clip)) for clip in clips))
    if damage:
        data[-6] ^= 1
    (folder / "x.tfrecord").write_bytes(data)
    return folder


def write_vectors(path, **vectors):
    lines = [" ".join([word, *map(str, vector)]) for word, vector in vectors.items()]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def run():
    """Runs the command in this process with the flags given."""
    before = set(flags.FLAGS)
    vocabulary.define_flags()
    added = set(flags.FLAGS) - before

    def command(**settings):
        with flagsaver.flagsaver():
            flags.FLAGS(["vocabulary", *(f"--{key}={value}" for key, value in settings.items())])
            vocabulary.main(["vocabulary"])

    yield command
    for name in added:
        delattr(flags.FLAGS, name)


def test_records_become_words_with_vectors_that_a_method_takes(tmp_path):
    source = write_records(tmp_path / "a", "Cut the basil", "cut it")
    more = write_records(tmp_path / "b", "the pan")
    vectors = write_vectors(tmp_path / "glove.txt", cut=[1, 2], the=[3, 4], oven=[5, 6])
    output = tmp_path / "new" / "my words.npz"
    arguments = [f"--source={source},{more}", f"--output={output}", f"--vectors={vectors}"]
    command = [sys.executable, "-m", "common.vocabulary", *arguments, "--unknown=zeros"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "3 of 3 records read" in done.stdout
    assert "5 words with vectors of 2 numbers" in done.stdout
    assert "has 2 of 5 words; the others are zeros" in done.stderr
    found = Vocabulary.read(output)
    assert found.words == ("cut", "the", "basil", "it", "pan")
    table_VD = word_vectors.load(output, found)
    np.testing.assert_array_equal(table_VD, [[0, 0], [1, 2], [3, 4], [0, 0], [0, 0], [0, 0]])
    with np.load(output) as arrays:
        assert arrays["words"].dtype.kind == "U" and arrays["vectors"].dtype == np.float32

    said = [part.partition("=") for part in shlex.split(done.stdout) if "--config.model" in part]
    settings = {key.removeprefix("--config.model.text."): value for key, _, value in said}
    assert settings == {"vocabulary": str(output), "words": "5", "lower": "True", "word_dim": "2"}
    config = mil_nce_base.smoke(mil_nce_base.get_config())
    config.model.text.update(vocabulary=str(output), words=5, word_dim=2)
    (tokens,) = methods.create(config).encoders["text"].inputs.tokenise(["The PAN"])
    assert tokens.tolist() == [2, 5] + 4 * [0]


def test_a_vocabulary_that_exists_becomes_a_text_file_or_gets_vectors(tmp_path, run, capsys):
    np.save(tmp_path / "dict.npy", np.array(["pan", "Cut"]))
    run(words=tmp_path / "dict.npy", output=tmp_path / "words.txt")
    assert (tmp_path / "words.txt").read_text() == "pan\nCut\n"
    said = capsys.readouterr().out
    assert "words.txt: 2 words\n" in said and "text.words=2" in said
    assert "word_dim" not in said and "lower" not in said
    vectors = write_vectors(tmp_path / "glove.txt", Cut=[1, 2, 3], pan=[4, 5, 6])
    run(words=tmp_path / "words.txt", vectors=vectors, output=tmp_path / "words.npz")
    again = Vocabulary.read(tmp_path / "words.npz")
    assert again.words == ("pan", "Cut")
    table_VD = word_vectors.load(tmp_path / "words.npz", again)
    np.testing.assert_array_equal(table_VD[1:], [[4, 5, 6], [1, 2, 3]])
    run(words=tmp_path / "words.npz", output=tmp_path / "again.txt")
    assert (tmp_path / "again.txt").read_bytes() == (tmp_path / "words.txt").read_bytes()


def test_counting_follows_its_flags(tmp_path, run, capsys):
    source = write_records(tmp_path / "a", "Cut cut add", "add the Cut Cut", "add")
    for number, (settings, words) in enumerate(
        {
            (("lower", False),): ("Cut", "add", "cut", "the"),
            (("min_count", 3),): ("cut", "add"),
            (("max_size", 1),): ("cut",),
        }.items()
    ):
        run(source=source, output=tmp_path / f"{number}.txt", **dict(settings))
        assert Vocabulary.read(tmp_path / f"{number}.txt").words == words
    assert "--config.model.text.lower=False" in capsys.readouterr().out


def test_captions_become_word_pieces(tmp_path, run, capsys):
    source = write_records(tmp_path / "a", "Cut the basil", "cutting, cut it")
    run(source=source, pieces=30, output=tmp_path / "vocab.txt")
    assert "vocab.txt: 30 word pieces\n" in capsys.readouterr().out
    pieces = WordPieces.read(tmp_path / "vocab.txt")
    assert pieces.pieces == WordPieces.train(["Cut the basil", "cutting, cut it"], 30).pieces
    assert "cut" in pieces.pieces and 1 not in pieces.ids(["CUT the basil"], 12)


def test_records_that_cannot_be_read_are_counted_and_named(tmp_path, run, capsys):
    source = write_records(tmp_path / "a", "cut", "add", damage=True)
    run(source=source, output=tmp_path / "words.txt")
    assert (tmp_path / "words.txt").read_text() == "cut\n"
    said = capsys.readouterr().out
    assert "1 of 2 records read" in said
    assert re.search(r"cannot be read: 1; the first is x.tfrecord\S*1\b", said)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"output": "new.txt"}, "Give either --words=FILE"),
        ({"words": "w.txt", "source": "a", "output": "new.txt"}, "Give either --words=FILE"),
        ({"words": "w.txt", "lower": True, "output": "new.txt"}, "--lower is about counting"),
        ({"words": "w.txt", "output": "w.txt"}, "w.txt exists already; nothing was written"),
        ({"words": "w.txt", "output": "new.npz"}, "are a text file; name it new.txt"),
        ({"words": "w.txt", "vectors": "v.txt", "output": "new.txt"}, "name it new.npz"),
        ({"words": "w.txt", "vectors": "none", "output": "new.npz"}, "there is no file none"),
        ({"words": "none", "output": "new.txt"}, "none cannot be read"),
        ({"words": "w.txt", "output": "w.txt/new.txt"}, "cannot be written"),
        ({"words": "w.txt", "pieces": 30, "output": "new.txt"}, "--pieces are learned from captio"),
        ({"source": "a", "pieces": 30, "lower": True, "output": "new.txt"}, "--lower is about who"),
        (
            {"source": "a", "pieces": 30, "vectors": "v.txt", "output": "new.npz"},
            "--vectors is about whole words",
        ),
        ({"source": "a", "pieces": 9, "output": "new.txt"}, "9 word pieces are too few"),
        ({"source": "a", "pieces": 30, "output": "new.npz"}, "are a text file; name it new.txt"),
        (
            {"source": "silent", "pieces": 30, "output": "new.txt"},
            "no words in the captions of silent",
        ),
        ({"source": "a", "min_count": 2, "output": "new.txt"}, "No word occurs 2 times"),
        ({"source": "a,none", "output": "new.txt"}, "none"),
        ({"source": "silent", "output": "new.txt"}, "No word occurs 1 times"),
        ({"words": "w.txt", "vectors": "v.txt", "output": "new.npz"}, "none of the 1 words"),
    ],
)
def test_what_cannot_be_is_said_and_nothing_written(tmp_path, monkeypatch, run, settings, message):
    monkeypatch.chdir(tmp_path)
    pathlib.Path("w.txt").write_text("cut\n")
    write_vectors(pathlib.Path("v.txt"), oven=[1, 2])
    write_records(tmp_path / "a", "cut")
    write_records(tmp_path / "silent", "")
    with pytest.raises(UserError, match=message):
        run(**settings)
    assert pathlib.Path("w.txt").read_text() == "cut\n"
    assert not list(tmp_path.glob("new*"))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"vectors": np.zeros((2, 3))}, "has no array 'words'"),
        ({"words": np.array([1, 2])}, "type int64; a vocabulary is one-dimensional and of text"),
        ({"words": np.array(["a", None], object)}, "cannot be read as an .npz"),
        ({"words": np.array(["a"]), "vectors": np.zeros((1, 3))}, "must be of floats and have 2 r"),
        ({"words": np.array(["a"]), "vectors": np.zeros((2, 3), int)}, "type int64; with 1 words"),
        ({"words": np.array(["a"]), "vectors": np.full((2, 3), np.nan)}, "not finite"),
        ({"words": np.array(["a"]), "vectors": np.array([None])}, "cannot be read as an .npz"),
        (None, "cannot be read as an .npz"),
    ],
)
def test_damaged_files_of_words_and_vectors_are_refused_by_name(tmp_path, arrays, message):
    path = tmp_path / "words.npz"
    if arrays is None:
        path.write_bytes(b"PK\x03\x04 and so on")
    else:
        np.savez(path, allow_pickle=True, **arrays)
    with pytest.raises(UserError, match=message) as caught:
        word_vectors.load(path, Vocabulary.read(path))
    assert str(path) in str(caught.value)


def test_an_archive_of_words_alone_has_no_vectors(tmp_path):
    np.savez(tmp_path / "words.npz", words=np.array(["a", "b"]))
    found = Vocabulary.read(tmp_path / "words.npz")
    assert found.words == ("a", "b")
    assert word_vectors.load(tmp_path / "words.npz", found) is None
