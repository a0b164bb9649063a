"""BERT and DistilBERT against published numbers; padding, dropout and its keys."""

import functools

import golden_rules
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import text_golden
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import text_weights
from benchmarks.real_data_sources import Unavailable
from common.backbones.bert import Bert
from common.data.word_pieces import WordPieces
from common.errors import UserError
from common.step import example_keys
from common.weights import bert_layout, tensor_file

PACK = text_golden.PACK
SMALL = {"width": 24, "depth": 2, "heads": 3, "hidden": 32, "positions": 12}


def small(**options):
    """A small network; its numbers are NumPy's, as initialisers take long to compile."""
    sizes = SMALL | options
    graphdef, variables = nnx.split(nnx.eval_shape(lambda: Bert(30, **sizes, rngs=nnx.Rngs(0))))
    generator = np.random.default_rng(0)

    def fill(leaf):
        drawn = generator.standard_normal(leaf.shape)
        values = drawn / np.sqrt(leaf.shape[0]) if len(leaf.shape) > 1 else 1 + 0.1 * drawn
        return jnp.asarray(values, leaf.dtype)

    return nnx.merge(graphdef, jax.tree.map(fill, variables))


@nnx.jit
def run(model, ids, keys_B=None):
    return model(ids, keys_B)


@nnx.jit
def gradient(model, ids, keys_B=None):
    return nnx.grad(lambda model: (model(ids, keys_B)[:, 0] ** 3).sum())(model)


@functools.cache
def _reader(token_types):
    model = small(token_types=token_types, dropout=0.5)
    return lambda ids, keys=None: np.asarray(run(model, jnp.asarray(ids, jnp.int32), keys))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "case", ["text_small", "text_bert", pytest.param("text_full", marks=pytest.mark.slow)]
)
def test_every_stage_is_the_published_one(case, dtype):
    described, stored = PACK.case(case), PACK.stored(case)
    tolerance = described["tolerance"][dtype]["rtol_of_max"]
    with golden_rules.x64():
        found = text_golden.stages(
            text_golden.published(described["checkpoint"]), stored["input_ids"], dtype
        )
        assert all(x_BLD.dtype == dtype for x_BLD in found)
    real = stored["attention_mask"].astype(bool)
    names = ["embeddings", *(f"layer{number}" for number in range(len(found) - 1))]
    assert {f"stage/{name}/shape" for name in names} == {n for n in stored if n.endswith("shape")}
    for name, x_BLD in zip(names, found, strict=True):
        x_ND = np.asarray(x_BLD)[real]
        assert x_ND.shape == tuple(stored[f"stage/{name}/shape"])
        for kind in (golden_rules.probe, golden_rules.stats):
            error = golden_rules.error_of_max(kind(x_ND), stored[f"stage/{name}/{kind.__name__}"])
            assert error < tolerance, f"{name}: {kind.__name__}"
    assert golden_rules.error_of_max(found[-1][:, 0], stored["text_first_token"]) < tolerance


def test_the_embedding_of_frozen_in_time_is_one_dense_layer_away():
    stored, weights = PACK.stored("text_small"), PACK.flat_checkpoint("small")
    model = text_golden.published("small")
    first_BD = np.float64(run(model, jnp.asarray(stored["input_ids"], jnp.int32))[:, 0])
    embedding = (
        np.maximum(first_BD, 0) @ weights["txt_proj.1.weight"].T + weights["txt_proj.1.bias"]
    )
    assert golden_rules.error_of_max(embedding, stored["text_embedding"]) < 1e-4


SENTENCE = st.lists(st.integers(1, 29), max_size=6)


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(first=SENTENCE, second=SENTENCE)
@pytest.mark.parametrize("token_types", [0, 2])
def test_neither_padding_nor_other_sentences_change_a_sentence(token_types, first, second):
    read = _reader(token_types)

    def rows(length, *sentences):
        return np.array([said + [0] * (length - len(said)) for said in sentences])

    together, longer = read(rows(6, first, second)), read(rows(9, second, first))
    real = max(len(first), 1)
    np.testing.assert_allclose(together[0, :real], longer[1, :real], rtol=1e-4, atol=1e-5)
    assert np.isfinite(together).all() and np.isfinite(longer).all()


@pytest.mark.slow
def test_sentences_of_padding_alone_have_finite_gradients():
    model, ids = small(), jnp.zeros((2, 5), jnp.int32)
    gradients = nnx.state(gradient(model, ids))
    assert any(leaf.any() for leaf in jax.tree.leaves(gradients))
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_order_and_every_word_matter():
    read = _reader(0)
    rows = read([[3, 4, 5], [3, 5, 4], [3, 4, 6]])[:, 0]
    assert min(np.abs(rows[0] - rows[1]).max(), np.abs(rows[0] - rows[2]).max()) > 1e-3


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(step=st.integers(0, 9), order=st.permutations(range(4)))
@pytest.mark.parametrize("token_types", [0, 2])
def test_what_is_dropped_depends_on_the_key_of_the_example_alone(token_types, step, order):
    read, order = _reader(token_types), np.array(order)
    keys_B = example_keys(7, step, 4)
    ids = np.array([[5, 6, 7, 0], [5, 6, 7, 0], [8, 9, 0, 0], [4, 4, 4, 4]])
    whole = read(ids, keys_B)
    np.testing.assert_allclose(whole[order], read(ids[order], keys_B[order]), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(whole[2:], read(ids[2:], keys_B[2:]), rtol=1e-4, atol=1e-5)
    assert np.abs(whole[0] - whole[1]).max() > 0.1  # one sentence, two keys


@pytest.mark.slow
def test_nothing_is_dropped_without_keys_nor_in_evaluation_mode():
    model, ids, keys_B = small(), jnp.asarray([[3, 4, 5]], jnp.int32), example_keys(0, 0, 1)
    plain, dropped = run(model, ids), run(model, ids, keys_B)
    assert np.abs(plain - dropped).max() > 1e-2
    model.eval()
    np.testing.assert_array_equal(run(model, ids, keys_B), plain)
    model.train()
    np.testing.assert_array_equal(run(model, ids, keys_B), dropped)
    np.testing.assert_array_equal(run(small(dropout=0.0), ids, keys_B), plain)


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_embeddings_are_dropped_at_the_rate_and_made_up_for(rate):
    model, ids = small(dropout=rate, depth=0), jnp.full((64, 12), 3, jnp.int32)
    plain, dropped = run(model, ids), run(model, ids, example_keys(0, 0, 64))
    gone = np.asarray(dropped == 0)
    spread = np.sqrt(rate * (1 - rate) / gone.size)
    assert abs(gone.mean() - rate) < 5 * spread
    np.testing.assert_allclose(dropped[~gone], plain[~gone] / (1 - rate), rtol=1e-6)


@pytest.mark.parametrize(("token_types", "places"), [(0, 2), (2, 3)])
def test_a_layer_drops_where_the_published_one_does(token_types, places):
    model = small(depth=1, token_types=token_types, dropout=0.3)
    keys_B, ids = example_keys(0, 0, 2), jnp.full((2, 4), 3, jnp.int32)
    drawn = str(jax.make_jaxpr(lambda keys: model(ids, keys))(keys_B)).count("random_bits")
    assert drawn == 1 + places  # the embeddings, and in each layer


@pytest.mark.slow
def test_recomputing_layers_changes_no_gradient():
    keys_B, ids = example_keys(0, 0, 2), jnp.asarray([[3, 4, 0], [5, 6, 7]], jnp.int32)
    found = [gradient(small(depth=1, remat=remat), ids, keys_B) for remat in (False, True)]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *map(nnx.state, found)
    )


def test_bfloat16_stays_near_and_parameters_stay_float32():
    ids = jnp.asarray([[3, 4, 5, 0]], jnp.int32)
    model = small(dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model))} == {jnp.dtype("float32")}
    x_BLD = run(model, ids)
    assert x_BLD.dtype == jnp.bfloat16
    assert golden_rules.error_of_max(x_BLD[:, :3], run(small(), ids)[:, :3]) < 0.03


def test_a_new_network_begins_as_published():
    model = Bert(2000, width=64, depth=1, heads=2, hidden=128, rngs=nnx.Rngs(0))
    assert not model.words[0].any() and model.num_features == 64
    drawn = [model.words[1:], model.positions[...], model.layers[0].mlp_in.kernel[...]]
    for values in drawn:
        assert abs(float(values.std()) - 0.02) < 0.001 and abs(float(values.mean())) < 0.001
    assert not model.layers[0].query.bias[...].any() and (model.norm.scale[...] == 1).all()


def test_a_small_network_that_begins_with_larger_numbers_tells_sentences_apart():
    ids = jax.random.randint(jax.random.key(1), (16, 10), 1, 100).at[:, 0].set(1)

    def mean_cosine(**options):
        model = Bert(100, width=64, depth=2, heads=2, hidden=128, rngs=nnx.Rngs(0), **options)
        x_ND = run(model, ids)[:, 0]
        x_ND /= jnp.linalg.norm(x_ND, axis=-1, keepdims=True)
        cosines = x_ND @ x_ND.T
        return float((cosines.sum() - len(ids)) / (len(ids) * (len(ids) - 1)))

    assert mean_cosine() > 0.999
    assert mean_cosine(initializer_range=0.15) < 0.9


def test_what_cannot_be_is_said():
    with pytest.raises(UserError, match=r"initializer_range of 0\.0 must be above 0; 0\.02 is"):
        small(initializer_range=0.0)
    with pytest.raises(UserError, match="width 24 cannot be cut into 5 heads"):
        small(heads=5)
    for dropout in (-0.1, 1.0):
        with pytest.raises(UserError, match="must be at least 0, below 1"):
            small(dropout=dropout)
    with pytest.raises(UserError, match="of 13 word pieces is longer than the 12 positions"):
        small()(jnp.ones((1, 13), jnp.int32))


@pytest.mark.slow
def test_a_real_network_reads_sentences_as_published():
    try:
        folder = text_weights.minilm()
    except Unavailable as error:
        pytest.skip(str(error))
    stored, pieces = PACK.stored("text_minilm"), WordPieces.read(folder / text_weights.VOCABULARY)
    ids_NW = pieces.ids(stored["sentences"].tolist(), stored["ids"].shape[1])
    np.testing.assert_array_equal(ids_NW, stored["ids"])
    hostile = PACK.stored("text_pieces")
    for path in (text_weights.VOCABULARY, text_weights.TOKENIZER):
        read = WordPieces.read(folder / path)
        for length in (8, 64):
            ids = read.ids(hostile["sentences"].tolist(), length)
            np.testing.assert_array_equal(ids, hostile[f"published_{length}"])
    model = nnx.eval_shape(lambda: Bert(**text_weights.SIZES, rngs=nnx.Rngs(0)))
    tensors = tensor_file.load(folder / text_weights.WEIGHTS)
    unread = bert_layout.read(model, tensors, text_weights.WEIGHTS)
    assert unread == ["pooler.dense.bias", "pooler.dense.weight"]
    x_BLD = np.asarray(run(model, jnp.asarray(ids_NW)))
    real_BL1 = (ids_NW > 0)[..., None]
    mean_BD = (x_BLD * real_BL1).sum(1) / real_BL1.sum(1)
    tolerance = PACK.case("text_minilm")["tolerance"]["float32"]["rtol_of_max"]
    for ours, name in ((x_BLD[:, 0], "first"), (mean_BD, "mean")):
        assert golden_rules.error_of_max(ours, stored[name]) < tolerance, name
