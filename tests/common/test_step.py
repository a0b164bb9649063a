"""Promises of one training step."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from toy_method import SIZE, Toy, get_config, same_bits

from common import state as state_lib
from common import step as step_lib


class Plain(Toy):
    """Without batch norm and with a mean as loss: here accumulation is exact."""

    def build(self, rngs):
        return nnx.Linear(SIZE, 4, rngs=rngs)

    def objective(self, embeddings):
        return jnp.mean((embeddings["a"] - 3 * embeddings["b"] + 1) ** 2), {}


RATE = 0.1


def setup(method, **changes):
    """Returns the jitted step, the first state and a batch."""
    config = get_config(**changes)
    optimizer, schedule = optax.sgd(RATE), optax.constant_schedule(RATE)
    graphdef, _ = state_lib.abstract(method.build)
    step = step_lib.make_train_step(method, graphdef, optimizer, schedule, config)
    state = state_lib.create(method.build, optimizer, config.seed, config.ema_decay > 0)
    clip = np.random.default_rng(0).integers(0, 255, (config.batch_size, SIZE), np.uint8)
    return jax.jit(step), state, {"clip": jnp.asarray(clip)}


def assert_close(a, b, rtol=1e-5):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=1e-6), a, b)


def test_accumulation_gives_the_gradient_of_the_whole_batch():
    whole, state, batch = setup(Plain())
    parted, _, _ = setup(Plain(), microbatches=4)
    (one, metrics), (other, parted_metrics) = whole(state, batch), parted(state, batch)
    assert_close(one.params, other.params)
    assert_close(metrics, parted_metrics)


class Contrastive(Plain):
    """Its objective compares every example with every other: parts of a batch do not add up."""

    def objective(self, embeddings):
        scores_BB = embeddings["a"] @ embeddings["b"].T / 10
        return -jnp.mean(jax.nn.log_softmax(scores_BB).diagonal()), {"best": scores_BB.max()}


@pytest.mark.slow
def test_cached_accumulation_gives_the_gradient_of_the_objective_of_the_whole_batch():
    whole, state, batch = setup(Contrastive())
    cached, _, _ = setup(Contrastive(), microbatches=4, accumulation="cached")
    mean, _, _ = setup(Contrastive(), microbatches=4)
    (one, metrics), (other, cached_metrics) = whole(state, batch), cached(state, batch)
    assert_close(one.params, other.params)
    assert_close(metrics, cached_metrics)
    assert abs(mean(state, batch)[1]["loss"] - metrics["loss"]) > 0.1  # a quarter of the negatives


@pytest.mark.slow
def test_cached_accumulation_updates_the_statistics_once_per_microbatch():
    mean, state, batch = setup(Toy(), microbatches=4)
    cached, _, _ = setup(Toy(), microbatches=4, accumulation="cached")
    assert_close(mean(state, batch)[0].model_state, cached(state, batch)[0].model_state)


@pytest.mark.slow
def test_a_microbatch_is_normalised_by_itself_and_the_statistics_pass_from_one_to_the_next():
    step, state, batch = setup(Toy(), microbatches=2)
    method, keys_B = Toy(), step_lib.example_keys(0, 0, 16)
    model = nnx.merge(*nnx.split(method.build(nnx.Rngs(0))))
    for part in range(2):
        clips = {"clip": batch["clip"][part::2]}
        method.embed(model, method.augment(clips, keys_B[part::2]))
    assert_close(step(state, batch)[0].model_state, state_lib.split(model)[1])


def test_augmentation_follows_the_position_and_the_step_only():
    keys_B = step_lib.example_keys(0, 7, 8)
    assert same_bits(
        jax.random.key_data(keys_B)[:4], jax.random.key_data(step_lib.example_keys(0, 7, 4))
    )
    others = [step_lib.example_keys(0, 8, 8), step_lib.example_keys(1, 7, 8)]
    drawn = np.concatenate([jax.random.key_data(k) for k in (keys_B, *others)])
    assert len(np.unique(drawn, axis=0)) == 24


def test_the_moving_average_follows_the_parameters():
    step, first, batch = setup(Plain(), ema_decay=0.9)
    second, _ = step(first, batch)
    third, _ = step(second, batch)
    expected = first.params
    for state in (second, third):
        expected = jax.tree.map(lambda e, p: 0.9 * e + 0.1 * p, expected, state.params)
    assert_close(third.ema, expected)
    assert setup(Plain())[1].ema is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("microbatches", "accumulation"), [(1, "mean"), (4, "mean"), (4, "cached")]
)
def test_after_a_loss_that_is_not_finite_nothing_changes_any_more(microbatches, accumulation):
    step, state, batch = setup(
        Toy(), microbatches=microbatches, accumulation=accumulation, ema_decay=0.5
    )
    state, _ = step(state, batch)
    broken, metrics = step(state, {"clip": jnp.full_like(batch["clip"], 255)})
    later, _ = step(broken, batch)
    assert not np.isfinite(metrics["loss"]) and not broken.finite
    assert same_bits(broken, later)
    for field in ("step", "params", "model_state", "opt_state", "ema"):
        assert same_bits(getattr(broken, field), getattr(state, field)), field


@pytest.mark.slow
def test_a_step_changes_the_parameters_by_the_gradient():
    step, state, batch = setup(Plain())
    method = Plain()

    def loss(kernel, bias):
        model = nnx.Linear(SIZE, 4, rngs=nnx.Rngs(0))
        model.kernel[...], model.bias[...] = kernel, bias
        inputs = method.augment(batch, step_lib.example_keys(0, 0, 16))
        return method.objective(method.embed(model, inputs))[0]

    old = state.params
    gradients = jax.grad(loss, argnums=(0, 1))(old["kernel"], old["bias"])
    new, metrics = step(state, batch)
    assert_close(new.params["kernel"], old["kernel"] - RATE * gradients[0])
    assert_close(new.params["bias"], old["bias"] - RATE * gradients[1])
    assert_close(metrics["gradient_norm"], optax.global_norm(gradients))
    assert_close(metrics["parameter_norm"], optax.global_norm(old))
    assert metrics["learning_rate"] == np.float32(RATE)


def test_a_state_names_its_leaves_by_path_and_gives_the_model_back():
    _, state, _ = setup(Toy())
    assert set(state_lib.flatten(state.params)) == {
        "layers/0/kernel", "layers/0/bias", "layers/1/kernel", "layers/1/bias",
        "norm/scale", "norm/bias",
    }  # fmt: skip
    assert set(state_lib.flatten(state.model_state)) == {"norm/mean", "norm/var"}
    graphdef, shapes = state_lib.abstract(Toy().build)
    model = state_lib.merge(graphdef, state.params, state.model_state)
    assert same_bits(state_lib.split(model)[0], state.params)
    assert jax.tree.map(jnp.shape, state.params) == jax.tree.map(lambda s: s.shape, shapes)
