"""S3D against published features, and its options."""

from __future__ import annotations

import functools

import golden_rules
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from common import state, target
from common.backbones import inception
from common.backbones.inception import INITIALIZERS
from common.backbones.resnet_blocks import spatial_mean
from common.backbones.s3d import S3D, space_to_depth
from common.errors import UserError
from common.weights import s3d_layout, torch_layout

PACK = golden_rules.Pack("mil_nce")
PREFIX = {"s2d": "", "plain": "module."}
STEM = {"s2d": "space_to_depth", "plain": "plain"}
# Narrow blocks, one after each kind of pool, to see that the parts fit together.
_NARROW = {
    "mixed_3b": (8, 4, 8, 4, 8, 8),
    "mixed_4b": (4, 4, 8, 4, 12, 8),
    "mixed_5c": (4, 4, 8, 4, 4, 4),
}
_ONE = {"mixed_5c": _NARROW["mixed_5c"]}
_POOLED = {name: _NARROW[name] for name in ("mixed_3b", "mixed_5c")}  # twice in space alone


@functools.cache
def _published(checkpoint):
    return PACK.flat_checkpoint(checkpoint, without="text_module")


def _abstract(*args, **options):
    return nnx.eval_shape(lambda: S3D(*args, **options, rngs=nnx.Rngs(0)))


def _narrow(monkeypatch, blocks=_NARROW, **options):
    """A network of narrow blocks; its numbers are NumPy's, as initialisers take long to compile."""
    monkeypatch.setattr(inception, "BLOCKS", blocks)
    graphdef, variables = nnx.split(_abstract(**options))
    generator = np.random.default_rng(0)

    def fill(leaf):
        values = np.ones(leaf.shape)
        if len(leaf.shape) > 1:
            values = generator.standard_normal(leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1]))
        return jnp.asarray(values, leaf.dtype)

    return nnx.merge(graphdef, jax.tree.map(fill, variables))


@nnx.jit
def _embed(model, video):
    return model(video)


def _loaded(checkpoint, **options):
    """A network with the pooling and the weights of a checkpoint."""
    model = _abstract(**{"stem": STEM[checkpoint], "pooling": "torch", **options})
    layers = s3d_layout.layers_of(model, PREFIX[checkpoint])
    torch_layout.read(layers, _published(checkpoint), checkpoint)
    return model


def _run(model, video, dtype):
    """Feature maps of a video and the model after them, with weights widened to `dtype`."""
    graphdef, variables = nnx.split(model)
    variables = jax.tree.map(
        lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, variables
    )

    @jax.jit
    def run(variables, video):
        model = nnx.merge(graphdef, variables)
        return model.endpoints(video), nnx.state(model)

    maps, variables = run(variables, jnp.asarray(video, dtype))
    return maps, nnx.merge(graphdef, variables)


def _joint_embedding(maps, checkpoint):
    """The published 512 features, by the dense layer that follows the network."""
    weight, bias = (
        np.float64(_published(checkpoint)[f"{PREFIX[checkpoint]}fc.{name}"])
        for name in ("weight", "bias")
    )
    return np.asarray(maps["mixed_5c"], np.float64).mean((1, 2, 3)) @ weight.T + bias


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "dtype", "convolution"),
    [
        ("eval_plain_even", "float64", "folded"),
        ("eval_plain_odd", "float64", "joint"),
        ("eval_s2d_even", "float64", "joint"),
        ("eval_s2d_odd", "float64", "folded"),
    ],
)
def test_every_stage_is_the_published_one(case, dtype, convolution):
    tolerance = PACK.case(case)["tolerance"][dtype]["rtol_of_max"]
    checkpoint, stored = PACK.case(case)["checkpoint"], PACK.stored(case)
    model = _loaded(checkpoint, convolution=convolution)
    model.eval()
    with golden_rules.x64():
        maps, _ = _run(model, PACK.inputs(case)["video"], dtype)
        pooled = spatial_mean(maps["mixed_5c"])
    assert {f"stage/{name}/shape" for name in maps} == {n for n in stored if n.endswith("/shape")}
    for name, x in maps.items():
        assert x.shape == tuple(stored[f"stage/{name}/shape"])
        for kind in (golden_rules.probe, golden_rules.stats):
            error = golden_rules.error_of_max(kind(x), stored[f"stage/{name}/{kind.__name__}"])
            assert error < tolerance, f"{name}: {kind.__name__}"
    assert golden_rules.error_of_max(pooled, stored["mixed_5c_pooled"]) < tolerance
    embedding = _joint_embedding(maps, checkpoint)
    assert golden_rules.error_of_max(embedding, stored["video_embedding"]) < tolerance


@pytest.mark.slow
def test_the_two_space_to_depth_stems_differ_in_training_only(monkeypatch):
    video = jnp.asarray(PACK.inputs("eval_s2d_odd")["video"][:, :4, :12, :16])
    clean, torch = (
        _narrow(monkeypatch, stem=stem) for stem in ("space_to_depth", "space_to_depth_torch")
    )
    conv1 = nnx.jit(lambda model: model.endpoints(video)["conv1"])  # XLA drops the rest
    clean.eval(), torch.eval()
    np.testing.assert_allclose(conv1(torch), conv1(clean), rtol=1e-4, atol=1e-5)
    clean.train(), torch.train()
    assert conv1(torch).shape == conv1(clean).shape
    assert np.abs(conv1(torch) - conv1(clean)).max() > 0.01


def test_space_to_depth_is_the_published_one_and_needs_even_sizes():
    x = jnp.asarray(PACK.inputs("space_to_depth")["x"])
    np.testing.assert_array_equal(space_to_depth(x), PACK.stored("space_to_depth")["out"])
    with pytest.raises(UserError, match="3 frames of 6x2 pixels.*must be even"):
        space_to_depth(x[:, :3])


@pytest.mark.slow
@pytest.mark.parametrize(("stem", "count"), [("plain", 9_125_072), ("space_to_depth", 9_146_000)])
def test_the_network_has_the_published_number_of_parameters(stem, count):
    model = _abstract(stem)
    assert sum(x.size for x in jax.tree.leaves(nnx.state(model, nnx.Param))) == count
    statistics = jax.tree.leaves(nnx.state(model, nnx.BatchStat))
    assert sum(x.size for x in statistics if x.ndim) == 21_088


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(1, 32, 32), (7, 33, 50), (1, 1, 1)], ids=str)
def test_clips_of_any_length_and_size_are_embedded(sizes):
    graphdef, variables = nnx.split(_abstract())
    video = jax.ShapeDtypeStruct((2, *sizes, 3), jnp.float32)
    embed = lambda variables, x: nnx.merge(graphdef, variables)(x)  # noqa: E731
    result = jax.eval_shape(embed, variables, video)
    assert (result.shape, result.dtype) == ((2, 1024), jnp.float32)


@pytest.mark.slow
def test_poolings_differ_at_odd_sizes_only(monkeypatch):
    video = jax.random.uniform(jax.random.key(0), (1, 4, 50, 50, 3))
    embeddings = {}
    for pooling in ("same", "torch"):
        model = _narrow(monkeypatch, pooling=pooling)
        for size in (32, 50):  # 50 is 25, 13, 7 after stem and pools
            embeddings[pooling, size] = _embed(model, video[:, :, :size, :size])
    np.testing.assert_array_equal(embeddings["same", 32], embeddings["torch", 32])
    assert np.abs(embeddings["same", 50] - embeddings["torch", 50]).max() > 1e-4


def _step(model, video):
    """Loss, gradients and batch statistics of a training step."""
    graphdef = nnx.graphdef(model)
    params, rest = state.split(model)

    def loss(params, rest):
        model = state.merge(graphdef, params, rest)
        return jnp.square(model(video) - 0.3).sum(), state.split(model)[1]

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(params, rest)


@pytest.mark.slow
def test_neither_convolution_nor_rematerialisation_changes_gradients_or_statistics(monkeypatch):
    with golden_rules.x64():
        video = jax.random.uniform(jax.random.key(1), (2, 4, 18, 22, 3), jnp.float64)
        plain, *others = (
            jax.tree.leaves(_step(_narrow(monkeypatch, _ONE, **options), video))
            for options in (
                {"convolution": "folded"},
                {"convolution": "joint"},
                {"convolution": "folded", "remat": True},
            )
        )
        for other in others:
            for ours, wanted in zip(other, plain, strict=True):
                # Parameters are float32, so gradients are rounded to float32 at the end.
                np.testing.assert_allclose(ours, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_rematerialisation_stores_less_for_the_backward_pass(monkeypatch):
    video = jnp.zeros((2, 4, 32, 32, 3))

    def stored(remat):
        model = _narrow(monkeypatch, remat=remat)
        graphdef = nnx.graphdef(model)
        params, rest = state.split(model)
        _, backward = jax.eval_shape(
            lambda params: jax.vjp(lambda p: state.merge(graphdef, p, rest)(video), params), params
        )
        weights = sum(leaf.size for leaf in jax.tree.leaves(params))
        return sum(leaf.size for leaf in jax.tree.leaves(backward)) - weights

    assert stored(True) < 0.5 * stored(False)


@pytest.mark.slow
def test_bfloat16_features_are_close_to_the_published_ones():
    case = "eval_s2d_even"
    model = _loaded("s2d", dtype=jnp.bfloat16)
    model.eval()
    maps, _ = _run(model, PACK.inputs(case)["video"], "float32")
    assert {x.dtype.name for x in maps.values()} == {"bfloat16"}
    pooled = spatial_mean(maps["mixed_5c"])
    assert pooled.dtype == jnp.float32
    assert golden_rules.error_of_max(pooled, PACK.stored(case)["mixed_5c_pooled"]) < 0.05


@pytest.mark.slow
def test_in_bfloat16_parameters_and_statistics_stay_float32():
    graphdef, variables = nnx.split(_abstract(dtype=jnp.bfloat16))

    def train(variables, video):
        model = nnx.merge(graphdef, variables)
        return model(video), nnx.state(model)

    video = jax.ShapeDtypeStruct((1, 2, 16, 16, 3), jnp.float32)
    result, after = jax.eval_shape(train, variables, video)
    assert result.dtype == jnp.float32
    assert {x.dtype.name for x in jax.tree.leaves(after)} == {"float32", "int32"}


@pytest.mark.parametrize("name", ["uniform", "kaiming_normal"])
def test_kernels_start_as_pytorchs_do(name):
    kernel = np.asarray(INITIALIZERS[name](jax.random.key(0), (3, 3, 3, 20, 500), jnp.float32))
    fan_in = 3 * 3 * 3 * 20
    if name == "uniform":
        bound = 1 / np.sqrt(fan_in)
        assert 0.999 * bound < np.abs(kernel).max() <= bound
        np.testing.assert_allclose(kernel.std(), bound / np.sqrt(3), rtol=0.01)
    else:
        np.testing.assert_allclose(kernel.std(), np.sqrt(2 / fan_in), rtol=0.01)
        assert np.abs(kernel).max() > 4 * kernel.std(), "a normal that is not cut"


def test_the_initializer_is_for_convolutions_and_gates_stay_uniform(monkeypatch):
    monkeypatch.setattr(inception, "BLOCKS", {})
    model = S3D(initializer="kaiming_normal", rngs=nnx.Rngs(0))
    kernel = np.asarray(model.conv_2c.convs[1].kernel[...])
    np.testing.assert_allclose(kernel.std(), np.sqrt(2 / (3 * 192)), rtol=0.02)
    for values in (model.gating.dense.kernel[...], model.gating.dense.bias[...]):
        assert 0.9 / np.sqrt(192) < np.abs(values).max() <= 1 / np.sqrt(192)


@pytest.mark.parametrize(
    ("option", "value"),
    [("stem", "s2d"), ("pooling", "SAME"), ("convolution", "3d"), ("initializer", "kaiming")],
)
def test_an_unknown_option_is_refused_with_those_there_are(option, value):
    with pytest.raises(UserError, match=f"{option} is '{value}'; it must be one of '"):
        _abstract(**{option: value})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stem", "size"),
    [
        ("plain", (6, 16, 18)),
        ("plain", (6, 16, 24)),  # whose two pools in space meet even sides
        ("space_to_depth", (6, 16, 20)),
        ("space_to_depth", (6, 16, 24)),
        ("space_to_depth_torch", (6, 16, 20)),
    ],
)
def test_the_forms_for_tpus_compute_the_same(stem, size, monkeypatch):
    model = _narrow(monkeypatch, _POOLED, stem=stem)
    model.train()
    params, rest = state.split(model)
    graphdef = nnx.graphdef(model)

    def loss(params, video):
        model = state.merge(graphdef, params, rest)
        return jnp.square(model(video)).sum(), state.split(model)[1]

    with golden_rules.x64():
        video = jax.random.uniform(jax.random.key(1), (2, *size, 3), jnp.float64)
        results = []
        for platform in ("cpu", "tpu"):
            # Another function each time: JAX keeps what it has traced, whatever the platform.
            with target.described(platform), target.sharing(8):
                gradient = jax.value_and_grad(lambda *given: loss(*given), has_aux=True)
                results.append(jax.jit(gradient)(params, video))
    for one, same in zip(*map(jax.tree.leaves, results), strict=True):
        # Parameters are float32, so gradients are rounded to float32 at the end.
        np.testing.assert_allclose(one, same, rtol=1e-5, atol=1e-6 * np.abs(same).max())


@pytest.mark.slow
def test_odd_videos_are_refused_by_the_form_for_tpus_too():
    model = _abstract(stem="space_to_depth")
    with target.described("tpu"), pytest.raises(UserError, match="15x16 pixels cannot be cut"):
        nnx.eval_shape(lambda model, video: model(video), model, jnp.zeros((1, 4, 15, 16, 3)))
