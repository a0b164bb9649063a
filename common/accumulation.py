"""The gradient of a batch: of the whole at once, or of microbatches one after the other.

Microbatch m of M holds the examples m, m + M, m + 2M, ...: so every device cuts its own share, and
what is in a microbatch does not depend on the number of devices.

Every function here returns (gradients, (model state, metrics, embeddings of the whole batch)).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from common.method import Batch, Embeddings
from common.state import Tree

Metrics = dict[str, jax.Array]
Inputs = tuple[Batch, jax.Array]  # a batch and the PRNG keys of its examples, (B,)
Embed = Callable[[Tree, Tree, Inputs], tuple[Embeddings, Tree]]  # of parameters, model state
Objective = Callable[[Embeddings], tuple[jax.Array, Metrics]]
Gradient = tuple[Tree, tuple[Tree, Metrics, Embeddings]]


def whole(
    embed: Embed, objective: Objective, params: Tree, model_state: Tree, inputs: Inputs
) -> Gradient:
    """Gives the gradient of a batch that goes through the networks at once."""

    def loss_of(params: Tree) -> tuple[jax.Array, tuple[Tree, Metrics, Embeddings]]:
        embeddings, new_state = embed(params, model_state, inputs)
        loss, metrics = objective(embeddings)
        return loss, (new_state, {**metrics, "loss": loss}, embeddings)

    return jax.grad(loss_of, has_aux=True)(params)


def mean(
    embed: Embed, objective: Objective, parts: int, params: Tree, model_state: Tree, inputs: Inputs
) -> Gradient:
    """Averages the gradients and metrics of microbatches; model variables pass from one on."""

    def part(carry: tuple[Tree, Tree], inputs_of_part: Inputs) -> Any:
        sums, model_state = carry
        gradients, (model_state, metrics, embeddings) = whole(
            embed, objective, params, model_state, inputs_of_part
        )
        return (jax.tree.map(jnp.add, sums, gradients), model_state), (metrics, embeddings)

    zeros = jax.tree.map(jnp.zeros_like, params)
    (sums, model_state), (metrics, embeddings) = jax.lax.scan(
        part, (zeros, model_state), cut(inputs, parts)
    )
    means = {name: values_M.mean() for name, values_M in metrics.items()}
    return jax.tree.map(lambda g: g / parts, sums), (model_state, means, join(embeddings))


def cached(
    embed: Embed, objective: Objective, parts: int, params: Tree, model_state: Tree, inputs: Inputs
) -> Gradient:
    """Gives the gradient of the objective of the whole batch, by embedding it twice.

    All microbatches are embedded, the objective gives the gradient of every embedding, and the
    microbatches are embedded again to carry it to the parameters (Gao et al., 2021,
    arXiv:2101.06983).
    """

    def forward(model_state: Tree, inputs_of_part: Inputs) -> Any:
        embeddings, model_state = embed(params, model_state, inputs_of_part)
        return model_state, embeddings

    inputs = cut(inputs, parts)
    new_state, embeddings = jax.lax.scan(forward, model_state, inputs)
    embeddings = join(embeddings)
    (loss, metrics), pulls = jax.value_and_grad(objective, has_aux=True)(embeddings)

    def backward(sums: Tree, inputs_and_pulls: tuple[Inputs, Embeddings]) -> Any:
        inputs_of_part, pulls_of_part = inputs_and_pulls
        # In training mode no output depends on the statistics that pass from part to part.
        _, pull_back, _ = jax.vjp(
            lambda params: embed(params, model_state, inputs_of_part), params, has_aux=True
        )
        return jax.tree.map(jnp.add, sums, pull_back(pulls_of_part)[0]), None

    zeros = jax.tree.map(jnp.zeros_like, params)
    gradients, _ = jax.lax.scan(backward, zeros, (inputs, cut(pulls, parts)))
    return gradients, (new_state, {**metrics, "loss": loss}, embeddings)


def cut(tree: Any, parts: int) -> Any:
    """Cuts the batch axis of every leaf: (B, ...) becomes (parts, B / parts, ...)."""
    return jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0), tree)


def join(tree: Any) -> Any:
    """The inverse of `cut`."""
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:]), tree)
