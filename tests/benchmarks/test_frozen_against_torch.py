"""The comparison of Frozen in Time with PyTorch: both are the same networks."""

import importlib.util

import numpy as np
import pytest

from benchmarks import against_torch, frozen_against_torch
from configs import frozen_base

TORCH = importlib.util.find_spec("torch") is not None
needs_torch = pytest.mark.skipif(not TORCH, reason="needs PyTorch: pip install torch")


def small():
    config = frozen_base.smoke(frozen_base.get_config()).model
    config.video.max_frames = 3
    return config


def test_captions_have_pieces_and_one_of_them_padding():
    video, ids = frozen_against_torch.batch(small(), clips=3, pieces=50)
    assert video.shape == (3, 3, 32, 32, 3) and video.dtype == np.float32
    assert ids.shape == (3, 8) and ids.dtype == np.int32 and ids.max() < 50
    assert ids[:2].all() and ids[2, :4].all() and not ids[2, 4:].any()


@pytest.mark.slow
@needs_torch
def test_features_and_gradients_agree_and_every_tensor_has_one():
    runners = frozen_against_torch.of_config(small(), clips=2, pieces=50)
    features = {name: runner.forward() for name, runner in runners.items()}
    against_torch.check("features", features, frozen_against_torch.TOLERANCE)
    gradients = {name: runner.gradients() for name, runner in runners.items()}
    against_torch.check("gradients", gradients, frozen_against_torch.TOLERANCE)
    assert len(runners) == 3 and len({frozenset(of_run) for of_run in gradients.values()}) == 1
    for name, runner in runners.items():
        assert 0 < runner.train() < 100, name


@pytest.mark.slow
@needs_torch
def test_pytorch_drops_in_training_steps_alone():
    theirs = frozen_against_torch.of_config(small(), clips=2, pieces=50)["torch, published form"]
    theirs.model.train()
    texts = [theirs.model(*theirs.inputs)["text"].detach().numpy() for _ in range(2)]
    assert np.abs(texts[0] - texts[1]).max() > 1e-3
    np.testing.assert_array_equal(theirs.forward()["text"], theirs.forward()["text"])
