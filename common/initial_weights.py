"""Training begins with trained weights: ``config.init`` names runs, bundles and published files.

They are taken in that order, so that of several which hold the same array the last one counts. What
none of them holds begins as the seed says. Every place is accounted for in the log.
"""

from __future__ import annotations

import collections
import filecmp
import logging
import os
import pathlib
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from common import attachments, checkpoint, state
from common import config as config_lib
from common.errors import UserError
from common.method import Method
from common.weights import loading, published, tensor_file

_BUNDLE = "weights.safetensors"
_PARTS = ("params", "state")  # of a model, as bundles name them

_log = logging.getLogger(__name__)


def fill(
    method: Method, config: Any, params: state.Tree, model_state: state.Tree
) -> tuple[state.Tree, state.Tree]:
    """Puts the weights that ``config.init`` names into those that a run would begin with.

    Of a run (its newest whole checkpoint, and there the moving average where it keeps one) and of a
    bundle, whatever their method, the arrays are taken whose path and shape are those of the model.
    A published file is read by the layout of ``config.method``.

    Args:
        method: of the run that begins.
        config: its configuration.
        params: parameters; only the structure is looked at, so that they may lie on many devices,
            or be `jax.ShapeDtypeStruct`.
        model_state: the model's other variables, likewise.

    Returns:
        Both trees: NumPy arrays, of the model's dtypes, where weights were found, and the leaves
        that were given everywhere else.

    Raises:
        UserError: a place does not exist, cannot be read, or holds nothing that fits.
    """
    graphdef, *blank = loading.abstract(method)
    shapes = _flat(blank)
    found: dict[str, np.ndarray] = {}
    for place in config.init:
        if not pathlib.Path(place).exists():
            raise UserError(f"config.init: there is no {place}.")
        if pathlib.Path(place).is_dir():
            arrays = _arrays(pathlib.Path(place))
            fitting, lines = _fitting(arrays, shapes, place)
            _check_files(config, pathlib.Path(place), arrays.keys(), fitting.keys())
            found |= fitting
        else:
            model = state.merge(graphdef, *_replaced(blank, found))
            lines = published.layout_of(config).initialise(place, model, config.model)
            leaves = _flat(state.split(model))
            found |= {at: np.asarray(x) for at, x in leaves.items() if not _is_shape(x)}
        _log.info("%s", "\n  ".join([f"initial weights of {place}:", *lines]))
    params, model_state = _replaced((params, model_state), found)
    return params, model_state


def _check_files(
    config: Any, place: pathlib.Path, paths: Iterable[str], fitting: Collection[str]
) -> None:
    """Checks that what fits by its shape means the same, such as the rows of a table of words.

    Raises:
        UserError: the run or bundle has another vocabulary, and nothing but it tells.
    """
    theirs = attachments.found(config_lib.read(place), place)
    flat, before = config_lib.flatten(config), config_lib.flatten(theirs)
    for key in config.files:
        part = f"params/{key.split('.')[-2]}/"  # of model.text.vocabulary, the text network
        files = [flat[key], before.get(key)]
        if not all(name and os.path.isfile(name) for name in files):
            continue
        if filecmp.cmp(*files, shallow=False):
            continue
        table = part.removeprefix("params/") + "words"  # whose rows are the words
        if any(f"{kind}/{table}" in fitting for kind in _PARTS):
            raise UserError(
                f"config.init: {place} was trained with another config.{key}: its weights would be "
                f"taken for those of other words. Name its own file, {before[key]}."
            )


def _arrays(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """All arrays of a run or a bundle by path."""
    if (folder / _BUNDLE).is_file():
        return tensor_file.load(folder / _BUNDLE)
    if not (folder / checkpoint.FOLDER).is_dir():
        raise UserError(
            f"config.init: {folder} is neither the folder of a run, which holds "
            f"{checkpoint.FOLDER}, nor a bundle, which holds {_BUNDLE}. Of published weights name "
            "the file itself."
        )
    _, saved = checkpoint.read(folder)
    params = saved["params"] if saved["ema"] is None else saved["ema"]
    return _flat((params, saved["model_state"]))


def _fitting(
    arrays: Mapping[str, np.ndarray], shapes: Mapping[str, jax.ShapeDtypeStruct], place: str
) -> tuple[dict[str, np.ndarray], list[str]]:
    """The arrays whose path and shape the model has, and what became of all, for the log."""
    both = sorted(shapes.keys() & arrays.keys())
    fitting = {
        path: np.asarray(arrays[path], shapes[path].dtype)
        for path in both
        if arrays[path].shape == shapes[path].shape
    }
    lines = [f"filled: {len(fitting)} of the model's {len(shapes)} arrays"]
    lines += [
        f"{path} has shape {arrays[path].shape} there and {shapes[path].shape} here"
        for path in both
        if path not in fitting
    ]
    lines += _counted("only there", arrays.keys() - shapes.keys())
    lines += _counted("only here", shapes.keys() - arrays.keys())
    if not any(path.startswith("params/") for path in fitting):
        raise UserError(
            f"config.init: no parameter in {place} has the path and the shape of one of the model; "
            f"is it of another method or other sizes? {'; '.join(lines[1:9])}."
        )
    return fitting, lines


def _counted(what: str, paths: Iterable[str]) -> list[str]:
    """One line on how many arrays there are below each part of a model; none where none are."""
    counts = collections.Counter("/".join(path.split("/")[:2]) for path in sorted(paths))
    listed = ", ".join(f"{part} ({count})" for part, count in counts.items())
    return [f"{what}: {listed}"] if counts else []


def _flat(trees: Iterable[state.Tree]) -> dict[str, Any]:
    """The leaves of both parts of a model by path: ``params/...`` and ``state/...``."""
    return {
        f"{part}/{path}": leaf
        for part, tree in zip(_PARTS, trees, strict=True)
        for path, leaf in state.flatten(tree).items()
    }


def _replaced(trees: Iterable[state.Tree], found: Mapping[str, Any]) -> list[state.Tree]:
    """Both parts of a model with the leaves that were found."""
    return [
        jax.tree_util.tree_map_with_path(
            lambda at, leaf, part=part: found.get(f"{part}/{state.path_of(at)}", leaf), tree
        )
        for part, tree in zip(_PARTS, trees, strict=True)
    ]


def _is_shape(leaf: Any) -> bool:
    return isinstance(leaf, jax.ShapeDtypeStruct)
