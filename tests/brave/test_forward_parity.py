"""Features of the published networks at full size, on the published layout's weights."""

from __future__ import annotations

import functools

import brave_golden
import golden_rules
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

PACK = brave_golden.PACK
pytestmark = pytest.mark.slow

_MODEL = functools.cache(brave_golden.published_model)


def _run(case, function, dtype):
    """Calls ``function(model, *inputs)`` in evaluation mode, weights widened to `dtype`."""
    model = _MODEL(PACK.case(case)["checkpoint"])
    model.eval()
    graphdef, variables = nnx.split(model)
    inputs = [jnp.asarray(x, dtype) for x in PACK.inputs(case).values()]
    if dtype == "float64":
        variables = brave_golden.widen(variables)
    run = jax.jit(lambda variables, *x: function(nnx.merge(graphdef, variables), *x))
    return jax.tree.map(np.asarray, run(variables, *inputs))


def _check(ours, stored, tolerance):
    """Compares feature maps and embedding with the stored stages."""
    checked = 0
    for name, value in ours.items():
        if name == "embedding":
            assert golden_rules.error_of_max(value, stored["embedding"]) < tolerance
            continue
        published = {"last": ["last_conv"]}.get(name, [f"tsm_resnet_{name}", f"resnet_{name}"])
        for stage in (f"stage/{name}" for name in published if f"stage/{name}/shape" in stored):
            assert value.shape == tuple(stored[f"{stage}/shape"])
            probe, stats = golden_rules.probe(value), golden_rules.stats(value)
            assert golden_rules.error_of_max(probe, stored[f"{stage}/probe"]) < tolerance, name
            assert golden_rules.error_of_max(stats, stored[f"{stage}/stats"]) < tolerance, name
            checked += 1
    assert checked == len([name for name in stored if name.endswith("/shape")]) == 6


def _backbone(view):
    def run(model, x):
        backbone = model.backbone(view)
        maps = backbone.endpoints(x)
        last = maps["last"]
        return {**maps, "embedding": last.mean(tuple(range(1, last.ndim - 1)))}

    return run


@pytest.mark.parametrize(
    ("case", "view", "dtype"),
    [
        ("eval_narrow_video", "narrow", "float64"),
        ("eval_narrow_video_odd", "narrow", "float64"),
        ("eval_narrow_video_odd", "narrow", "float32"),
        ("eval_audio", "audio", "float64"),
        ("eval_audio", "audio", "float32"),
        ("eval_broad_video", "video", "float64"),
    ],
)
def test_every_stage_of_the_backbones_is_the_published_one(case, view, dtype):
    tolerance = PACK.case(case)["tolerance"][dtype]["rtol_of_max"]
    with golden_rules.x64():
        _check(_run(case, _backbone(view), dtype), PACK.stored(case), tolerance)


def test_a_backbone_embeds_the_mean_of_its_last_stage():
    case = "eval_audio"
    embedding = _run(case, lambda model, x: model.backbone("audio")(x), "float32")
    assert embedding.dtype == np.float32
    assert golden_rules.error_of_max(embedding, PACK.stored(case)["embedding"]) < 1e-4


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_projections_and_predictions_are_the_published_ones(dtype):
    case = "eval_projector"
    tolerance = PACK.case(case)["tolerance"][dtype]["rtol_of_max"]
    stored = PACK.stored(case)
    with golden_rules.x64():
        z, h = _run(case, lambda model, x: model.head("narrow", x), dtype)
    assert golden_rules.error_of_max(z, stored["z"]) < tolerance
    assert golden_rules.error_of_max(h, stored["h"]) < tolerance
