"""One training step: a pure function from a state and a batch to a state and metrics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from common import accumulation, collapse
from common.accumulation import Inputs, Metrics
from common.method import Batch, Embeddings, Method
from common.state import TrainState, Tree, merge, split

Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def example_keys(seed: int, step: jax.Array, batch_size: int) -> jax.Array:
    """Returns one PRNG key per example, (B,): a function of the seed, the step and its position."""
    key = jax.random.fold_in(jax.random.key(seed), step)
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(batch_size))


def make_train_step(
    method: Method,
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    config: Any,
    whole: Callable[[Tree], Tree] = lambda params: params,
) -> Step:
    """Returns the step of a method, to be jitted.

    ``whole`` gathers parameters that lie in parts, see `common.sharding.whole`.

    With ``config.microbatches`` > 1 parts of the batch go through the networks one after the other,
    and batch norm sees one part at a time. ``config.accumulation`` says what the objective sees:

    - "mean": each part by itself; gradients and metrics are averaged over the parts.
    - "cached": the embeddings of the whole batch, for one more forward pass. So the negatives of a
      contrastive objective stay those of the whole batch.

    A loss or gradient that is not finite leaves the state as it was, clears ``state.finite`` and
    so stops all later steps from changing anything; the loop, which hears of it one step late,
    finds the state that the failing step began with.
    """

    def embed(params: Tree, model_state: Tree, inputs: Inputs) -> tuple[Embeddings, Tree]:
        model = merge(graphdef, whole(params), model_state)
        embeddings = method.embed(model, method.augment(*inputs))
        return embeddings, split(model)[1]

    def gradient(*of: Any) -> accumulation.Gradient:
        if config.microbatches == 1:
            return accumulation.whole(embed, method.objective, *of)
        by = accumulation.cached if config.accumulation == "cached" else accumulation.mean
        return by(embed, method.objective, config.microbatches, *of)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        batch_size = jax.tree.leaves(batch)[0].shape[0]
        inputs = batch, example_keys(config.seed, state.step, batch_size)
        gradients, (model_state, metrics, embeddings) = gradient(
            state.params, state.model_state, inputs
        )
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        decay = config.ema_decay
        metrics |= collapse.measure(embeddings)
        metrics["gradient_norm"] = optax.global_norm(gradients)
        metrics["parameter_norm"] = optax.global_norm(state.params)
        metrics["learning_rate"] = schedule(state.step)
        finite = state.finite & jnp.isfinite(metrics["loss"] + metrics["gradient_norm"])
        done = TrainState(
            step=state.step + 1,
            params=params,
            model_state=model_state,
            opt_state=opt_state,
            ema=optax.incremental_update(params, state.ema, 1 - decay) if decay else None,
            finite=finite,
        )
        kept = TrainState(**{**vars(state), "finite": finite})
        state = jax.tree.map(lambda new, old: jnp.where(finite, new, old), done, kept)
        return state, metrics

    return train_step
