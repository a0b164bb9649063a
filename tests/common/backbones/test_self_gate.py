"""A gate behind a norm is both in turn in the form for TPUs, gradients and statistics included."""

from __future__ import annotations

import golden_rules
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from common import state, target
from common.backbones.batch_norm import BatchNorm
from common.backbones.self_gate import SelfGate

CHANNELS = 6


def _in_turn(gate, norm, x):
    y = jax.tree.map(nnx.relu, norm(x))
    return y, gate(y)


@pytest.mark.parametrize("arrays", [None, 4], ids=["one_array", "phases"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_a_gate_behind_a_norm_is_both_in_turn(training, arrays):
    with golden_rules.x64():
        norm = BatchNorm(CHANNELS, statistics="torch")
        norm.scale[...] = jnp.linspace(-1, 1.5, CHANNELS, dtype=jnp.float32)
        norm.offset[...] = jnp.linspace(-0.5, 0.6, CHANNELS, dtype=jnp.float32)
        pair = nnx.List([norm, SelfGate(CHANNELS, rngs=nnx.Rngs(0))])
        (pair.train if training else pair.eval)()
        graphdef = nnx.graphdef(pair)
        params, rest = state.split(pair)
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)
        x = jax.random.normal(jax.random.key(1), (arrays or 1, 3, 2, 4, 5, CHANNELS)) + 0.3
        x = tuple(x) if arrays else x[0]

        def loss(params, x, see):
            norm, gate = pair = state.merge(graphdef, params, rest)
            before, gated = see(gate, norm, x)
            value = sum(jnp.sin(3 * y).sum() for y in jax.tree.leaves((before, gated)))
            return value, (before, gated, state.split(pair)[1])

        with target.described("tpu"):
            ours, wanted = (
                jax.value_and_grad(loss, (0, 1), has_aux=True)(params, x, see)
                for see in (SelfGate.after, _in_turn)
            )
        for one, other in zip(*map(jax.tree.leaves, (ours, wanted)), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9)
