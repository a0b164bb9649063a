"""The space-time transformer against published features, and its laws."""

from __future__ import annotations

import functools

import golden_rules
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import strategies as st

from common import state
from common.backbones.divided_attention import DividedAttention, Grid, space_attention
from common.backbones.space_time_transformer import (
    SIZES,
    TIME_STARTS,
    SpaceTimeTransformer,
    resize_positions,
)
from common.errors import UserError
from common.weights import vit_layout

PACK = golden_rules.Pack("frozen")
TINY = {"size": 32, "patch": 16, "width": 32, "depth": 2, "heads": 2, "num_frames": 4}


def _options(checkpoint):
    """The sizes of a checkpoint's network."""
    sizes = PACK.manifest["checkpoints"][checkpoint]["video"]
    names = {"img_size": "size", "embed_dim": "width", "num_heads": "heads"}
    return {names.get(name, name): value for name, value in sizes.items()}


def _abstract(**options):
    return nnx.eval_shape(lambda: SpaceTimeTransformer(**options, rngs=nnx.Rngs(0)))


def _begun(**options):
    """A network as training begins with it; compiled, which is quicker."""
    return nnx.jit(lambda: SpaceTimeTransformer(**options, rngs=nnx.Rngs(0)))()


@functools.cache
def _published(checkpoint):
    return _loaded(checkpoint)


def _loaded(checkpoint, **options):
    model = _abstract(**_options(checkpoint), **options)
    published = PACK.flat_checkpoint(checkpoint, without="text_model")
    vit_layout.read(model, published, checkpoint)
    return model


def _as(dtype, model):
    """A copy with parameters of another dtype."""
    graphdef, variables = nnx.split(model)
    return nnx.merge(graphdef, jax.tree.map(lambda x: x.astype(dtype), variables))


def _drawn(dtype="float32", seed=0, **options):
    """A network whose every parameter is drawn, attention in time among them."""
    graphdef, variables = nnx.split(_abstract(**(TINY | options)))
    generator = np.random.default_rng(seed)

    def fill(leaf):
        scale = 1 / np.sqrt(np.prod(leaf.shape[:-1])) if len(leaf.shape) > 1 else 0.5
        return jnp.asarray(scale * generator.standard_normal(leaf.shape), dtype)

    return nnx.merge(graphdef, jax.tree.map(fill, variables))


@nnx.jit
def _embed(model, video, frames_B=None):
    return model(video, frames_B)


@nnx.jit
def _stages(model, video):
    """What the reference stores: tokens, both attentions of the first block, and every block."""
    x, first = model.tokens(video), model.blocks[0]
    grid = Grid(video.shape[1], (x.shape[1] - 1) // video.shape[1])
    time = first.time(first.time_norm(x), grid)
    space = first.space(first.space_norm(x + time), grid)
    found = {"tokens": x, "block0_time": time, "block0_space": space}
    for number, block in enumerate(model.blocks):
        x = found[f"block{number}"] = block(x, grid)
    return found


def _assert_published(case, dtype):
    stored = PACK.stored(case)
    tolerance = PACK.case(case)["tolerance"][dtype]["rtol_of_max"]
    with golden_rules.x64():
        model = _as(dtype, _published(PACK.case(case)["checkpoint"]))
        video = jnp.asarray(PACK.inputs(case)["video"], dtype)
        stages, embedding = _stages(model, video), _embed(model, video)
    assert {f"stage/{name}/shape" for name in stages} == {n for n in stored if "/shape" in n}
    for name, x in stages.items():
        assert x.shape == tuple(stored[f"stage/{name}/shape"])
        for kind in (golden_rules.probe, golden_rules.stats):
            error = golden_rules.error_of_max(kind(x), stored[f"stage/{name}/{kind.__name__}"])
            assert error < tolerance, f"{name}: {kind.__name__}"
    assert embedding.dtype == dtype
    assert golden_rules.error_of_max(embedding, stored["cls"]) < tolerance


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "dtype"),
    [
        ("video_small_f1", "float64"),
        ("video_small_f2", "float64"),
        ("video_small_f4", "float64"),
        ("video_small_f4", "float32"),
    ],
)
def test_every_stage_and_the_embedding_are_the_published_ones(case, dtype):
    _assert_published(case, dtype)


@pytest.mark.slow
def test_the_released_architecture_embeds_as_published():
    _assert_published("video_full_f4", "float64")


@pytest.mark.slow
def test_weights_of_an_image_network_give_its_features_for_one_frame():
    stored = PACK.stored("inflation")
    with golden_rules.x64():
        options = _options("vit_small") | {"num_frames": 4}
        model = _begun(**options)
        left = vit_layout.read(model, PACK.flat_checkpoint("vit_small"), "vit")
        image = jnp.asarray(PACK.inputs("inflation")["image"], "float64")
        model = _as("float64", model)
        for frames, name in ((1, "vit_cls"), (1, "one_frame_cls"), (4, "equal_frames_cls")):
            embedding = _embed(model, jnp.repeat(image, frames, 1))
            assert golden_rules.error_of_max(embedding, stored[name]) < 1e-9, name
    assert left == ["head.bias", "head.weight"]


def test_bfloat16_features_are_close_to_the_published_ones():
    model = _loaded("small", dtype=jnp.bfloat16)
    embedding = _embed(model, PACK.inputs("video_small_f4")["video"])
    assert embedding.dtype == jnp.float32
    assert golden_rules.error_of_max(embedding, PACK.stored("video_small_f4")["cls"]) < 0.05


def _dense_attention(module, x, frames, axis):
    """The same attention over all tokens at once, with a mask, in NumPy."""
    batch, tokens, width = x.shape
    positions, heads = (tokens - 1) // frames, module.heads
    at = np.arange(tokens - 1)
    same = at // positions if axis == "space" else at % positions
    sees = np.ones((tokens, tokens), bool)
    sees[1:, 1:] = same[:, None] == same
    qkv = x @ np.asarray(module.qkv.kernel[...]) + np.asarray(module.qkv.bias[...])
    q, k, v = (p.reshape(batch, tokens, heads, -1) for p in np.split(qkv, 3, -1))
    logits = np.einsum("bmhk,bnhk->bhmn", q, k) / np.sqrt(width // heads)
    weights = np.exp(logits) * sees
    y = np.einsum("bhmn,bnhk->bmhk", weights / weights.sum(-1, keepdims=True), v)
    output = module.output
    return y.reshape(x.shape) @ np.asarray(output.kernel[...]) + np.asarray(output.bias[...])


@pytest.mark.slow
@pytest.mark.parametrize("axis", ["space", "time"])
def test_attention_is_that_over_all_tokens_with_a_mask(axis):
    with golden_rules.x64():
        module = _as("float64", DividedAttention(axis, 8, 2, dtype=None, rngs=nnx.Rngs(0)))
        x = np.random.default_rng(1).standard_normal((2, 1 + 3 * 5, 8)) * 3
        grid = Grid(3, 5)
        y = module(jnp.asarray(x), grid)
        np.testing.assert_allclose(y, _dense_attention(module, x, 3, axis), rtol=1e-11, atol=1e-12)
        np.testing.assert_allclose(module.class_token(jnp.asarray(x), grid), y[:, :1], rtol=1e-12)


@pytest.mark.slow
def test_the_written_gradient_of_attention_in_space_is_the_derivative():
    def plain(q, keys, values):
        k, v = (
            jnp.concatenate([jnp.broadcast_to(own[:, None, :, None], (*x.shape[:3], 1, 4)), x], 3)
            for own, x in (keys, values)
        )
        weights = jax.nn.softmax(jnp.einsum("bfhnk,bfhmk->bfhnm", q, k))
        return jnp.einsum("bfhnm,bfhmk->bfhnk", weights, v)

    with golden_rules.x64():
        generator = np.random.default_rng(2)
        q, k, v, dy = (jnp.asarray(generator.standard_normal((2, 3, 2, 5, 4))) for _ in range(4))
        own = [jnp.asarray(generator.standard_normal((2, 2, 4))) for _ in range(2)]
        operands = (q, (own[0], k), (own[1], v))
        for ours, wanted in zip(
            *(jax.tree.leaves(jax.vjp(f, *operands)[1](dy)) for f in (space_attention, plain)),
            strict=True,
        ):
            np.testing.assert_allclose(ours, wanted, rtol=1e-11, atol=1e-12)


@functools.cache
def _mixing():
    """A small network in float64, and clips of four frames."""
    with golden_rules.x64():
        video = np.random.default_rng(3).standard_normal((3, 4, 32, 32, 3))
        return _drawn("float64"), video


@pytest.mark.slow
@hypothesis.given(
    real=st.lists(st.integers(1, 4), min_size=3, max_size=3),
    padding=st.sampled_from([0.0, -7.0, 1e30, np.inf, np.nan]),
)
@hypothesis.settings(max_examples=15, deadline=None)
def test_padding_changes_nothing_and_each_clip_is_as_if_it_were_alone(real, padding):
    model, video = _mixing()
    frames_B = np.array(real, np.int32)
    padded = video.copy()
    for clip, count in zip(padded, real, strict=True):
        clip[count:] = padding
    with golden_rules.x64():
        mixed = np.asarray(_embed(model, padded, frames_B))
        np.testing.assert_array_equal(mixed, _embed(model, video, frames_B))
        for number, count in enumerate(real):
            alone = _embed(model, video[:, :count])[number]
            np.testing.assert_allclose(mixed[number], alone, rtol=1e-10, atol=1e-11)


@pytest.mark.slow
def test_no_gradient_flows_through_padding_even_of_pixels_that_are_no_numbers():
    model, video = _mixing()
    video = video.copy()
    video[0, 1:], video[1, 3:] = np.nan, np.inf
    frames_B = np.array([1, 3, 4], np.int32)
    graphdef, variables = nnx.split(model)

    @jax.jit
    def gradients(variables, video):
        loss = lambda variables, video: nnx.merge(graphdef, variables)(video, frames_B).sum()  # noqa: E731
        return jax.grad(loss, (0, 1))(variables, video)

    with golden_rules.x64():
        of_weights, of_video = gradients(variables, jnp.asarray(video))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(of_weights))
    for clip, count in zip(np.asarray(of_video), frames_B, strict=True):
        assert (clip[count:] == 0).all()
        assert (np.abs(clip[:count]).max((1, 2, 3)) > 0).all()


def test_frames_are_told_apart_by_their_positions_in_time_alone():
    model, video = _mixing()
    with golden_rules.x64():
        backwards = video[:, ::-1]
        moved = np.abs(_embed(model, backwards) - _embed(model, video)).max()
        still = nnx.clone(model)
        still.times.set_value(jnp.zeros_like(still.times[...]))
        np.testing.assert_allclose(_embed(still, backwards), _embed(still, video), rtol=1e-9)
    assert moved > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("start", TIME_STARTS)
def test_attention_in_time_begins_as_nothing_and_learns(start):
    model = _begun(**(TINY | {"depth": 1, "time_start": start}))
    video = jax.random.normal(jax.random.key(0), (2, 4, 32, 32, 3))
    seen = nnx.jit(lambda model: model.blocks[0].time(model.tokens(video), Grid(4, 4)))(model)
    assert (seen == 0).all()
    graphdef, variables = nnx.split(model)
    loss = lambda variables: jnp.square(nnx.merge(graphdef, variables)(video)[:, :9]).sum()  # noqa: E731
    gradient = jax.jit(jax.grad(loss))
    learns = []
    for _ in range(2):
        gradients = gradient(variables)
        variables = jax.tree.map(lambda x, dx: x - 0.1 * dx, variables, gradients)
        time = gradients["blocks"][0]["time"]
        parts = np.split(np.asarray(time["qkv"]["kernel"][...]), 3, -1)
        parts.append(np.asarray(time["output"]["kernel"][...]))
        learns.append([bool(np.abs(part).max() > 0) for part in parts])
    # Queries, keys, values, output layer.
    if start == "published":
        assert learns == [[False, False, True, False], [False, False, True, True]]
    else:
        assert learns == [[False, False, False, True], [True, True, True, True]]


@pytest.mark.parametrize("grid", [(7, 7), (14, 14), (5, 9), (3, 2), (16, 12)], ids=str)
def test_positions_are_interpolated_as_pytorch_does(grid):
    pack = golden_rules.Pack("vit")
    positions = pack.inputs("resize_positions")["positions"]
    stored = pack.stored("resize_positions")["to{}x{}".format(*grid)]
    with golden_rules.x64():
        resized = resize_positions(jnp.asarray(positions), grid)
        np.testing.assert_allclose(resized, stored, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(resize_positions(jnp.ones((50, 4)), grid), 1, rtol=1e-6)


@pytest.mark.parametrize("sides", [(32, 32), (48, 16), (64, 96)], ids=str)
def test_frames_of_any_size_that_patches_divide_are_embedded(sides):
    video = jax.ShapeDtypeStruct((2, 3, *sides, 3), jnp.bfloat16)
    graphdef, variables = nnx.split(_abstract(**TINY, dtype=jnp.bfloat16))
    embed = lambda variables, video: nnx.merge(graphdef, variables)(video)  # noqa: E731
    result = jax.eval_shape(embed, variables, video)
    assert (result.shape, result.dtype) == ((2, 32), jnp.float32)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(variables)} == {"float32"}


def _gradient(model, video):
    """The gradient of a loss of the embeddings as a function of the parameters, and those."""
    graphdef = nnx.graphdef(model)
    params, rest = state.split(model)
    loss = lambda params: jnp.square(state.merge(graphdef, params, rest)(video)).sum()  # noqa: E731
    return jax.grad(loss), params


@pytest.mark.slow
def test_memory_of_training_grows_with_frames_no_faster_than_they_do():
    def needed(frames):
        # Frames of 8 x 8 patches; attention over all pairs of tokens would dwarf everything else.
        model = _drawn(size=64, patch=8, num_frames=frames, width=64, heads=1)
        gradient, params = _gradient(model, jnp.zeros((1, frames, 64, 64, 3)))
        compiled = jax.jit(gradient).lower(params).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    eight, sixteen, thirty_two = map(needed, (8, 16, 32))
    assert sixteen < 2.1 * eight
    assert thirty_two < 2.1 * sixteen


@pytest.mark.slow
def test_rematerialisation_gives_the_same_gradients():
    with golden_rules.x64():
        video = jax.random.normal(jax.random.key(1), (2, 3, 32, 32, 3), jnp.float64)
        found = []
        for remat in (False, True):
            gradient, params = _gradient(_drawn("float64", remat=remat), video)
            found.append(jax.tree.leaves(jax.jit(gradient)(params)))
    for ours, wanted in zip(*found, strict=True):
        np.testing.assert_allclose(ours, wanted, rtol=1e-9, atol=1e-11)


def test_rematerialisation_stores_less_for_the_backward_pass():
    video = jnp.zeros((2, 4, 32, 32, 3))

    def stored(remat):
        model = _abstract(**(TINY | {"depth": 4}), remat=remat)
        graphdef = nnx.graphdef(model)
        params, rest = state.split(model)
        _, backward = jax.eval_shape(
            lambda params: jax.vjp(lambda p: state.merge(graphdef, p, rest)(video), params), params
        )
        weights = sum(leaf.size for leaf in jax.tree.leaves(params))
        return sum(leaf.size for leaf in jax.tree.leaves(backward)) - weights

    assert stored(True) < 0.5 * stored(False)


def _count(model, without=()):
    leaves = jax.tree_util.tree_leaves_with_path(nnx.state(model, nnx.Param))
    return sum(x.size for path, x in leaves if not any(w in str(path) for w in without))


def test_the_network_has_the_published_number_of_parameters():
    model = _abstract()
    assert _count(model) == 114_168_576
    assert _count(model) - _count(model, ("'time'", "time_norm", "times")) == 28_369_920


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("tiny", 5.524416),
        ("small", 21.665664),
        ("base", 85.798656),
        ("large", 303.301632),
        ("huge", 630.7648),
        ("giant", 1011.202432),
    ],
)
def test_named_sizes_are_those_of_image_networks(name, millions):
    one, two = (
        _count(_abstract(**(SIZES[name] | {"depth": depth})), ("'time'", "time_norm", "times"))
        for depth in (1, 2)
    )
    assert one + (SIZES[name]["depth"] - 1) * (two - one) == round(1e6 * millions)


@pytest.mark.parametrize(
    ("options", "shape", "message"),
    [
        ({"size": 40}, None, "size=40 cannot be divided by patch=16.*size=32"),
        ({"heads": 3}, None, "width=32 cannot be divided by heads=3.*width=30"),
        ({"activation": "relu"}, None, "activation is 'relu'.*'gelu', 'quick_gelu'"),
        ({"time_start": "ones"}, None, "time_start is 'ones'.*'published', 'attending'"),
        ({}, (1, 5, 32, 32, 3), "5 frames.*num_frames=4.*num_frames=5"),
        ({}, (1, 4, 40, 32, 3), "40x32 pixels.*16x16"),
    ],
    ids=["size", "width", "activation", "start", "frames", "pixels"],
)
def test_what_cannot_be_is_refused_with_what_could(options, shape, message):
    with pytest.raises(UserError, match=message):
        _abstract(**(TINY | options)).tokens(jnp.zeros(shape))
