"""Training steps against the published code: loss, gradients, and AdamW as it alternates loaders.

In float64. Images and videos take turns with one optimizer, as in the published trainer.
"""

from __future__ import annotations

import functools
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
TURNS = {"loss_small": ("image", "video", "image"), "loss_full": ("video",)}


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


def _config(case):
    config = frozen_base.get_config()
    entries = PACK.manifest["checkpoints"][_weights(case)]["entries"]
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
    if _weights(case) == "small":
        video.heads = text.heads = 4
    config.optimizer.learning_rate = PACK.case(case)["options"]["lr"] or 1.0
    return config, weights["text_model.embeddings.word_embeddings.weight"][0]


def _weights(case):
    return PACK.case(case)["checkpoint"]


def _fill(model, published):
    published = {key.removeprefix("module."): value for key, value in published.items()}
    vit_layout.read(model.video, published, "the pack")
    bert_layout.read(model.text, published, "the pack")
    projections = ((model.text_projection, "txt_proj.1"), (model.video_projection, "vid_proj.0"))
    torch_layout.read(itertools.starmap(torch_layout.Layer, projections), published, "the pack")


class _Run:
    """What the steps of a case gave."""

    def __init__(self, case):
        self.case, self.stored = case, PACK.stored(case)
        config, pieces = _config(case)
        model = nnx.eval_shape(lambda: FrozenModel(config.model, pieces, nnx.Rngs(0)))
        _fill(model, PACK.flat_checkpoint(_weights(case)))
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
        inputs = PACK.inputs(case)
        start = state.TrainState(
            step=jnp.zeros((), jnp.int32), params=params, model_state=model_state,
            opt_state=optimizer.init(params), ema=None, finite=jnp.ones((), bool),
        )  # fmt: skip
        self.states, self.metrics = [start], []
        for turn in TURNS[case]:
            video = jnp.asarray(inputs[turn], jnp.float64)
            after, measured = step(self.states[-1], {"video": video, "text": ids_BL})
            self.states.append(after)
            self.metrics.append(measured)

    def published(self, params, number=0):
        """Tensors of ours by their published names."""
        model = state.merge(self.graphdef, params, self.states[number].model_state)
        return checkpoint_layout.published_arrays(model)

    def prefix(self, number):
        return f"step{number}/" if "step0/loss" in self.stored else ""


@functools.cache
def run(case):
    with golden_rules.x64():
        return _Run(case)


def _assert_rows(ours, stored, rtol):
    """Rows agree relative to each tensor's norm, which is their first column."""
    allowed = np.broadcast_to(rtol * stored[:, :1] + 1e-12, stored.shape)
    np.testing.assert_array_less(np.abs(ours - stored), allowed)


def _rows(arrays, keys):
    return np.stack([golden_rules.row(arrays[key.removeprefix("module.")]) for key in keys])


CASES = ["loss_small", pytest.param("loss_full", marks=pytest.mark.slow)]


@pytest.mark.parametrize("case", CASES)
def test_losses_of_all_steps_are_the_published_ones(case):
    of_case = run(case)
    for number, metrics in enumerate(of_case.metrics):
        stored = of_case.stored[f"{of_case.prefix(number)}loss"]
        np.testing.assert_allclose(metrics["loss"], stored, rtol=1e-8)


@pytest.mark.parametrize("case", CASES)
def test_the_gradient_of_every_parameter_is_the_published_one(case):
    of_case = run(case)
    for number in range(min(len(of_case.metrics), 2)):
        prefix = of_case.prefix(number)
        keys = of_case.stored[f"{prefix}grad_keys"]
        gradients = of_case.states[number + 1].opt_state[0]
        assert len(keys) == len(of_case.published(gradients))
        ours = _rows(of_case.published(gradients), keys)
        _assert_rows(ours, of_case.stored[f"{prefix}grad_rows"], 1e-6)
        np.testing.assert_allclose(
            of_case.metrics[number]["gradient_norm"],
            of_case.stored[f"{prefix}grad_global_norm"],
            rtol=1e-7,
        )


def test_three_alternating_steps_of_adamw_move_every_tensor_as_published():
    of_case = run("loss_small")
    first, last = (of_case.published(s.params) for s in (of_case.states[0], of_case.states[3]))
    moved = {key: last[key] - first[key] for key in first}
    keys = of_case.stored["delta3_keys"]
    _assert_rows(_rows(moved, keys), of_case.stored["delta3_rows"], 5e-6)
