"""Divided attention in the form for TPUs computes what the other form does, gradients included."""

from __future__ import annotations

import golden_rules
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from common import target
from common.backbones import framed_attention
from common.backbones.divided_attention import DividedAttention, Grid, class_token
from common.backbones.space_time_transformer import SpaceTimeTransformer


def _wide(tree):
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float64), tree)


def _assert_alike(ours, wanted):
    for one, other in zip(*map(jax.tree.leaves, (ours, wanted)), strict=True):
        scale = np.abs(other).max()
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-11 * scale)


def _to_tokens(x_BFGSD, grid):
    """The patches, and the class tokens of the first frame, as the other form lays them out."""
    x = x_BFGSD.reshape(*x_BFGSD.shape[:2], -1, x_BFGSD.shape[-1])[:, :, : grid.patches]
    return jnp.concatenate([class_token(x_BFGSD, grid), x.reshape(len(x), -1, x.shape[-1])], 1)


@pytest.mark.slow
@pytest.mark.parametrize("real", [None, (3, 1)], ids=["all_frames", "some_frames"])
@pytest.mark.parametrize("width", [24, 256], ids=["heads_in_one_group", "heads_in_pairs"])
@pytest.mark.parametrize("axis", ["space", "time"])
def test_attention_is_that_of_the_other_form(axis, width, real):
    grid = Grid(3, 11)
    with golden_rules.x64():
        module = DividedAttention(axis, width, 4, dtype=None, rngs=nnx.Rngs(0))
        graphdef, params = nnx.split(module)
        x, dy = (
            jax.random.normal(jax.random.key(seed), (2, 1 + 3 * 11, width), jnp.float64)
            for seed in (1, 2)
        )
        real_BF = None if real is None else jnp.arange(3) < jnp.array(real)[:, None]

        def other(params, x):
            module = nnx.merge(graphdef, params)
            return module(x, grid, real_BF), module.class_token(x, grid, real_BF)

        def framed(params, x):
            module, x = nnx.merge(graphdef, params), framed_attention.from_tokens(x, grid.frames)
            y = module(x, grid, real_BF)
            assert y.shape == x.shape
            return _to_tokens(y, grid), module.class_token(x, grid, real_BF)

        results = []
        for form in (framed, other):
            y, pull = jax.vjp(form, _wide(params), x)
            results.append((y, pull((dy, dy[:, :1]))))
        _assert_alike(*results)


@pytest.mark.slow
def test_every_frame_keeps_the_same_class_token():
    grid = Grid(4, 9)
    module = DividedAttention("time", 16, 2, dtype=None, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (2, 1 + 4 * 9, 16))
    y = module(framed_attention.from_tokens(x, 4), grid)
    copies = y.reshape(2, 4, -1, 16)[:, :, 9]
    np.testing.assert_array_equal(copies, jnp.broadcast_to(copies[:, :1], copies.shape))


@pytest.mark.slow
@pytest.mark.parametrize("frames_B", [None, (1, 3)], ids=["all_frames", "some_frames"])
def test_a_network_embeds_and_learns_as_in_the_other_form(frames_B):
    with golden_rules.x64():
        model = SpaceTimeTransformer(
            size=48, width=32, depth=2, heads=2, num_frames=3,
            time_start="attending", rngs=nnx.Rngs(0),
        )  # fmt: skip
        graphdef, params = nnx.split(model)
        video = jax.random.normal(jax.random.key(1), (2, 3, 48, 48, 3), jnp.float64)
        if frames_B is not None:
            frames_B = jnp.array(frames_B)
            video = video.at[0, 1:].set(jnp.nan)

        def loss(params, video):
            y = nnx.merge(graphdef, params)(video, frames_B)
            return jnp.sin(3 * y).sum(), y

        results = []
        for platform in ("tpu", "cpu"):
            with target.described(platform):
                run = jax.jit(jax.grad(loss, (0, 1), has_aux=True))
                results.append(run(_wide(params), video))
        _assert_alike(*results)
