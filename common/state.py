"""The training state: one pytree that holds everything a run needs to go on.

Parameters and other model variables are plain nested dictionaries with string keys, so that Orbax,
regular expressions and people see "path/to/param".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

Tree = dict[str, Any]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """What one step turns into the next; all leaves are arrays."""

    step: jax.Array  # int32 (): optimizer steps done
    params: Tree
    model_state: Tree  # variables that no gradient reaches: batch norm statistics
    opt_state: optax.OptState
    ema: Tree | None  # moving average of the parameters; None where it is off
    finite: jax.Array  # bool (): False once a loss was not; from then on steps change nothing


def path_of(key_path: tuple[Any, ...]) -> str:
    """Returns "path/to/param" for a key path: its dictionary keys, without containers' indices."""
    return "/".join(str(k.key) for k in key_path if isinstance(k, jax.tree_util.DictKey))


def flatten(tree: Any) -> dict[str, Any]:
    """Returns ``{"path/to/param": leaf}`` for a tree of nested dictionaries."""
    return {path_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def split(model: nnx.Module) -> tuple[Tree, Tree]:
    """Returns the parameters and the other variables of a model."""
    _, params, rest = nnx.split(model, nnx.Param, ...)
    return _string_keys(nnx.to_pure_dict(params)), _string_keys(nnx.to_pure_dict(rest))


def merge(graphdef: nnx.GraphDef, params: Tree, model_state: Tree) -> nnx.Module:
    """Returns the model of which `split` gave the two trees."""
    return nnx.merge(graphdef, nnx.restore_int_paths(params), nnx.restore_int_paths(model_state))


def _string_keys(tree: Any) -> Any:
    """Replaces the integer keys by which NNX names the entries of lists."""
    if not isinstance(tree, dict):
        return tree
    return {str(key): _string_keys(value) for key, value in tree.items()}


def abstract(build: Callable[[nnx.Rngs], nnx.Module]) -> tuple[nnx.GraphDef, Tree]:
    """Returns a model's structure, in training mode, and its parameters' shapes; uses no memory."""
    model = nnx.eval_shape(lambda: build(nnx.Rngs(0)))
    model.train()
    return nnx.graphdef(model), split(model)[0]


def create(
    build: Callable[[nnx.Rngs], nnx.Module],
    optimizer: optax.GradientTransformation,
    seed: int,
    ema: bool,
) -> TrainState:
    """Returns the state before the first step; made to run inside `jax.jit`."""
    params, model_state = split(build(nnx.Rngs(seed)))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        model_state=model_state,
        opt_state=optimizer.init(params),
        ema=jax.tree.map(jnp.copy, params) if ema else None,
        finite=jnp.ones((), bool),
    )
