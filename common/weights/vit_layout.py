"""ViTs of five kinds of files in, and the video network of Frozen in Time out as well.

What a file holds shows in the name of its patch embedding:

- Frozen in Time and timm name everything alike; a timm ViT lacks all that is about time, which then
  stays as it is: a fresh network.
- Hugging Face's ViT keeps queries, keys and values apart (give the network eps=1e-12).
- OpenAI's CLIP and Hugging Face's copies of it (pre_norm=True, eps=1e-5; activation="quick_gelu"
  for OpenAI's weights, while some that others trained have "gelu", which no file says). They have
  no bias of patches: it becomes zero.

Classifiers, pooling layers, projections and text towers are left unread.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from common.backbones.divided_attention import DividedAttention
from common.backbones.inception import chosen
from common.backbones.space_time_transformer import SpaceTimeTransformer, resize_positions
from common.errors import UserError
from common.weights import torch_layout
from common.weights.torch_layout import Kernel, Layer, Published, Table

TEMPORAL_RESIZES = ("zeros", "interp", "bilinear")


class _Names(NamedTuple):
    """What a kind of file calls the parts of an image network."""

    patches: str
    class_token: str
    leading: bool  # whether class token and positions have axes of length one in front
    positions: str
    pre_norm: str
    norm: str
    blocks: str
    parts: tuple[str, ...]  # of a block: norm, attention's input and output, norm, perceptron


_TIMM = _Names(
    patches="patch_embed.proj",
    class_token="cls_token",
    leading=True,
    positions="pos_embed",
    pre_norm="norm_pre",
    norm="norm",
    blocks="blocks",
    parts=("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"),
)
_HUGGING_FACE = _Names(
    patches="embeddings.patch_embeddings.projection",
    class_token="embeddings.cls_token",
    leading=True,
    positions="embeddings.position_embeddings",
    pre_norm="",
    norm="layernorm",
    blocks="encoder.layer",
    parts=(
        "layernorm_before",
        "attention.attention.{query,key,value}",
        "attention.output.dense",
        "layernorm_after",
        "intermediate.dense",
        "output.dense",
    ),
)
_HUGGING_FACE_CLIP = _Names(
    patches="embeddings.patch_embedding",
    class_token="embeddings.class_embedding",
    leading=False,
    positions="embeddings.position_embedding.weight",
    pre_norm="pre_layrnorm",  # so it is spelt in the files
    norm="post_layernorm",
    blocks="encoder.layers",
    parts=(
        "layer_norm1",
        "self_attn.{q_proj,k_proj,v_proj}",
        "self_attn.out_proj",
        "layer_norm2",
        "mlp.fc1",
        "mlp.fc2",
    ),
)
_CLIP = _Names(
    patches="conv1",
    class_token="class_embedding",
    leading=False,
    positions="positional_embedding",
    pre_norm="ln_pre",
    norm="ln_post",
    blocks="transformer.resblocks",
    parts=("ln_1", "attn.in_proj", "attn.out_proj", "ln_2", "mlp.c_fc", "mlp.c_proj"),
)
# By what shows the kind: CLIP has other tensors called "conv1" than that of its ViTs.
_KINDS = {
    "patch_embed.proj.weight": _TIMM,
    "embeddings.patch_embeddings.projection.weight": _HUGGING_FACE,
    "embeddings.patch_embedding.weight": _HUGGING_FACE_CLIP,
    "class_embedding": _CLIP,
}


def layers_of(network: SpaceTimeTransformer, prefix: str = "video_model.") -> list[Layer]:
    """Layers of the network in the published order of Frozen in Time, their keys below `prefix`."""
    return list(_layers(network, _TIMM, prefix, in_time=True))


def read(
    network: SpaceTimeTransformer,
    published: Published,
    source: str,
    temporal_resize: str = "zeros",
) -> list[str]:
    """Fills a network with the weights of any of the five kinds of files.

    Everything is checked before anything is changed. Positions of another square of patches are
    interpolated by `resize_positions`, those of another number of frames by `resize_times`.

    Args:
        network: changed in place.
        published: tensors by name; whatever is in front of the names is found by itself.
        source: what to call the file in messages.
        temporal_resize: see `resize_times`.

    Returns:
        Sorted keys that were not used; joint tensors of queries, keys and values that were are not
        among them.

    Raises:
        UserError: no ViT of a known kind is in the file, or one that does not fit the network.
    """
    names, prefix = _kind(published, source)
    tensors = _joined(published, names, source)
    in_time = f"{prefix}temporal_embed" in tensors
    layers = list(_layers(network, names, prefix, in_time))
    if network.pre_norm is not None:  # such networks have no bias here
        bias_D = np.zeros(network.num_features, np.float32)
        tensors.setdefault(f"{prefix}{names.patches}.bias", bias_D)
    _check_parts(network, names, prefix, tensors, layers, source)
    _check_tables(names, prefix, in_time, tensors, source)
    _fit_positions(network, prefix + names.positions, tensors, source)
    if in_time:
        times = tensors[f"{prefix}temporal_embed"]
        tensors[f"{prefix}temporal_embed"] = resize_times(
            times, network.num_frames, temporal_resize
        )
    return torch_layout.read(layers, tensors, source)


def resize_times(times_1FD: np.ndarray, num_frames: int, how: str = "zeros") -> np.ndarray:
    """Fits positions in time to another number of frames, as Frozen in Time does on loading.

    Of more frames, the first ones are kept.

    Args:
        times_1FD: (1, F, D).
        num_frames: how many to have.
        how: what fewer frames become: "zeros" puts zeros behind them, "interp" repeats the nearest
            one, "bilinear" interpolates between neighbours.

    Returns:
        (1, num_frames, D), in the same dtype.

    Raises:
        UserError: `how` is none of the three.
    """
    chosen("temporal_resize", how, TEMPORAL_RESIZES)
    frames = times_1FD.shape[1]
    if num_frames <= frames:
        return times_1FD[:, :num_frames]
    if how == "zeros":
        return np.pad(times_1FD, ((0, 0), (0, num_frames - frames), (0, 0)))
    if how == "interp":
        return times_1FD[:, np.arange(num_frames) * frames // num_frames]
    at = np.clip((np.arange(num_frames) + 0.5) * frames / num_frames - 0.5, 0, frames - 1)
    before = np.floor(at).astype(int)
    after = np.minimum(before + 1, frames - 1)
    share = (at - before)[:, None].astype(times_1FD.dtype)
    return times_1FD[:, before] * (1 - share) + times_1FD[:, after] * share


def _layers(
    network: SpaceTimeTransformer, names: _Names, prefix: str, in_time: bool
) -> Iterator[Layer]:
    """Layers in the order of Frozen in Time; without `in_time` those of the image network."""
    leading = int(names.leading)
    yield Table(network.class_D, prefix + names.class_token, 2 * leading)
    yield Table(network.positions, prefix + names.positions, leading)
    if in_time:
        yield Table(network.times, f"{prefix}temporal_embed", 1)
    yield Layer(network.patches, prefix + names.patches)
    if network.pre_norm is not None:
        yield Layer(network.pre_norm, prefix + names.pre_norm)
    for number, block in enumerate(network.blocks):
        path = f"{prefix}{names.blocks}.{number}."
        norm1, qkv, output, norm2, mlp_in, mlp_out = (path + part for part in names.parts)
        yield Layer(block.space_norm, norm1)
        yield from _attention(block.space, qkv, output)
        if in_time:
            yield from _attention(block.time, f"{path}timeattn.qkv", f"{path}timeattn.proj")
        yield Layer(block.mlp_norm, norm2)
        yield Layer(block.mlp_in, mlp_in)
        yield Layer(block.mlp_out, mlp_out)
        if in_time:
            yield Layer(block.time_norm, f"{path}norm3")
    yield Layer(network.norm, prefix + names.norm)


def _attention(attention: DividedAttention, qkv: str, output: str) -> Iterator[Layer]:
    # PyTorch's own attention has no dense layer there, only a tensor called in_proj_weight.
    point = "_" if qkv.endswith("in_proj") else "."
    yield Kernel(attention.qkv.kernel, f"{qkv}{point}weight")
    yield Kernel(attention.qkv.bias, f"{qkv}{point}bias")
    yield Layer(attention.output, output)


def _kind(published: Published, source: str) -> tuple[_Names, str]:
    """How the file names its parts, and what is in front of all names."""
    for mark, names in _KINDS.items():
        prefixes = [k.removesuffix(mark) for k in published if f".{k}".endswith(f".{mark}")]
        if len(prefixes) > 1:
            raise UserError(
                f"{source} holds several image networks, below {', '.join(map(repr, prefixes))}. "
                "Give the tensors of one alone."
            )
        if prefixes:
            return names, prefixes[0]
    raise UserError(
        f"{source} holds no ViT of a known kind: none of its keys ends in "
        f"{', '.join(map(repr, _KINDS))}. Frozen in Time, timm, Hugging Face's ViT and CLIP, and "
        "OpenAI's CLIP have one of them."
    )


def _joined(published: Published, names: _Names, source: str) -> dict[str, np.ndarray]:
    """The file, with queries, keys and values that it keeps apart one below the other.

    Raises:
        UserError: they are of shapes that cannot be put together.
    """
    tensors = dict(published)
    before, brace, after = names.parts[1].partition("{")
    if not brace:
        return tensors
    parts = after.removesuffix("}").split(",")
    for key in published:
        path, found, leaf = key.rpartition(f"{before}{parts[0]}.")
        apart = [f"{path}{before}{part}.{leaf}" for part in parts]
        if found and all(k in tensors for k in apart):
            shapes = [np.shape(tensors[k]) for k in apart]
            if not shapes[0] or len(set(shapes)) > 1:
                raise UserError(
                    f"{source}: {', '.join(apart)} have the shapes "
                    f"{', '.join(map(str, shapes))}; these must be equal, and of one or two axes."
                )
            joint = np.concatenate([tensors.pop(k) for k in apart])
            tensors[f"{path}{names.parts[1]}.{leaf}"] = joint
    return tensors


def _check_parts(
    network: SpaceTimeTransformer,
    names: _Names,
    prefix: str,
    tensors: Published,
    layers: Sequence[Layer],
    source: str,
) -> None:
    """Raises `UserError` where the file's network has a part that ours lacks, or the reverse."""
    normalised = bool(names.pre_norm) and f"{prefix}{names.pre_norm}.weight" in tensors
    if normalised != (network.pre_norm is not None):
        raise UserError(
            f"{source} {'normalises' if normalised else 'does not normalise'} tokens before the "
            f"first block, unlike the network. Build it with pre_norm={normalised}; CLIP's has "
            "pre_norm=True, eps=1e-5 and mostly activation='quick_gelu', others have none of that."
        )
    known = {key for layer in layers for _, key in layer.variables()}
    missing = sorted(known - set(tensors))
    if missing:
        raise UserError(
            f"{source}: {missing[0]} is missing ({len(missing)} such tensors). Kind and depth of "
            "the network must be those of the file."
        )
    other = sorted(
        key
        for key in tensors
        if key not in known
        and key.startswith(prefix)
        and (key.startswith(f"{prefix}{names.blocks}.") or "token" in key.removeprefix(prefix))
    )
    if other:
        raise UserError(
            f"{source}: {other[0]} has no place in a network of {len(network.blocks)} blocks "
            f"({len(other)} such tensors). Its depth must be that of the file, and the file's "
            "blocks and tokens those of a plain ViT."
        )


def _check_tables(
    names: _Names, prefix: str, in_time: bool, tensors: Published, source: str
) -> None:
    """Raises `UserError` where class token or positions have other axes than they are used with."""
    led = (1,) * names.leading
    tables = [
        (names.class_token, 2 * led, 1, "the width of the network, of one token"),
        (names.positions, led, 2, "a row for the class token and for each patch, and the width"),
    ]
    if in_time:
        tables.append(("temporal_embed", (1,), 2, "a row for each frame, and the width"))
    for name, leading, axes, what in tables:
        shape = np.shape(tensors[prefix + name])
        ahead, rest = shape[: len(leading)], shape[len(leading) :]
        if ahead != leading or len(rest) != axes or 0 in rest:
            ones = f"{len(leading)} of length one and then " if leading else ""
            raise UserError(
                f"{source}: {prefix}{name} has shape {shape}; it must have {len(leading) + axes} "
                f"axes, {ones}{what}, none of them empty."
            )


def _fit_positions(
    network: SpaceTimeTransformer, key: str, tensors: dict[str, np.ndarray], source: str
) -> None:
    """Interpolates positions of another square of patches than the network's."""
    *leading, rows, width = tensors[key].shape
    if rows == len(network.positions) or width != network.num_features:
        return  # another width is refused later, with the shape that the file has
    if rows < 2 or math.isqrt(rows - 1) ** 2 != rows - 1:
        raise UserError(
            f"{source}: {key} has {rows} rows, which is not one and a square of patches; only such "
            "positions can be interpolated."
        )
    side = math.isqrt(len(network.positions) - 1)
    positions_PD = np.asarray(tensors[key], np.float32).reshape(rows, width)
    fitting_PD = np.asarray(resize_positions(positions_PD, (side, side)))
    tensors[key] = fitting_PD.reshape(*leading, -1, width)
