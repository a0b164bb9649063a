"""Published BraVe checkpoints (.npy) in and out."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging

from brave.model import BraveModel
from brave.naming import NARROW
from common.backbones.audio_resnet import AudioResNet
from common.backbones.tsm_resnet import TSMResNet
from common.errors import UserError
from common.new_file import new_file
from common.weights import haiku_layout, safe_pickle
from common.weights.published import check_said

# The view whose backbone is an encoder of `brave.method`.
_VIEW_OF_ENCODER = {"video": NARROW, "audio": "audio"}


def load(path: str | os.PathLike, model: BraveModel, encoders: Sequence[str] = ()) -> list[str]:
    """Fills a model with a published checkpoint; no code in the file is executed.

    Args:
        path: a .npy file with ``params`` and ``state``.
        model: changed in place; all or nothing.
        encoders: load only these networks, "video" or "audio", and leave the rest of the model as
            it is; none named: everything. Some released files hold heads and broad networks that
            no model here has, but all hold the narrow network under "video".

    Returns:
        Names of the published modules that were not used, which are also logged in short. Released
        files hold heads that their own code never applies.

    Raises:
        UserError: the file cannot be read, or does not hold this model.
    """
    published = safe_pickle.load_npy(path)
    if not isinstance(published, Mapping) or not {"params", "state"} <= set(published):
        raise UserError(f"{path}: not a BraVe checkpoint: it has no 'params' and 'state'.")
    layers = layers_of(model)
    if encoders:
        views = [_VIEW_OF_ENCODER[name] for name in encoders]
        layers = [layer for view in views for layer in _backbone(model, view)]
    unused = haiku_layout.read(layers, published, str(path))
    if unused:
        logging.info("%s: modules left unread: %s", path, haiku_layout.unread(unused))
    return unused


def initialise(path: str | os.PathLike, model: BraveModel, config: Any) -> list[str]:
    """Fills a model with a published checkpoint to begin training there; see `load`.

    Args:
        path: a .npy file.
        model: changed in place; all or nothing.
        config: ``config.model``; the file itself shows all that counts.

    Returns:
        What was filled and what was left, in sentences for the log.

    Raises:
        UserError: the file cannot be read, or does not hold this model.
    """
    unused = load(path, model)
    lines = [f"filled: the networks of {', '.join(sorted(model.backbones))} and their heads"]
    if unused:
        counts = haiku_layout.unread(unused)
        lines.append("not used of the file: " + ", ".join(f"{k} ({n})" for k, n in counts.items()))
    return lines


def save(path: str | os.PathLike, model: BraveModel, config: Any) -> None:
    """Writes a model in the published layout, to be read by ``np.load(..., allow_pickle=True)``.

    Views that the published code does not know (flow, further broad views, separate heads) are
    written under names formed alike, which `load` reads.

    Args:
        path: file to make, which must not exist.
        model: what to write.
        config: ``config.model``, from which the fields of the published config are filled.

    Raises:
        UserError: the file exists, or the layout has no place for a network of the model or for
            what it takes.
    """
    taken: dict[str, Any] = {"narrow.input": "rgb"}
    if "video" in config.broad:
        taken["video.input"] = "rgb"
    if "audio" in config.broad:
        taken["audio.fft_window"] = 320
    check_said(config, taken)
    contents = {**haiku_layout.write(layers_of(model)), "config": published_config(config)}
    with new_file(path) as partial, open(partial, "wb") as file:
        np.save(file, np.array(contents, dtype=object), allow_pickle=True)


def published_config(config: Any) -> dict[str, Any]:
    """The fifteen fields of the published configuration, from ``config.model``."""
    kinds = set(config.broad)
    frames = config.video.num_frames
    if "video" not in kinds:
        # There the length of the sound follows from the frames; with us it is the other way round.
        seconds = config.audio.num_samples / config.audio.sample_rate
        frames = round(seconds * config.frame_rate / config.video.stride)
    width = config.narrow.width
    return {
        "include_video_in_broad_view": "video" in kinds,
        "include_audio_in_broad_view": "audio" in kinds,
        "num_frames_narrow": config.narrow.num_frames,
        "image_size_narrow": config.narrow.size,
        "step_narrow": config.narrow.stride,
        "num_frames_broad": frames,
        "image_size_broad": config.video.size,
        "step_broad": config.video.stride,
        "output_dims": config.projection_dim,
        "tsm_resnet_width_multiplier": int(width) if width == int(width) else width,
        "num_spectrogram_bins": config.audio.mel_bins,
        "fft_step": config.audio.fft_step,
        "dataset_shards": [],
        "input_video_sample_rate": float(config.frame_rate),
        "input_audio_sample_rate": config.audio.sample_rate,
    }


def layers_of(model: BraveModel) -> list[haiku_layout.Layer]:
    """Every network of the model under its published name."""
    layers = []
    for view in model.backbones:
        layers += _backbone(model, view)
    for heads, part in ((model.projectors, "projector"), (model.predictors, "predictor")):
        for view, head in heads.items():
            # One head for all is the published case, whose name says so.
            module = f"{'shared' if len(heads) == 1 else view}_project/{part}"
            linears = [head.linear_0, head.linear_1]
            norms = [head.norm_0, *([head.norm_1] if part == "projector" else [])]
            layers += haiku_layout.dense_stack(linears, norms, module)
    return layers


def _backbone(model: BraveModel, view: str) -> list[haiku_layout.Layer]:
    """The backbone of a view: ``narrow_video_embedding``, ``broad_audio_embedding``, ..."""
    backbone = model.backbone(view)
    module = "narrow_video_embedding" if view == NARROW else f"broad_{view}_embedding"
    if isinstance(backbone, TSMResNet):
        return haiku_layout.tsm_resnet(backbone.trunk, module)
    if isinstance(backbone, AudioResNet):
        return haiku_layout.audio_resnet(backbone.trunk, module)
    raise UserError(
        f"The published layout has no place for the {view} backbone {type(backbone).__name__}."
    )
