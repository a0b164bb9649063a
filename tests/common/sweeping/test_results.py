"""What became of runs is read from their folders alone."""

import csv
import json

import pytest
from absl import flags
from tiny_brave import get_config

from common import config as config_lib
from common.errors import UserError
from common.sweeping import results
from common.sweeping.definition import Sweep, cross, grid

RATES = (0.1, 0.01, 0.001)
SWEEP = Sweep("any", cross(grid({"rate": RATES}), [{"same": 1}], grid({"seed": (0, 1)})))
VALIDATION, TRAINING = "validation.jsonl", "metrics.jsonl"


def _run(workdir, overrides, rows, file=VALIDATION, status=0):
    folder = workdir / results.name_of(overrides)
    folder.mkdir(parents=True)
    (folder / file).write_text("".join(json.dumps(row) + "\n" for row in rows))
    if status is not None:
        results.write_outcome(folder, status, 12.34)
    return folder


def _losses(*losses):
    return [{"step": step, "loss": loss, "top1": -step} for step, loss in enumerate(losses)]


def _fill(workdir, metric_of):
    for run in SWEEP.runs:
        _run(workdir, run, _losses(metric_of(run)))


def test_the_value_of_a_run_is_that_of_its_best_validation(tmp_path):
    run = SWEEP.runs[0]
    _run(tmp_path, run, _losses(3.0, 1.5, None, 2.0))
    assert results.collect(SWEEP, tmp_path)[0].value == 1.5
    top1 = Sweep("any", [run], metric="validation/top1", goal="max")
    assert results.collect(top1, tmp_path)[0].value == -1


def test_a_training_metric_is_the_mean_over_the_last_tenth(tmp_path):
    rows = [{"step": step, "loss": float(step)} for step in range(40)] + [{"step": 40, "other": 1}]
    folder = _run(tmp_path, {}, rows, TRAINING)
    sweep = Sweep("any", [{}], metric="loss")
    assert results.collect(sweep, tmp_path)[0].value == 37.5
    with open(folder / TRAINING, "a") as file:
        file.write('{"step": 41, "lo')  # being written
    assert results.collect(sweep, tmp_path)[0].value == 37.5
    with open(folder / TRAINING, "a") as file:
        file.write('ss": NaN}\n')
    assert results.collect(sweep, tmp_path)[0].value is None


def test_a_metric_that_no_run_has_is_named_with_its_like(tmp_path):
    folder = _run(tmp_path, {}, [{"step": 1, "loss": 2.0, "top1": 0.5}], TRAINING)
    results.check_metric(Sweep("any", [{}], metric="loss"), folder)
    with pytest.raises(UserError, match="no metric 'los', by which .*; it has loss, "):
        results.check_metric(Sweep("any", [{}], metric="los"), folder)
    with pytest.raises(UserError, match="no metric 'validation/loss'.*it has none"):
        results.check_metric(Sweep("any", [{}]), folder)


def test_runs_are_done_failed_not_finished_or_not_begun(tmp_path):
    for run, status in zip(SWEEP.runs, (0, 2, None), strict=False):
        _run(tmp_path, run, _losses(1.0), status=status)
    found = [result.status for result in results.collect(SWEEP, tmp_path)]
    assert found == ["done", "failed", "not finished"] + ["not begun"] * 3


def test_an_outcome_that_cannot_be_read_is_named(tmp_path):
    folder = _run(tmp_path, SWEEP.runs[0], [])
    (folder / results.OUTCOME).write_text("{")
    with pytest.raises(UserError, match=r"sweep_run.json cannot be read .*; delete it"):
        results.collect(SWEEP, tmp_path)


def test_settings_compare_by_the_mean_over_seeds_the_best_first(tmp_path):
    loss = {0.1: (1.0, 5.0), 0.01: (2.0, 3.0), 0.001: (4.0, 4.0)}
    _fill(tmp_path, lambda run: loss[run["rate"]][run["seed"]])
    found = results.settings(results.collect(SWEEP, tmp_path), "min")
    assert [setting.overrides for setting in found] == [
        {"rate": rate, "same": 1} for rate in (0.01, 0.1, 0.001)
    ]
    assert results.settings(results.collect(SWEEP, tmp_path), "max")[0].overrides["rate"] == 0.001
    assert results.table(SWEEP, found).splitlines() == [
        "| rate | validation/loss | standard deviation over seeds | runs |",
        "| --- | --- | --- | --- |",
        "| 0.01 | 2.5 | 0.707 | 2 done |",
        "| 0.1 | 3 | 2.83 | 2 done |",
        "| 0.001 | 4 | 0 | 2 done |",
    ]


def test_a_setting_with_a_seed_missing_is_never_the_best(tmp_path):
    for run in SWEEP.runs:
        if run != {"rate": 0.1, "same": 1, "seed": 1}:
            _run(tmp_path, run, _losses(10 * run["rate"] - 100 * (run["rate"] == 0.1)))
    found = results.settings(results.collect(SWEEP, tmp_path), "min")
    assert [setting.overrides["rate"] for setting in found] == [0.001, 0.01, 0.1]
    assert "| 0.1 | -99 |  | 1 done, 1 not begun |" in results.table(SWEEP, found)


def test_the_folder_of_a_sweep_has_table_runs_plot_and_the_best_configuration(tmp_path):
    best = get_config(seed=0, optimizer__exclude=(r".*\.bias",))
    for run in SWEEP.runs:
        config_lib.claim(best, _run(tmp_path, run, _losses(run["rate"] + run["seed"])))
    said = results.write(SWEEP, results.collect(SWEEP, tmp_path), tmp_path)
    assert said.startswith((tmp_path / "table.md").read_text())
    with open(tmp_path / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["rate"], row["seed"], row["validation/loss"]) for row in rows] == [
        (str(rate), str(seed), str(rate + seed)) for rate in RATES for seed in (0, 1)
    ]
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    argv = ["x", f"--config={tmp_path}/best_config.py"]
    values = flags.FlagValues()
    config_lib.define_flag(values, argv)
    values(argv)
    assert config_lib.to_json(config_lib.load(values)) == config_lib.to_json(best)
    assert "the mean of 2 seeds" in (tmp_path / "best_config.py").read_text()


def test_with_nothing_done_there_is_a_table_and_no_best_configuration(tmp_path):
    results.write(SWEEP, results.collect(SWEEP, tmp_path / "new"), tmp_path / "new")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["results.csv", "table.md"]
