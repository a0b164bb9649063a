"""Frozen in Time's objectives against published numbers, and what must hold of them."""

from __future__ import annotations

import functools

import golden_rules
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frozen.loss import max_margin_loss, sigmoid_loss, softmax_loss

PACK = golden_rules.Pack("frozen")
CASES = ("softmax_loss_n1", "softmax_loss_n4", "softmax_loss_n9")


def of_scores(loss, scores_BB):
    """A loss and its gradient by the scores, rows texts and columns clips."""
    eye_BB = jnp.eye(len(scores_BB), dtype=scores_BB.dtype)
    return jax.value_and_grad(lambda scores_BB: loss(scores_BB, eye_BB)[0])(scores_BB)


def pairs(clips, dim=5, seed=0, scale=1.0):
    """Embeddings of captions and of clips."""
    random = np.random.default_rng(seed)
    return [jnp.asarray(scale * random.standard_normal((clips, dim)), jnp.float32) for _ in "tv"]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("temperature", ["0.05", "0.5", "1.0"])
def test_the_softmax_loss_and_its_gradient_are_the_published_ones(case, temperature):
    stored = PACK.stored(case)
    with golden_rules.x64():
        scores_BB = jnp.asarray(PACK.inputs(case)["sim"], jnp.float64)
        loss, gradient_BB = of_scores(softmax_loss, scores_BB / float(temperature))
        np.testing.assert_allclose(loss, stored[f"tau{temperature}/loss"], rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(
            gradient_BB / float(temperature),
            stored[f"tau{temperature}/grad"],
            rtol=1e-9,
            atol=1e-12,
        )


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES[1:])
@pytest.mark.parametrize("margin", ["0.2", "1.0"])
@pytest.mark.parametrize("off_diagonal", [True, False])
def test_the_max_margin_loss_and_its_gradient_are_the_published_ones(case, margin, off_diagonal):
    stored, name = PACK.stored(case), f"margin{margin}_fix{int(off_diagonal)}"
    loss = functools.partial(max_margin_loss, margin=float(margin), off_diagonal=off_diagonal)
    with golden_rules.x64():
        scores_BB = jnp.asarray(PACK.inputs(case)["sim"], jnp.float64)
        ours, gradient_BB = of_scores(loss, scores_BB)
        np.testing.assert_allclose(ours, stored[f"{name}/loss"], rtol=1e-10)
        np.testing.assert_allclose(gradient_BB, stored[f"{name}/grad"], rtol=1e-9, atol=1e-12)


def test_a_batch_of_one_has_nothing_to_tell_apart():
    text_BD, video_BD = pairs(1)
    assert max_margin_loss(text_BD, video_BD)[0] == 0
    assert softmax_loss(text_BD, video_BD)[0] == 0


def dense_sigmoid(text_BD, video_BD):
    """As its authors write it."""
    scores_BB = text_BD @ video_BD.T
    signs_BB = 2 * jnp.eye(len(scores_BB)) - 1
    return -jax.nn.log_sigmoid(signs_BB * scores_BB).sum() / len(scores_BB)


@pytest.mark.slow
@settings(deadline=None, max_examples=15)
@given(st.integers(1, 9), st.integers(1, 10), st.integers(0, 5))
def test_in_blocks_of_any_size_the_sigmoid_loss_is_that_of_all_pairs(clips, block, seed):
    embeddings = pairs(clips, seed=seed)
    in_blocks = jax.value_and_grad(lambda *both: sigmoid_loss(*both, block=block)[0], (0, 1))
    ours, dense = in_blocks(*embeddings), jax.value_and_grad(dense_sigmoid, (0, 1))(*embeddings)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(dense), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("block", [1, 3, 7])
def test_in_blocks_of_any_size_the_max_margin_loss_is_the_same(block):
    embeddings = pairs(7)
    whole = jax.value_and_grad(lambda *both: max_margin_loss(*both)[0], (0, 1))(*embeddings)
    in_blocks = jax.value_and_grad(lambda *both: max_margin_loss(*both, block=block)[0], (0, 1))
    for a, b in zip(jax.tree.leaves(in_blocks(*embeddings)), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_the_mean_of_both_directions_is_half_of_their_sum():
    assert softmax_loss(*pairs(5), "mean")[0] == softmax_loss(*pairs(5), "sum")[0] / 2


@pytest.mark.slow
@pytest.mark.parametrize("loss", [softmax_loss, max_margin_loss, sigmoid_loss])
def test_metrics_say_how_many_captions_and_clips_are_found(loss):
    text_BD, video_BD = jnp.eye(4), jnp.eye(4)
    assert loss(text_BD, video_BD)[1]["text_to_video_top1"] == 1
    swapped_BD = video_BD[jnp.array([1, 0, 2, 3])]
    metrics = loss(text_BD, swapped_BD)[1]
    assert metrics["text_to_video_top1"] == metrics["video_to_text_top1"] == 0.5
    assert metrics["positive_score"] == 0.5
