"""What MIL-NCE makes of its settings: the word table's beginning, and settings that cannot be."""

import jax
import numpy as np
import optax
import pytest

from common import methods, state
from common.data import word_vectors
from common.data.text import Vocabulary
from common.errors import UserError
from configs import mil_nce_base

WORDS = Vocabulary(["add", "cut", "über"])
VECTORS = np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)


def make_config(vocabulary="", **changes):
    config = mil_nce_base.smoke(mil_nce_base.get_config())
    config.model.text.vocabulary = str(vocabulary)
    config.update_from_flattened_dict({key.replace("__", "."): v for key, v in changes.items()})
    return config.lock()


@pytest.fixture
def with_vectors(tmp_path):
    word_vectors.save(tmp_path / "words.npz", WORDS, VECTORS)
    return tmp_path / "words.npz"


def first_table(method):
    """The word table of a run's first state, of whatever kind; nothing else is computed."""

    def table():
        begun = state.create(method.build, optax.sgd(1.0), seed=3, ema=False)
        trained, kept = begun.params["text"], begun.model_state.get("text", {})
        assert ("words" in trained) != ("words" in kept)
        return trained.get("words", kept.get("words"))

    return jax.jit(table)()


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [False, True])
def test_a_run_begins_with_the_vectors_stored_with_its_vocabulary(with_vectors, frozen):
    changes = {"model__text__frozen": frozen, "model__text__words": 6}
    method = methods.create(make_config(with_vectors, **changes))
    with_vectors.unlink()  # it has been read
    (tokens,) = method.encoders["text"].inputs.tokenise(["Cut über"])
    assert tokens.tolist() == [2, 3, 0, 0, 0, 0]
    given_VD, random_VD = map(first_table, (method, methods.create(make_config(**changes))))
    assert given_VD.shape == (7, 8)
    np.testing.assert_array_equal(given_VD[:4], VECTORS)
    np.testing.assert_array_equal(given_VD[4:], random_VD[4:])


def test_training_and_evaluation_cut_texts_where_each_is_told_to(tmp_path):
    WORDS.write(tmp_path / "words.txt")
    lengths = {"model__text__max_words": 2, "model__text__evaluation_words": 5}
    method = methods.create(make_config(tmp_path / "words.txt", **lengths))
    inputs = method.encoders["text"].inputs
    assert inputs.max_words == 5
    assert inputs.tokenise(["add add add cut cut cut"]).tolist() == [[1, 1, 1, 2, 2]]
    spoken = (np.array(["add add add"]), np.array([0.0]), np.array([9.0]))
    _, narrations_KW = method.views.draw(*spoken, 9.0, 90, np.zeros(2))
    assert set(map(tuple, narrations_KW.tolist())) == {(1, 1)}
    published = mil_nce_base.get_config().model.text
    assert (published.max_words, published.evaluation_words) == (20, 30)


@pytest.mark.slow
def test_a_vocabulary_of_words_alone_leaves_the_table_to_chance(tmp_path):
    WORDS.write(tmp_path / "words.txt")
    configs = make_config(), make_config(tmp_path / "words.txt")
    np.testing.assert_array_equal(*(first_table(methods.create(config)) for config in configs))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__text__words": 2}, r"words is 2, but .*words.npz has 3 words; set it to 3"),
        ({"model__text__words": 0}, "words is 0; it must be at least 1"),
        ({"model__text__evaluation_words": 0}, "evaluation_words is 0; it must be at least 1"),
        (
            {"model__text__word_dim": 300},
            r"word_dim is 300, but the vectors in .*words.npz have 8 numbers; set it to 8",
        ),
        ({"model__positives": "thrice"}, "positives is 'thrice'; it must be one of twice, once"),
        ({"model__video__backbone": "vgg"}, "backbone is 'vgg'; it must be one of s3d, i3d"),
    ],
)
def test_settings_that_cannot_be_are_refused(with_vectors, changes, message):
    with pytest.raises(UserError, match=message):
        methods.create(make_config(with_vectors, **changes))
