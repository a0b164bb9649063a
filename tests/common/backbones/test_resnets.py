"""Shapes, temporal shift, rematerialisation and precision of the ResNets."""

from __future__ import annotations

import golden_rules
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from common import state, target
from common.backbones.audio_resnet import AudioResNet
from common.backbones.initializers import truncated_fan_in
from common.backbones.resnet_stem import max_pool
from common.backbones.tsm_resnet import TSMResNet, still_shift, temporal_shift

PACK = golden_rules.Pack("brave")


def _abstract(build):
    return nnx.eval_shape(build)


def _tiny(**options):
    options = {"blocks": (1, 1), "width": 0.25, **options}
    return TSMResNet(**options, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("case", ["temporal_shift_a", "temporal_shift_b"])
def test_the_temporal_shift_is_the_published_one(case):
    x = jnp.asarray(PACK.inputs(case)["x"])
    stored = PACK.stored(case)
    frames = PACK.case(case)["options"]["num_frames"]
    clips = x.reshape(-1, frames, *x.shape[1:])
    np.testing.assert_array_equal(temporal_shift(clips).reshape(x.shape), stored["video"])
    np.testing.assert_allclose(still_shift(x), stored["image_alpha0.3"], rtol=1e-6)


@pytest.mark.slow
@settings(max_examples=6, deadline=None)
@given(clips=st.integers(1, 3), frames=st.integers(1, 5), channels=st.integers(1, 20))
def test_the_temporal_shift_keeps_clips_apart(clips, frames, channels):
    x = jnp.asarray(np.random.default_rng(0).standard_normal((clips, frames, 1, 1, channels)))
    for clip, shifted in zip(x, temporal_shift(x), strict=True):
        np.testing.assert_array_equal(temporal_shift(clip[None])[0], shifted)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(7, 8), (1, 2)])
def test_pooling_and_its_gradient_are_those_of_the_window_reduction(size):
    x = jax.random.normal(jax.random.key(0), (2, *size, 3))
    weights = jax.random.normal(jax.random.key(1), (2, -(-size[0] // 2), -(-size[1] // 2), 3))

    def reduction(x):
        return nnx.max_pool(x, (3, 3), strides=(2, 2), padding="SAME")

    np.testing.assert_array_equal(max_pool(x), reduction(x))
    ours, wanted = (
        jax.grad(lambda x, pool=pool: (pool(x) * weights).sum())(x)
        for pool in (max_pool, reduction)
    )
    np.testing.assert_allclose(ours, wanted, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(24, 32), (17, 30)], ids=["in_blocks", "of_any_size"])
@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (lambda: _tiny(width=0.5, blocks=(2, 1)), lambda size: (2, 3, *size, 3)),
        (lambda: AudioResNet(blocks=(1, 1), width=0.25, rngs=nnx.Rngs(0)), lambda size: (2, *size)),
    ],
    ids=["video", "audio"],
)
def test_the_forms_for_tpus_compute_the_same(build, shape, size):
    with golden_rules.x64():
        x = jax.random.uniform(jax.random.key(1), shape(size), jnp.float64)
        results = []
        for platform, clips in (("cpu", 0), ("tpu", 3), ("tpu", 8)):
            loss, params = _loss_of(build())
            with target.described(platform), target.sharing(clips):
                results.append(jax.jit(jax.value_and_grad(loss, has_aux=True))(params, x))
        for here, *there in zip(*map(jax.tree.leaves, results), strict=True):
            for value in there:
                # Parameters are float32, so gradients are rounded to float32 at the end.
                np.testing.assert_allclose(value, here, rtol=1e-6, atol=1e-6)


def test_kernels_start_as_an_uncorrected_truncated_normal():
    kernel = np.asarray(truncated_fan_in(jax.random.key(0), (5, 5, 4, 500)))
    deviation = 1 / np.sqrt(5 * 5 * 4)
    assert np.abs(kernel).max() <= 2 * deviation
    assert np.abs(kernel).max() > 1.9 * deviation
    # The deviation of a standard normal that is cut at two.
    np.testing.assert_allclose(kernel.std(), 0.8796 * deviation, rtol=0.01)


@pytest.mark.parametrize(
    ("build", "count"),
    [
        (lambda: TSMResNet(rngs=nnx.Rngs(0)), 23_500_352),
        (lambda: TSMResNet(width=2.0, rngs=nnx.Rngs(0)), 93_891_712),
        (lambda: AudioResNet(rngs=nnx.Rngs(0)), 23_494_080),
    ],
    ids=["video", "video_2x", "audio"],
)
def test_the_networks_have_the_published_number_of_parameters(build, count):
    params = nnx.state(_abstract(build), nnx.Param)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count


@pytest.mark.parametrize("width", [1.0, 2.0, 0.3])
def test_any_width_gives_the_published_shapes_times_width(width):
    model = _abstract(lambda: TSMResNet(3, (1, 1, 1, 1), width, rngs=nnx.Rngs(0)))
    video = jax.ShapeDtypeStruct((2, 3, 57, 75, 3), jnp.float32)
    graphdef, variables = nnx.split(model)
    maps = jax.eval_shape(
        lambda variables, x: nnx.merge(graphdef, variables).endpoints(x), variables, video
    )
    channels = [4 * round(base * width / 4) for base in (64, 256, 512, 1024, 2048, 2048)]
    sizes = [(15, 19), (15, 19), (8, 10), (4, 5), (2, 3), (2, 3)]
    names = ["stem", "unit_0", "unit_1", "unit_2", "unit_3", "last"]
    wanted = {n: (2, 3, *size, c) for n, size, c in zip(names, sizes, channels, strict=True)}
    assert {name: x.shape for name, x in maps.items()} == wanted
    assert model.num_features == channels[-1]


@pytest.mark.slow
def test_width_two_runs_and_embeds_video_and_images():
    model = _tiny(width=2.0)
    model.eval()
    video = jax.random.uniform(jax.random.key(0), (1, 2, 16, 16, 3))
    embed = nnx.jit(lambda model, x: (model(x), model.embed_images(x[:, 0])))
    of_video, of_image = embed(model, video)
    assert of_video.shape == of_image.shape == (1, 1024)
    assert np.isfinite(of_video).all() and np.isfinite(of_image).all()
    assert np.abs(of_video - of_image).max() > 1e-3


def _loss_of(model):
    """A loss of parameters and input whose auxiliary is the updated batch statistics."""
    graphdef = nnx.graphdef(model)
    params, rest = state.split(model)

    def loss(params, x):
        model = state.merge(graphdef, params, rest)
        return jnp.square(model(x) - 0.3).sum(), state.split(model)[1]

    return loss, params


@pytest.mark.slow
def test_rematerialisation_changes_neither_gradients_nor_statistics():
    with golden_rules.x64():
        x = jax.random.uniform(jax.random.key(1), (2, 2, 16, 16, 3), jnp.float64)
        results = []
        for remat in (False, True):
            loss, params = _loss_of(_tiny(remat=remat))
            results.append(jax.jit(jax.value_and_grad(loss, has_aux=True))(params, x))
        for plain, again in zip(*map(jax.tree.leaves, results), strict=True):
            # Parameters are float32, so gradients are rounded to float32 at the end.
            np.testing.assert_allclose(again, plain, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_rematerialisation_stores_less_for_the_backward_pass():
    x = jnp.zeros((2, 2, 32, 32, 3))

    def stored(remat):
        loss, params = _loss_of(_tiny(remat=remat, blocks=(2, 2)))
        _, backward, _ = jax.eval_shape(
            lambda params: jax.vjp(lambda params: loss(params, x), params, has_aux=True), params
        )
        weights = sum(leaf.size for leaf in jax.tree.leaves(params))
        return sum(leaf.size for leaf in jax.tree.leaves(backward)) - weights

    assert stored(True) < 0.5 * stored(False)


def _convolutions(jaxpr):
    """All convolutions of a program, those of inner programs and of one pixel included."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("conv_general_dilated", "dot_general"):
            yield equation
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
        ):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from _convolutions(inner)


@pytest.mark.slow
@pytest.mark.parametrize("remat", [False, True])
def test_bfloat16_is_where_the_work_is_and_float32_where_it_matters(remat):
    model = _tiny(dtype=jnp.bfloat16, remat=remat)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(state.split(model)[0])} == {"float32"}
    graphdef, variables = nnx.split(model)
    program = jax.make_jaxpr(lambda x: nnx.merge(graphdef, variables, copy=True)(x))(
        jnp.zeros((1, 2, 16, 16, 3))
    )
    convolutions = list(_convolutions(program.jaxpr))
    assert len(convolutions) == 1 + 2 * 4
    for equation in convolutions:
        assert {variable.aval.dtype.name for variable in equation.invars} == {"bfloat16"}
    assert program.out_avals[0].dtype == jnp.float32


def test_audio_of_any_length_is_embedded():
    model = _abstract(lambda: AudioResNet(blocks=(1, 1), width=0.25, rngs=nnx.Rngs(0)))
    graphdef, variables = nnx.split(model)
    for frames in (31, 96):
        result = jax.eval_shape(
            lambda variables, x: nnx.merge(graphdef, variables)(x),
            variables,
            jax.ShapeDtypeStruct((2, frames, 80), jnp.float32),
        )
        assert result.shape == (2, 128)
