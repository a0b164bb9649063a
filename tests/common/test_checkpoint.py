"""Promise: a good checkpoint is never lost, and a damaged one is never used."""

from __future__ import annotations

import errno
import logging
import resource
import shutil

import jax
import numpy as np
import pytest
import toy_method
from toy_method import Toy, ToyData, get_config, losses, same_bits

from common import checkpoint, loop
from common.errors import UserError
from common.program import build


@pytest.fixture(scope="module")
def program():
    return build(Toy(), get_config(ema_decay=0.9))


@pytest.fixture(scope="module")
def states(program):
    """States of steps 1, 2 and 3."""

    def later(state, number):
        return jax.tree.map(
            lambda x: x if x.dtype == bool else x + np.asarray(number, x.dtype), state
        )

    first = program.init()
    return {step: later(first, step) for step in (1, 2, 3)}


@pytest.fixture(scope="module")
def saved(tmp_path_factory, program, states):
    """A folder with checkpoints of all three steps."""
    workdir = tmp_path_factory.mktemp("saved")
    save(workdir, program, states)
    return workdir


def save(workdir, program, states):
    checkpoints = checkpoint.Checkpoints(workdir, program.config)
    for step, state in states.items():
        checkpoints.save(step, state)
    checkpoints.finish()


def restore(workdir, program):
    return checkpoint.Checkpoints(workdir, program.config).restore(program.like)


def test_what_is_saved_is_what_is_restored(saved, program, states):
    assert same_bits(restore(saved, program), states[3])


def test_nothing_is_restored_where_nothing_is(tmp_path, program):
    assert restore(tmp_path, program) is None


def test_the_state_reads_without_the_model_for_evaluation_and_export(saved, states):
    step, tree = checkpoint.read(saved)
    assert step == 3
    assert same_bits(tree["params"], states[3].params) and same_bits(tree["ema"], states[3].ema)
    assert same_bits(checkpoint.read(saved, 2)[1]["model_state"], states[2].model_state)
    with pytest.raises(UserError, match=r"no checkpoint of step 7; it holds \[1, 2, 3\]"):
        checkpoint.read(saved, 7)


def test_a_state_is_safe_from_the_steps_that_follow_while_it_is_written(tmp_path, program, states):
    # The step donates its input: what is being saved must not be the memory that is overwritten.
    advance = jax.jit(lambda s: jax.tree.map(lambda x: x * 0, s), donate_argnums=0)
    state = jax.tree.map(lambda x: x.copy(), states[2])
    checkpoints = checkpoint.Checkpoints(tmp_path, program.config)
    checkpoints.save(2, state)
    for _ in range(3):
        state = advance(state)
    checkpoints.finish()
    assert same_bits(restore(tmp_path, program), states[2])


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    content = bytearray(path.read_bytes())
    content[np.random.default_rng(len(content)).integers(len(content))] ^= 16
    path.write_bytes(content)


def remove(path):
    path.unlink()


@pytest.mark.parametrize("harm", [truncate, flip, remove])
def test_a_damaged_checkpoint_is_noticed_whichever_file_is_hit(
    saved, tmp_path, program, states, harm
):
    original = saved / "checkpoints" / "3"
    names = [path.relative_to(original) for path in original.rglob("*") if path.is_file()]
    assert len(names) > 5
    for number, name in enumerate(names):
        workdir = tmp_path / str(number)
        shutil.copytree(original, workdir / "checkpoints" / "3")
        harm(workdir / "checkpoints" / "3" / name)
        if str(name) in ("_CHECKPOINT_METADATA", "commit_success.txt"):  # nothing depends on them
            assert same_bits(restore(workdir, program), states[3])
        else:
            assert checkpoint.damage(workdir / "checkpoints" / "3"), name
    assert checkpoint.damage(original) is None


def test_the_newest_whole_one_is_restored_and_the_damaged_is_kept(
    saved, tmp_path, program, states, caplog
):
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    harmed = tmp_path / "checkpoints" / "3" / "state" / "manifest.ocdbt"
    truncate(harmed)
    left = harmed.read_bytes()
    with caplog.at_level(logging.WARNING):
        state = restore(tmp_path, program)
    assert same_bits(state, states[2])
    aside = tmp_path / "damaged_checkpoints" / "3"
    assert str(harmed.parents[1]) in caplog.text and str(aside) in caplog.text
    assert (aside / "state" / "manifest.ocdbt").read_bytes() == left
    # Its place is free again: the run saves step 3 anew and restores it.
    save(tmp_path, program, {3: states[3]})
    assert same_bits(restore(tmp_path, program), states[3])


def test_a_file_that_cannot_be_read_is_damage(saved, monkeypatch):
    def digest(path):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(checkpoint, "_digest", digest)
    assert "cannot be read: Input/output error" in checkpoint.damage(saved / "checkpoints" / "3")


def test_all_damaged_means_from_the_start_with_nothing_deleted(saved, tmp_path, program):
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    for step in (1, 2, 3):
        (tmp_path / "checkpoints" / str(step) / "digests.json").unlink()
    with pytest.raises(UserError, match="no whole checkpoint: step 3: digests.json is missing"):
        checkpoint.read(tmp_path)
    assert restore(tmp_path, program) is None
    assert checkpoint.steps(tmp_path / "damaged_checkpoints") == [1, 2, 3]


def test_what_a_killed_save_left_behind_is_not_taken_for_a_checkpoint(
    saved, tmp_path, program, states
):
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    half = tmp_path / "checkpoints" / "4.orbax-checkpoint-tmp-1"
    shutil.copytree(tmp_path / "checkpoints" / "3", half)
    assert same_bits(restore(tmp_path, program), states[3])
    save(tmp_path, program, {4: states[1]})
    assert checkpoint.steps(tmp_path / "checkpoints") == [2, 3, 4]
    assert same_bits(restore(tmp_path, program), states[1])


# A failed write leaves threads of Orbax's behind that complain when the test has ended.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_full_disk_costs_no_earlier_checkpoint(tmp_path, program, states):
    save(tmp_path, program, {1: states[1]})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (256, limits[1]))  # no file can be longer than that
    try:
        with pytest.raises(UserError, match="checkpoint of step 2 .* failed") as error:
            save(tmp_path, program, {2: states[2]})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "step 1 is the newest whole one" in str(error.value)
    assert checkpoint.steps(tmp_path / "checkpoints") == [1]
    assert same_bits(restore(tmp_path, program), states[1])


# A failed write leaves threads of Orbax's behind that complain when the test has ended.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_save_that_fails_in_the_background_stops_the_run_which_then_continues(
    tmp_path, monkeypatch
):
    toy_method.compile_once(monkeypatch)
    write = checkpoint.Checkpoints._write_digests

    def full(self):
        if self._saving == 6:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self)

    config = get_config(steps=50)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.Checkpoints, "_write_digests", full)
        with pytest.raises(UserError, match="checkpoint of step 6 .*No space left") as error:
            loop.train(Toy(), config, tmp_path / "full", ToyData())
    assert "step 3 is the newest whole one" in str(error.value)
    assert checkpoint.steps(tmp_path / "full" / "checkpoints") == [3]
    state = loop.train(Toy(), config, tmp_path / "full", ToyData())
    assert same_bits(state, loop.train(Toy(), config, tmp_path / "whole", ToyData()))
    assert losses(tmp_path / "full") == losses(tmp_path / "whole")


def test_a_checkpoint_of_another_model_is_refused_and_not_called_damaged(saved, tmp_path, program):
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    other = build(Toy(), get_config(ema_decay=0.9, optimizer__name="adam"))
    checkpoints = checkpoint.Checkpoints(tmp_path, program.config)
    with pytest.raises(UserError, match="is whole but does not fit the model"):
        checkpoints.restore(other.like)
    assert checkpoint.steps(tmp_path / "checkpoints") == [1, 2, 3]


def test_a_checkpoint_of_another_configuration_is_told_and_used(saved, caplog):
    other = build(Toy(), get_config(ema_decay=0.9, seed=5))
    restore(saved, other)
    assert "config.seed: 0 there, 5 now" in caplog.text
