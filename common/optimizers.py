"""Optimizers and learning-rate schedules, read from the ``optimizer`` keys of ``configs/base.py``.

Patterns are regular expressions that must match a parameter's whole path, "path/to/param".
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from common import state as state_lib
from common.errors import UserError


def create(
    config: Any, steps: int, params: Any
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Makes the optimizer and the schedule of its learning rate.

    The optimizer applies, in this order: clipping of the global gradient norm; the named algorithm
    with weight decay (and, in LARS, the trust ratio) on parameters that no ``exclude`` pattern
    matches; the learning rate; the ``lr_multipliers``, so that a factor of 10 means ten times the
    update. ``lars_compat="released"`` is what BraVe's released trainer did instead: decay and trust
    ratio act on the excluded parameters alone, and the multipliers scale the gradient before LARS.

    Args:
      config: the ``optimizer`` part of a configuration.
      steps: optimizer steps of the whole run, warm-up included.
      params: nested dictionary of parameters or of their shapes; only the paths are looked at.

    Returns:
      The transformation, whose state is a plain pytree, and the schedule: learning rate by step,
      before ``lr_multipliers``.

    Raises:
      UserError: a value makes no sense, or a pattern is invalid or matches no parameter.
    """
    _check_numbers(config)
    schedule = make_schedule(config, steps)
    excluded = _excluded(config.exclude, params)
    factors = _factors(config.lr_multipliers, params)
    released = config.lars_compat == "released"
    decayed = jax.tree.map(lambda x: x if released else not x, excluded)
    scale = [_scale(factors)] if config.lr_multipliers else []
    algorithm = _algorithm(config, schedule, decayed)
    clip = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm > 0 else []
    middle = [*scale, algorithm] if released else [algorithm, *scale]
    return optax.chain(*clip, *middle), schedule


def make_schedule(config: Any, steps: int) -> optax.Schedule:
    """Makes the learning rate by step: a linear warm-up from 0, then the named schedule.

    "cosine" ends at step ``steps`` (the warm-up included) on ``final_fraction`` of the peak;
    "steps" multiplies by ``step_factor`` from each of the ``step_boundaries`` on, which count from
    the start of the run.

    Raises:
      UserError: the schedule is unknown or does not fit into the run.
    """
    peak, warmup = config.learning_rate, config.warmup_steps
    if not 0 <= warmup < steps:
        raise UserError(
            f"config.optimizer.warmup_steps={warmup} must be at least 0 and less than "
            f"config.steps={steps}."
        )
    if config.step_boundaries and config.schedule != "steps":
        raise UserError(
            f"config.optimizer.step_boundaries={tuple(config.step_boundaries)} has no effect with "
            f"config.optimizer.schedule={config.schedule!r}; use 'steps', or leave it empty."
        )
    if config.final_fraction and config.schedule != "cosine":
        raise UserError(
            f"config.optimizer.final_fraction={config.final_fraction} has no effect with "
            f"config.optimizer.schedule={config.schedule!r}; use 'cosine', or leave it at 0."
        )
    if config.schedule == "cosine":
        main = optax.cosine_decay_schedule(peak, steps - warmup, alpha=config.final_fraction)
    elif config.schedule == "constant":
        main = optax.constant_schedule(peak)
    elif config.schedule == "steps":
        boundaries = _boundaries(config.step_boundaries, warmup, steps)
        main = optax.piecewise_constant_schedule(
            peak, {boundary - warmup: config.step_factor for boundary in boundaries}
        )
    else:
        raise _unknown("schedule", config.schedule, ("cosine", "constant", "steps"))
    if not warmup:
        return main
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), main], [warmup])


def _boundaries(boundaries: tuple[int, ...], warmup: int, steps: int) -> tuple[int, ...]:
    inside = [warmup < boundary < steps for boundary in boundaries]
    if not boundaries or not all(inside) or list(boundaries) != sorted(set(boundaries)):
        raise UserError(
            f"config.optimizer.step_boundaries={tuple(boundaries)}: the schedule 'steps' needs "
            f"increasing steps between the end of the warm-up ({warmup}) and of the run ({steps})."
        )
    return tuple(boundaries)


def _algorithm(config: Any, schedule: optax.Schedule, decayed: Any) -> optax.GradientTransformation:
    """The named optimizer; ``decayed`` says of every parameter whether it is regularised."""
    if config.name == "lars":
        # With momentum after the learning rate, as published: the buffer holds scaled updates.
        return optax.lars(
            schedule,
            weight_decay=config.weight_decay,
            weight_decay_mask=decayed,
            trust_coefficient=config.trust_coefficient,
            trust_ratio_mask=decayed,
            momentum=config.momentum,
            nesterov=config.nesterov,
        )
    if config.name == "adamw" and config.adamw_compat == "transformers":
        return optax.chain(
            _scale_by_early_eps(config.b1, config.b2, config.eps),
            optax.add_decayed_weights(config.weight_decay, mask=decayed),
            optax.scale_by_learning_rate(schedule),
        )
    if config.name == "adamw":
        return optax.adamw(
            schedule,
            b1=config.b1,
            b2=config.b2,
            eps=config.eps,
            weight_decay=config.weight_decay,
            mask=decayed,
        )
    if config.name == "adam":
        return optax.adam(schedule, b1=config.b1, b2=config.b2, eps=config.eps)
    if config.name == "sgd":
        return optax.chain(
            optax.add_decayed_weights(config.weight_decay, mask=decayed),
            optax.sgd(schedule, momentum=config.momentum, nesterov=config.nesterov),
        )
    raise _unknown("name", config.name, ("lars", "adamw", "adam", "sgd"))


def _scale_by_early_eps(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """Adam that adds eps to the root of the second moment before its bias is corrected.

    As ``AdamW`` of Hugging Face's transformers did until it was taken out of version 5: in the
    first steps eps is up to thirty times as large as elsewhere.
    """

    def update(gradients: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        mean = optax.tree.update_moment(gradients, state.mu, b1, 1)
        square = optax.tree.update_moment_per_elem_norm(gradients, state.nu, b2, 2)
        count = optax.safe_increment(state.count)
        factor = jnp.sqrt(1 - b2**count) / (1 - b1**count)
        updates = jax.tree.map(lambda m, v: factor * m / (jnp.sqrt(v) + eps), mean, square)
        return updates, optax.ScaleByAdamState(count=count, mu=mean, nu=square)

    return optax.GradientTransformation(optax.scale_by_adam(b1, b2).init, update)


def _check_numbers(config: Any) -> None:
    """Refuses what would train in silence but not as meant."""
    for key, low, high in (
        ("learning_rate", 0.0, math.inf),
        ("final_fraction", 0.0, 1.0),
        ("step_factor", 0.0, 1.0),
        ("weight_decay", 0.0, math.inf),
        ("clip_norm", 0.0, math.inf),
        ("trust_coefficient", 0.0, math.inf),
        ("eps", 0.0, math.inf),
    ):
        value = getattr(config, key)
        if not (low <= value <= high and math.isfinite(value)):
            raise UserError(
                f"config.optimizer.{key}={value} must be a number from {low:g} to {high:g}."
            )
    for key in ("momentum", "b1", "b2"):
        value = getattr(config, key)
        if not 0.0 <= value < 1.0:
            raise UserError(f"config.optimizer.{key}={value} must be at least 0 and below 1.")
    if config.name in ("adam", "adamw") and not config.eps:
        raise UserError(
            "config.optimizer.eps=0 makes no number of parameters without a gradient; it must be "
            "above 0."
        )
    if config.name == "adam" and config.weight_decay:
        raise UserError(
            f"config.optimizer.weight_decay={config.weight_decay} has no effect with "
            "config.optimizer.name='adam'; use 'adamw'."
        )
    if config.lars_compat not in ("intended", "released"):
        raise _unknown("lars_compat", config.lars_compat, ("intended", "released"))
    if config.lars_compat == "released" and config.name != "lars":
        raise UserError(
            "config.optimizer.lars_compat='released' is about LARS and has no meaning with "
            f"config.optimizer.name={config.name!r}; leave it at 'intended'."
        )
    if config.adamw_compat not in ("intended", "transformers"):
        raise _unknown("adamw_compat", config.adamw_compat, ("intended", "transformers"))
    if config.adamw_compat == "transformers" and config.name != "adamw":
        raise UserError(
            "config.optimizer.adamw_compat='transformers' is about AdamW and has no meaning with "
            f"config.optimizer.name={config.name!r}; leave it at 'intended'."
        )


def _unknown(key: str, value: str, known: tuple[str, ...]) -> UserError:
    near = difflib.get_close_matches(str(value), known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    names = ", ".join(repr(name) for name in known)
    return UserError(f"config.optimizer.{key}={value!r} is not one of {names}.{hint}")


# -------------------------------------------------------------------------- patterns on parameters


def _map_paths(function: Any, params: Any) -> Any:
    """A tree of ``function(path)`` for every parameter."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: function(state_lib.path_of(path)), params
    )


def _excluded(patterns: tuple[str, ...], params: Any) -> Any:
    paths = tuple(state_lib.flatten(params))
    compiled = [_compile("exclude", text, text, paths) for text in patterns]
    return _map_paths(lambda path: any(p.fullmatch(path) for p in compiled), params)


def _factors(multipliers: tuple[str, ...], params: Any) -> Any:
    """The product of the factors of all patterns that match, for every parameter."""
    paths = tuple(state_lib.flatten(params))
    parsed = []
    for text in multipliers:
        pattern, equals, number = text.rpartition("=")
        try:
            factor = float(number)
        except ValueError:
            factor = math.nan
        if not equals or not 0.0 <= factor < math.inf:
            raise UserError(
                f"config.optimizer.lr_multipliers: {text!r} is not of the form PATTERN=FACTOR with "
                "a FACTOR >= 0, such as '.*predictor.*=10'."
            )
        parsed.append((_compile("lr_multipliers", text, pattern, paths), factor))
    return _map_paths(
        lambda path: math.prod(factor for pattern, factor in parsed if pattern.fullmatch(path)),
        params,
    )


def _compile(key: str, text: str, pattern: str, paths: Iterable[str]) -> re.Pattern[str]:
    """Compiles a pattern that has to match a parameter."""
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UserError(
            f"config.optimizer.{key}: {text!r} is not a valid regular expression ({error})."
        ) from None
    paths = tuple(paths)
    if any(compiled.fullmatch(path) for path in paths):
        return compiled
    # Parts of it, else names that look alike, tell what was meant.
    near = [path for path in paths if compiled.search(path)]
    near = near or difflib.get_close_matches(pattern, paths, n=3, cutoff=0.0)
    raise UserError(
        f"config.optimizer.{key}: {text!r} matches no parameter; a pattern must match the whole "
        f"path. Nearest: {', '.join(near[:3])}."
    )


def _scale(factors: Any) -> optax.GradientTransformation:
    """Multiplies every update by its factor."""

    def update(updates: Any, state: optax.OptState, params: Any = None) -> tuple[Any, Any]:
        del params
        scaled = jax.tree.map(lambda u, f: u * jnp.asarray(f, u.dtype), updates, factors)
        return scaled, state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
