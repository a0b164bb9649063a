"""The comparison of S3D-G with PyTorch: both are the same network."""

import importlib.util

import jax
import numpy as np
import pytest
from flax import nnx

from benchmarks import against_torch, s3d_against_torch
from common.backbones.s3d import S3D

TORCH = importlib.util.find_spec("torch") is not None


@pytest.mark.slow
@pytest.mark.skipif(not TORCH, reason="needs PyTorch: pip install torch")
def test_features_agree_on_odd_sizes():
    import torch

    from benchmarks import torch_s3d

    model = s3d_against_torch.untrained()
    weights = s3d_against_torch.published(model)
    theirs = torch_s3d.S3D()
    theirs.load_state_dict({key: torch.tensor(x) for key, x in weights.items()})
    theirs.eval(), model.eval()
    video = np.random.default_rng(0).random((1, 5, 50, 38, 3), np.float32)
    with torch.inference_mode():
        wanted = theirs(torch.tensor(video).permute(0, 4, 1, 2, 3)).numpy()
    features = nnx.jit(lambda model, x: model(x))(model, jax.numpy.asarray(video))
    assert isinstance(model, S3D) and np.abs(wanted).max() > 1e-3
    np.testing.assert_allclose(features, wanted, atol=1e-4 * np.abs(wanted).max())


@pytest.mark.slow
@pytest.mark.skipif(not TORCH, reason="needs PyTorch: pip install torch")
def test_features_agree_in_both_layouts_and_every_tensor_has_a_gradient():
    runners = s3d_against_torch.runners(clips=2, frames=8, size=64)
    features = {name: runner.forward() for name, runner in runners.items()}
    against_torch.check("features", features, s3d_against_torch.TOLERANCE)
    # Not compared: norms over so few numbers make much of a rounding.
    ours, *theirs = (runner.gradients() for runner in runners.values())
    assert len(theirs) == 2
    for of_layout in theirs:
        assert len(of_layout) > 200
        for key, x in of_layout.items():
            assert np.isfinite(x).all() and np.isfinite(ours[key]).all() and ours[key].any(), key
