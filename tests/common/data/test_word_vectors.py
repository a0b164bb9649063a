"""Word vectors from every published form are the same table, and damage is told by line."""

import gzip
import logging
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.data import word_vectors
from common.data.text import Vocabulary
from common.errors import UserError

WORDS = ["the", ". .", "über", "cut", "Cut"]
VECTORS = np.random.default_rng(0).standard_normal((5, 7)).astype(np.float32)


def text(words, vectors_FD, header):
    lines = [f"{len(words)} {vectors_FD.shape[1]}"] if header else []
    lines += [
        " ".join([word, *(repr(float(value)) for value in vector_D)])
        for word, vector_D in zip(words, vectors_FD, strict=True)
    ]
    return ("\n".join(lines) + "\n").encode()


def binary(words, vectors_FD, line_end=b"\n"):
    head = f"{len(words)} {vectors_FD.shape[1]}\n".encode()
    return head + b"".join(
        word.encode() + b" " + vector_D.astype("<f4").tobytes() + line_end
        for word, vector_D in zip(words, vectors_FD, strict=True)
    )


FORMS = {
    "word2vec text": text(WORDS, VECTORS, header=True),
    "GloVe": text(WORDS, VECTORS, header=False),
    "fastText": text(WORDS, VECTORS, header=True).replace(b"\n", b" \n"),
    "lines of Windows": text(WORDS, VECTORS, header=True).replace(b"\n", b"\r\n"),
    "word2vec binary": binary([w.replace(" ", "_") for w in WORDS], VECTORS),
    "binary without line ends": binary([w.replace(" ", "_") for w in WORDS], VECTORS, b""),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_table_in_the_order_of_the_vocabulary(tmp_path, form, packed):
    path = tmp_path / "vectors"  # told apart by contents, not by name
    path.write_bytes(gzip.compress(FORMS[form]) if packed else FORMS[form])
    table_VD = word_vectors.read(path, Vocabulary(["cut", "the", "über"]))
    assert table_VD.dtype == np.float32 and not table_VD[0].any()
    np.testing.assert_array_equal(table_VD[1:], VECTORS[[3, 0, 2]])


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), dim=st.integers(1, 40), scale=st.sampled_from([1e-6, 1.0, 1e6]))
def test_text_and_binary_are_told_apart_whatever_the_numbers(tmp_path_factory, seed, dim, scale):
    vectors_FD = np.random.default_rng(seed).standard_normal((3, dim)).astype(np.float32) * scale
    path, words = tmp_path_factory.mktemp("forms") / "vectors", ["a", "b", "c"]
    for data in (binary(words, vectors_FD), text(words, vectors_FD, header=True)):
        path.write_bytes(data)
        np.testing.assert_array_equal(word_vectors.read(path, Vocabulary(words))[1:], vectors_FD)


def test_large_binary_files_are_read_across_the_borders_of_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(word_vectors, "_CHUNK", 37)
    words = [f"w{number}" for number in range(50)]
    vectors_FD = np.random.default_rng(1).standard_normal((50, 6)).astype(np.float32)
    (tmp_path / "vectors").write_bytes(binary(words, vectors_FD))
    table_VD = word_vectors.read(tmp_path / "vectors", Vocabulary(words))
    np.testing.assert_array_equal(table_VD[1:], vectors_FD)


def test_unknown_words_are_drawn_at_the_scale_of_the_file_counted_and_logged(tmp_path, caplog):
    words = [f"w{number}" for number in range(300)]
    vectors_FD = 0.01 * np.random.default_rng(1).standard_normal((300, 20)).astype(np.float32)
    (tmp_path / "vectors").write_bytes(text(words, vectors_FD, header=False))
    vocabulary = Vocabulary(words[:100] + [f"new{number}" for number in range(200)])
    with caplog.at_level(logging.INFO):
        table_VD = word_vectors.read(tmp_path / "vectors", vocabulary, seed=5)
    assert "has 100 of 300 words; the others are drawn at random" in caplog.text
    np.testing.assert_allclose(table_VD[101:].std(), 0.01, rtol=0.05)
    assert len(np.unique(table_VD[101:], axis=0)) == 200
    again = word_vectors.read(tmp_path / "vectors", vocabulary, seed=5)
    np.testing.assert_array_equal(again, table_VD)
    zeros = word_vectors.read(tmp_path / "vectors", vocabulary, unknown="zeros")
    assert not zeros[101:].any()
    np.testing.assert_array_equal(zeros[:101], table_VD[:101])
    with pytest.raises(ValueError, match="must be one of normal, zeros"):
        word_vectors.read(tmp_path / "vectors", vocabulary, unknown="mean")


GOOD = FORMS["word2vec text"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (GOOD.replace(b"the ", b"the x", 1), "line 2: could not convert string to float"),
        (re.sub(rb"\ncut \S+", b"\ncut", GOOD), "line 5: expected a word and 7 numbers"),
        (re.sub(rb"\ncut \S+", b"\ncut nan", GOOD), "line 5: .*not finite"),
        (GOOD.replace(b"5 7", b"6 7", 1), "has 5 words, but its first line says 6"),
        (b"0 7\n", "line 1: 0 words of 7 numbers"),
        (b"", "line 1: expected a word and its numbers"),
        (b"just text\n", "none of the 2 words"),
        (FORMS["word2vec binary"][:-9], "ends in entry 5 of the 5"),
        (FORMS["word2vec binary"][:40], "ends in entry 2 of the 5"),
        (FORMS["word2vec binary"].replace(b"5 7", b"4 7", 1), "goes on after the 4 entries"),
        (b"5 7\n\xff" + b"x" * 30_000, "entry 1: expected a word and a space"),
        (binary(["cut"], np.full((1, 4), np.inf)), "entry 1: .*not finite"),
        (gzip.compress(GOOD)[:-20], "cannot be read: Compressed file ended"),
        (b"\x1f\x8b" + b"damaged" * 5, "cannot be read"),
        (text(["THE"], VECTORS[:1], header=False), "none of the 2 words .*'the', 'cut'"),
    ],
)
def test_a_malformed_file_is_refused_by_name_and_line(tmp_path, data, message):
    path = tmp_path / "vectors"
    path.write_bytes(data)
    with pytest.raises(UserError, match=message) as caught:
        word_vectors.read(path, Vocabulary(["the", "cut"]))
    assert str(path) in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="absent cannot be read"):
        word_vectors.read(tmp_path / "absent", Vocabulary(["the"]))
