"""Runs of a sweep are real processes: they share the machine, fail alone, and stop together."""

import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest
import toy_method

from common.errors import UserError
from common.sweeping import local, results
from common.sweeping.definition import Sweep, grid

TOY = pathlib.Path(toy_method.__file__)


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    """Runs train the toy method instead of a config's."""

    def command(sweep, overrides, folder):
        changes = [f"{key}={value}" for key, value in overrides.items()]
        return [sys.executable, str(TOY), str(folder), *changes]

    monkeypatch.setattr(local, "command", command)


def _train(runs, workdir, places):
    sweep, ended = Sweep("toy", runs, metric="loss"), []
    waiting = [
        (result.workdir.name, result.overrides)
        for result in results.collect(sweep, workdir)
        if result.status != results.DONE
    ]
    local.run(sweep, waiting, workdir, places, lambda *outcome: ended.append(outcome))
    return sweep, ended


@pytest.mark.slow
def test_one_that_fails_stops_no_other_and_is_tried_again(tmp_path):
    runs = grid({"seed": (0, 1)}) + [{"steps": -1}]
    sweep, ended = _train(runs, tmp_path, local.slots(2, 0))
    assert {name: status for name, status, _ in ended} == {"seed=0": 0, "seed=1": 0, "steps=-1": 1}
    assert [r.status for r in results.collect(sweep, tmp_path)] == ["done", "done", "failed"]
    assert "steps" in local.last_words(tmp_path / "steps=-1")
    first, second = (toy_method.losses(tmp_path / f"seed={seed}") for seed in (0, 1))
    assert sorted(first) == sorted(second) == list(range(1, 9))
    assert first != second
    _, again = _train(runs, tmp_path, local.slots(1, 0))
    assert [name for name, *_ in again] == ["steps=-1"]


@pytest.mark.slow
def test_a_second_signal_ends_a_run_that_hangs(tmp_path, monkeypatch):
    sleeper = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: None)"
    program = [sys.executable, "-c", f"{sleeper}; print('up', flush=True); time.sleep(600)"]
    monkeypatch.setattr(local, "command", lambda *_: program)

    def stop():
        while "up" not in (log.read_text() if log.exists() else ""):
            time.sleep(0.05)
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1.0)

    log = tmp_path / "defaults" / local.LOG
    threading.Thread(target=stop).start()
    with pytest.raises(local.Interrupted):
        _train([{}], tmp_path, local.slots(1, 0))


def test_runs_get_the_gpus_that_the_environment_allows(monkeypatch):
    def of(gpus):
        return [slot.environment.get("CUDA_VISIBLE_DEVICES") for slot in local.slots(1, gpus)]

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert (of(0), of(2)) == ([None], ["0", "1"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-7")
    assert (of(0), of(2)) == ([None], ["2", "GPU-7"])
    with pytest.raises(UserError, match="leaves fewer"):
        of(3)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(UserError, match="leaves fewer"):
        of(1)


@pytest.mark.slow
def test_a_sweep_that_is_stopped_stops_its_runs_and_they_continue_to_the_same_bits(tmp_path):
    runs = [{"seed": 0, "steps": 150}, {"seed": 1, "steps": 150}]
    folders = [tmp_path / "stopped" / name for name in Sweep("toy", runs).names()]

    def stop():
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            if all((folder / "metrics.jsonl").exists() for folder in folders):
                break
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop).start()
    with pytest.raises(local.Interrupted) as stopped:
        _train(runs, tmp_path / "stopped", local.slots(2, 0))
    assert stopped.value.signum == signal.SIGTERM
    sweep = Sweep("toy", runs, metric="loss")
    statuses = [result.status for result in results.collect(sweep, tmp_path / "stopped")]
    assert "not finished" in statuses
    _train(runs, tmp_path / "stopped", local.slots(2, 0))
    _train(runs, tmp_path / "straight", local.slots(2, 0))
    for folder in folders:
        straight = toy_method.losses(tmp_path / "straight" / folder.name)
        assert toy_method.losses(folder) == straight
        assert len(straight) == 150


def test_runs_at_a_time_share_the_cores_out():
    cores = sorted(os.sched_getaffinity(0))
    assert [slot.cores for slot in local.slots(1, 0)] == [None]
    shares = [slot.cores for slot in local.slots(len(cores), 0)]
    assert sorted(core for share in shares for core in share or cores) == cores
    # More runs than cores: the system shares them out.
    assert [slot.cores for slot in local.slots(len(cores) + 1, 0)] == [None] * (len(cores) + 1)


def test_each_gpu_has_a_run_of_its_own():
    found = [slot.environment for slot in local.slots(1, 3)]
    assert found == [{"CUDA_VISIBLE_DEVICES": str(number)} for number in range(3)]


def test_what_is_printed_is_what_a_user_would_type(monkeypatch):
    monkeypatch.undo()
    found = local.command(Sweep("configs/x.py:smoke", []), {"a.b": (1, 2)}, pathlib.Path("w"))
    assert found[1:] == [
        "-m", "common.train", "--config=configs/x.py:smoke", "--workdir=w", "--config.a.b=(1, 2)",
    ]  # fmt: skip
    assert subprocess.run([found[0], "--version"], capture_output=True).returncode == 0
