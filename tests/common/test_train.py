"""Promise: the real command, on real records, killed in the middle, goes on as if nothing was."""

from __future__ import annotations

import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import noise_records
import numpy as np
import pytest
from toy_method import losses, same_bits

from common import checkpoint, launch

pytestmark = pytest.mark.slow

STEPS = 8
ROOT = pathlib.Path(launch.__file__).parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Holds twelve short clips with sound as records, and what the processes compile."""
    folder = tmp_path_factory.mktemp("train")
    (folder / "records").mkdir()
    noise_records.write(
        folder / "records" / "train-00000-of-00001.tfrecord",
        (12, 6, 6, 3),
        lambda number, generator: {
            "waveform": generator.normal(0, 0.1, 8000).astype(np.float32),
            "audio_rate": 16000,
        },
    )
    return folder


def start(folder, workdir, *changes: str, devices: int = 1) -> subprocess.Popen[str]:
    command = [
        sys.executable, "-m", "common.train", "--config=configs/brave_demo.py:smoke",
        f"--workdir={workdir}", f"--config.data.train={folder / 'records'}",
        f"--config.steps={STEPS}", f"--config.validation.data={folder / 'records'}",
        "--config.validation.every=4", *changes,
    ]  # fmt: skip
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(folder / "cache")}
    environment["XLA_FLAGS"] += f" --xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def written(workdir) -> int:
    path = workdir / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def test_training_killed_in_the_middle_continues_bit_identically(folder, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    _, errors = (run := start(folder, whole)).communicate()
    assert run.returncode == 0, errors
    assert list(losses(whole)) == list(range(1, STEPS + 1))

    run = start(folder, killed)
    while written(killed) < 3 and run.poll() is None:
        time.sleep(0.01)
    run.send_signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL, run.stderr.read()
    # Other numbers of threads and batches ahead: neither may matter.
    _, errors = (run := start(folder, killed, "--config.data.threads=1")).communicate()
    assert run.returncode == 0, errors
    assert losses(killed) == losses(whole)
    assert same_bits(checkpoint.read(killed)[1], checkpoint.read(whole)[1])
    validated = [step for step in losses(whole) if "validation/loss" in losses(whole)[step]]
    assert validated == [4, 8]


def test_two_processes_train_the_bits_of_one_with_two_devices(folder, tmp_path):
    with socket.create_server(("localhost", 0)) as server:
        job = [f"--coordinator=localhost:{server.getsockname()[1]}", "--processes=2"]
    split = ["--config.mesh.fsdp=2", "--config.mesh.rules=('.*kernel=-1',)"]
    runs = [start(folder, tmp_path / "two", *job, f"--process={i}", *split) for i in range(2)]
    said = [run.communicate(timeout=400)[1] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], said
    assert "{'data': 1, 'fsdp': 2}" in said[0] and "step 8/8" in said[0]
    assert "step 8/8" not in said[1]  # one of them speaks for all
    one = start(folder, tmp_path / "one", *split, devices=2)
    assert one.wait(timeout=400) == 0, one.stderr.read()
    assert losses(tmp_path / "two") == losses(tmp_path / "one")
    assert same_bits(checkpoint.read(tmp_path / "two")[1], checkpoint.read(tmp_path / "one")[1])
