"""The text tower against published numbers, and what becomes of padding and of the table."""

import golden_rules
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from common import state
from mil_nce.text_tower import TextTower

PACK = golden_rules.Pack("mil_nce")
PREFIX = {"s2d": "text_module.", "plain": "module.text_module."}


def published_tower(checkpoint):
    """A tower with the rule-made weights of a checkpoint."""
    entries = PACK.manifest["checkpoints"][checkpoint]["entries"]
    prefix = PREFIX[checkpoint]
    weights = {
        key.removeprefix(prefix): golden_rules.tensor(key, *rest, PACK.seed)
        for key, *rest in entries
        if key.startswith(prefix)
    }
    table_VD = weights["word_embd.weight"]
    tower = nnx.eval_shape(lambda: TextTower(len(table_VD), rngs=nnx.Rngs(0)))
    tower.words.set_value(jnp.asarray(table_VD))
    for layer, name in ((tower.hidden, "fc1"), (tower.output, "fc2")):
        layer.kernel.set_value(jnp.asarray(weights[f"{name}.weight"].T))
        layer.bias.set_value(jnp.asarray(weights[f"{name}.bias"]))
    return tower


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("checkpoint", ["plain", "s2d"])
def test_embeddings_are_the_published_ones(checkpoint, dtype):
    case = f"text_tower_{checkpoint}"
    stored = PACK.stored(case)
    graphdef, variables = nnx.split(published_tower(checkpoint))
    with golden_rules.x64():
        variables = jax.tree.map(lambda x: x.astype(dtype), variables)
        embedding_ND = nnx.merge(graphdef, variables)(jnp.asarray(stored["ids"]))
        assert embedding_ND.dtype == dtype
    tolerance = PACK.case(case)["tolerance"][dtype]["rtol_of_max"]
    assert golden_rules.error_of_max(embedding_ND, stored["text_embedding"]) < tolerance


def tiny(**options):
    options = {"word_dim": 6, "hidden": 32, "embedding_dim": 4, **options}
    return TextTower(10, **options, rngs=nnx.Rngs(0))


SENTENCES = st.lists(st.integers(1, 9), max_size=5)


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(words=SENTENCES, order=st.randoms(use_true_random=False))
@pytest.mark.parametrize("masked", [False, True])
def test_neither_order_nor_repeats_nor_more_padding_matter(masked, words, order):
    tower = tiny(masked=masked)

    def embed(ids, width):  # two widths in all: each is compiled anew
        row = np.zeros((1, width), np.int32)
        row[0, : len(ids)] = ids
        return np.asarray(tower(jnp.asarray(row)))

    repeated = [*words, *words[:1]]
    order.shuffle(repeated)
    once = embed(words, 7)
    np.testing.assert_allclose(once, embed(repeated, 9), rtol=1e-5, atol=1e-6)


def test_padding_takes_part_as_published_unless_it_is_masked():
    ids = jnp.asarray([[3, 4], [3, 0], [0, 0]], jnp.int32)
    plain, masked = tiny(), tiny(masked=True)
    row0_H = nnx.relu(plain.hidden(plain.words[...][0]))
    np.testing.assert_allclose(plain(ids)[2], plain.output(row0_H), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(masked(ids)[2], masked.output.bias[...], rtol=1e-6)
    np.testing.assert_allclose(plain(ids)[0], masked(ids)[0], rtol=1e-6)
    assert np.abs(plain(ids)[1] - masked(ids)[1]).max() > 1e-3


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_gradients_are_finite_without_words_and_reach_the_table_only_where_it_trains(
    frozen, masked
):
    tower = tiny(frozen=frozen, masked=masked)
    graphdef = nnx.graphdef(tower)
    params, rest = state.split(tower)

    def loss(params, ids_NW):
        return (state.merge(graphdef, params, rest)(ids_NW) ** 2).sum()

    gradients = jax.grad(loss)(params, jnp.asarray([[0, 0, 0], [3, 9, 0]], jnp.int32))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    assert ("words" in gradients, "words" in rest) == (not frozen, frozen)
    assert np.any(gradients["hidden"]["kernel"]) and np.any(gradients["output"]["bias"])
    if not frozen:
        used = np.flatnonzero(np.any(gradients["words"] != 0, axis=1))
        assert used.tolist() == ([3, 9] if masked else [0, 3, 9])


def test_weights_begin_as_those_of_pytorch():
    tower = TextTower(500, embedding_dim=8, rngs=nnx.Rngs(1))
    table_VD = np.asarray(tower.words[...])
    assert not table_VD[0].any()
    np.testing.assert_allclose([table_VD[1:].mean(), table_VD[1:].std()], [0, 1], atol=0.02)
    for layer in (tower.hidden, tower.output):
        bound = len(layer.kernel[...]) ** -0.5
        for values in (layer.kernel[...], layer.bias[...]):
            assert np.abs(values).max() <= bound
        assert np.abs(layer.kernel[...]).max() > 0.99 * bound


@pytest.mark.parametrize("frozen", [False, True])
def test_a_table_begins_with_the_vectors_given_and_goes_on_at_random(frozen):
    vectors_VD = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
    vectors_VD[0] = 0
    plain = tiny(frozen=frozen)
    given = jax.jit(lambda: state.split(tiny(frozen=frozen, vectors_VD=vectors_VD)))()
    table_VD = given[frozen]["words"]  # of (parameters, the rest)
    np.testing.assert_array_equal(table_VD[:4], vectors_VD)
    np.testing.assert_array_equal(table_VD[4:], plain.words[...][4:])
    np.testing.assert_allclose(given[0]["hidden"]["kernel"], plain.hidden.kernel[...], rtol=1e-6)


def test_a_tower_in_bfloat16_gives_float32_near_the_exact_values():
    ids = jnp.asarray([[3, 4, 0], [9, 0, 0]], jnp.int32)
    exact, rounded = tiny(), tiny(dtype=jnp.bfloat16)
    assert rounded(ids).dtype == jnp.float32
    np.testing.assert_allclose(rounded(ids), exact(ids), atol=0.05)
