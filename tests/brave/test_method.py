"""What BraVe's networks are given of their pictures: frames, or the changes between them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_brave
from flax import nnx

from brave import checkpoint_layout
from common import methods
from common.errors import UserError


def _method(**changes):
    return methods.create(tiny_brave.get_config(model__narrow__input="difference", **changes))


def _moving(frames=4, brightness=0):
    """A uint8 clip (1, T, 28, 28, 3) of a square that moves over a dark ground."""
    video = np.full((1, frames, 28, 28, 3), 20 + brightness, np.uint8)
    for frame in range(frames):
        video[0, frame, 8:16, 4 * frame : 4 * frame + 8] += 100
    return video


@pytest.mark.slow
def test_training_sees_the_changes_between_augmented_frames():
    method = _method()
    video = np.repeat(_moving(2), 2, axis=0)
    video[1] = video[1, :1]  # a still clip
    batch = {"narrow": jnp.array(video), "audio": jnp.zeros((2, 3200), jnp.int16)}
    seen = method.augment(batch, jax.random.split(jax.random.key(0), 2))["narrow"]
    assert seen.shape == (2, 1, 28, 28, 3)
    assert np.abs(seen[0]).max() > 0.1
    np.testing.assert_array_equal(seen[1], 0)


@pytest.mark.slow
def test_an_encoder_of_differences_takes_frames_and_ignores_their_brightness():
    method = _method()
    model = method.build(nnx.Rngs(0))
    model.eval()
    encoder = method.encoders["video"]
    dark, bright = (encoder.embed(model, jnp.array(_moving(brightness=b))) for b in (0, 60))
    assert dark.shape == (1, encoder.dim)
    np.testing.assert_allclose(dark, bright, rtol=1e-4, atol=1e-5)
    backward = encoder.embed(model, jnp.array(_moving()[:, ::-1].copy()))
    assert np.abs(dark - backward).max() > 1e-3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__narrow__input": "flow"}, "narrow.input is 'flow'; it must be one of rgb, diff"),
        ({"model__narrow__num_frames": 1}, r"num_frames is 1; .*it must be at least 2"),
        ({"model__evaluation_frames": 1}, r"evaluation_frames is 1; .*it must be at least 2"),
        (
            {"model__decorrelation": -0.1},
            "decorrelation is -0.1; it must be a number of at least 0",
        ),
    ],
)
def test_a_setting_that_cannot_be_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        methods.create(tiny_brave.get_config(**{"model__narrow__input": "difference", **changes}))


@pytest.mark.slow
def test_the_published_layout_refuses_what_it_cannot_say(tmp_path):
    config = tiny_brave.get_config(model__narrow__input="difference")
    with pytest.raises(UserError, match="narrow.input is 'difference'"):
        checkpoint_layout.save(tmp_path / "model.npy", _method().build(nnx.Rngs(0)), config.model)
    assert not list(tmp_path.iterdir())
