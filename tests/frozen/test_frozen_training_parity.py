"""Training steps against the published code: loss, gradients, and AdamW as it alternates loaders.

In float64. Images and videos take turns with one optimizer, as in the published trainer.
"""

from __future__ import annotations

import itertools
import types

import golden_rules
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from common import optimizers, state
from common.step import make_train_step
from common.weights import bert_layout, torch_layout, vit_layout
from configs import frozen_base
from frozen import checkpoint_layout
from frozen.loss import softmax_loss
from frozen.model import FrozenModel

PACK = golden_rules.Pack("frozen")
CASE = "loss_small"
TURNS = ("image", "video", "image")


def _widen(tree):
    return jax.tree.map(
        lambda x: x.astype(jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree
    )


def _recorder():
    """Leaves gradients as they are and keeps them as its state."""
    return optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, params),
        lambda updates, _, params=None: (updates, updates),
    )


def _config():
    config = frozen_base.get_config()
    entries = PACK.manifest["checkpoints"]["small"]["entries"]
    weights = {key.removeprefix("module."): shape for key, shape, *_ in entries}
    video, text = config.model.video, config.model.text
    video.patch = weights["video_model.patch_embed.proj.weight"][-1]
    video.width = weights["video_model.cls_token"][-1]
    video.depth = sum(key.endswith("timeattn.qkv.weight") for key in weights)
    rows = weights["video_model.pos_embed"][1]
    video.grid_size = video.size = int((rows - 1) ** 0.5) * video.patch
    text.width = weights["text_model.embeddings.word_embeddings.weight"][1]
    text.depth = sum(key.endswith("q_lin.weight") for key in weights)
    text.hidden = weights["text_model.transformer.layer.0.ffn.lin1.weight"][0]
    text.positions = weights["text_model.embeddings.position_embeddings.weight"][0]
    config.model.embedding_dim = weights["vid_proj.0.weight"][0]
    video.heads = text.heads = 4
    config.optimizer.learning_rate = PACK.case(CASE)["options"]["lr"]
    return config, weights["text_model.embeddings.word_embeddings.weight"][0]


def _fill(model, published):
    published = {key.removeprefix("module."): value for key, value in published.items()}
    vit_layout.read(model.video, published, "the pack")
    bert_layout.read(model.text, published, "the pack")
    projections = ((model.text_projection, "txt_proj.1"), (model.video_projection, "vid_proj.0"))
    torch_layout.read(itertools.starmap(torch_layout.Layer, projections), published, "the pack")


class _Run:
    """What the steps gave."""

    def __init__(self):
        self.stored = PACK.stored(CASE)
        config, pieces = _config()
        model = nnx.eval_shape(lambda: FrozenModel(config.model, pieces, nnx.Rngs(0)))
        _fill(model, PACK.flat_checkpoint("small"))
        model.eval()  # no dropout; there is no batch norm
        self.graphdef = nnx.graphdef(model)
        method = types.SimpleNamespace(
            augment=lambda batch, keys_B: {**batch, "dropout": keys_B},  # the inputs are ready
            embed=lambda model, inputs: model(inputs),
            objective=lambda found: softmax_loss(found["text"], found["video"]),
        )
        params, model_state = map(_widen, state.split(model))
        adam, schedule = optimizers.create(config.optimizer, 10, params)
        optimizer = optax.chain(_recorder(), adam)
        step = jax.jit(make_train_step(method, self.graphdef, optimizer, schedule, config))
        ids_BL = jnp.asarray(self.stored["input_ids"] * self.stored["attention_mask"], jnp.int32)
        inputs = PACK.inputs(CASE)
        start = state.TrainState(
            step=jnp.zeros((), jnp.int32), params=params, model_state=model_state,
            opt_state=optimizer.init(params), ema=None, finite=jnp.ones((), bool),
        )  # fmt: skip
        self.states, self.metrics = [start], []
        for turn in TURNS:
            video = jnp.asarray(inputs[turn], jnp.float64)
            after, measured = step(self.states[-1], {"video": video, "text": ids_BL})
            self.states.append(after)
            self.metrics.append(measured)

    def published(self, params, number=0):
        """Tensors of ours by their published names."""
        model = state.merge(self.graphdef, params, self.states[number].model_state)
        return checkpoint_layout.published_arrays(model)


@pytest.fixture(scope="module")
def run():
    with golden_rules.x64():
        return _Run()


def _assert_rows(ours, stored, rtol):
    """Rows agree relative to each tensor's norm, which is their first column."""
    allowed = np.broadcast_to(rtol * stored[:, :1] + 1e-12, stored.shape)
    np.testing.assert_array_less(np.abs(ours - stored), allowed)


def _rows(arrays, keys):
    return np.stack([golden_rules.row(arrays[key.removeprefix("module.")]) for key in keys])


@pytest.mark.slow
def test_losses_of_all_steps_are_the_published_ones(run):
    for number, metrics in enumerate(run.metrics):
        np.testing.assert_allclose(metrics["loss"], run.stored[f"step{number}/loss"], rtol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1], ids=TURNS[:2])
def test_the_gradient_of_every_parameter_is_the_published_one(run, number):
    keys = run.stored[f"step{number}/grad_keys"]
    gradients = run.published(run.states[number + 1].opt_state[0])
    assert len(keys) == len(gradients)
    _assert_rows(_rows(gradients, keys), run.stored[f"step{number}/grad_rows"], 1e-6)
    np.testing.assert_allclose(
        run.metrics[number]["gradient_norm"],
        run.stored[f"step{number}/grad_global_norm"],
        rtol=1e-7,
    )


@pytest.mark.slow
def test_three_alternating_steps_of_adamw_move_every_tensor_as_published(run):
    first, last = (run.published(s.params) for s in (run.states[0], run.states[3]))
    moved = {key: last[key] - first[key] for key in first}
    _assert_rows(_rows(moved, run.stored["delta3_keys"]), run.stored["delta3_rows"], 5e-6)
