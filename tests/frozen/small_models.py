"""Small models of Frozen in Time, and the published files that hold such."""

from __future__ import annotations

import functools
import json

import golden_rules
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from configs import frozen_base
from frozen.model import FrozenModel

PACK, VIT = golden_rules.Pack("frozen"), golden_rules.Pack("vit")
RELEASED = PACK.folder / "released_form.pth.tar"  # written by PyTorch, with an object as config
SMALL = {
    "embedding_dim": 32,
    "video.grid_size": 64, "video.width": 64, "video.depth": 3, "video.heads": 4,
    "text.width": 48, "text.depth": 2, "text.heads": 4, "text.hidden": 96, "text.positions": 40,
}  # fmt: skip
TINY = {
    "embedding_dim": 5,
    "video.grid_size": 8, "video.patch": 4, "video.width": 8, "video.depth": 2, "video.heads": 2,
    "text.width": 6, "text.depth": 1, "text.heads": 2, "text.hidden": 10, "text.positions": 7,
}  # fmt: skip
OF_OTHERS = SMALL | {"video.width": 32, "video.depth": 2}  # as the ViTs of the other pack
PIECES = {5: 11, 32: 120}  # by the width of the joint space


def config(sizes, **changes):
    config = frozen_base.get_config().model
    changes = {key.replace("__", "."): value for key, value in changes.items()}
    config.update_from_flattened_dict(sizes | changes)
    return config


def abstract(config):
    graphdef, variables = _parts_of(json.dumps(config.to_dict()))
    return nnx.merge(graphdef, jax.tree.map(lambda x: x, variables))  # a copy


@functools.cache
def _parts_of(config):
    """Structure and shapes of a model: to trace its construction takes a second."""
    config = ConfigDict(json.loads(config))
    pieces = PIECES.get(config.embedding_dim, 120)
    return nnx.split(nnx.eval_shape(lambda: FrozenModel(config, pieces, nnx.Rngs(0))))


def filled(config, seed=0):
    graphdef, variables = nnx.split(abstract(config))
    generator = np.random.default_rng(seed)
    draw = lambda x: jnp.asarray(generator.random(x.shape, np.float32), x.dtype)  # noqa: E731
    return nnx.merge(graphdef, jax.tree.map(draw, variables))


def small():
    return dict(PACK.flat_checkpoint("small"))


def values(model):
    """The arrays of a model by path; variables without numbers are left out."""
    found = {"/".join(map(str, at)): v for at, v in nnx.to_flat_state(nnx.state(model))}
    values = {at: variable.get_value() for at, variable in found.items()}
    return {at: np.asarray(x) for at, x in values.items() if not _is_blank(x)}


def _is_blank(value):
    return isinstance(value, jax.ShapeDtypeStruct)


def assert_equal(values, wanted):
    assert values.keys() == wanted.keys()
    for name, value in values.items():
        assert value.dtype == wanted[name].dtype, name
        np.testing.assert_array_equal(value, wanted[name], err_msg=name)


def by_rule(tensors):
    return {
        key: golden_rules.tensor(key.removeprefix("module."), x.shape, "float32", "n", 1.0, 0.0, 0)
        for key, x in tensors.items()
    }
