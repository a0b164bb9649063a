"""Promises of the training loop, kept by a toy method in this process."""

from __future__ import annotations

import json
import logging
import os
import pathlib
import signal
import threading
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import toy_method
from tensorboard.compat.proto import event_pb2
from toy_method import Toy, ToyData, get_config, losses, same_bits

from common import checkpoint, collapse, locks, loop
from common import clock as clock_lib
from common.data import shards
from common.errors import UserError


@pytest.fixture(autouse=True)
def compile_once(monkeypatch):
    toy_method.compile_once(monkeypatch)


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """The folder and last state of a run that nothing disturbed."""
    return toy_method.trained(tmp_path_factory.mktemp("whole"))


def test_a_run_learns_and_writes_each_step_once_and_in_order(whole_run):
    workdir, state = whole_run
    written = losses(workdir)
    assert list(written) == list(range(1, 9))
    assert int(state.step) == 8
    assert written[8]["loss"] < 0.7 * written[1]["loss"]


def test_the_metrics_are_in_tensorboard_too(whole_run):
    workdir, _ = whole_run
    (path,) = (workdir / "tensorboard").iterdir()  # event files are framed as record shards are
    index, problems = shards.scan(path, verify=True)
    places = enumerate(zip(index.offsets, index.lengths, strict=True))
    payloads = [shards.read_record(path, number, *place) for number, place in places]
    seen = {
        event.step: value.simple_value
        for event in map(event_pb2.Event.FromString, payloads)
        for value in event.summary.value
        if value.tag == "loss"
    }
    assert not problems
    assert seen == pytest.approx({s: v["loss"] for s, v in losses(workdir).items()})


def test_all_parameters_are_listed_at_the_start(whole_run):
    table = (whole_run[0] / "parameters.txt").read_text()
    for words in ("layers/0/kernel", "8x16", "128", "(replicated)", "244"):
        assert words in table


def test_a_finished_run_started_again_changes_nothing(whole_run):
    workdir, state = whole_run
    before = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    again = loop.train(Toy(), get_config(), workdir, ToyData())
    assert same_bits(again, state)
    assert {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()} == before


class Crash(Exception):
    """Stands for whatever ends a process."""


@pytest.mark.parametrize("step", range(8))
def test_a_run_that_dies_at_any_step_continues_bit_identically(whole_run, tmp_path, step):
    workdir, state = whole_run

    def die(number):
        if number == step:
            raise Crash

    with pytest.raises(Crash):
        loop.train(Toy(), get_config(), tmp_path, ToyData(before=die))
    assert same_bits(loop.train(Toy(), get_config(), tmp_path, ToyData()), state)
    assert losses(tmp_path) == losses(workdir)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_stops_and_the_run_continues_bit_identically(
    whole_run, tmp_path, signum
):
    workdir, state = whole_run
    handlers = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]

    class Signalling(ToyData):
        def batches(self, start_step):
            for number, batch in enumerate(super().batches(start_step), start_step):
                if number == 4:
                    os.kill(os.getpid(), signum)
                yield batch

    with pytest.raises(loop.Stopped) as stopped:
        loop.train(Toy(), get_config(), tmp_path, Signalling())
    assert stopped.value.signum == signum
    (newest,) = checkpoint.steps(tmp_path / "checkpoints")[-1:]
    assert list(losses(tmp_path)) == list(range(1, newest + 1))
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert same_bits(loop.train(Toy(), get_config(), tmp_path, ToyData()), state)
    assert losses(tmp_path) == losses(workdir)


@pytest.mark.slow
def test_a_signal_while_data_do_not_come_saves_what_was_trained(whole_run, tmp_path):
    goes_on = threading.Event()

    class Stalling(ToyData):
        def batches(self, start_step):
            for number, batch in enumerate(super().batches(start_step), start_step):
                if number == 4:
                    time.sleep(2)  # until the steps before are done
                    os.kill(os.getpid(), signal.SIGTERM)
                    goes_on.wait(60)
                yield batch

    threading.Timer(5.0, goes_on.set).start()  # the reader's thread is waited for in the end
    with pytest.raises(loop.Stopped) as stopped:
        loop.train(Toy(), get_config(), tmp_path, Stalling())
    assert "step 4" in str(stopped.value)
    assert checkpoint.steps(tmp_path / "checkpoints")[-1] == 4
    assert same_bits(loop.train(Toy(), get_config(), tmp_path, ToyData()), whole_run[1])
    assert losses(tmp_path) == losses(whole_run[0])


def test_metrics_that_a_dead_process_wrote_ahead_are_taken_back_and_no_others(whole_run, tmp_path):
    workdir, _ = whole_run
    with pytest.raises(Crash):
        loop.train(Toy(), get_config(), tmp_path, ToyData(before=crash_at(5)))
    path = tmp_path / "metrics.jsonl"
    path.write_text("# my note\n" + path.read_text() + '{"step": 99, "loss": 1}\n{"step": 5, "lo')
    loop.train(Toy(), get_config(), tmp_path, ToyData())
    note, rest = path.read_text().split("\n", 1)
    path.write_text(rest)
    assert note == "# my note"
    assert losses(tmp_path) == losses(workdir)


def crash_at(step):
    def before(number):
        if number == step:
            raise Crash

    return before


def test_a_loss_that_is_not_finite_stops_the_run_with_step_ids_and_state(whole_run, tmp_path):
    workdir, _ = whole_run
    config = get_config(checkpoint_every=100)
    with pytest.raises(UserError, match="step 5: loss (nan|inf)") as error:
        loop.train(Toy(), config, tmp_path, ToyData(broken_step=4))
    folder = tmp_path / "nonfinite" / "step-5"
    assert str(folder) in str(error.value) and "learning_rate" in str(error.value)
    report = json.loads((folder / "report.json").read_text())
    assert report["step"] == 5
    assert report["sample_ids"] == [[0, 400 + row] for row in range(16)]
    with ocp.StandardCheckpointer() as checkpointer:
        state = checkpointer.restore(folder.absolute() / "state")
    # It is the state which the step began with: nothing later has touched it.
    assert state["step"] == 4 and not state["finite"]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
    written = losses(tmp_path)
    assert written[5]["loss"] is None
    assert all(written[s] == losses(workdir)[s] for s in range(1, 5))
    assert checkpoint.steps(tmp_path / "checkpoints") == []


@pytest.mark.parametrize(("step", "saved"), [(3, [3]), (5, [3, 5])])
def test_data_that_end_in_an_error_cost_nothing_that_was_trained(whole_run, tmp_path, step, saved):
    workdir, state = whole_run

    def fail(number):
        if number == step:
            raise UserError("too many clips cannot be read")

    with pytest.raises(UserError, match="too many clips"):
        loop.train(Toy(), get_config(), tmp_path, ToyData(before=fail))
    assert checkpoint.steps(tmp_path / "checkpoints") == saved
    assert same_bits(loop.train(Toy(), get_config(), tmp_path, ToyData()), state)
    assert losses(tmp_path) == losses(workdir)


def test_what_was_kept_of_an_earlier_failure_is_not_overwritten(tmp_path):
    for _ in range(2):
        with pytest.raises(UserError, match="step 1: loss"):
            loop.train(Toy(), get_config(), tmp_path, ToyData(broken_step=0))
    folders = sorted(path.name for path in (tmp_path / "nonfinite").iterdir())
    assert folders == ["step-1", "step-1-2"]


def test_a_state_whose_loss_is_not_finite_is_never_saved(tmp_path):
    with pytest.raises(UserError, match="step 3: loss"):
        loop.train(Toy(), get_config(), tmp_path, ToyData(broken_step=2))
    assert checkpoint.steps(tmp_path / "checkpoints") == []


def test_checkpoints_are_kept_as_configured(tmp_path):
    config = get_config(checkpoint_every=1, keep_checkpoints=2, keep_every=3)
    loop.train(Toy(), config, tmp_path, ToyData())
    assert checkpoint.steps(tmp_path / "checkpoints") == [3, 6, 7, 8]


def test_another_configuration_is_refused_before_anything_is_done(whole_run):
    before = {path: path.read_bytes() for path in whole_run[0].rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=r"config\.optimizer\.learning_rate: 0\.05 there, 1\.0 now"):
        loop.train(Toy(), get_config(optimizer__learning_rate=1.0), whole_run[0], ToyData())
    assert {p: p.read_bytes() for p in whole_run[0].rglob("*") if p.is_file()} == before


def test_a_folder_in_which_nothing_was_trained_takes_a_configuration_that_was_mended(tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        loop.train(Toy(), get_config(steps=2, init=("nowhere",)), tmp_path, ToyData())
    loop.train(Toy(), get_config(steps=2), tmp_path, ToyData())
    assert losses(tmp_path)
    with pytest.raises(UserError, match="another configuration"):
        loop.train(Toy(), get_config(steps=2, seed=1), tmp_path, ToyData())


def test_two_runs_do_not_share_a_folder(tmp_path):
    before = set(tmp_path.iterdir())
    with locks.exclusive(tmp_path / ".lock", "held by the test"):
        with pytest.raises(UserError, match="Another process trains in"):
            loop.train(Toy(), get_config(), tmp_path, ToyData())
        assert set(tmp_path.iterdir()) - before == {tmp_path / ".lock"}


def test_collapsed_embeddings_are_told_from_spread_ones():
    generator = np.random.default_rng(0)
    spread = generator.normal(size=(256, 32)).astype(np.float32)
    point = np.ones((256, 32), np.float32) + 1e-3 * spread
    line = generator.normal(size=(256, 1)).astype(np.float32) * np.ones((1, 32), np.float32)
    measures = collapse.measure({"spread": spread, "point": point, "line": line})
    assert measures["collapse/spread/spread"] > 0.95 and measures["collapse/rank/spread"] > 0.8
    assert measures["collapse/spread/point"] < 0.01
    assert measures["collapse/rank/line"] < 0.05 and measures["collapse/spread/line"] > 0.95


def test_a_constant_beside_embeddings_is_none_of_their_dimensions():
    generator = np.random.default_rng(0)
    spread = generator.normal(size=(256, 32)).astype(np.float32)
    beside = np.concatenate([spread, np.full((256, 1), -10, np.float32)], axis=1)
    found = collapse.measure({"spread": spread, "beside": beside, "one": np.ones((8, 4))})
    for kind in ("spread", "rank"):
        alone = found[f"collapse/{kind}/spread"]
        np.testing.assert_allclose(found[f"collapse/{kind}/beside"], alone, rtol=1e-5)
        assert found[f"collapse/{kind}/one"] == 0


def test_the_rank_share_is_the_participation_ratio_of_the_eigenvalues():
    values = np.random.default_rng(1).normal(size=(12, 5)).astype(np.float32) * np.arange(1, 6)
    unit = values / np.linalg.norm(values, axis=1, keepdims=True)
    eigenvalues = np.linalg.eigvalsh(np.cov(unit.T))
    expected = eigenvalues.sum() ** 2 / (eigenvalues**2).sum() / 5
    for embeddings in (values, np.pad(values, ((0, 0), (0, 20)))):  # both Gram matrices
        rank = collapse.measure({"e": embeddings})["collapse/rank/e"]
        assert float(rank) * min(embeddings.shape[1], 11) / 5 == pytest.approx(expected, rel=1e-4)


def test_collapse_warns_once_in_a_while_and_says_why(caplog):
    watch = collapse.Watch(threshold=0.1, patience=100)
    low, high = {"collapse/rank/z": 0.01, "loss": 0.0}, {"collapse/rank/z": 0.5, "loss": 0.0}
    with caplog.at_level(logging.WARNING):
        warned = [step for step in range(0, 400, 10) if watch.see(step, low)]
        assert not any(watch.see(step, high) for step in range(400, 900, 10))
    assert warned == [100, 200, 300]
    assert "collapse/rank/z=0.010" in caplog.text and "learning rate" in caplog.text


def test_the_parts_of_a_step_add_up():
    seconds = iter([0, 1, 3, 3, 7, 8, 10, 12, 14]).__next__
    clock = clock_lib.Clock(4, peak=12.0, now=seconds)
    for part in ("data", "device"):
        with clock.time(part):
            pass
    clock.tick(8, 30.0)
    values = clock.lap()
    assert values.pop("host_memory") > 2**20
    assert values == {
        "time/step": 8, "time/data": 2, "time/device": 4, "time/save": 0, "time/evaluate": 0,
        "clips_per_second": 1.0, "flops_per_second_per_device": 3.75, "utilisation": 3.75 / 12,
    }  # fmt: skip
    assert clock.seconds_left() == 30
    assert clock.summary() == "1 steps in 0:12: 17% waiting for its batch, 33% on the devices"


@pytest.mark.parametrize(
    ("kind", "teraflops"),
    [
        ("NVIDIA A100-SXM4-40GB", 312), ("NVIDIA A10", 125), ("NVIDIA H200", 989.4),
        ("TPU v5 lite", 197), ("TPU v5", 459), ("TPU v6e", 918), ("cpu", None),
        ("NVIDIA A1000", None), ("NVIDIA H200 NVL", 835.5), ("TPU7x", 1153.5), ("TPU v4", 275),
        ("TPU v4 lite", 138), ("Tesla V100-PCIE-16GB", 112), ("Tesla V100-SXM2-16GB", 125),
        ("NVIDIA H100 80GB HBM3", 989.4), ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA GeForce RTX 4090", 165.2), ("NVIDIA GeForce RTX 4090 D", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
    ],
)  # fmt: skip
def test_the_peak_of_a_device_is_known_or_not_guessed(kind, teraflops):
    assert clock_lib.peak_flops(kind) == (teraflops and pytest.approx(teraflops * 1e12))


def test_time_left_reads_like_time():
    assert [clock_lib.show_seconds(s) for s in (5, 65, 3725, 93784)] == [
        "0:05", "1:05", "1:02:05", "1d 02:03:04",
    ]  # fmt: skip


def test_the_toy_is_a_method_like_the_others():
    members = {"views", "encoders", "build", "augment", "embed", "objective"}
    assert members <= set(dir(Toy()))
    assert pathlib.Path(toy_method.__file__).name == "toy_method.py"
