"""Promises of the core of contrastive objectives; its second user is a symmetric softmax.

Run as a program it measures on eight devices: ``python test_contrastive.py`` prints JSON.
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from toy_method import Toy, get_config

from common import contrastive, program, sharding


def symmetric_softmax(x_BD, y_BD, temperature=0.1, block=contrastive.BLOCK):
    """Cross entropy of finding y by x plus that of finding x by y."""
    x_BD = x_BD / temperature
    own_B = contrastive.positives(x_BD, y_BD[:, None])[:, 0]
    others = contrastive.negatives(x_BD, y_BD[:, None], block=block)
    return jnp.mean(
        jnp.logaddexp(others.rows_B, own_B) + jnp.logaddexp(others.columns_B, own_B) - 2 * own_B
    )


def dense_symmetric_softmax(x_BD, y_BD, temperature=0.1):
    scores_BB = x_BD @ y_BD.T / temperature
    log_B = [jax.nn.log_softmax(scores_BB, axis).diagonal() for axis in (0, 1)]
    return -jnp.mean(log_B[0] + log_B[1])


def vectors(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def negatives_of(scores_BBK):
    """What `negatives` promises, as it is written."""
    others_BB1 = ~np.eye(len(scores_BBK), dtype=bool)[..., None]
    scores_BBK = np.where(others_BB1, np.asarray(scores_BBK, np.float64), -np.inf)
    sums_BBK = np.exp(scores_BBK)
    with np.errstate(divide="ignore"):
        return contrastive.Negatives(
            np.log(sums_BBK.sum((1, 2))),
            np.log(sums_BBK.sum((0, 2))),
            scores_BBK.max((1, 2)),
            scores_BBK.max((0, 2)),
        )


@pytest.mark.parametrize("block", [1, 3, 4, 11, 1024])
def test_rows_and_columns_are_summed_over_all_other_examples(block):
    x_BD, y_BKD = vectors(11, 4), vectors(11, 3, 4, seed=1)
    scores_BBK = jnp.einsum("id,jkd->ijk", x_BD, y_BKD)
    found = contrastive.negatives(x_BD, y_BKD, block=block)
    for ours, wanted in zip(found, negatives_of(scores_BBK), strict=True):
        assert ours.dtype == jnp.float32
        np.testing.assert_allclose(ours, wanted, rtol=1e-5, atol=1e-6)
    own_BK = contrastive.positives(x_BD, y_BKD)
    np.testing.assert_allclose(own_BK, jnp.einsum("iik->ik", scores_BBK), rtol=1e-5, atol=1e-6)


def test_an_example_alone_has_no_negatives_and_no_gradient():
    x_BD, y_BKD = vectors(1, 4), vectors(1, 3, 4)
    assert all(np.isneginf(x) for x in contrastive.negatives(x_BD, y_BKD))

    def loss(x_BD, y_BKD):
        found = contrastive.negatives(x_BD, y_BKD)
        return jnp.exp(found.rows_B + found.columns_B).sum()

    for gradient in jax.grad(loss, argnums=(0, 1))(x_BD, y_BKD):
        np.testing.assert_array_equal(gradient, 0)


def test_the_maxima_have_no_gradient():
    x_BD, y_BKD = vectors(5, 4), vectors(5, 2, 4)

    def loss(x_BD, y_BKD):
        found = contrastive.negatives(x_BD, y_BKD)
        return found.row_max_B.sum() + found.column_max_B.sum()

    for gradient in jax.grad(loss, argnums=(0, 1))(x_BD, y_BKD):
        np.testing.assert_array_equal(gradient, 0)


@pytest.mark.slow
@pytest.mark.parametrize("block", [4, 1024])
def test_a_symmetric_softmax_with_a_temperature_comes_out_of_it(block):
    arguments = vectors(10, 6), vectors(10, 6, seed=1), 0.3
    ours = jax.value_and_grad(symmetric_softmax, argnums=(0, 1, 2))(*arguments, block)
    wanted = jax.value_and_grad(dense_symmetric_softmax, argnums=(0, 1, 2))(*arguments)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def temporary_memory(function, batch, batch_sharding=None, dim=32):
    """Bytes beside arguments and results that the gradient of a loss of (B, D) pairs plans."""
    like = jax.ShapeDtypeStruct((batch, dim), jnp.float32, sharding=batch_sharding)
    gradient = jax.jit(jax.grad(function, argnums=(0, 1)))
    return gradient.lower(like, like).compile().memory_analysis().temp_size_in_bytes


def in_blocks(x_BD, y_BD):
    return symmetric_softmax(x_BD, y_BD, block=64)


@pytest.mark.slow
def test_memory_grows_with_the_batch_and_not_its_square():
    small, large = (temporary_memory(in_blocks, batch) for batch in (1024, 8192))
    assert large < 8.1 * small
    dense = temporary_memory(dense_symmetric_softmax, 8192)
    assert dense > 30 * large


# Devices: measured in a process of its own, which has eight.


class Contrastive(Toy):
    """The toy with an objective whose negatives are those of the whole batch."""

    def objective(self, embeddings):
        return symmetric_softmax(embeddings["a"], embeddings["b"], temperature=4.0, block=3), {}


ACCUMULATIONS = {
    "none": {"batch_size": 64},
    "cached": {"batch_size": 64, "microbatches": 2, "accumulation": "cached"},
}


def collectives(text):
    names = ("all-gather", "all-to-all", "all-reduce", "collective-permute")
    return sorted(name for name in names if f" {name}(" in text or f" {name}-start(" in text)


def two_steps(accumulation, **changes):
    """Loss and gradient norm of two steps of the loop's own program, and its collectives."""
    built = program.build(Contrastive(), get_config(**ACCUMULATIONS[accumulation], **changes))
    step, state, metrics = built.compile(), built.init(), []
    for seed in range(2):
        clip = np.random.default_rng(seed).integers(0, 255, (64, 8), np.uint8)
        batch = {"clip": jax.device_put(clip, built.batch_sharding)}
        state, measured = step(state, batch)
        metrics += [float(measured["loss"]), float(measured["gradient_norm"])]
    return metrics, collectives(step.as_text())


def measure():
    """What the tests below ask for, on all devices."""
    mesh = jax.make_mesh((4, 2), sharding.AXES, axis_types=(AxisType.Auto,) * 2)
    split = sharding.batch_sharding(mesh)
    like = jax.ShapeDtypeStruct((1024, 32), jnp.float32, sharding=split)
    compiled = jax.jit(jax.grad(in_blocks, argnums=(0, 1))).lower(like, like).compile()
    x_BD, y_BKD = vectors(40, 4), vectors(40, 3, 4, seed=1)
    found = contrastive.negatives(*jax.device_put((x_BD, y_BKD), split), block=3)
    return {
        "devices": jax.device_count(),
        "negatives": [np.asarray(x).tolist() for x in found],
        "collectives": collectives(compiled.as_text()),
        "memory": {b: temporary_memory(in_blocks, b, split) for b in (1024, 8192, 65536)},
        "steps": {name: two_steps(name, mesh__fsdp=2) for name in ACCUMULATIONS},
    }


@pytest.fixture(scope="module")
def measured():
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=8",
        "PYTHONPATH": str(pathlib.Path(contrastive.__file__).parents[1]),
    }
    result = subprocess.run(
        [sys.executable, __file__], env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.slow
def test_eight_devices_find_what_one_finds(measured):
    assert measured["devices"] == 8
    found = contrastive.negatives(vectors(40, 4), vectors(40, 3, 4, seed=1))
    for ours, wanted in zip(measured["negatives"], found, strict=True):
        np.testing.assert_allclose(ours, wanted, rtol=1e-5)


@pytest.mark.slow
def test_embeddings_travel_round_a_ring_and_are_never_gathered(measured):
    assert measured["collectives"] == ["collective-permute"]


@pytest.mark.slow
def test_memory_per_device_grows_with_its_share_of_the_batch(measured):
    memory = measured["memory"]
    assert memory["65536"] < 8.1 * memory["8192"] < 8.1 * 8.1 * memory["1024"]
    assert memory["8192"] < temporary_memory(in_blocks, 8192) / 3


@pytest.mark.slow
@pytest.mark.parametrize("accumulation", ACCUMULATIONS)
def test_the_loop_finds_the_ring_and_trains_as_on_one_device(measured, accumulation):
    together, collectives = measured["steps"][accumulation]
    assert collectives == ["all-reduce", "collective-permute"]  # nothing is gathered
    alone, none = two_steps(accumulation)
    assert none == []
    np.testing.assert_allclose(together, alone, rtol=1e-4)


if __name__ == "__main__":
    print(json.dumps(measure()))
