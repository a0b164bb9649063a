"""Which networks a BraVe config makes, how views share them, and which configs are refused."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from brave.model import BraveModel
from brave.naming import broad_views
from common import state
from common.errors import UserError
from configs import brave_base


def _config(**changes):
    config = brave_base.get_config().model
    config.update(changes)
    return config


def _tiny(**changes):
    config = _config(**changes)
    for view in (config.narrow, config.video, config.flow, config.audio):
        view.blocks = (1,)
        view.width = 0.125
    config.projector_hidden, config.projection_dim = 16, 8
    return config


def _abstract(config, **options):
    return nnx.eval_shape(lambda: BraveModel(config, nnx.Rngs(0), **options))


def _count(module):
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(module, nnx.Param)))


def _inputs(config, batch=2):
    shapes = {
        "video": (batch, 2, 16, 16, 3),
        "flow": (batch, 2, 16, 16, 2),
        "audio": (batch, 20, 16),
    }
    views = {"narrow": "video", **broad_views(config.broad)}
    keys = jax.random.split(jax.random.key(0), len(views))
    return {
        view: jax.random.uniform(key, shapes[kind])
        for key, (view, kind) in zip(keys, views.items(), strict=True)
    }


def _shapes_of_call(config, inputs=None, **options):
    """Shapes of the embeddings, and of the model's statistics, without computing anything."""
    inputs = inputs or jax.eval_shape(lambda: _inputs(config))
    graphdef, variables = nnx.split(_abstract(config, **options))
    return jax.eval_shape(lambda v, x: nnx.merge(graphdef, v)(x), variables, inputs)


def test_the_published_models_have_the_published_number_of_parameters():
    model = _abstract(_config())
    assert _count(model.projectors) == 8_925_568
    assert _count(model.predictors) == 1_060_992
    assert _count(model) == 56_980_992


def test_width_two_gets_a_projector_for_each_feature_width():
    config = _config()
    config.narrow.width = 2.0
    model = _abstract(config)
    assert _count(model.narrow) == 93_891_712
    assert _count(model.projectors.narrow) == 17_314_176
    assert _count(model.projectors.audio) == 8_925_568
    assert _count(model.predictors) == 1_060_992, (
        "predictors see projections, which are equally wide"
    )


def test_every_view_of_any_list_is_projected_and_predicted_against_the_narrow_one():
    config = _tiny(broad=("video", "flow", "audio", "video"))
    embeddings = _shapes_of_call(config)
    views = ("video", "flow", "audio", "video_2")
    assert embeddings.keys() == {
        f"{kind}_{middle}{view}" for kind in "zh" for middle in ("", "narrow_") for view in views
    }
    assert {x.shape for x in embeddings.values()} == {(2, 8)}


@pytest.mark.parametrize(
    ("changes", "backbones", "projectors", "predictors"),
    [
        ({}, 3, 1, 1),
        ({"share_projector": False}, 3, 3, 1),
        ({"share_predictor": False}, 3, 1, 3),
        ({"share_backbone": "broad"}, 2, 1, 1),
        ({"share_backbone": "all"}, 1, 1, 1),
        ({"share_backbone": "all", "share_projector": False, "share_predictor": False}, 1, 3, 3),
    ],
)
def test_three_switches_say_what_views_share(changes, backbones, projectors, predictors):
    model = _abstract(_tiny(broad=("video", "video"), **changes))
    assert len(model.backbones) == backbones
    assert len(model.projectors) == projectors
    assert len(model.predictors) == predictors
    assert (model.broad[0] is model.broad[1]) == (backbones < 3)
    assert (model.broad[0] is model.narrow) == (backbones == 1)


@pytest.mark.slow
def test_running_statistics_advance_once_per_call_in_the_published_order():
    config = _tiny(broad=("video", "audio"))
    model = BraveModel(config, nnx.Rngs(0))
    inputs = _inputs(config)
    graphdef = nnx.graphdef(model)

    @jax.jit
    def run(params, rest, inputs):
        model = state.merge(graphdef, params, rest)
        narrow = model.narrow(inputs["narrow"])
        broad = [model.broad[0](inputs["video"]), model.broad[1](inputs["audio"])]
        model = state.merge(graphdef, params, rest)
        model(inputs)
        return [broad[0], narrow, broad[1], narrow], state.split(model)[1]

    features, after = run(*state.split(model), inputs)
    after = state.flatten(after)
    assert after["backbones/narrow/trunk/norm/count"] == 1
    assert after["projectors/narrow/norm_0/count"] == 4
    # The head sees broad before narrow, video before audio: its average weighs the last call most.
    linear = model.projectors.narrow.linear_0
    hidden = 0.0
    for x in features:
        hidden = 0.9 * hidden + 0.1 * np.asarray(linear(x)).mean(0)
    wanted = hidden / (1 - 0.9**4)
    np.testing.assert_allclose(after["projectors/narrow/norm_0/mean"], wanted, rtol=1e-4, atol=1e-6)


def test_embeddings_are_float32_whatever_the_compute_dtype():
    embeddings = _shapes_of_call(_tiny(), compute_dtype=jnp.bfloat16, remat=True)
    assert {x.dtype.name for x in embeddings.values()} == {"float32"}


def test_a_model_can_be_a_static_argument_of_jit():
    graphdef = nnx.graphdef(_abstract(_tiny()))
    assert hash(graphdef) == hash(nnx.graphdef(_abstract(_tiny())))


def _impossible():
    config = _tiny()
    config.narrow.backbone = "tsm_resnt"
    yield "narrow.backbone is 'tsm_resnt'.*tsm_resnet", config
    config = _tiny()
    config.audio.backbone = "tsm_resnet"
    yield "audio.backbone is 'tsm_resnet'.*audio_resnet", config
    yield "list at least one broad view", _tiny(broad=())
    yield r"broad\[1\] is 'sound'.*audio, video, flow", _tiny(broad=("video", "sound"))
    yield "share_backbone is 'some'.*'none', 'broad' or 'all'", _tiny(share_backbone="some")
    yield (
        "no two of these views.*video, flow",
        _tiny(broad=("video", "flow"), share_backbone="broad"),
    )
    yield "no two of these views.*narrow, audio", _tiny(share_backbone="all")
    config = _tiny(broad=("video",), share_backbone="all")
    config.video.width = 0.25
    yield "narrow.width is 0.125, video.width is 0.25", config


@pytest.mark.parametrize(
    ("message", "config"), _impossible(), ids=lambda x: x if isinstance(x, str) else ""
)
def test_impossible_configs_are_refused_with_the_fix(message, config):
    with pytest.raises(UserError, match=message):
        _abstract(config)


@pytest.mark.parametrize(
    ("view", "shape", "message"),
    [
        ("narrow", (2, 2, 16, 16, 1), r"narrow view has shape .*height, width, 3"),
        ("audio", (2, 320), "audio view has shape .*spectrogram frames, mel bins"),
        ("audio", (3, 20, 16), "audio view has shape .*with batch 2"),
        ("audio", None, "lacks audio; it has narrow"),
    ],
)
def test_inputs_of_another_shape_are_refused(view, shape, message):
    config = _tiny()
    inputs = jax.eval_shape(lambda: _inputs(config))
    inputs.pop(view)
    if shape:
        inputs[view] = jax.ShapeDtypeStruct(shape, jnp.float32)
    with pytest.raises(UserError, match=message):
        _shapes_of_call(config, inputs)
