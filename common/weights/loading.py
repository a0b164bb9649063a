"""Opens a trained model: from a run or a published file; makes an untrained one from a seed."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from common import attachments, methods, state
from common.errors import UserError
from common.method import Encoder, Method


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A method with the weights of one training.

    Attributes:
        config: the configuration it was trained with.
        method: built from it.
        model: the weights.
        origin: where they come from, for people and for JSON.
    """

    config: Any
    method: Method
    model: nnx.Module
    origin: dict[str, Any]

    def encoder(self, name: str) -> Encoder:
        """Returns an encoder by name; raises `UserError` naming those there are."""
        encoders = self.method.encoders
        if name not in encoders:
            raise UserError(
                f"There is no encoder {name!r} in this model; it has {', '.join(encoders)}."
            )
        return encoders[name]


def from_workdir(workdir: str | os.PathLike[str], step: int | None = None) -> Loaded:
    """Returns the model of a run: its newest whole checkpoint, or that of `step`.

    Where the run keeps a moving average of the parameters, that is what it is evaluated with.

    Raises:
        UserError: there is no run, or no such checkpoint.
    """
    from common import checkpoint
    from common import config as config_lib

    config = attachments.found(config_lib.read(workdir), workdir)
    method = create_method(config, str(workdir))
    step, saved = checkpoint.read(workdir, step)
    averaged = saved["ema"] is not None
    params = saved["ema"] if averaged else saved["params"]
    graphdef, _, _ = abstract(method)
    model = state.merge(graphdef, params, saved["model_state"])
    origin = {"kind": "run", "path": str(workdir), "step": step, "averaged": averaged}
    return Loaded(config, method, model, origin)


def from_published(
    path: str | os.PathLike[str], config: Any, encoders: Sequence[str] = ()
) -> Loaded:
    """Returns the model of a published file; `config` says which method and architecture it has.

    Where `encoders` are named, only they are read from the file, which may then lack the rest of
    the model, and the result has no others.

    Raises:
        UserError: the file cannot be read or holds another model.
    """
    from common.weights import published

    layout = published.layout_of(config)
    method = methods.create(config)
    graphdef, params, rest = abstract(method)
    placeholders = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), (params, rest))
    model = state.merge(graphdef, *placeholders)
    loaded = Loaded(config, method, model, {"kind": "published file", "path": str(path)})
    if encoders:
        loaded.method.encoders = {name: loaded.encoder(name) for name in encoders}
    layout.load(path, model, encoders)
    trees = state.split(model)
    left = jax.tree.map(lambda leaf, placeholder: leaf is placeholder, trees, placeholders)
    if not encoders and any(jax.tree.leaves(left)):
        # What no published file holds, such as a learned temperature, is as training begins.
        first = state.split(untrained(method, config.seed))
        trees = jax.tree.map(lambda new, old, mine: new if mine else old, first, trees, left)
        loaded = dataclasses.replace(loaded, model=state.merge(graphdef, *trees))
    return loaded


def create_method(config: Any, place: str) -> Method:
    """Returns the method of a stored configuration, which may be of another version.

    Raises:
        UserError: it lacks a key that this version reads; names it and `place`.
    """
    try:
        return methods.create(config)
    except (AttributeError, KeyError) as error:
        if not _raised_by_config(error):
            raise  # a mistake in the method, which no other config would mend
        raise UserError(
            f"The configuration in {place} lacks {str(error).strip(chr(34))}: it was written by "
            "another version of the code. Use that version, or add the key to config.json there."
        ) from error


def _raised_by_config(error: BaseException) -> bool:
    """Whether it was a ConfigDict that could not find something."""
    trace = error.__traceback__
    while trace.tb_next:
        trace = trace.tb_next
    return trace.tb_frame.f_globals["__name__"].startswith("ml_collections.")


def untrained(method: Method, seed: int) -> nnx.Module:
    """Returns the model of a method as training with that seed would begin with it."""
    graphdef, _, _ = abstract(method)
    params, rest = jax.jit(lambda: state.split(method.build(nnx.Rngs(seed))))()
    return state.merge(graphdef, params, rest)


def abstract(method: Method) -> tuple[nnx.GraphDef, state.Tree, state.Tree]:
    """Returns a model's structure and the shapes of its parameters and other variables."""
    model = nnx.eval_shape(lambda: method.build(nnx.Rngs(0)))
    return nnx.graphdef(model), *state.split(model)


def arrays(model: nnx.Module) -> dict[str, np.ndarray]:
    """Returns every array of a model by path: ``params/...`` and ``state/...``."""
    params, rest = state.split(model)
    return {
        f"{part}/{path}": np.asarray(leaf)
        for part, tree in (("params", params), ("state", rest))
        for path, leaf in state.flatten(tree).items()
    }


def fingerprint(model: nnx.Module) -> str:
    """Returns a digest of all weights: equal models have equal ones."""
    digest = hashlib.sha256()
    for path, array in sorted(arrays(model).items()):
        digest.update(f"{path} {array.dtype} {array.shape} ".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
