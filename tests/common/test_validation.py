"""Validation while training is a function of the weights, and ends runs that no longer improve."""

import dataclasses
import json
import logging
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_method
from absl import flags
from flax import nnx
from tool_flags import tool_flags
from toy_method import Toy, ToyData, get_config, losses, same_bits

from common import checkpoint, curriculum, export, loop, model_flags, validation
from common import state as state_lib
from common.data import fake, pipeline
from common.errors import UserError
from common.program import build
from common.step import example_keys

# The loss on made-up clips falls until step 4 and rises afterwards: the steps are too long.
RISING = {
    "validation__data": "fake", "validation__every": 2, "validation__patience": 2,
    "optimizer__learning_rate": 0.3, "steps": 50, "checkpoint_every": 3, "keep_checkpoints": 1,
}  # fmt: skip


@pytest.fixture(autouse=True)
def compile_once(monkeypatch):
    toy_method.compile_once(monkeypatch)


@pytest.fixture(scope="module")
def stopped_run(tmp_path_factory):
    """The folder and last state of a run that its validations ended."""
    return toy_method.trained(tmp_path_factory.mktemp("stopped"), **RISING)


def _rows(workdir):
    return [json.loads(line) for line in (workdir / "validation.jsonl").read_text().splitlines()]


def _by_hand(config, params, model_state, num_batches=1):
    """Loss and metrics on fake clips in evaluation mode, microbatch by microbatch."""
    method, size, parts = Toy(), config.batch_size, config.microbatches
    graphdef = nnx.graphdef(nnx.eval_shape(lambda: method.build(nnx.Rngs(0))))
    clip = next(fake.batches(method.views.spec(), np.arange(size), validation._SEED))["clip"]

    @jax.jit
    def batch(number):
        model = state_lib.merge(graphdef, params, model_state)
        model.eval()
        keys_B, found = example_keys(validation._SEED, number, size), []
        for part in range(parts):
            inputs = method.augment({"clip": clip[part::parts]}, keys_B[part::parts])
            found.append(method.embed(model, inputs))
        if config.accumulation == "cached":  # the toy's objective does not mind the order
            found = [jax.tree.map(lambda *parts: jnp.concatenate(parts), *found)]
        losses, metrics = zip(*map(method.objective, found), strict=True)
        return {"loss": losses, **{name: [m[name] for m in metrics] for name in metrics[0]}}

    found = [batch(jnp.int32(number)) for number in range(num_batches)]
    return {name: np.mean([each[name] for each in found]) for name in found[0]}


@pytest.mark.slow
def test_a_run_ends_when_the_validation_loss_has_not_improved_for_long_enough(stopped_run):
    workdir, last = stopped_run
    rows = _rows(workdir)
    assert [row["step"] for row in rows] == list(range(2, int(last.step) + 1, 2))
    values = [row["loss"] for row in rows]
    best = int(np.argmin(values))
    assert len(rows) == best + 1 + 2, "two in a row, and not one more"
    assert int(last.step) < 50


@pytest.mark.slow
def test_what_is_validated_is_logged_beside_the_metrics_of_the_step(stopped_run):
    workdir, last = stopped_run
    written = losses(workdir)
    assert list(written) == list(range(1, int(last.step) + 1))
    for row in _rows(workdir):
        values = written[row["step"]]
        assert values["validation/loss"] == row["loss"] != values["loss"]
        assert values["validation/agreement"] == row["agreement"]
    assert sum("validation/loss" in values for values in written.values()) == len(_rows(workdir))


def test_the_best_checkpoint_outlives_newer_ones_and_is_the_one_that_is_named(stopped_run):
    workdir, last = stopped_run
    best = min(_rows(workdir), key=lambda row: row["loss"])["step"]
    assert best < int(last.step)
    assert checkpoint.steps(workdir / "checkpoints") == [best, int(last.step)]
    assert validation.best_step(workdir) == best
    for named, step in (("best", best), (str(best), best), ("newest", None)):
        with tool_flags(export, f"--workdir={workdir}", f"--step={named}", "--output=none"):
            assert model_flags._step(flags.FLAGS) == step


def test_the_loss_is_the_objective_in_evaluation_mode_on_clips_of_a_fixed_seed(stopped_run):
    workdir, _ = stopped_run
    step, saved = checkpoint.read(workdir)
    wanted = _by_hand(get_config(), saved["params"], saved["model_state"])
    assert _rows(workdir)[-1] == pytest.approx({"step": step, **wanted}, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("accumulation", ["mean", "cached"])
def test_the_moving_average_is_validated_in_the_parts_of_training(tmp_path, accumulation):
    config = get_config(
        microbatches=2, accumulation=accumulation, seed=5, ema_decay=0.5,
        validation__data="fake", validation__every=2, validation__examples=50,
    )  # fmt: skip
    program = build(Toy(), config)
    begun = program.init()
    begun = dataclasses.replace(begun, ema=jax.tree.map(lambda x: x + 0.1, begun.params))
    validate = validation.Validator(program, validation.History(tmp_path, 0, 0))
    assert validate(1, begun) == {}
    found = validate(2, begun)
    wanted = _by_hand(config, begun.ema, begun.model_state, num_batches=3)
    assert found == pytest.approx({f"validation/{k}": v for k, v in wanted.items()}, rel=1e-5)
    failed = dataclasses.replace(begun, finite=jnp.zeros((), bool))
    assert validate(2, failed) == {} and len(_rows(tmp_path)) == 1


def test_a_run_that_ended_says_so_and_a_greater_patience_continues_it(
    stopped_run, tmp_path, caplog
):
    workdir, last = stopped_run
    before = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    with caplog.at_level(logging.INFO):
        assert same_bits(loop.train(Toy(), get_config(**RISING), workdir, ToyData()), last)
    assert {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()} == before
    assert f"ended at step {last.step}: the validation loss was least at step" in caplog.text
    assert "config.validation.patience=2" in caplog.text

    impatient = RISING | {"validation__patience": 1}
    assert loop.train(Toy(), get_config(**impatient), tmp_path, ToyData()).step < last.step
    assert same_bits(loop.train(Toy(), get_config(**RISING), tmp_path, ToyData()), last)
    assert losses(tmp_path) == losses(workdir)


class Crash(Exception):
    """Stands for whatever ends a process."""


@pytest.mark.slow
def test_a_run_that_dies_at_any_step_decides_as_if_it_had_not(stopped_run, tmp_path):
    workdir, last = stopped_run
    for step in range(1, int(last.step)):

        def die(number, step=step):
            if number == step:
                raise Crash

        killed = tmp_path / str(step)
        with pytest.raises(Crash):
            loop.train(Toy(), get_config(**RISING), killed, ToyData(before=die))
        assert same_bits(loop.train(Toy(), get_config(**RISING), killed, ToyData()), last)
        assert _rows(killed) == _rows(workdir) and losses(killed) == losses(workdir)
        assert validation.best_step(killed) == validation.best_step(workdir)


def test_a_validation_whose_checkpoint_was_not_saved_does_not_count(
    stopped_run, tmp_path, monkeypatch
):
    workdir, last = stopped_run

    def die(*_):
        raise Crash

    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr(checkpoint.Checkpoints, "save", die)
        loop.train(Toy(), get_config(**RISING), tmp_path, ToyData())
    assert [row["step"] for row in _rows(tmp_path)] == [2]
    with pytest.raises(UserError, match="has no best checkpoint"):
        validation.best_step(tmp_path)
    assert same_bits(loop.train(Toy(), get_config(**RISING), tmp_path, ToyData()), last)
    assert _rows(tmp_path) == _rows(workdir)


def test_data_of_a_validation_that_fail_cost_nothing_that_was_trained(tmp_path, monkeypatch):
    config = get_config(**RISING)

    def fail(*_):
        raise UserError("too many clips cannot be read")

    with monkeypatch.context() as patch:
        patch.setattr(pipeline.TrainData, "batches", fail)
        with pytest.raises(UserError, match="config.validation.data=fake: too many clips"):
            loop.train(Toy(), config, tmp_path, ToyData())
    assert checkpoint.steps(tmp_path / "checkpoints") == [2] and list(losses(tmp_path)) == [1, 2]
    loop.train(Toy(), config, tmp_path, ToyData())
    assert [row["step"] for row in _rows(tmp_path)][:3] == [2, 4, 6]  # what was missed, too


@pytest.mark.slow
def test_a_last_validation_that_failed_is_made_up_for(tmp_path, monkeypatch):
    config = get_config(**RISING | {"steps": 2})
    straight = loop.train(Toy(), config, tmp_path / "straight", ToyData())

    def fail(*_):
        raise UserError("the disk is gone")

    with monkeypatch.context() as patch, pytest.raises(UserError, match="the disk is gone"):
        patch.setattr(pipeline.TrainData, "batches", fail)
        loop.train(Toy(), config, tmp_path / "run", ToyData())
    state = loop.train(Toy(), config, tmp_path / "run", ToyData())
    assert same_bits(state, straight)
    assert _rows(tmp_path / "run") == _rows(tmp_path / "straight")


@pytest.mark.slow
def test_a_signal_during_a_validation_saves_at_once_and_a_restart_makes_up_for_it(
    tmp_path, monkeypatch
):
    config = get_config(**RISING | {"steps": 4})
    straight = loop.train(Toy(), config, tmp_path / "straight", ToyData())
    batches = pipeline.TrainData.batches

    def signalling(self, start_step):
        for batch in batches(self, start_step):
            os.kill(os.getpid(), signal.SIGTERM)
            yield batch
            pytest.fail("the validation goes on")

    with monkeypatch.context() as patch, pytest.raises(loop.Stopped):
        patch.setattr(pipeline.TrainData, "batches", signalling)
        loop.train(Toy(), config, tmp_path / "run", ToyData())
    assert checkpoint.steps(tmp_path / "run" / "checkpoints") == [2]
    assert same_bits(loop.train(Toy(), config, tmp_path / "run", ToyData()), straight)
    assert _rows(tmp_path / "run") == _rows(tmp_path / "straight")


@pytest.mark.slow
def test_with_a_curriculum_all_validations_use_the_last_part(tmp_path):
    rows = ("0: batch_size=16", "1: batch_size=16 | batch_size=8")
    config = get_config(curriculum=rows, steps=1, validation__data="fake", validation__every=1)
    parts = [
        loop.Part(part, Toy(), ToyData(part.batch_size))
        for part in curriculum.Curriculum(config).configs
    ]
    trained = loop.train_parts(parts, config, tmp_path)
    wanted = _by_hand(parts[-1].config, trained.params, trained.model_state)
    assert parts[-1].config.batch_size == 8
    assert _rows(tmp_path) == [pytest.approx({"step": 1, **wanted}, rel=1e-5)]


def test_losses_that_are_not_finite_never_are_the_best(tmp_path):
    history = validation.History(tmp_path, 3, 0)
    for step, loss in enumerate([float("nan"), 2.0, float("inf"), 2.0], 1):
        assert not history.over
        history.add(step, {"loss": loss})
    assert history.best == 2 and not history.over
    history.add(5, {"loss": 3.0})
    assert history.over and "least at step 2 (2.0000), and the 3 validations" in history.why()
    assert [row["loss"] for row in _rows(tmp_path)] == [None, 2.0, None, 2.0, 3.0]
    assert not validation.History(tmp_path, 3, 4).over
    assert len(_rows(tmp_path)) == 4, "that of step 5 is about to be done again"
    assert not validation.History(tmp_path, 0, 4).over


def test_a_run_of_which_no_loss_was_finite_ends_too(tmp_path):
    history = validation.History(tmp_path, 1, 0)
    history.add(7, {"loss": float("nan")})
    assert history.over and "none of 1 validations had a finite loss" in history.why()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": "/nowhere"}, "config.validation.data=/nowhere: .*nowhere"),
        ({"data": "/nowhere@x"}, "config.validation.data=/nowhere@x: .*weight above 0"),
        ({"data": "/a,/b"}, "config.validation.data=/a,/b: a mixture has no end"),
        ({"data": "fake", "examples": 15}, "15 clips to validate on are fewer than a batch of 16"),
    ],
)
def test_data_that_cannot_validate_are_named_before_the_first_step(tmp_path, changes, message):
    config = get_config(**{f"validation__{key}": value for key, value in changes.items()})
    with pytest.raises(UserError, match=message):
        loop.train(Toy(), config, tmp_path, ToyData())
    assert not (tmp_path / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("examples", "records", "batches"), [(0, 40, 2), (33, 40, 2), (16, 40, 1), (0, 0, 1)]
)
def test_as_many_clips_are_validated_as_fill_batches(examples, records, batches):
    config = get_config(validation__examples=examples)
    assert validation._num_batches(config, records) == batches


def test_more_clips_than_there_are_are_refused():
    with pytest.raises(UserError, match="holds 40 clips, fewer than .*examples=41"):
        validation._num_batches(get_config(validation__examples=41), 40)


def test_patience_without_data_is_said_to_do_nothing(tmp_path, caplog):
    program = build(Toy(), get_config(validation__patience=3))
    validator = validation.Validator(program, validation.History(tmp_path, 3, 0))
    assert "patience=3 does nothing without config.validation.data" in caplog.text
    assert not validator.due(1000)


def test_a_file_that_is_no_list_of_validations_is_named(tmp_path):
    (tmp_path / "validation.jsonl").write_text('{"loss": 1}\n')
    with pytest.raises(UserError, match="validation.jsonl cannot be read"):
        validation.History(tmp_path, 1, 9)
