"""BraVe models filled with the rule-made weights of the reference pack."""

from __future__ import annotations

import golden_rules
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from brave import checkpoint_layout
from brave.model import BraveModel
from common.weights import haiku_layout
from configs import brave_base

PACK = golden_rules.Pack("brave")
BROAD = {"va": ("audio",), "vv": ("video",)}  # broad views of each checkpoint


def config(checkpoint: str):
    """``config.model`` of a checkpoint."""
    model = brave_base.get_config().model
    model.broad = BROAD[checkpoint]
    return model


def abstract_model(settings, **options) -> BraveModel:
    """A model of shapes without values; `haiku_layout.read` fills it."""
    return nnx.eval_shape(lambda: BraveModel(settings, nnx.Rngs(0), **options))


def published_model(checkpoint: str) -> BraveModel:
    """A float32 model with the weights and state of a checkpoint."""
    model = abstract_model(config(checkpoint))
    layers = checkpoint_layout.layers_of(model)
    haiku_layout.read(layers, PACK.checkpoint(checkpoint), checkpoint)
    return model


def widen(tree):
    """Floating-point leaves in float64; call it where `golden_rules.x64` is in force."""
    return jax.tree.map(
        lambda x: x.astype(jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree
    )


def published_row_table(published, keys) -> np.ndarray:
    """One `golden_rules.row` per key ``kind|module|name`` of a two-level layout."""
    parts = (key.split("|") for key in keys)
    return np.stack(
        [golden_rules.row(published[kind][module][name]) for kind, module, name in parts]
    )
