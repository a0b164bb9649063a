"""BraVe's networks: a narrow video backbone, broad backbones, projectors and predictors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from brave.naming import NARROW, broad_views
from common.backbones.audio_resnet import AudioResNet
from common.backbones.batch_norm import BatchNorm
from common.backbones.initializers import truncated_fan_in
from common.backbones.tsm_resnet import TSMResNet
from common.errors import UserError

# Each backbone with the config keys that its constructor takes. Whatever stands here maps its input
# to (B, num_features); a new one is an import and a line.
_VIDEO_BACKBONES = {"tsm_resnet": (TSMResNet, ("blocks", "width"))}
_AUDIO_BACKBONES = {"audio_resnet": (AudioResNet, ("blocks", "width"))}

_CHANNELS = {"video": 3, "flow": 2}


class Projector(nnx.Module):
    """Two dense layers, a norm after each, to the space where views are compared."""

    def __init__(self, in_features: int, hidden: int, out_features: int, *, dtype, rngs):
        self.linear_0 = _linear(in_features, hidden, dtype, rngs)
        self.norm_0 = BatchNorm(hidden, dtype=dtype)
        self.linear_1 = _linear(hidden, out_features, dtype, rngs)
        self.norm_1 = BatchNorm(out_features, dtype=dtype)

    def __call__(self, features_BF: jax.Array) -> jax.Array:
        """Projects features (B, F) to (B, D) in the compute dtype."""
        x = nnx.relu(self.norm_0(self.linear_0(features_BF)))
        return self.norm_1(self.linear_1(x))


class Predictor(nnx.Module):
    """Two dense layers that guess the other view's projection; no norm after the last."""

    def __init__(self, features: int, hidden: int, *, dtype, rngs):
        self.linear_0 = _linear(features, hidden, dtype, rngs)
        self.norm_0 = BatchNorm(hidden, dtype=dtype)
        self.linear_1 = _linear(hidden, features, dtype, rngs)

    def __call__(self, projection_BD: jax.Array) -> jax.Array:
        """Maps projections (B, D) to predictions (B, D) in the compute dtype."""
        return self.linear_1(nnx.relu(self.norm_0(self.linear_0(projection_BD))))


def _linear(in_features: int, out_features: int, dtype, rngs: nnx.Rngs) -> nnx.Linear:
    return nnx.Linear(
        in_features, out_features, kernel_init=truncated_fan_in, dtype=dtype, rngs=rngs
    )


class BraveModel(nnx.Module):
    """All networks of one BraVe run (Recasens et al., 2021, arXiv:2103.16559).

    Views are "narrow" and the broad ones as `brave.naming.broad_views` names them. Three switches
    say what views have in common; a shared network goes by the name of the first view that uses it,
    "narrow" being the first of all:

    - share_backbone: which views of one modality use one backbone: "none", the "broad" ones, or
      "all", the narrow view, which is video, among them.
    - share_projector: views whose features are equally wide use one projector. Views of different
      widths cannot, whatever the switch says (in the published code that is a crash).
    - share_predictor: all views use one predictor.

    Args:
        config: the keys of ``config.model`` in ``configs/brave_base.py``.
        rngs: source of the initial weights.
        compute_dtype: of convolutions and dense layers; norms compute in at least float32. None
            follows inputs and parameters.
        remat: recompute residual blocks in the backward pass.

    Raises:
        UserError: an unknown backbone or kind of view, or sharing that is impossible.
    """

    def __init__(
        self,
        config: Any,
        rngs: nnx.Rngs,
        compute_dtype: jnp.dtype | None = None,
        remat: bool = False,
    ):
        self.views = tuple(broad_views(config.broad).items())
        modality = {NARROW: "video", **dict(self.views)}
        backbone_of = _share_backbones(config, modality)
        self.backbones = nnx.Dict(
            {
                name: _backbone(config, name, kind, dtype=compute_dtype, remat=remat, rngs=rngs)
                for name, kind in modality.items()
                if backbone_of[name] == name
            }
        )
        width = {view: self.backbones[backbone_of[view]].num_features for view in modality}
        projector_of = _share(width, config.share_projector)
        predictor_of = _share(dict.fromkeys(modality, "any"), config.share_predictor)
        hidden, dim = config.projector_hidden, config.projection_dim
        self.projectors = nnx.Dict(
            {
                name: Projector(width[name], hidden, dim, dtype=compute_dtype, rngs=rngs)
                for name in dict.fromkeys(projector_of.values())
            }
        )
        self.predictors = nnx.Dict(
            {
                name: Predictor(dim, hidden, dtype=compute_dtype, rngs=rngs)
                for name in dict.fromkeys(predictor_of.values())
            }
        )
        # Which networks a view uses. Tuples, since static parts of a module must be hashable.
        self.networks = tuple(
            (view, (backbone_of[view], projector_of[view], predictor_of[view])) for view in modality
        )

    def backbone(self, view: str) -> nnx.Module:
        """The backbone of a view; call it for features (B, num_features)."""
        return self.backbones[dict(self.networks)[view][0]]

    @property
    def narrow(self) -> nnx.Module:
        """The narrow video backbone, which evaluation uses."""
        return self.backbone(NARROW)

    @property
    def broad(self) -> list[nnx.Module]:
        """The backbones of the broad views, in order."""
        return [self.backbone(view) for view, _ in self.views]

    def head(self, view: str, features_BF: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Projection and prediction (z, h) of a view's features, each (B, D), at least float32."""
        _, projector, predictor = dict(self.networks)[view]
        z_BD = self.projectors[projector](features_BF)
        h_BD = self.predictors[predictor](z_BD)
        at_least = jnp.promote_types(z_BD.dtype, jnp.float32)
        return z_BD.astype(at_least), h_BD.astype(at_least)

    def __call__(self, inputs: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Embeds one batch of all views.

        The order of calls is the published one, since running statistics of shared networks depend
        on it: the narrow backbone, then for each broad view its backbone, its head, and the head of
        the narrow view again. Heads see one view at a time, so batch statistics are per view.

        Args:
            inputs: "narrow" (B, T, H, W, 3) in [0, 1], and by name each broad view: video likewise,
                flow (B, T, H, W, 2) in [-1, 1], audio (B, frames, bins) log-mel.

        Returns:
            ``z_<v>``, ``h_<v>``, ``z_narrow_<v>``, ``h_narrow_<v>`` for each broad view v: (B, D).

        Raises:
            UserError: a view is missing or has another shape.
        """
        _check_inputs(inputs, {NARROW: "video", **dict(self.views)})
        narrow_BF = self.narrow(inputs[NARROW])
        embeddings = {}
        for view, _ in self.views:
            broad_BF = self.backbone(view)(inputs[view])
            embeddings[f"z_{view}"], embeddings[f"h_{view}"] = self.head(view, broad_BF)
            z_BD, h_BD = self.head(NARROW, narrow_BF)
            embeddings[f"z_narrow_{view}"], embeddings[f"h_narrow_{view}"] = z_BD, h_BD
        return embeddings


def _share(trait: Mapping[str, Any], switch: bool) -> dict[str, str]:
    """Maps each view to the view whose network it uses: the first of equal trait, or itself."""
    if not switch:
        return {view: view for view in trait}
    return {view: next(v for v in trait if trait[v] == trait[view]) for view in trait}


def _settings(config: Any, view: str, kind: str) -> Any:
    return config.narrow if view == NARROW else config[kind]


def _backbone(config: Any, view: str, kind: str, *, dtype, remat: bool, rngs) -> nnx.Module:
    """Builds the backbone that the view's settings name."""
    settings = _settings(config, view, kind)
    offered = _AUDIO_BACKBONES if kind == "audio" else _VIDEO_BACKBONES
    if settings.backbone not in offered:
        key = NARROW if view == NARROW else kind
        raise UserError(
            f"config.model.{key}.backbone is {settings.backbone!r}; "
            f"it must be one of {', '.join(sorted(offered))}."
        )
    factory, keys = offered[settings.backbone]
    arguments = {key: settings[key] for key in keys}
    if kind in _CHANNELS:
        arguments["in_channels"] = _CHANNELS[kind]
    return factory(**arguments, dtype=dtype, remat=remat, rngs=rngs)


def _share_backbones(config: Any, modality: Mapping[str, str]) -> dict[str, str]:
    """Maps each view to the view whose backbone it uses, or says why the config cannot be meant."""
    if config.share_backbone not in ("none", "broad", "all"):
        raise UserError(
            f"config.model.share_backbone is {config.share_backbone!r}; "
            "it must be 'none', 'broad' or 'all'."
        )
    trait = dict(modality)
    if config.share_backbone == "broad":
        trait[NARROW] = NARROW
    backbone_of = _share(trait, config.share_backbone != "none")
    if config.share_backbone != "none" and len(set(backbone_of.values())) == len(modality):
        raise UserError(
            f"config.model.share_backbone is {config.share_backbone!r}, but no two of these views "
            f"have the same modality: {', '.join(v for v in trait if trait[v] != NARROW)}. "
            "Set it to 'none'."
        )
    if any(user != NARROW and name == NARROW for user, name in backbone_of.items()):
        _check_same_network(config)
    return backbone_of


def _check_same_network(config: Any) -> None:
    """Refuses to share one backbone between a narrow and a broad view that ask for two kinds."""
    _, keys = _VIDEO_BACKBONES.get(config.narrow.backbone, (None, ()))
    for key in ("backbone", "input", *keys):
        if config.narrow[key] != config.video[key]:
            raise UserError(
                "config.model.share_backbone is 'all', but the narrow and the broad video "
                f"backbone differ: narrow.{key} is {config.narrow[key]!r}, video.{key} is "
                f"{config.video[key]!r}. Make them equal or share among the 'broad' views only."
            )


def _check_inputs(inputs: Mapping[str, jax.Array], modality: Mapping[str, str]) -> None:
    """Checks that all views are there, of one batch size and of the shape their kind has."""
    missing = [view for view in modality if view not in inputs]
    if missing:
        raise UserError(f"The batch lacks {', '.join(missing)}; it has {', '.join(inputs)}.")
    batch = inputs[NARROW].shape[0]
    for view, kind in modality.items():
        shape = inputs[view].shape
        if kind == "audio":
            good, wanted = len(shape) == 3, "(batch, spectrogram frames, mel bins)"
        else:
            good = len(shape) == 5 and shape[-1] == _CHANNELS[kind]
            wanted = f"(batch, frames, height, width, {_CHANNELS[kind]})"
        if not good or shape[0] != batch:
            raise UserError(
                f"The {view} view has shape {shape}; it must be {wanted} with batch {batch}."
            )
