"""Promises of the tokeniser: the published ids, and vocabularies that read back as they were."""

import logging
import pickle

import golden_rules
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.data.text import Vocabulary, tokenise
from common.errors import UserError
from common.tf import tf

STORED = golden_rules.Pack("mil_nce").stored("tokeniser")
WORDS = st.lists(st.from_regex(r"[a-z']{1,5}", fullmatch=True), min_size=1, unique=True)


@pytest.mark.parametrize("lower", [False, True])
@pytest.mark.parametrize("max_words", [16, 20, 30])
def test_ids_are_the_published_ones(max_words, lower):
    vocabulary = Vocabulary(STORED["vocabulary"].tolist())
    ids_NW = vocabulary.ids(STORED["sentences"].tolist(), max_words, lower)
    assert ids_NW.dtype == np.int32
    np.testing.assert_array_equal(ids_NW, STORED[f"ids{'_lower' * lower}_{max_words}"])


def test_letters_and_their_accents_are_one_however_they_are_written():
    assert tokenise("e\u0301clair") == tokenise("\xe9clair") == ["\xe9clair"]


def test_words_are_runs_of_letters_digits_underscores_and_apostrophes():
    said = "Don't stir-fry a_b  2.5 cups; Über"
    assert tokenise(said) == ["Don't", "stir", "fry", "a_b", "2", "5", "cups", "Über"]
    assert tokenise(said, lower=True)[0] == "don't" and tokenise(said, lower=True)[-1] == "über"


def test_ids_are_turned_back_into_the_words_that_were_known():
    vocabulary = Vocabulary(["dog", "a", "runs"])
    ids_NW = vocabulary.ids(["A dog, it runs", "xyzzy", "runs runs a dog"], 3, lower=True)
    assert vocabulary.sentences(ids_NW) == ["a dog runs", "", "runs runs a"]
    assert vocabulary.known(ids_NW).tolist() == [True, False, True]


@settings(max_examples=50, deadline=None)
@given(words=WORDS, said=st.lists(st.text(max_size=30), max_size=4), max_words=st.integers(1, 6))
def test_known_words_keep_their_order_and_padding_is_at_the_end(words, said, max_words):
    vocabulary = Vocabulary(words)
    ids_NW = vocabulary.ids(said, max_words, lower=False)
    assert ids_NW.shape == (len(said), max_words)
    for row_W, sentence in zip(ids_NW, said, strict=True):
        known = [word for word in tokenise(sentence) if word in words][:max_words]
        assert [vocabulary.words[i - 1] for i in row_W[row_W > 0]] == known
        assert not row_W[len(known) :].any()


def test_the_ids_of_a_graph_are_those_of_python():
    vocabulary = Vocabulary(["über", "a"])
    said = ["a über b", ""]
    dataset = tf.data.Dataset.from_tensors(said).map(
        lambda texts: tf.numpy_function(
            lambda texts: vocabulary.ids(texts, 3, False), [texts], tf.int32
        )
    )
    (found,) = dataset.as_numpy_iterator()
    np.testing.assert_array_equal(found, [[2, 1, 0], [0, 0, 0]])
    broken = vocabulary.ids([b"a \xff a"], 3, False)  # bytes that are no UTF-8 are no words
    np.testing.assert_array_equal(broken, [[2, 2, 0]])


@settings(max_examples=30, deadline=None)
@given(words=WORDS)
def test_a_vocabulary_reads_back_as_it_was_written(tmp_path_factory, words):
    path = tmp_path_factory.mktemp("words") / "words.txt"
    Vocabulary(words).write(path)
    assert Vocabulary.read(path).words == tuple(words)


def test_text_and_array_files_say_the_same(tmp_path):
    (tmp_path / "windows.txt").write_bytes("\ufeffadd\r\ncut\r\nüber\r\n".encode())
    np.save(tmp_path / "dict.npy", np.array(["add", "cut", "über"]))
    for name in ("windows.txt", "dict.npy"):
        vocabulary = Vocabulary.read(tmp_path / name)
        assert vocabulary.words == ("add", "cut", "über") and vocabulary.num_ids == 4


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"add\ncut it\n", "line 2: 'cut it' must be one word"),
        (b"add\n\ncut\n", "line 2: '' must be one word"),
        (b"add\ncut\n\xff\n", "line 3: a vocabulary must be text in UTF-8"),
        (b"", "has no words"),
        (np.array([1, 2]), "shape \\(2,\\) and type int64"),
        (np.array([["a"]]), "shape \\(1, 1\\)"),
        (np.array(["a", None], object), "cannot be read as an array of words"),
        (b"\x93NUMPY\x01\x00", "cannot be read as an array of words"),
    ],
)
def test_what_is_no_vocabulary_is_refused_by_name_and_line(tmp_path, data, message):
    path = tmp_path / "words"
    if isinstance(data, bytes):
        path.write_bytes(data)
    else:
        with open(path, "wb") as file:
            np.save(file, data)
    with pytest.raises(UserError, match=message) as caught:
        Vocabulary.read(path)
    assert str(path) in str(caught.value)


def test_a_vocabulary_file_is_never_executed(tmp_path):
    marked = tmp_path / "mark"

    class Touch:
        def __reduce__(self):
            return (open, (str(marked), "w"))

    np.save(tmp_path / "dict.npy", np.array([Touch()], object), allow_pickle=True)
    (tmp_path / "plain").write_bytes(pickle.dumps(Touch()))
    for name in ("dict.npy", "plain"):
        with pytest.raises(UserError):
            Vocabulary.read(tmp_path / name)
    assert not marked.exists()


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="absent.txt cannot be read"):
        Vocabulary.read(tmp_path / "absent.txt")


def test_a_word_that_a_line_cannot_hold_is_not_written(tmp_path):
    with pytest.raises(UserError, match="word 2 of the vocabulary, 'b c', cannot be written"):
        Vocabulary(["a", "b c"]).write(tmp_path / "words.txt")
    assert not list(tmp_path.iterdir())


@settings(max_examples=30, deadline=None)
@given(said=st.lists(st.text("ab c", max_size=12)), seed=st.randoms(use_true_random=False))
def test_counting_depends_on_how_often_words_occur_and_not_on_their_order(said, seed):
    shuffled = list(said)
    seed.shuffle(shuffled)
    assert Vocabulary.count(said).words == Vocabulary.count(shuffled).words


def test_counting_keeps_the_most_frequent_words_and_breaks_ties_by_alphabet():
    said = ["b a a", "c B b", "d a"]
    assert Vocabulary.count(said).words == ("a", "b", "B", "c", "d")
    assert Vocabulary.count(said, min_count=2).words == ("a", "b")
    assert Vocabulary.count(said, max_size=3).words == ("a", "b", "B")
    assert Vocabulary.count(said, lower=True, min_count=2).words == ("a", "b")


def test_of_a_word_that_occurs_twice_the_later_place_counts_and_is_told(caplog):
    with caplog.at_level(logging.WARNING):
        vocabulary = Vocabulary(["add", "cut", "add"])
    assert "1 words twice" in caplog.text
    np.testing.assert_array_equal(vocabulary.ids(["add cut"], 2, False), [[3, 2]])
