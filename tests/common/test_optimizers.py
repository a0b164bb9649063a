"""Optimizers against restatements in NumPy, published schedules, mistakes in configurations."""

from __future__ import annotations

import golden_rules
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from common import optimizers, state
from common.errors import UserError
from configs import base

PACK = golden_rules.Pack("brave")


def _config(**changes):
    config = base.get_config().optimizer
    config.update(changes)
    return config


def _tree(seed, scale=1.0):
    """A small model's parameters: kernels, biases, norms; one tensor that is all zeros."""
    generator = np.random.default_rng(seed)
    shapes = {
        "backbone": {"conv": {"kernel": (3, 3, 2, 4)}, "norm": {"scale": (4,), "offset": (4,)}},
        "predictor": {
            "linear": {"kernel": (4, 5), "bias": (5,)},
            "norm": {"scale": (5,), "offset": (5,)},
        },
    }
    tree = jax.tree.map(
        lambda shape: scale * generator.normal(size=shape),
        shapes,
        is_leaf=lambda x: type(x) is tuple,
    )
    tree["backbone"]["norm"]["offset"] *= 0.0
    return tree


def _gradients(count):
    return [_tree(100 + i, scale=0.5) for i in range(count)]


def _run(config, params, gradients, steps=100):
    """Applies the gradients one after the other in float64; returns all parameters on the way."""
    with golden_rules.x64():
        params = jax.tree.map(jnp.asarray, params)
        optimizer, _ = optimizers.create(config, steps, params)
        opt_state, path = optimizer.init(params), []
        update = jax.jit(optimizer.update)
        for gradient in gradients:
            updates, opt_state = update(jax.tree.map(jnp.asarray, gradient), opt_state, params)
            params = optax.apply_updates(params, updates)
            path.append({k: np.asarray(v) for k, v in state.flatten(params).items()})
    return path


def _warmed(peak, warmup, steps):
    """The learning rate of each step, restated: linear up, cosine down to zero."""

    def rate(step):
        if step < warmup:
            return peak * step / warmup
        return peak * 0.5 * (1 + np.cos(np.pi * (step - warmup) / (steps - warmup)))

    return rate


def _assert_same(path, expected, rtol=1e-9, atol=1e-12):
    for step, (ours, theirs) in enumerate(zip(path, expected, strict=True)):
        assert ours.keys() == theirs.keys()
        for name in ours:
            np.testing.assert_allclose(
                ours[name], theirs[name], rtol=rtol, atol=atol, err_msg=f"{name}, step {step}"
            )


def _is_bias_or_norm(name):
    return name.endswith(("bias", "scale", "offset"))


def _lars(params, gradients, rate, released, momentum=0.9, decay=0.01, trust=0.001, factor=10.0):
    """LARS as published, restated in NumPy with the momentum of learning-rate-scaled values."""
    params = dict(state.flatten(params))
    buffers = {name: np.zeros_like(p) for name, p in params.items()}
    path = []
    for step, gradient in enumerate(gradients):
        for name, g in state.flatten(gradient).items():
            p = params[name]
            predictor = "predictor" in name
            if released and predictor:
                g = g * factor
            if _is_bias_or_norm(name) == released:
                g = g + decay * p
                norms = np.linalg.norm(p), np.linalg.norm(g)
                g = g * (trust * norms[0] / norms[1] if all(norms) else 1.0)
            g = -rate(step) * g
            buffers[name] = momentum * buffers[name] + g
            update = momentum * buffers[name] + g
            params[name] = p + update * (factor if predictor and not released else 1.0)
        path.append(dict(params))
    return path


# ---------------------------------------------------------------------- schedules


def test_the_cosine_schedule_equals_the_published_one():
    stored, case = PACK.stored("schedule"), PACK.case("schedule")
    config = _config(warmup_steps=case["options"]["warmup_steps"])
    schedule = optimizers.make_schedule(config, case["options"]["decay_steps"])
    ours = [float(schedule(jnp.asarray(step, jnp.int32))) for step in stored["steps"]]
    np.testing.assert_allclose(
        ours, stored["learning_rate"], rtol=0, atol=case["tolerance"]["float64"]["atol"]
    )


def test_the_cosine_ends_on_the_asked_fraction():
    schedule = optimizers.make_schedule(_config(learning_rate=2.0, final_fraction=0.1), 50)
    np.testing.assert_allclose(
        [schedule(0), schedule(25), schedule(50)], [2.0, 1.1, 0.2], rtol=1e-6
    )


def test_the_constant_schedule_stays_after_its_warm_up():
    schedule = optimizers.make_schedule(_config(schedule="constant", warmup_steps=4), 50)
    np.testing.assert_allclose([schedule(s) for s in (0, 1, 3, 4, 49)], [0, 0.25, 0.75, 1, 1])


def test_the_steps_schedule_drops_at_its_boundaries_counted_from_the_start():
    config = _config(schedule="steps", warmup_steps=10, step_boundaries=(20, 30), step_factor=0.1)
    schedule = optimizers.make_schedule(config, 40)
    rates = [schedule(s) for s in (5, 10, 19, 20, 29, 30, 39)]
    np.testing.assert_allclose(rates, [0.5, 1, 1, 0.1, 0.1, 0.01, 0.01], rtol=1e-6)


# ---------------------------------------------------------------------- algorithms


@pytest.mark.parametrize("compat", ["intended", "released"])
def test_lars_equals_its_restatement_over_several_steps(compat):
    config = _config(
        name="lars",
        learning_rate=0.7,
        warmup_steps=2,
        weight_decay=0.01,
        lr_multipliers=(".*predictor.*=10",),
        lars_compat=compat,
    )
    gradients = _gradients(5)
    # Norms of zero: the trust ratio is then 1, for the parameter as for the gradient.
    gradients[1]["predictor"]["norm"]["scale"] *= 0.0
    gradients[1]["predictor"]["linear"]["kernel"] *= 0.0
    expected = _lars(_tree(0), gradients, _warmed(0.7, 2, 100), compat == "released")
    # The learning rate, alone, is float32.
    _assert_same(_run(config, _tree(0), gradients), expected, rtol=1e-6, atol=1e-7)


def test_released_and_intended_lars_differ_as_described():
    """One step at rate 1 with gradients of 3 on parameters of 2, momentum 0.9 (Nesterov)."""
    params = jax.tree.map(lambda x: np.full(x.shape, 2.0), _tree(0))
    gradient = jax.tree.map(lambda x: np.full(x.shape, 3.0), _tree(0))
    settings = {"weight_decay": 0.01, "lr_multipliers": (".*predictor.*=10",)}
    released = _run(_config(**settings, lars_compat="released"), params, [gradient])[0]
    intended = _run(_config(**settings), params, [gradient])[0]
    change = {name: float(value.flat[0]) - 2.0 for name, value in released.items()}
    assert change["backbone/conv/kernel"] == pytest.approx(-1.9 * 3)
    assert change["predictor/linear/kernel"] == pytest.approx(-1.9 * 30)
    assert change["predictor/linear/bias"] == pytest.approx(-1.9 * 0.001 * 2)
    change = {name: float(value.flat[0]) - 2.0 for name, value in intended.items()}
    assert change["backbone/conv/kernel"] == pytest.approx(-1.9 * 0.001 * 2)
    assert change["predictor/linear/kernel"] == pytest.approx(-19 * 0.001 * 2)
    assert change["predictor/linear/bias"] == pytest.approx(-19 * 3)


def test_adamw_equals_its_restatement_and_spares_the_excluded():
    config = _config(
        name="adamw", learning_rate=0.01, weight_decay=0.1, lr_multipliers=("backbone/.*=0.5",)
    )
    gradients, rate = _gradients(4), _warmed(0.01, 0, 100)
    params = dict(state.flatten(_tree(0)))
    first = {name: np.zeros_like(p) for name, p in params.items()}
    second = {name: np.zeros_like(p) for name, p in params.items()}
    expected = []
    for step, gradient in enumerate(gradients):
        for name, g in state.flatten(gradient).items():
            first[name] = 0.9 * first[name] + 0.1 * g
            second[name] = 0.999 * second[name] + 0.001 * g**2
            mean = first[name] / (1 - 0.9 ** (step + 1))
            square = second[name] / (1 - 0.999 ** (step + 1))
            update = mean / (np.sqrt(square) + 1e-8)
            if not _is_bias_or_norm(name):
                update = update + 0.1 * params[name]
            factor = 0.5 if name.startswith("backbone") else 1.0
            params[name] = params[name] - rate(step) * factor * update
        expected.append(dict(params))
    _assert_same(_run(config, _tree(0), gradients), expected)
    # Without decay it is adam.
    config.update(name="adam", weight_decay=0.0)
    without = _config(
        name="adamw", learning_rate=0.01, weight_decay=0.0, lr_multipliers=("backbone/.*=0.5",)
    )
    _assert_same(_run(config, _tree(0), gradients), _run(without, _tree(0), gradients))


@pytest.mark.parametrize("nesterov", [True, False])
def test_sgd_equals_its_restatement_and_spares_the_excluded(nesterov):
    config = _config(name="sgd", learning_rate=0.1, weight_decay=0.1, nesterov=nesterov)
    gradients, rate = _gradients(4), _warmed(0.1, 0, 100)
    params = dict(state.flatten(_tree(0)))
    buffers = {name: np.zeros_like(p) for name, p in params.items()}
    expected = []
    for step, gradient in enumerate(gradients):
        for name, g in state.flatten(gradient).items():
            g = g if _is_bias_or_norm(name) else g + 0.1 * params[name]
            buffers[name] = 0.9 * buffers[name] + g
            update = 0.9 * buffers[name] + g if nesterov else buffers[name]
            params[name] = params[name] - rate(step) * update
        expected.append(dict(params))
    _assert_same(_run(config, _tree(0), gradients), expected)


def test_gradients_are_clipped_by_their_global_norm():
    plain = {"name": "sgd", "momentum": 0.0, "nesterov": False, "learning_rate": 1.0}
    gradient = _gradients(1)[0]
    norm = np.sqrt(sum((g**2).sum() for g in jax.tree.leaves(gradient)))
    scaled = jax.tree.map(lambda g: g * (0.1 / norm), gradient)
    clipped = _run(_config(**plain, clip_norm=0.1), _tree(0), [gradient])
    _assert_same(clipped, _run(_config(**plain), _tree(0), [scaled]))
    loose = _run(_config(**plain, clip_norm=2 * norm), _tree(0), [gradient])
    _assert_same(loose, _run(_config(**plain), _tree(0), [gradient]))


def test_multipliers_of_several_patterns_multiply_and_zero_freezes():
    plain = {"name": "sgd", "momentum": 0.0, "nesterov": False, "learning_rate": 0.1}
    config = _config(
        **plain, lr_multipliers=("predictor/.*=3", ".*/kernel=2", "backbone/norm/.*=0")
    )
    start, gradient = state.flatten(_tree(0)), _gradients(1)[0]
    end = _run(config, _tree(0), [gradient])[0]
    for name, g in state.flatten(gradient).items():
        factor = 3 if name.startswith("predictor") else 1
        factor *= 2 if name.endswith("kernel") else 1
        factor *= 0 if name.startswith("backbone/norm") else 1
        np.testing.assert_allclose(end[name], start[name] - 0.1 * factor * g, rtol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lars", "adamw", "adam", "sgd"])
def test_the_optimizer_state_survives_a_checkpoint_bit_by_bit(name, tmp_path):
    config = _config(name=name, clip_norm=1.0, lr_multipliers=(".*predictor.*=10",))
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), _tree(0))
    gradients = [jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), g) for g in _gradients(2)]
    # Only paths count, so shapes are as good as parameters.
    optimizer, _ = optimizers.create(config, 10, jax.eval_shape(lambda: params))
    _, opt_state = optimizer.update(gradients[0], optimizer.init(params), params)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", opt_state)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "state", jax.eval_shape(lambda: opt_state))
    assert jax.tree.structure(restored) == jax.tree.structure(opt_state)
    after = [optimizer.update(gradients[1], s, params)[0] for s in (opt_state, restored)]
    jax.tree.map(np.testing.assert_array_equal, *after)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(opt_state))


# ---------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "larz"}, "Did you mean 'lars'"),
        ({"schedule": "cosin"}, "Did you mean 'cosine'"),
        ({"warmup_steps": 100}, "less than config.steps=100"),
        ({"warmup_steps": -1}, "at least 0"),
        ({"learning_rate": -0.1}, "learning_rate"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"momentum": 1.0}, "momentum"),
        ({"final_fraction": 2.0}, "final_fraction"),
        ({"schedule": "constant", "final_fraction": 0.1}, "no effect"),
        ({"schedule": "steps"}, "increasing steps"),
        ({"schedule": "steps", "step_boundaries": (30, 20)}, "increasing steps"),
        ({"schedule": "steps", "step_boundaries": (100,)}, "increasing steps"),
        ({"step_boundaries": (20,)}, "no effect"),
        ({"name": "adam", "weight_decay": 0.1}, "use 'adamw'"),
        ({"name": "adamw", "eps": 0.0}, "eps=0 makes no number"),
        ({"name": "sgd", "lars_compat": "released"}, "about LARS"),
        ({"lars_compat": "realeased"}, "Did you mean 'released'"),
        ({"exclude": (r".*bias$", "(")}, "not a valid regular expression"),
        ({"exclude": (r".*gamma$",)}, "matches no parameter"),
        ({"lr_multipliers": ("predictor=10",)}, "Nearest: predictor/linear/bias"),
        ({"lr_multipliers": (".*predicter.*=10",)}, "Nearest: predictor/"),
        ({"lr_multipliers": (".*predictor.*",)}, "PATTERN=FACTOR"),
        ({"lr_multipliers": (".*predictor.*=ten",)}, "PATTERN=FACTOR"),
        ({"lr_multipliers": (".*predictor.*=-1",)}, "FACTOR >= 0"),
    ],
)
def test_mistakes_are_named_with_the_way_out(changes, message):
    with pytest.raises(UserError, match=message):
        optimizers.create(_config(**changes), 100, _tree(0))
