"""The command: a sweep is trained, continued, compared, and handed to SLURM."""

import os
import pathlib
import subprocess
import sys

import pytest
import tiny_brave

from common import config as config_lib
from common.sweeping import results

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = """
import tiny_brave


def get_config():
    config = tiny_brave.get_config(
        log_every=1, data__train="fake", optimizer__warmup_steps=1, steps=3
    )
    config.unlock()
    return config
"""
SWEEP = """
from common.sweeping.definition import Sweep

def get_sweep():
    runs = [{{"optimizer.warmup_steps": warmup}} for warmup in {warmups}]
    return Sweep("{config}", runs, metric="loss")
"""


@pytest.fixture
def sweep_file(tmp_path):
    (tmp_path / "config.py").write_text(CONFIG)

    def write(*warmups):
        path = tmp_path / "sweep.py"
        path.write_text(SWEEP.format(config=tmp_path / "config.py", warmups=warmups))
        return path

    return write


def _run(*command, **variables):
    helpers = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "common")])
    environment = {**os.environ, "PYTHONPATH": helpers, "JAX_PLATFORMS": "cpu", **variables}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


def _sweep(*options, **variables):
    return _run(sys.executable, "-m", "common.sweep", *options, **variables)


@pytest.mark.slow
def test_a_sweep_trains_what_it_can_says_what_failed_and_continues(sweep_file, tmp_path):
    workdir = tmp_path / "sweep"
    options = [f"--sweep={sweep_file(1, 5)}", f"--workdir={workdir}"]  # 3 steps cannot warm up 5
    done = _sweep(*options)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "optimizer.warmup_steps=5: " in done.stdout
    assert "failed with status 2: error: config.optimizer.warmup_steps=5 must be" in done.stdout
    assert "| 1 done |" in done.stdout and "| 1 failed |" in done.stdout
    names = {"best_config.py", "plot.png", "results.csv", "table.md"}
    assert names <= {path.name for path in workdir.iterdir()}
    # What failed is taken out of the sweep; what is done is not done again.
    done = _sweep(f"--sweep={sweep_file(1)}", options[1])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 runs, 1 done before" in done.stdout
    # The best configuration is one to train with.
    again = _run(
        sys.executable, "-m", "common.train", f"--config={workdir}/best_config.py",
        f"--workdir={workdir}/optimizer.warmup_steps=1",
    )  # fmt: skip
    assert again.returncode == 0, again.stderr


@pytest.mark.slow
def test_slurm_gets_an_array_of_what_is_not_done_and_its_jobs_make_one_run_each(
    sweep_file, tmp_path
):
    workdir, bin_folder = tmp_path / "a sweep", tmp_path / "bin"
    options = [f"--sweep={sweep_file(4, 5)}", f"--workdir={workdir}", "--parallel=7"]
    printed = _sweep(*options, "--slurm=print", "--sbatch=--gres=gpu:1 --time=4:00:00")
    assert printed.returncode == 0, printed.stderr
    lines = printed.stdout.splitlines()
    assert {"#SBATCH --array=0-1%7", "#SBATCH --gres=gpu:1 --time=4:00:00"} <= set(lines)
    assert not workdir.exists()

    bin_folder.mkdir()
    sbatch = bin_folder / "sbatch"
    sbatch.write_text('#!/bin/bash\ncp "$1" "$(dirname "$0")/got"; echo Submitted batch job 7\n')
    sbatch.chmod(0o755)
    with_sbatch = {"PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}"}
    submitted = _sweep(*options, "--slurm=submit", **with_sbatch)
    assert "Submitted batch job 7" in submitted.stdout, submitted.stderr
    # What a node of the cluster would do; both runs end at once with a mistake of theirs.
    job = _run("bash", str(bin_folder / "got"), SLURM_ARRAY_TASK_ID="1")
    assert job.returncode == 1, job.stderr
    assert (workdir / "optimizer.warmup_steps=5" / "sweep_run.json").exists()
    assert not (workdir / "optimizer.warmup_steps=4").exists()
    assert not (workdir / "table.md").exists()

    report = _sweep(*options, "--report")
    assert report.returncode == 1
    assert "| 5 |  |  | 1 failed |" in report.stdout and "1 not begun" in report.stdout


def test_without_slurm_the_script_is_kept(sweep_file, tmp_path):
    options = [f"--sweep={sweep_file(1)}", f"--workdir={tmp_path}/w", "--slurm=submit"]
    done = _sweep(*options, PATH="")
    assert done.returncode == 2
    assert f"There is no sbatch on this machine. The script is {tmp_path}/w/sweep" in done.stderr
    assert (tmp_path / "w" / "sweep.sbatch").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "options, message",
    [
        (["--sbatch=--time=1:00"], "--sbatch goes with --slurm"),
        (["--slurm=print", "--report"], "does not go with --report"),
        (["--slurm=print", "--only=x"], "does not go with --only"),
        (["--slurm=print", "--sbatch=--comment='a"], "No closing quotation"),
    ],
)
def test_flags_that_would_be_ignored_are_refused(sweep_file, tmp_path, options, message):
    done = _sweep(f"--sweep={sweep_file(1)}", f"--workdir={tmp_path}/w", *options)
    assert done.returncode == 2 and message in done.stderr


@pytest.mark.slow
def test_what_was_trained_with_another_configuration_is_not_compared(sweep_file, tmp_path):
    options = [f"--sweep={sweep_file(1)}", f"--workdir={tmp_path}/w"]
    folder = tmp_path / "w" / "optimizer.warmup_steps=1"
    trained = tiny_brave.get_config(
        log_every=1, data__train="fake", optimizer__warmup_steps=1, steps=2
    )
    config_lib.claim(trained, folder)
    results.write_outcome(folder, 0, 1.0)
    done = _sweep(*options)
    assert done.returncode == 2 and "config.steps: 2 there, 3 now" in done.stderr, done.stderr
    assert "optimizer.warmup_steps=1 was trained with another configuration" in done.stderr


@pytest.mark.slow
def test_a_config_that_is_not_there_is_named(sweep_file, tmp_path):
    path = sweep_file(1)
    path.write_text(path.read_text().replace("config.py", "cnfig.py"))
    done = _sweep(f"--sweep={path}", f"--workdir={tmp_path}/w")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "cnfig.py" in done.stderr and "Did you mean" in done.stderr


def test_a_run_that_is_not_in_the_sweep_is_refused(sweep_file, tmp_path):
    done = _sweep(f"--sweep={sweep_file(1)}", f"--workdir={tmp_path}/w", "--only=seed=3")
    assert done.returncode == 2
    assert "--only=seed=3" in done.stderr and "optimizer.warmup_steps=1" in done.stderr
