"""A MIL-NCE that fits in a test: a few thousand parameters, a dozen words."""

from __future__ import annotations

import json
import pathlib

import jax
import numpy as np
import tiny_brave

from common import attachments, checkpoint, methods
from common import config as config_lib
from configs import mil_nce_base

WORDS = ("a", "ball", "rolls", "red", "cat", "sleeps", "dog", "runs", "it", "rains", "wind")


def get_config(vocabulary="", **changes):
    """Returns the configuration; keys of changes have ``__`` in place of dots."""
    config = mil_nce_base.smoke(mil_nce_base.get_config())
    config.batch_size = 2
    config.microbatches = 1
    config.model.video.backbone = "tsm_resnet"
    config.model.video.crop = "resize"
    config.model.text.vocabulary = str(vocabulary)
    config.update_from_flattened_dict(
        {key.replace("__", "."): value for key, value in changes.items()}
    )
    return config.lock()


def make_run(workdir, vocabulary, step=7, seed=3, **changes):
    """Saves a model of random numbers as the checkpoint of a step: nothing is trained.

    What the objective measures is logged as if it had been.
    """
    config = get_config(vocabulary, **changes)
    config_lib.claim(config, workdir)
    attachments.keep(config, workdir)
    method = methods.create(config)
    made = tiny_brave.random_state(method, config, seed)
    checkpoints = checkpoint.Checkpoints(workdir, config)
    checkpoints.save(step, jax.tree.map(jax.numpy.asarray, made))
    checkpoints.finish()
    dim, candidates = config.model.embedding_dim, config.model.text.candidates
    shapes = {"video": (2, dim), "text": (2, candidates, dim)}
    embeddings = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    _, names = jax.eval_shape(method.objective, embeddings)
    lines = [{"step": at, **dict.fromkeys(names, 1 / at)} for at in range(1, step + 1)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (pathlib.Path(workdir) / "metrics.jsonl").write_text(text)


def write_vocabulary(path):
    """Writes `WORDS` to a text file; returns its path."""
    path.write_text("".join(f"{word}\n" for word in WORDS))
    return path
