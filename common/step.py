"""One training step: a pure function from a state and a batch to a state and metrics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from common import collapse
from common.method import Batch, Embeddings, Method
from common.state import TrainState, Tree, merge, split

Metrics = dict[str, jax.Array]
Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
_Forward = tuple[Tree, Metrics, Embeddings]


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
    - "cached": the embeddings of the whole batch. All parts are embedded, the objective gives the
      gradient of every embedding, and the parts are embedded again to carry it to the parameters
      (Gao et al., 2021, arXiv:2101.06983). So the negatives of a contrastive objective stay those
      of the whole batch, for one more forward pass.

    Microbatch m of M holds the examples m, m + M, m + 2M, ...: so every device cuts its own share,
    and what is in a microbatch does not depend on the number of devices.

    A loss or gradient that is not finite leaves the state as it was, clears ``state.finite`` and
    so stops all later steps from changing anything; the loop, which hears of it one step late,
    finds the state that the failing step began with.
    """
    parts, cached = config.microbatches, config.accumulation == "cached"

    def embed(
        params: Tree, model_state: Tree, batch: Batch, keys_B: jax.Array
    ) -> tuple[Embeddings, Tree]:
        model = merge(graphdef, whole(params), model_state)
        embeddings = method.embed(model, method.augment(batch, keys_B))
        return embeddings, split(model)[1]

    def loss_of(
        params: Tree, model_state: Tree, batch: Batch, keys_B: jax.Array
    ) -> tuple[jax.Array, _Forward]:
        embeddings, model_state = embed(params, model_state, batch, keys_B)
        loss, metrics = method.objective(embeddings)
        return loss, (model_state, {**metrics, "loss": loss}, embeddings)

    gradient_of = jax.grad(loss_of, has_aux=True)

    def accumulate(state: TrainState, batch: Batch, keys_B: jax.Array) -> tuple[Tree, _Forward]:
        """Averages gradients and metrics over microbatches; model variables pass from one on."""

        def part(carry: tuple[Tree, Tree], inputs: tuple[Batch, jax.Array]) -> Any:
            sums, model_state = carry
            gradients, (model_state, metrics, embeddings) = gradient_of(
                state.params, model_state, *inputs
            )
            return (jax.tree.map(jnp.add, sums, gradients), model_state), (metrics, embeddings)

        zeros = jax.tree.map(jnp.zeros_like, state.params)
        (sums, model_state), (metrics, embeddings) = jax.lax.scan(
            part, (zeros, state.model_state), cut((batch, keys_B), parts)
        )
        means = {name: values_M.mean() for name, values_M in metrics.items()}
        return jax.tree.map(lambda g: g / parts, sums), (model_state, means, join(embeddings))

    def accumulate_cached(
        state: TrainState, batch: Batch, keys_B: jax.Array
    ) -> tuple[Tree, _Forward]:
        """Gives the gradient of the objective of the whole batch, by embedding it twice."""

        def forward(model_state: Tree, inputs: tuple[Batch, jax.Array]) -> Any:
            embeddings, model_state = embed(state.params, model_state, *inputs)
            return model_state, embeddings

        cut_batch = cut((batch, keys_B), parts)
        model_state, embeddings = jax.lax.scan(forward, state.model_state, cut_batch)
        embeddings = join(embeddings)
        (loss, metrics), pulls = jax.value_and_grad(method.objective, has_aux=True)(embeddings)

        def backward(sums: Tree, inputs: tuple[tuple[Batch, jax.Array], Embeddings]) -> Any:
            part, pulls_of_part = inputs
            # In training mode no output depends on the statistics that pass from part to part.
            _, pull_back, _ = jax.vjp(
                lambda params: embed(params, state.model_state, *part), state.params, has_aux=True
            )
            return jax.tree.map(jnp.add, sums, pull_back(pulls_of_part)[0]), None

        zeros = jax.tree.map(jnp.zeros_like, state.params)
        gradients, _ = jax.lax.scan(backward, zeros, (cut_batch, cut(pulls, parts)))
        return gradients, (model_state, {**metrics, "loss": loss}, embeddings)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        batch_size = jax.tree.leaves(batch)[0].shape[0]
        keys_B = example_keys(config.seed, state.step, batch_size)
        if parts == 1:
            gradients, (model_state, metrics, embeddings) = gradient_of(
                state.params, state.model_state, batch, keys_B
            )
        else:
            gradient_in_parts = accumulate_cached if cached else accumulate
            gradients, (model_state, metrics, embeddings) = gradient_in_parts(state, batch, keys_B)
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


def cut(tree: Any, parts: int) -> Any:
    """Cuts the batch axis of every leaf: (B, ...) becomes (parts, B / parts, ...)."""
    return jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0), tree)


def join(tree: Any) -> Any:
    """The inverse of `cut`."""
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:]), tree)
