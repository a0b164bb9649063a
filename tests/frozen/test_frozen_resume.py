"""Promise: a run with a curriculum that is killed at a boundary goes on as if nothing had been."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys

import noise_records
import pytest
import train_killed
from toy_method import losses, same_bits

from common import checkpoint, launch

ROOT = pathlib.Path(launch.__file__).parents[1]
BOUNDARY, STEPS = 2, 4  # steps counted from 0: step 2 is the first of the second row


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Holds a dozen captioned clips as records, word pieces, and what the processes compile."""
    folder = tmp_path_factory.mktemp("curriculum")
    (folder / "records").mkdir()
    (folder / "pieces.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\na\nclip\n0\n1\n2\n3\n")
    noise_records.write(
        folder / "records" / "clips-00000-of-00001.tfrecord",
        (6, 5, 5, 3),
        lambda number, _: {
            "captions": [(text, 0.0, 0.2) for text in ("a clip", f"clip {number % 4}")]
        },
    )
    return folder


@pytest.mark.slow
def test_a_run_killed_before_and_after_a_boundary_continues_bit_identically(folder):
    command = [
        sys.executable, train_killed.__file__, str(folder), f"{BOUNDARY - 1},{BOUNDARY}",
        "--config=configs/frozen_msrvtt.py:smoke", "--config.model.video.depth=1",
        f"--config.steps={STEPS}", "--config.checkpoint_every=1",
        f"--config.curriculum=('0: model.video.num_frames=1 batch_size=8', '{BOUNDARY}:')",
        f"--config.data.train={folder / 'records'}",
        f"--config.model.text.pieces={folder / 'pieces.txt'}",
    ]  # fmt: skip
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "XDG_CACHE_HOME": str(folder / "cache"),
    }
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert list(map(int, done.stdout.split())) == [-signal.SIGKILL] * 2 + [0, 0], done.stderr
    killed, whole = folder / "killed", folder / "whole"
    assert list(losses(whole)) == list(range(1, STEPS + 1))
    assert losses(killed) == losses(whole)
    assert same_bits(checkpoint.read(killed)[1], checkpoint.read(whole)[1])
