"""Sweeps are data: every run has a name and a possible configuration before anything is trained."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import UserError
from common.sweeping import definition
from common.sweeping.definition import Sweep, choice, cross, grid, log_uniform, sampled, uniform

VALUES = st.one_of(st.integers(), st.floats(allow_nan=False), st.text(max_size=200), st.booleans())
OVERRIDES = st.dictionaries(st.from_regex(r"[a-z]{1,8}(\.[a-z]{1,8})?", fullmatch=True), VALUES)


def test_a_grid_has_every_combination_the_last_key_changing_fastest():
    assert grid({"a": (1, 2), "b.c": ("x", "y")}) == [
        {"a": 1, "b.c": "x"}, {"a": 1, "b.c": "y"}, {"a": 2, "b.c": "x"}, {"a": 2, "b.c": "y"},
    ]  # fmt: skip


def test_lists_cross_and_the_last_one_counts():
    runs = cross([{"a": 1, "steps": 5}], grid({"seed": (0, 1)}), [{"steps": 9}])
    assert runs == [{"a": 1, "steps": 9, "seed": 0}, {"a": 1, "steps": 9, "seed": 1}]


def test_more_draws_begin_with_the_fewer_and_stay_in_range():
    distributions = {"a": log_uniform(1e-4, 1e-1), "b": uniform(2, 3), "c": choice("x", "y")}
    many = sampled(distributions, runs=200, seed=1)
    assert many[:20] == sampled(distributions, runs=20, seed=1)
    assert many[:20] != sampled(distributions, runs=20, seed=2)
    assert all(1e-4 <= run["a"] <= 1e-1 and 2 <= run["b"] <= 3 for run in many)
    assert {run["c"] for run in many} == {"x", "y"}
    # Uniform in the logarithm: a third of the draws in each decade, within 5 deviations.
    assert abs(sum(run["a"] < 1e-3 for run in many) / 200 - 1 / 3) < 0.17


@given(OVERRIDES, OVERRIDES, st.integers())
def test_names_are_one_folder_each_whatever_the_order(first, second, seed):
    name = definition.name_of(first)
    assert 0 < len(name.encode()) < 256 * 4 and "/" not in name and name not in (".", "..")
    assert len(name) <= 130
    shuffled = list(first.items())
    random.Random(seed).shuffle(shuffled)
    assert definition.name_of(dict(shuffled)) == name
    shown = [sorted((key, str(value)) for key, value in run.items()) for run in (first, second)]
    assert (definition.name_of(second) == name) == (shown[0] == shown[1])


def _sweep_file(tmp_path, body):
    path = tmp_path / "sweep.py"
    path.write_text(
        "from common.sweeping.definition import Sweep, cross, grid\n\n\n"
        f"def get_sweep():\n    return {body}\n"
    )
    return str(path)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("3", "must define get_sweep()"),
        ("Sweep('configs/brave_demo.py', [])", "lists no runs"),
        ("Sweep('configs/brave_demo.py', [{'seed': 1}] * 2, 'loss')", "the run seed=1 twice"),
        ("Sweep('configs/brave_demo.py', [{}], 'loss', 'less')", "must be 'min' or 'max'"),
        ("Sweep('configs/brave_dem.py', [{}], 'loss')", "Did you mean 'configs/brave_demo.py'?"),
        (
            "Sweep('configs/brave_demo.py', [{'optimizer.learning_rat': 1.0}], 'loss')",
            "run optimizer.learning_rat=1.0: there is no config.optimizer.learning_rat. Did you "
            "mean config.optimizer.learning_rate?",
        ),
        (
            "Sweep('configs/brave_demo.py', [{'seed': 0}, {'steps': 'many'}], 'loss')",
            "run steps=many: --config.steps=many: config.steps must be of type int.",
        ),
        ("Sweep('configs/brave_demo.py', [{'steps': -1}], 'loss')", "config.steps"),
        ("Sweep('configs/brave_demo.py', [{}])", "Set config.validation.data"),
    ],
)
def test_mistakes_are_named_before_anything_is_trained(tmp_path, body, message):
    with pytest.raises(UserError) as raised:
        definition.read(_sweep_file(tmp_path, body))
    assert message in str(raised.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match="there is no file 'nowhere.py'"):
        definition.read("nowhere.py")


def test_the_sweep_that_comes_along_is_possible():
    sweep = definition.read("configs/sweeps/brave_demo.py")
    assert isinstance(sweep, Sweep)
    assert len(set(sweep.names())) == 9
