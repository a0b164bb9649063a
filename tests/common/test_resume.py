"""Promise: stop anywhere, in a real process, and the same command continues the same run."""

from __future__ import annotations

import os
import pathlib
import random
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
import toy_method
from toy_method import Toy, ToyData, get_config, losses, same_bits

from common import checkpoint, loop

pytestmark = pytest.mark.slow

STEPS = 12
EVERY = 2
VALIDATED = 3


def process(workdir, *changes: str, devices: int = 1) -> subprocess.CompletedProcess[str]:
    """Trains the toy in a process of its own."""
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(pathlib.Path(loop.__file__).parents[1]),
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}",
    }
    command = [sys.executable, toy_method.__file__, str(workdir), f"steps={STEPS}"]
    command += [f"checkpoint_every={EVERY}", 'validation.data="fake"']
    command += [f"validation.every={VALIDATED}", *changes]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def configuration():
    return get_config(
        steps=STEPS,
        checkpoint_every=EVERY,
        validation__data="fake",
        validation__every=VALIDATED,
    )


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, loop.train(Toy(), configuration(), workdir, ToyData())


def test_a_run_killed_again_and_again_continues_bit_identically(whole_run, tmp_path):
    workdir, state = whole_run
    seed = random.randrange(10**6)
    print("seed", seed)  # shown when the test fails
    for step in sorted(random.Random(seed).sample(range(1, STEPS), 2)):
        result = process(tmp_path, f"kill={step}")
        assert result.returncode == -signal.SIGKILL, result.stderr
    result = process(tmp_path)
    assert result.returncode == 0, result.stderr
    assert losses(tmp_path) == losses(workdir)
    assert sum("validation/loss" in values for values in losses(tmp_path).values()) == 4
    step, tree = checkpoint.read(tmp_path)
    assert step == STEPS
    for field in ("params", "model_state"):
        assert same_bits(tree[field], getattr(state, field))


def test_a_run_begun_on_eight_devices_ends_on_one_with_the_same_losses(whole_run, tmp_path):
    workdir, state = whole_run
    sharded = ["mesh.fsdp=2", 'mesh.rules=[".*kernel=1", "layers/0/bias=0"]', "kill=6"]
    result = process(tmp_path, *sharded, f"with={int(signal.SIGTERM)}", devices=8)
    # SIGTERM: the state is saved, and the exit status says that the run is not done.
    assert result.returncode == 128 + signal.SIGTERM, result.stderr
    assert "{'data': 4, 'fsdp': 2}" in result.stderr and "-, fsdp" in result.stderr
    stopped = checkpoint.steps(tmp_path / "checkpoints")[-1]
    assert 0 < stopped < STEPS and max(losses(tmp_path)) == stopped
    resumed = loop.train(Toy(), configuration(), tmp_path, ToyData())
    for step, values in losses(workdir).items():
        for name, value in losses(tmp_path)[step].items():
            assert value == pytest.approx(values[name], rel=1e-4, abs=1e-6), (step, name)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
        resumed.params,
        state.params,
    )
