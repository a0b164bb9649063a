"""Promise: several processes train as one; what befalls one of them ends all, by name, in time."""

from __future__ import annotations

import os
import signal
import time

import jax
import numpy as np
import pytest
from toy_jobs import STEPS, child_of, ends, freeze, start, wait_for
from toy_method import Toy, ToyData, get_config, losses, same_bits

from common import checkpoint, loop

pytestmark = pytest.mark.slow

LOST = 75
KILLED = 128 + signal.SIGKILL


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def by_two(tmp_path_factory, cache):
    """A run of two processes that nothing happened to."""
    workdir = tmp_path_factory.mktemp("two") / "run"
    statuses, said = ends(start(workdir, 2, cache=cache))
    assert statuses == [0, 0], said
    return workdir


def near(workdir, other):
    """Whether two runs have the same metrics at every step, but for the order of sums."""
    assert list(losses(workdir)) == list(losses(other)) == list(range(1, STEPS + 1))
    for step, values in losses(other).items():
        for name, value in losses(workdir)[step].items():
            assert value == pytest.approx(values[name], rel=1e-4, abs=1e-6), (step, name)


def test_two_processes_train_what_one_does(by_two, tmp_path):
    config = get_config(
        steps=STEPS, checkpoint_every=2, validation__data="fake", validation__every=3
    )
    state = loop.train(Toy(), config, tmp_path, ToyData())
    near(by_two, tmp_path)
    for field in ("params", "model_state"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
            checkpoint.read(by_two)[1][field],
            getattr(state, field),
        )


def test_killed_in_every_phase_the_others_say_so_and_the_job_continues_bit_identically(
    by_two, tmp_path, cache
):
    workdir = tmp_path / "run"
    phases = {
        "waiting for the other processes": 0,
        "compiling": 1,
        "step 3 of 12, waiting for its batch": 0,
        "restoring": 0,
        "step 5 of 12, on the devices": 1,
        "step 6 of 12, saving": 0,
        "step 9 of 12, validating": 1,
        "finishing the last save": 1,
        "waiting for the others: the end": 0,
    }
    for phase, victim in phases.items():
        statuses, said = ends(
            start(workdir, 2, only={victim: [f'kill_at="{phase}"']}, cache=cache), within=300
        )
        assert statuses[victim] == KILLED, (phase, said)
        assert statuses[1 - victim] == LOST, (phase, said)
        assert f"stops: process {victim} on " in said[1 - victim]
        assert "was ended by SIGKILL" in said[1 - victim]
    statuses, said = ends(start(workdir, 2, cache=cache))
    assert statuses == [0, 0], said
    assert losses(workdir) == losses(by_two)
    assert same_bits(checkpoint.read(workdir)[1], checkpoint.read(by_two)[1])


def test_a_signal_to_one_of_four_stops_all_after_the_same_step_and_fewer_go_on(
    by_two, tmp_path, cache
):
    workdir = tmp_path / "run"
    statuses, said = ends(
        start(workdir, 4, only={2: ["kill=3", f"with={int(signal.SIGTERM)}"]}, cache=cache)
    )
    assert statuses == [128 + signal.SIGTERM] * 4, said
    stopped = checkpoint.steps(workdir / "checkpoints")[-1]
    assert 0 < stopped < 8 and max(losses(workdir)) == stopped

    processes = start(workdir, 2, cache=cache)
    wait_for(workdir / "metrics.jsonl", stopped + 1, processes)
    processes[1].send_signal(signal.SIGTERM)  # as clusters do: to the process that they started
    statuses, said = ends(processes)
    assert statuses == [128 + signal.SIGTERM] * 2, said
    config = get_config(
        steps=STEPS, checkpoint_every=2, validation__data="fake", validation__every=3
    )
    loop.train(Toy(), config, workdir, ToyData())
    near(workdir, by_two)


def test_who_does_not_come_is_named(tmp_path):
    present = start(tmp_path / "run", 4, "hosts.join_timeout=15.0")
    for absent in (1, 2):
        present[absent].kill()
        present[absent].wait()
    statuses, said = ends([present[0], present[3]], within=120)
    assert statuses == [LOST, LOST], said
    assert "processes 1-2 of 4 did not come to localhost:" in said[1]
    assert "process 0 on" in said[1] and "process 3 on" in said[1]


def test_who_is_killed_before_all_have_come_is_named(tmp_path):
    killed = {1: ['kill_at="waiting for the other processes"']}
    present = start(tmp_path / "run", 3, only=killed)
    present[2].kill()
    present[2].wait()
    statuses, said = ends(present[:2], within=120)
    assert statuses == [LOST, KILLED], said
    assert "stops: process 1 on " in said[0] and "was ended by SIGKILL" in said[0]


def test_without_the_first_process_nobody_waits_for_ever(tmp_path):
    present = start(tmp_path / "run", 2, "hosts.join_timeout=3.0")
    present[0].kill()
    present[0].wait()
    statuses, said = ends(present[1:], within=120)
    assert statuses == [LOST], said  # the recipes start it again
    assert "process 1 of 2 (flags) could not reach process 0 at localhost:" in said[0]


def test_a_process_that_is_stopped_before_all_have_come_ends_at_once(tmp_path):
    processes = start(tmp_path / "run", 3, "hosts.join_timeout=200.0")
    processes[2].kill()
    processes[2].wait()
    for process in processes[:2]:  # only supervisors have children
        while not child_of(process):
            assert process.poll() is None
            time.sleep(0.05)
    time.sleep(1.0)
    processes[1].send_signal(signal.SIGTERM)
    statuses, said = ends(processes[:2], within=100)
    assert statuses == [LOST, 128 + signal.SIGTERM], said
    assert "process 1 on" in said[0] and "left before all had come" in said[0]


def test_processes_of_different_configurations_do_not_begin(tmp_path):
    statuses, said = ends(start(tmp_path / "run", 2, only={1: ["seed=7"]}), within=120)
    assert statuses == [LOST, LOST], said
    assert "are not the same run" in said[0] and '"seed": 7' in said[0]


def test_what_a_process_finds_wrong_is_said_by_all_and_is_their_status(by_two, tmp_path, cache):
    """A run that was begun with another configuration: the first process sees it."""
    workdir = tmp_path / "run"
    workdir.mkdir()
    for name in ("config.json", "metrics.jsonl"):
        (workdir / name).write_bytes((by_two / name).read_bytes())
    statuses, said = ends(start(workdir, 2, "seed=3", cache=cache), within=120)
    assert statuses == [2, 2], said
    assert all("config.seed: 0 there, 3 now" in text for text in said)


def test_a_process_that_hangs_ends_all_and_is_named(tmp_path, cache):
    workdir = tmp_path / "run"
    changes = ["hosts.stall_timeout=20.0", "hosts.stacks_after=2.0", "steps=100000"]
    changes += ["checkpoint_every=100000", "validation.every=100000"]
    processes = start(workdir, 2, *changes, cache=cache)
    wait_for(workdir / "metrics.jsonl", 3, processes)
    hung = child_of(processes[1])
    freeze(hung)
    statuses, said = ends(processes, within=120)
    assert statuses == [LOST, LOST], said
    assert "nothing has gone on for config.hosts.stall_timeout=20 s: process" in said[0]
    assert "no end for" in said[0] and "Current thread" in said[0]  # its own stacks, meanwhile
    with pytest.raises(ProcessLookupError):
        os.kill(hung, 0)


def test_a_machine_that_falls_silent_ends_all_and_is_named(tmp_path, cache):
    workdir = tmp_path / "run"
    processes = start(workdir, 2, "hosts.heartbeat_timeout=8.0", "steps=100000", cache=cache)
    wait_for(workdir / "metrics.jsonl", 3, processes)
    hung = child_of(processes[1])
    freeze(hung)
    freeze(processes[1].pid)
    statuses, said = ends(processes[:1], within=120)
    assert statuses == [LOST], said
    assert "has not been heard of for 8 s" in said[0] and "stops: process 1 on" in said[0]
    processes[1].kill()
    os.kill(hung, signal.SIGCONT)  # finds its supervisor gone, and ends


@pytest.mark.parametrize("victim", [0, 1])
def test_a_supervisor_that_is_killed_takes_its_process_along_and_the_others(
    tmp_path, cache, victim
):
    workdir = tmp_path / "run"
    processes = start(workdir, 2, "steps=100000", cache=cache)
    wait_for(workdir / "metrics.jsonl", 3, processes)
    child = child_of(processes[victim])
    processes[victim].kill()
    other = processes[1 - victim]
    statuses, said = ends([other], within=120)
    assert statuses == [LOST], said
    gone = "process 0, which others meet at localhost:" if victim == 0 else "process 1 on"
    assert gone in said[0] and "is gone" in said[0]
    processes[victim].wait()
    while os.path.exists(f"/proc/{child}") and "State:\tZ" not in _status(child):
        pass


def _status(pid):
    try:
        with open(f"/proc/{pid}/status") as file:
            return file.read()
    except FileNotFoundError:
        return "State:\tZ"
