"""Every config file is a page of a lab notebook that still runs."""

import importlib
import pathlib
import re

import jax
import numpy as np
import pytest

from common import config as config_lib
from common import curriculum, loop, methods, program, state
from common.data import pipeline

ROOT = pathlib.Path(__file__).parents[2]
BASES = {"base", "brave_base", "frozen_base", "mil_nce_base"}
NAMES = sorted(p.stem for p in (ROOT / "configs").glob("*.py") if p.stem not in BASES)


def load(name: str, variant: str = ""):
    return importlib.import_module(f"configs.{name}").get_config(variant)


@pytest.mark.parametrize("name", NAMES)
def test_a_config_opens_with_its_command_hardware_and_what_it_reproduces(name):
    page = importlib.import_module(f"configs.{name}").__doc__
    own = rf"python -m common\.train --config=configs/{name}\.py"
    assert re.search(rf"{own}|python -m benchmarks\.\w+ ", page)
    assert "Hardware:" in page
    assert "Reproduces:" in page


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_config_is_locked_complete_and_possible(name):
    config = load(name)
    assert config.is_locked
    assert config.steps > 0
    assert config.batch_size > 0
    method = methods.create(config)
    assert method.encoders["video"].dim > 0
    with pytest.raises((AttributeError, KeyError)):
        config.stepps = 1


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_all_parts_of_a_curriculum_train_one_model(name):
    configs = curriculum.Curriculum(load(name)).configs
    if len(configs) == 1:
        return
    parts = [methods.create(config) for config in configs]
    shapes = [state.abstract(method.build)[1] for method in parts]
    assert all(shape == shapes[0] for shape in shapes)


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_variant_is_refused(name):
    with pytest.raises(ValueError, match="smoke"):
        load(name, "smok")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_step_of_the_smoke_variant_fits_together(name):
    config = load(name, "smoke")
    config_lib.check(config)
    step = program.build(methods.create(config), config)
    before = jax.tree.map(lambda x: (x.shape, x.dtype), step.like)
    after, metrics = step.traced.out_info
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == before
    assert metrics["loss"].shape == ()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["brave_v_fa", "mil_nce_demo", "frozen_demo"])
def test_the_smoke_variant_trains(name, tmp_path):
    config = load(name, "smoke")
    method = methods.create(config)
    state = loop.train(method, config, tmp_path, pipeline.TrainData(config, method.views))
    assert int(state.step) == config.steps
    assert all(np.isfinite(x).all() for x in map(np.asarray, jax.tree.leaves(state.params)))
