"""A BraVe that fits in a test: a run with a checkpoint, made without training."""

from __future__ import annotations

import jax
import numpy as np
import optax

from common import checkpoint, methods, state
from common import config as config_lib
from common.weights import loading
from configs import brave_base


def get_config(**changes):
    """Returns a V<->A configuration of a few thousand parameters."""
    config = brave_base.get_config()
    config.steps = 2
    config.batch_size = 2
    config.compute_dtype = "float32"
    model = config.model
    model.projector_hidden = 8
    model.projection_dim = 4
    model.narrow.blocks = (1, 1, 1, 1)
    model.narrow.width = 0.125
    model.narrow.num_frames, model.narrow.stride, model.narrow.size = 2, 2, 28
    model.evaluation_frames = 4
    model.audio.blocks = (1, 1, 1, 1)
    model.audio.width = 0.125
    model.audio.num_samples, model.audio.sample_rate = 3200, 16_000
    model.audio.mel_bins, model.audio.fft_window, model.audio.fft_step = 8, 320, 160
    with config.unlocked():
        config.update_from_flattened_dict(
            {key.replace("__", "."): value for key, value in changes.items()}
        )
    return config.lock()


def random_state(method, config, seed):
    """Returns a training state of random numbers: drawing them in NumPy compiles nothing."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        if "var" in state.path_of(path).rpartition("/")[2]:
            return rng.uniform(0.5, 1.5, leaf.shape).astype(leaf.dtype)
        if not np.issubdtype(leaf.dtype, np.floating):
            return np.ones(leaf.shape, leaf.dtype)
        return rng.normal(0, 0.3, leaf.shape).astype(leaf.dtype)

    _, params, rest = loading.abstract(method)
    params, rest = (jax.tree_util.tree_map_with_path(draw, tree) for tree in (params, rest))
    ema = jax.tree.map(lambda x: x + 0.1, params) if config.ema_decay else None
    step, finite = np.int32(1), np.True_
    return state.TrainState(step, params, rest, optax.sgd(0.1).init(params), ema, finite)


def make_run(workdir, step=7, seed=3, **changes):
    """Saves a random state as the checkpoint of a step; returns it."""
    config = get_config(seed=seed, **changes)
    config_lib.claim(config, workdir)
    made = random_state(methods.create(config), config, seed)
    checkpoints = checkpoint.Checkpoints(workdir, config)
    checkpoints.save(step, jax.tree.map(jax.numpy.asarray, made))
    checkpoints.finish()
    return made


def loaded(config, seed=3):
    """Returns a model of random numbers."""
    method = methods.create(config)
    made = random_state(method, config, seed)
    graphdef, _, _ = loading.abstract(method)
    model = state.merge(graphdef, made.params, made.model_state)
    return loading.Loaded(config, method, model, {"kind": "test", "path": "nowhere"})
