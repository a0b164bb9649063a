"""Published checkpoints of Frozen in Time (PyTorch) in and out, and other networks to begin from.

The file of a training is a dictionary of ``arch``, ``epoch``, ``state_dict``, ``optimizer``,
``monitor_best`` and ``config``, an object of the training's own class, which is not read.
"""

from __future__ import annotations

import collections
import math
import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from absl import logging
from flax import nnx

from common.errors import UserError
from common.weights import bert_layout, torch_file, torch_layout, vit_layout
from common.weights.published import check_said
from frozen import weight_files
from frozen.weight_files import Tensors

if TYPE_CHECKING:
    from frozen.model import FrozenModel

# What each encoder of the method is made of.
_PARTS = {
    "video": ("video",),
    "video_joint": ("video", "video_projection"),
    "text": ("text", "text_projection"),
}
# The parts in the published order: what they are, and what of theirs every file has.
_MARKS = {
    "text": ("the text network", f"text_model.{weight_files.WORDS}"),
    "video": ("the video network", "video_model.temporal_embed"),
    "text_projection": ("the projection of texts", "txt_proj.1.weight"),
    "video_projection": ("the projection of videos", "vid_proj.0.weight"),
}


def load(
    path: str | os.PathLike,
    model: FrozenModel,
    encoders: Sequence[str] = (),
) -> list[str]:
    """Fills a model with a published checkpoint; no code in the file is executed.

    Positions of another number of frames (by the model's `temporal_resize`) or another image size
    are fitted as `common.weights.vit_layout.read` does; the published code refuses other sizes.

    Args:
        path: a .pth.tar, .pth or .safetensors file; "module." may stand before every name.
        model: changed in place; all or nothing.
        encoders: load only what these of the method's encoders need, and leave the rest of the
            model as it is; none named: everything.

    Returns:
        Names of the tensors that were not used, which are also logged in short.

    Raises:
        UserError: the file cannot be read, or does not hold this model.
    """
    unread = fill(model, weight_files.read(path), str(path), encoders)
    if unread:
        logging.info("%s: tensors left unread: %s", path, _counted(unread))
    return unread


def fill(
    model: FrozenModel,
    tensors: Tensors,
    source: str,
    encoders: Sequence[str] = (),
) -> list[str]:
    """Fills a model with published tensors by name, as `load` does with those of the file `source`.

    Returns:
        Sorted names of the tensors that were not used.

    Raises:
        UserError: they are not those of this model.
    """
    wanted = {part for encoder in encoders or _PARTS for part in _PARTS[encoder]}
    parts = [part for part in _MARKS if part in wanted]
    _check_sayable(model, parts)
    for part in parts:
        name, mark = _MARKS[part]
        if weight_files.outer_prefix(tensors) + mark not in tensors:
            raise UserError(
                f"{source}: {mark} is missing: the file does not hold {name} of Frozen in Time. "
                "Training can begin from networks of other kinds: name the file in config.init."
            )
    return _read(model, parts, tensors, source)


def initialise(path: str | os.PathLike, model: FrozenModel, config: Any) -> list[str]:
    """Fills what a file has of a model with it, to begin training there.

    Read are whole checkpoints of Frozen in Time, ViTs as timm or Hugging Face publish them, the
    image networks of CLIPs, and BERTs and DistilBERTs, such as MiniLM. What a file is shows in the
    names of its tensors. An image network leaves all that is about time as it is, so that the model
    begins as the image network. No code in the file is executed.

    Args:
        path: a .safetensors, .bin, .pth, .pt or .pth.tar file.
        model: changed in place, or not at all where an error is raised; what the file lacks stays.
        config: ``config.model``.

    Returns:
        What was filled, fitted, and left, in sentences for the log.

    Raises:
        UserError: the file cannot be read, holds nothing that is known, or a network of another
            kind or other sizes; the message names the settings that would fit.
    """
    tensors = weight_files.read(path)
    prefix = weight_files.outer_prefix(tensors)
    there = {part: prefix + mark in tensors for part, (_, mark) in _MARKS.items()}
    there["video"] = weight_files.image(tensors) is not None
    there["text"] = weight_files.text_prefix(tensors) is not None
    parts = [part for part in _MARKS if there[part]]
    if not parts:
        raise UserError(
            f"{path} holds no network to begin from: neither a checkpoint of Frozen in Time, nor a "
            "ViT as timm, Hugging Face or CLIP name it, nor a BERT or DistilBERT. It begins with "
            f"{', '.join(list(tensors)[:3])}."
        )
    unread = _read(model, parts, tensors, str(path))
    return _account(model, config, parts, tensors, unread)


def save(path: str | os.PathLike, model: FrozenModel, config: Any) -> None:
    """Writes a model in the published layout, to be read by ``torch.load``.

    The file has the entries of a released one. Its configuration is a plain dictionary, and as
    there is no state of an optimizer, it names none, so that the published training does not look
    for its state. What only the objective has, a learned temperature or bias, is left out.

    Args:
        path: file to make, which must not exist.
        model: what to write.
        config: ``config.model``, from which the fields of the published configuration are filled.

    Raises:
        UserError: the file exists, or the layout has no place for something in the model
            or for what it takes.
    """
    taken = {"video.input": "rgb", "colours": "imagenet", "video.eps": 1e-6}
    check_said(config, taken)
    _check_sayable(model, list(_MARKS))
    contents = {
        "arch": "FrozenInTime",
        "epoch": 0,
        "state_dict": published_arrays(model, "module."),
        "optimizer": {"state": {}, "param_groups": []},
        "monitor_best": math.inf,
        "config": {"arch": _published_config(config), "optimizer": {"type": "", "args": {}}},
    }
    torch_file.save(path, contents)


def published_arrays(model: FrozenModel, prefix: str = "") -> dict[str, np.ndarray]:
    """Every tensor of the model by its published name below `prefix`, in the published order."""
    layers = [
        *bert_layout.layers_of(model.text, f"{prefix}text_model."),
        *vit_layout.layers_of(model.video, f"{prefix}video_model."),
        _projection(model, "text_projection", prefix),
        _projection(model, "video_projection", prefix),
    ]
    return torch_layout.write(layers)


def _published_config(config: Any) -> dict[str, Any]:
    """The published description of the networks; other sizes than the released have our names."""
    video, text = config.video, config.text
    sizes, words = (video.width, video.depth, video.heads), (text.width, text.depth, text.heads)
    sizes = "base" if sizes == (768, 12, 12) else "width{}_depth{}_heads{}".format(*sizes)
    words = "base-uncased" if words == (768, 6, 12) else "width{}-depth{}-heads{}".format(*words)
    return {
        "type": "FrozenInTime",
        "args": {
            "video_params": {
                "model": "SpaceTimeTransformer",
                "arch_config": f"{sizes}_patch{video.patch}_{video.grid_size}",
                "num_frames": video.max_frames,
                "pretrained": True,
                "time_init": "zeros",
            },
            "text_params": {"model": f"distilbert-{words}", "pretrained": True, "input": "text"},
            "projection_dim": config.embedding_dim,
            "projection": "minimal",
            "load_checkpoint": "",
        },
    }


def _read(model: FrozenModel, parts: Iterable[str], tensors: Tensors, source: str) -> list[str]:
    """Fills parts of a model, all of them or none; returns the keys that were not used."""
    _check_sizes(model, parts, tensors, source)
    # Filled first is a model without numbers: a part may turn out not to fit after another did.
    graphdef, variables = nnx.split(model)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), variables)
    blank = nnx.merge(graphdef, shapes)
    unread = set(tensors)
    for part in parts:
        if part == "video":
            left = vit_layout.read(blank.video, tensors, source, model.temporal_resize)
        elif part == "text":
            left = bert_layout.read(blank.text, tensors, source)
        else:
            layer = _projection(blank, part, weight_files.outer_prefix(tensors))
            left = torch_layout.read([layer], tensors, source)
        unread &= set(left)
    filled = _variables(blank)
    for at, ours in _variables(model).items():
        value = filled[at].get_value()
        if not isinstance(value, jax.ShapeDtypeStruct):
            ours.set_value(value)
    return sorted(unread)


def _projection(model: FrozenModel, part: str, prefix: str) -> torch_layout.Layer:
    return torch_layout.Layer(getattr(model, part), prefix + weight_files.PROJECTIONS[part])


def _variables(model: nnx.Module) -> dict[tuple, nnx.Variable]:
    return {at: node for at, node in nnx.iter_graph(model) if isinstance(node, nnx.Variable)}


def _check_sayable(model: FrozenModel, parts: Iterable[str]) -> None:
    """Raises `UserError` where the published layout has no place for what a network does."""
    what, video = [], model.video
    if "video" in parts and (video.pre_norm is not None or video.blocks[0].activation != "gelu"):
        what.append("a video network like CLIP's (config.model.video.pre_norm and .activation)")
    if "text" in parts and model.text.types is not None:
        what.append("a BERT without its pooler (config.model.text.token_types is not 0)")
    if what:
        raise UserError(
            f"The published layout has no place for {' and '.join(what)}; whoever read it would "
            "compute something else. A bundle holds any model."
        )


def _check_sizes(model: FrozenModel, parts: Iterable[str], tensors: Tensors, source: str) -> None:
    """Says which settings would make a file fit; other mistakes are left to the readers."""
    theirs, ours = weight_files.sizes(tensors), weight_files.sizes_of(model)
    checked = [key for key in ours if key.split(".")[0] in parts]
    if "text_projection" in parts or "video_projection" in parts:
        checked.append("embedding_dim")
    settings = [
        _setting(key, theirs[key], ours[key])
        for key in checked
        if key in theirs and theirs[key] != ours[key]
    ]
    if settings:
        raise UserError(
            f"{source} does not fit the model. It is of {', '.join(settings)}. Where a width "
            "changes, so does the number of heads: config.model.video.heads and .text.heads."
        )


def _setting(key: str, theirs: Any, ours: Any) -> str:
    if key == "text.pieces":
        return f"config.model.text.pieces naming a file of {theirs} word pieces (here of {ours})"
    return f"config.model.{key}={theirs} (here {ours})"


def _account(
    model: FrozenModel, config: Any, parts: Sequence[str], tensors: Tensors, unread: Sequence[str]
) -> list[str]:
    """Says what became of a file and of the model."""
    image, kinds = weight_files.image(tensors), []
    in_time = image is not None and f"{image.prefix}temporal_embed" in tensors
    if image is not None:
        kinds.append("a video network of Frozen in Time" if in_time else image.kind)
    if "text" in parts:
        kinds.append("a DistilBERT" if model.text.types is None else "a BERT")
    lines = [f"the file holds {' and '.join(kinds)}" if kinds else "the file holds projections"]
    lines.append(f"filled: {', '.join(_MARKS[part][0] for part in parts)}")
    if image is not None:
        lines += _fitted(model, image, tensors, in_time)
        if image.eps != config.video.eps:
            lines.append(
                f"such networks were trained with config.model.video.eps={image.eps} (here "
                f"{config.video.eps})"
            )
        if image.is_clip:
            lines.append(
                f"taken as trained with config.model.video.activation={config.video.activation!r}, "
                "which the file does not tell: CLIPs of OpenAI were with 'quick_gelu'"
            )
    heads = {part: getattr(config, part).heads for part in ("video", "text") if part in parts}
    if heads:
        listed = " and ".join(f"config.model.{part}.heads={n}" for part, n in heads.items())
        lines.append(f"taken as trained with {listed}, which the file does not tell")
    rest = [_MARKS[part][0] for part in _MARKS if part not in parts]
    if image is not None and not in_time:
        rest.append("all of the video network that is about time")
    if rest:
        lines.append(f"left as they begin: {', '.join(rest)}")
    if unread:
        lines.append(f"not used of the file: {_counted(unread)}")
    return lines


def _fitted(
    model: FrozenModel, image: weight_files.Image, tensors: Tensors, in_time: bool
) -> list[str]:
    """Says which positions are not those of the file."""
    lines = []
    rows, wanted = tensors[image.prefix + image.positions].shape[-2], len(model.video.positions)
    if rows != wanted:
        lines.append(f"positions of {rows - 1} patches were interpolated to {wanted - 1}")
    frames = tensors[f"{image.prefix}temporal_embed"].shape[1] if in_time else None
    if frames not in (None, model.video.num_frames):
        lines.append(f"positions of {frames} frames were fitted to {model.video.num_frames}")
    return lines


def _counted(keys: Iterable[str]) -> str:
    """How many tensors there are of each of the first parts of their names."""
    counts = collections.Counter(key.removeprefix("module.").split(".")[0] for key in keys)
    return ", ".join(f"{name} ({number})" for name, number in counts.items())
