"""The reference numbers of text networks and word pieces, and networks with their weights."""

from __future__ import annotations

import functools
import json

import golden_rules
import jax
import jax.numpy as jnp
from flax import nnx

from common.backbones.bert import Bert
from common.weights import bert_layout


class _TextPack(golden_rules.Pack):
    def __init__(self):
        super().__init__("frozen")
        self.manifest = json.loads((self.folder / "text_manifest.json").read_text())
        self.seed = self.manifest["seed"]


PACK = _TextPack()


def abstract(checkpoint: str, **options) -> Bert:
    """The network of a checkpoint without numbers."""
    sizes = PACK.manifest["checkpoints"][checkpoint]["text"]
    build = functools.partial(
        Bert,
        sizes["vocab_size"],
        width=sizes["dim"],
        depth=sizes["n_layers"],
        heads=sizes["n_heads"],
        hidden=sizes["hidden_dim"],
        positions=sizes["max_position_embeddings"],
        token_types=sizes.get("token_types", 0),
        **options,
    )
    return nnx.eval_shape(lambda: build(rngs=nnx.Rngs(0)))


def published(checkpoint: str, **options) -> Bert:
    """The network of a checkpoint with its weights in float32."""
    model = abstract(checkpoint, **options)
    bert_layout.read(model, PACK.flat_checkpoint(checkpoint), checkpoint)
    return model


def stages(model: Bert, ids, dtype: str) -> list[jax.Array]:
    """Every stage of sentences, with weights in `dtype`; for where `golden_rules.x64` holds."""
    graphdef, variables = nnx.split(model)
    variables = jax.tree.map(lambda x: x.astype(dtype), variables)
    run = jax.jit(lambda variables, ids: nnx.merge(graphdef, variables).stages(ids))
    return run(variables, jnp.asarray(ids))
