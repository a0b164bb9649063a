"""The comparison with PyTorch: its table, its command line and its network."""

import importlib.util
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import nnx

from benchmarks import s3d_against_torch
from common.backbones.s3d import S3D
from common.weights import s3d_layout

ROOT = pathlib.Path(__file__).parents[2]
TORCH = importlib.util.find_spec("torch") is not None


def run(*arguments):
    command = [sys.executable, "-m", "benchmarks.step", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_table_has_median_times_and_the_median_share_within_repeats():
    ours, theirs = [0.1, 0.2, 0.9], [0.2, 0.8, 0.9]
    (line,) = s3d_against_torch.table({"forward": {"ours": ours, "torch": theirs}})
    assert line == "forward: ours 200.0 ms; torch 800.0 ms (ours 0.50x)"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size=64"], "--size has an effect with --against=torch only"),
        (["--against=torch", "--overhead"], "two measurements; ask for one"),
        (["--against=tf"], "value should be one of <torch>"),
    ],
)
def test_flags_without_effect_are_refused(arguments, message):
    done = run(*arguments)
    assert done.returncode == 2 and message in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(TORCH, reason="PyTorch is installed")
def test_without_pytorch_the_message_says_what_to_install():
    done = run("--against=torch")
    assert done.returncode == 2 and "pip install torch" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(not TORCH, reason="needs PyTorch: pip install torch")
def test_features_agree_on_odd_sizes():
    import torch

    from benchmarks import torch_s3d

    model = s3d_against_torch.untrained()
    weights = s3d_layout.write(s3d_layout.layers_of(model))
    theirs = torch_s3d.S3D()
    theirs.load_state_dict({key: torch.tensor(x) for key, x in weights.items()})
    theirs.eval(), model.eval()
    video = np.random.default_rng(0).random((1, 5, 50, 38, 3), np.float32)
    with torch.inference_mode():
        wanted = theirs(torch.tensor(video).permute(0, 4, 1, 2, 3)).numpy()
    features = nnx.jit(lambda model, x: model(x))(model, jax.numpy.asarray(video))
    assert isinstance(model, S3D) and np.abs(wanted).max() > 1e-3
    np.testing.assert_allclose(features, wanted, atol=1e-4 * np.abs(wanted).max())
