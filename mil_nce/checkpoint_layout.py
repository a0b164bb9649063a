"""Published MIL-NCE checkpoints (PyTorch) in and out, and the video network of MMV's in."""

from __future__ import annotations

import collections
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging

from common.backbones.s3d import S3D
from common.errors import UserError
from common.weights import haiku_layout, s3d_layout, safe_pickle, torch_file, torch_layout
from common.weights.published import check_said
from mil_nce.model import MilNceModel

# What each encoder of `mil_nce.method` is made of.
_PARTS = {"video": ("video",), "video_joint": ("video", "projection"), "text": ("text",)}
_TABLE = "text_module.word_embd"
_STEMS = {3: "plain", 24: "space_to_depth"}  # by input channels
# The keys of ``config.model`` that say how long an axis of a published tensor is.
_SIZES = {
    "conv1.conv1.weight": ("", "video.stem"),
    "fc.weight": ("embedding_dim",),
    f"{_TABLE}.weight": ("text.words", "text.word_dim"),
    "text_module.fc1.weight": ("text.hidden", "text.word_dim"),
    "text_module.fc2.weight": ("embedding_dim", "text.hidden"),
}


def load(path: str | os.PathLike, model: MilNceModel, encoders: Sequence[str] = ()) -> list[str]:
    """Fills a model with a published checkpoint; no code in the file is executed.

    Both kinds are read: the release, tensors by name, and those that the published training writes,
    which hold them under "state_dict" with "module." before every name. Of a .pkl file of MMV
    (Alayrac et al., 2020, arXiv:2006.16228), which has the same S3D, the encoder "video" is read.

    Args:
        path: a .pth or .pth.tar file, or a .pkl.
        model: changed in place; all or nothing.
        encoders: load only what these of the method's encoders need, and leave the rest of the
            model as it is; none named: everything.

    Returns:
        Names of the tensors that were not used, which are also logged in short.

    Raises:
        UserError: the file cannot be read, or does not hold this model.
    """
    if os.fspath(path).endswith(".pkl"):
        return _load_mmv(path, model, encoders)
    published = _tensors(torch_file.load(path), path)
    prefix = "module." if any(key.startswith("module.") for key in published) else ""
    names = encoders or _PARTS
    parts = dict.fromkeys(part for name in names for part in _PARTS[name])
    layers = [layer for part in parts for layer in _layers(model, part, prefix)]
    _check_sizes(layers, published, prefix, path)
    unread = torch_layout.read(layers, published, str(path))
    if unread:
        counts = collections.Counter(key.removeprefix(prefix).split(".")[0] for key in unread)
        logging.info("%s: tensors left unread: %s", path, dict(counts))
    return unread


def initialise(path: str | os.PathLike, model: MilNceModel, config: Any) -> list[str]:
    """Fills a model with a published checkpoint to begin training there; see `load`.

    Of a .pkl file of MMV it is the video network.

    Args:
        path: a .pth or .pth.tar file, or a .pkl.
        model: changed in place; all or nothing.
        config: ``config.model``; the file itself shows all that counts.

    Returns:
        What was filled and what was left, in sentences for the log.

    Raises:
        UserError: the file cannot be read, or does not hold this model.
    """
    only_video = os.fspath(path).endswith(".pkl")
    unread = load(path, model, ["video"] if only_video else ())
    others = "" if only_video else ", its projection and the text network"
    lines = [f"filled: the video network{others}"]
    if only_video:
        lines.append("left as they begin: the projection and the text network")
    if unread:
        lines.append(f"not used of the file: {len(unread)} tensors, such as {unread[0]}")
    return lines


def _load_mmv(path: str | os.PathLike, model: MilNceModel, encoders: Sequence[str]) -> list[str]:
    """Fills the video network from a Haiku checkpoint of MMV."""
    if list(encoders) != ["video"]:
        raise UserError(
            f"{path}: of a checkpoint of MMV only the video network can be read: its heads and its "
            "text tower are other ones. Give --encoder=video."
        )
    backbone, published = _s3d(model), safe_pickle.load_pickle(path)
    stem = f"S3D/{haiku_layout.S3D_STEM}/~/conv3_d"
    params = published.get("params") if isinstance(published, Mapping) else None
    items = params.items() if isinstance(params, Mapping) else ()
    modules = {k: v for k, v in items if isinstance(k, str) and isinstance(v, Mapping)}
    root = next((name.removesuffix(stem) for name in modules if name.endswith(stem)), None)
    if root is None or "state" not in published:
        raise UserError(
            f"{path}: not a checkpoint of MMV with an S3D: it has no 'state', or no module in "
            f"'params' that ends in {stem}."
        )
    shape, wanted = (
        np.shape(modules[root + stem].get("w")),
        tuple(backbone.conv1.convs[0].kernel.shape),
    )
    if shape != wanted:
        raise UserError(
            f"{path}: the first convolution has shape {shape}, the model needs {wanted}. A file of "
            "(2, 4, 4, 24, 64) is of config.model.video.stem='space_to_depth'; others than that "
            "cannot be read."
        )
    beside = f"{root}S3D/{haiku_layout.S3D_STEM}/"
    norms = [name.removeprefix(beside) for name in modules if "scale" in modules[name]]
    norm = next((name for name in norms if "/" not in name), haiku_layout.S3D_NORM)
    layers = haiku_layout.s3d(backbone, f"{root}S3D", norm)
    unread = haiku_layout.read(layers, published, str(path))
    logging.info("%s: modules left unread: %s", path, haiku_layout.unread(unread, 2))
    return unread


def save(path: str | os.PathLike, model: MilNceModel, config: Any) -> None:
    """Writes a model in the published layout, to be read by ``torch.load``.

    With a space-to-depth stem the file is like the release. The published code builds the plain one
    only for checkpoints of its own training, so that one is written like those, but without a state
    of the optimizer: it can be evaluated there, not trained on.

    Args:
        path: file to make, which must not exist.
        model: what to write.
        config: ``config.model``.

    Raises:
        UserError: the file exists, or the layout has no place for the backbone or for how padding
            is treated.
    """
    check_said(config, {"text.masked": False, "video.input": "rgb"})
    if _s3d(model).stem == "plain":
        contents = {"state_dict": published_arrays(model, "module.")}
    else:
        contents = published_arrays(model)
    torch_file.save(path, contents)


def published_arrays(model: MilNceModel, prefix: str = "") -> dict[str, np.ndarray]:
    """Every tensor of the model by its published name, in the published order.

    Raises:
        UserError: the layout has no place for the backbone.
    """
    parts = ("video", "projection", "text")
    layers = [layer for part in parts for layer in _layers(model, part, prefix)]
    return torch_layout.write(layers)


def _tensors(contents: Any, path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The tensors of a file, of either kind."""
    if isinstance(contents, Mapping):
        contents = contents.get("state_dict", contents)
    items = contents.items() if isinstance(contents, Mapping) else ()
    found = {k: v for k, v in items if isinstance(k, str) and isinstance(v, np.ndarray)}
    if not found:
        raise UserError(
            f"{path}: not an MIL-NCE checkpoint: it holds no tensors by name, neither at the top "
            "nor under 'state_dict'."
        )
    return found


def _s3d(model: MilNceModel) -> S3D:
    if isinstance(model.video, S3D):
        return model.video
    raise UserError(
        f"The published layout has no place for the backbone {type(model.video).__name__}, only "
        "for that of config.model.video.backbone='s3d'. A bundle holds any."
    )


def _layers(model: MilNceModel, part: str, prefix: str) -> list[torch_layout.Layer]:
    """The layers of a part of the model in the published order."""
    if part == "video":
        return s3d_layout.layers_of(_s3d(model), prefix)
    if part == "projection":
        return [torch_layout.Layer(model.video_projection, f"{prefix}fc")]
    return [
        torch_layout.Table(model.text.words, f"{prefix}{_TABLE}.weight"),
        torch_layout.Layer(model.text.hidden, f"{prefix}text_module.fc1"),
        torch_layout.Layer(model.text.output, f"{prefix}text_module.fc2"),
    ]


def _check_sizes(
    layers: Sequence[torch_layout.Layer],
    published: Mapping[str, np.ndarray],
    prefix: str,
    path: str | os.PathLike,
) -> None:
    """Says which settings would make a file fit; other mistakes are left to `torch_layout.read`."""
    for layer in layers:
        ours, key = next(layer.variables())
        if key not in published:
            continue
        wanted = tuple(ours.shape)
        if not isinstance(layer, torch_layout.Table):
            wanted = (*wanted[:-3:-1], *wanted[:-2])
        settings = _fitting(key.removeprefix(prefix), published[key].shape, wanted)
        if settings:
            raise UserError(
                f"{path}: {key} has shape {published[key].shape}, the model needs {wanted}. "
                f"The file is of {' and '.join(settings)}."
            )


def _fitting(name: str, shape: tuple[int, ...], wanted: tuple[int, ...]) -> list[str]:
    """The settings that give a tensor the sizes in which it is not as wanted."""
    settings = []
    for size, here, key in zip(shape, wanted, _SIZES.get(name, ()), strict=False):
        value = size - 1 if key == "text.words" else size  # its first row is the padding
        value = _STEMS.get(size) if key == "video.stem" else value
        if key and size != here and value is not None:
            settings.append(f"config.model.{key}={value!r}")
    return settings
