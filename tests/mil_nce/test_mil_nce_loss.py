"""MIL-NCE's objective against published numbers, and what must hold of it."""

from __future__ import annotations

import math
import os
import pathlib
import subprocess
import sys

import golden_rules
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mil_nce import loss as loss_lib
from mil_nce.loss import POSITIVES, dense_mil_nce, mil_nce_loss

PACK = golden_rules.Pack("mil_nce")
CASES = sorted(name for name in PACK.manifest["cases"] if name.startswith("loss_"))
FORMS = sorted(POSITIVES)


def value_and_gradients(function, *arguments):
    """The loss and its gradients by video and text; ``function`` may return metrics as well."""

    def loss(video_BD, text_BKD):
        result = function(video_BD, text_BKD, *arguments[2:])
        return result[0] if isinstance(result, tuple) else result

    hurry = {"xla_backend_optimization_level": 0}  # to compile takes longer than to run
    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)), compiler_options=hurry)
    return run(*arguments[:2])


def embeddings(clips, candidates, seed=0, dim=8, scale=1.0):
    """Video and text embeddings; scores are of order ``scale``."""
    random = np.random.default_rng(seed)
    shapes = (clips, dim), (clips, candidates, dim)
    root = (scale / dim**0.5) ** 0.5
    return [jnp.asarray(root * random.standard_normal(shape), jnp.float32) for shape in shapes]


def assert_equal(ours, other, rtol=1e-5, atol=0.0):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype
        allowed = max(atol, rtol * float(np.abs(b).max()))
        np.testing.assert_allclose(a, b, rtol=rtol, atol=allowed)


# What was published.


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("positives", FORMS)
@pytest.mark.parametrize(("dtype", "block"), [("float64", None), ("float64", 3), ("float32", 1024)])
def test_the_loss_and_its_gradients_are_the_published_ones(case, positives, dtype, block):
    stored, tolerance = PACK.stored(case), PACK.case(case)["tolerance"][dtype]
    prefix = {"twice": "code", "once": "paper"}[positives]
    inputs, clips = PACK.inputs(case), PACK.case(case)["options"]["n"]
    with golden_rules.x64():
        video_BD = jnp.asarray(inputs["video"], dtype)
        text_BKD = jnp.asarray(inputs["text"], dtype).reshape(clips, -1, video_BD.shape[1])
        function, blocks = (mil_nce_loss, [block]) if block else (dense_mil_nce, [])
        loss, gradients = value_and_gradients(function, video_BD, text_BKD, positives, *blocks)
    assert loss.dtype == dtype
    np.testing.assert_allclose(
        loss, stored[f"{prefix}/loss"], rtol=tolerance["loss_rtol"], atol=tolerance["grad_atol"]
    )
    for name, ours in zip(("dvideo", "dtext"), gradients, strict=True):
        wanted = stored[f"{prefix}/{name}"].reshape(ours.shape)
        allowed = max(tolerance["grad_rtol_of_max"] * np.abs(wanted).max(), tolerance["grad_atol"])
        np.testing.assert_allclose(ours, wanted, rtol=0, atol=allowed)


# Laws.


@pytest.mark.slow
@pytest.mark.parametrize("candidates", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("positives", FORMS)
def test_block_by_block_is_the_same_as_all_at_once(candidates, positives):
    video_BD, text_BKD = embeddings(13, candidates, scale=4.0)
    dense = value_and_gradients(dense_mil_nce, video_BD, text_BKD, positives)
    for block in (13, 5, 1):  # one, an uneven last one, as many as there are clips
        ours = value_and_gradients(mil_nce_loss, video_BD, text_BKD, positives, block)
        assert_equal(ours, dense)


sizes = {
    "seed": st.integers(0, 10_000),
    "clips": st.sampled_from([1, 2, 5, 6]),
    "candidates": st.sampled_from([1, 3]),
    "positives": st.sampled_from(FORMS),
}


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(**sizes)
def test_neither_the_order_of_clips_nor_that_of_candidates_matters(
    seed, clips, candidates, positives
):
    random = np.random.default_rng(seed)
    video_BD, text_BKD = embeddings(clips, candidates, seed)
    loss, metrics = mil_nce_loss(video_BD, text_BKD, positives, block=4)
    clip_B, candidate_K = random.permutation(clips), random.permutation(candidates)
    shuffled = mil_nce_loss(video_BD[clip_B], text_BKD[clip_B][:, candidate_K], positives, block=4)
    # Scores are of order 1, and their mean may be as near to 0 as it likes.
    assert_equal((loss, metrics), shuffled, atol=1e-5)


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(**sizes)
def test_only_scores_matter_so_turning_both_spaces_together_changes_nothing(
    seed, clips, candidates, positives
):
    video_BD, text_BKD = embeddings(clips, candidates, seed)
    turn_DD = np.linalg.qr(np.random.default_rng(seed).standard_normal((8, 8)))[0]
    turned = [jnp.asarray(np.asarray(x) @ turn_DD, jnp.float32) for x in (video_BD, text_BKD)]
    loss, _ = mil_nce_loss(video_BD, text_BKD, positives)
    np.testing.assert_allclose(mil_nce_loss(*turned, positives)[0], loss, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), clips=st.sampled_from([1, 2, 6]))
def test_with_one_candidate_the_papers_form_is_the_symmetric_formula(seed, clips):
    video_BD, text_BKD = embeddings(clips, 1, seed)
    e_BB = np.exp(np.asarray(video_BD, np.float64) @ np.asarray(text_BKD[:, 0], np.float64).T)
    wanted = -np.log(np.diag(e_BB) / (e_BB.sum(1) + e_BB.sum(0) - np.diag(e_BB))).mean()
    loss, _ = mil_nce_loss(video_BD, text_BKD, "once")
    np.testing.assert_allclose(loss, wanted, rtol=1e-5, atol=1e-6)
    swapped, _ = mil_nce_loss(text_BKD[:, 0], video_BD[:, None], "once")
    np.testing.assert_allclose(swapped, loss, rtol=1e-5, atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.sampled_from([0.1, 1.0, 30.0]))
def test_counting_positives_twice_costs_at_most_log_2_and_at_least_log_2_is_left(seed, scale):
    once, twice = (mil_nce_loss(*embeddings(6, 3, seed, scale=scale), form)[0] for form in FORMS)
    assert 0 <= once <= twice <= once + math.log(2) + 1e-5
    assert twice >= math.log(2) - 1e-6


def test_a_candidate_that_is_repeated_adds_the_same_to_every_sum():
    video_BD, text_BKD = embeddings(6, 2)
    loss, _ = mil_nce_loss(video_BD, text_BKD)
    np.testing.assert_allclose(
        mil_nce_loss(video_BD, jnp.tile(text_BKD, (1, 3, 1)))[0], loss, rtol=1e-5
    )


# Numbers of any size.


@pytest.mark.slow
@pytest.mark.parametrize("positives", FORMS)
@pytest.mark.parametrize("block", [3, 1024])
def test_scores_of_ten_thousand_give_numbers(positives, block):
    video_BD, text_BKD = embeddings(7, 3, scale=1e4)
    scores = jnp.einsum("id,jkd->ijk", video_BD, text_BKD)
    assert scores.max() > 1e4 and scores.min() < -1e4
    dense = value_and_gradients(dense_mil_nce, video_BD, text_BKD, positives)
    ours = value_and_gradients(mil_nce_loss, video_BD, text_BKD, positives, block)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(ours))
    assert_equal(ours, dense, rtol=1e-3)  # a score has an error of a thousandth


def test_differences_between_large_scores_keep_their_precision():
    video_BD, text_BKD = jnp.full((1, 1), 100.0), jnp.full((1, 3, 1), 100.0)
    loss, _ = mil_nce_loss(video_BD, text_BKD)
    np.testing.assert_allclose(loss, math.log(2), rtol=1e-6)
    assert abs(dense_mil_nce(video_BD, text_BKD) - math.log(2)) > 1e-5


@pytest.mark.parametrize("positives", FORMS)
def test_an_infinite_score_between_strangers_does_not_make_the_loss_undefined(positives):
    huge = float(np.finfo(np.float32).max)
    video_BD = jnp.asarray([[0.0, 1.0], [huge, 0.0], [0.0, -1.0]])
    text_B1D = jnp.asarray([[[-huge, 1.0]], [[0.0, 0.0]], [[0.0, 0.5]]])
    loss, gradients = value_and_gradients(mil_nce_loss, video_BD, text_B1D, positives, 2)
    assert np.isfinite(loss)  # minus infinity: a pair that never goes together
    assert all(np.isfinite(x).all() for x in gradients)
    loss, metrics = mil_nce_loss(video_BD, text_B1D.at[0, 0, 0].set(huge), positives)
    assert np.isposinf(loss)  # plus infinity: no step may be taken on it
    assert not any(np.isnan(x) for x in metrics.values())


def test_embeddings_in_bfloat16_are_compared_in_float32():
    narrow = [x.astype(jnp.bfloat16) for x in embeddings(6, 3)]
    loss, metrics = mil_nce_loss(*narrow)
    assert {value.dtype.name for value in metrics.values()} == {"float32"} == {loss.dtype.name}
    np.testing.assert_array_equal(loss, mil_nce_loss(*(x.astype(jnp.float32) for x in narrow))[0])
    gradients = value_and_gradients(mil_nce_loss, *narrow)[1]
    assert [x.dtype for x in gradients] == [jnp.bfloat16] * 2
    assert value_and_gradients(dense_mil_nce, *narrow)[0].dtype == jnp.float32


# Metrics.


def test_metrics_count_the_clips_that_find_their_own_narration_and_the_other_way_round():
    video_BD, text_BKD = embeddings(40, 3, scale=1.0)
    text_BKD = text_BKD.at[:20, 1].add(2 * video_BD[:20])  # half of the clips have a good candidate
    _, metrics = mil_nce_loss(video_BD, text_BKD, block=7)
    scores_BBK = np.einsum("id,jkd->ijk", video_BD, text_BKD)
    own_B = scores_BBK.max(2).diagonal()
    to_text = np.mean([scores_BBK[i].max() == own for i, own in enumerate(own_B)])
    to_video = np.mean([scores_BBK[:, i].max() == own for i, own in enumerate(own_B)])
    assert 0.2 < to_text < 0.8 and 0.2 < to_video < 0.8
    np.testing.assert_allclose(metrics["video_to_text_top1"], to_text, rtol=1e-6)
    np.testing.assert_allclose(metrics["text_to_video_top1"], to_video, rtol=1e-6)
    own_BK = np.einsum("bd,bkd->bk", video_BD, text_BKD)
    np.testing.assert_allclose(metrics["positive_score"], own_BK.mean(), rtol=1e-5)


def test_embeddings_that_are_all_alike_find_nothing():
    _, metrics = mil_nce_loss(jnp.ones((6, 4)), jnp.ones((6, 2, 4)))
    assert metrics["video_to_text_top1"] == metrics["text_to_video_top1"] == 0
    np.testing.assert_allclose(metrics["loss"], math.log(2 * 6), rtol=1e-6)


# Devices.


@pytest.mark.slow
def test_the_loss_is_the_same_on_one_two_four_and_eight_devices():
    """Run apart, since it needs eight devices."""
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=8",
        "PYTHONPATH": str(pathlib.Path(loss_lib.__file__).parents[1]),
    }
    result = subprocess.run(
        [sys.executable, "-c", _OVER_DEVICES], env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["1", "2", "4", "8"]


_OVER_DEVICES = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType
from common import sharding
from mil_nce.loss import dense_mil_nce, mil_nce_loss

random = np.random.default_rng(0)
whole = [jnp.asarray(random.standard_normal(s), jnp.float32) for s in ((40, 8), (40, 3, 8))]

for shape in ((1, 1), (2, 1), (2, 2), (4, 2)):
    devices = jax.devices()[: shape[0] * shape[1]]
    mesh = jax.make_mesh(shape, sharding.AXES, axis_types=(AxisType.Auto,) * 2, devices=devices)
    for positives in ("once", "twice"):
        dense = jax.value_and_grad(dense_mil_nce, argnums=(0, 1))(*whole, positives)
        _, metrics = mil_nce_loss(*whole, positives)
        for block in (3, 1024):  # uneven, and all of a device
            run = lambda *x: mil_nce_loss(*x, positives, block)
            run = jax.jit(jax.value_and_grad(run, argnums=(0, 1), has_aux=True))
            split = jax.device_put(whole, sharding.batch_sharding(mesh))
            (loss, split_metrics), gradients = run(*split)
            for ours, other in zip(jax.tree.leaves((loss, gradients)), jax.tree.leaves(dense)):
                np.testing.assert_allclose(ours, other, rtol=1e-5, atol=1e-6)
            for name, value in metrics.items():
                np.testing.assert_allclose(split_metrics[name], value, rtol=1e-5)
            for x, gradient in zip(split, gradients):
                assert gradient.sharding.is_equivalent_to(x.sharding, x.ndim)
    print(len(devices))
"""
