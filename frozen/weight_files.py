"""What a file of weights holds, by the names and shapes of its tensors."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from common.errors import UserError
from common.weights import safe_pickle, tensor_file, torch_file

WORDS = "embeddings.word_embeddings.weight"  # of every BERT and DistilBERT
PROJECTIONS = {"text_projection": "txt_proj.1", "video_projection": "vid_proj.0"}

Tensors = Mapping[str, np.ndarray]
_NESTED = ("state_dict", "model")  # below which files of trainers have their tensors
# Where a text network's layers are, and the first dense layer of the perceptron of the first one.
_TEXTS = {
    "transformer.layer": "transformer.layer.0.ffn.lin1.weight",
    "encoder.layer": "encoder.layer.0.intermediate.dense.weight",
}


class Image(NamedTuple):
    """How an image network of a kind is known and where its sizes show; all below `prefix`."""

    kind: str
    mark: str  # the name by which it is known
    patches: str
    positions: str
    blocks: str
    eps: float  # of norms, which no file says
    pre_norm: str = ""
    prefix: str = ""

    @property
    def is_clip(self) -> bool:
        """Whether it was trained as a part of a CLIP."""
        return "CLIP" in self.kind


_IMAGES = (
    Image(
        "a ViT as timm names it", "patch_embed.proj.weight", "patch_embed.proj.weight",
        "pos_embed", "blocks", 1e-6, "norm_pre.weight",
    ),
    Image(
        "a ViT of Hugging Face", "embeddings.patch_embeddings.projection.weight",
        "embeddings.patch_embeddings.projection.weight", "embeddings.position_embeddings",
        "encoder.layer", 1e-12,
    ),
    Image(
        "a CLIP of Hugging Face", "embeddings.patch_embedding.weight",
        "embeddings.patch_embedding.weight", "embeddings.position_embedding.weight",
        "encoder.layers", 1e-5, "pre_layrnorm.weight",
    ),
    Image(
        "a CLIP of OpenAI", "class_embedding", "conv1.weight", "positional_embedding",
        "transformer.resblocks", 1e-5, "ln_pre.weight",
    ),
)  # fmt: skip


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Returns the tensors of a file by name; objects of other kinds beside them are left out.

    Args:
        path: a .safetensors file, or a .bin, .pth, .pt or .pth.tar of PyTorch that holds tensors
            by name at the top, under "state_dict" or under "model". No code in it is executed.

    Raises:
        UserError: there is no such file, it is damaged or of another kind, or holds no tensors.
    """
    if not os.fspath(path).lower().endswith(torch_file.ENDINGS):
        return tensor_file.load(path)
    contents = torch_file.load(path, placeholders=True)
    if isinstance(contents, safe_pickle.Unknown) and contents.name.startswith("__torch__"):
        raise UserError(
            f"{path} is a TorchScript archive, which holds a program and not only weights. Save "
            "those with PyTorch: torch.save(torch.jit.load(path).state_dict(), 'weights.pth')."
        )
    for name in _NESTED:
        if isinstance(contents, Mapping) and isinstance(contents.get(name), Mapping):
            contents = contents[name]
    items = contents.items() if isinstance(contents, Mapping) else ()
    found = {k: v for k, v in items if isinstance(k, str) and isinstance(v, np.ndarray)}
    if not found:
        raise UserError(
            f"{path} holds no tensors by name, neither at the top nor under "
            f"{' or '.join(map(repr, _NESTED))}."
        )
    return found


def outer_prefix(tensors: Tensors) -> str:
    """What PyTorch's data parallelism put before every name of a file: "module." or nothing."""
    return "module." if any(key.startswith("module.") for key in tensors) else ""


def image(tensors: Tensors) -> Image | None:
    """The image network of a file, if it holds one of a known kind."""
    for known in _IMAGES:
        for key in tensors:
            if f".{key}".endswith(f".{known.mark}"):
                return known._replace(prefix=key.removesuffix(known.mark))
    return None


def text_prefix(tensors: Tensors) -> str | None:
    """What stands before the names of a file's text network; None where it holds none."""
    return next((key.removesuffix(WORDS) for key in tensors if key.endswith(WORDS)), None)


def sizes(tensors: Tensors) -> dict[str, Any]:
    """The keys of ``config.model`` that a file's networks need, as far as tensors show them.

    "text.pieces" is how many word pieces there are; the key of the configuration names their file.
    """
    found: dict[str, Any] = {}
    for setting, key, axis in _places(tensors):
        shape = np.shape(tensors.get(key, 0))
        if -len(shape) <= axis < len(shape):
            found.setdefault(setting, shape[axis])
    seen, text = image(tensors), text_prefix(tensors)
    if seen is not None:
        found["video.depth"] = _depth(tensors, seen.prefix + seen.blocks)
        found["video.pre_norm"] = bool(seen.pre_norm) and seen.prefix + seen.pre_norm in tensors
    if text is not None:
        found["text.depth"] = max(_depth(tensors, text + layers) for layers in _TEXTS)
        found.setdefault("text.token_types", 0)
    return found


def sizes_of(model: Any) -> dict[str, Any]:
    """The same of a `frozen.model.FrozenModel`."""
    video, text = model.video, model.text
    return {
        "embedding_dim": model.video_projection.kernel.shape[1],
        "video.width": video.num_features,
        "video.patch": video.patches.patch,
        "video.depth": len(video.blocks),
        "video.pre_norm": video.pre_norm is not None,
        "text.pieces": text.words.shape[0],
        "text.width": text.words.shape[1],
        "text.depth": len(text.layers),
        "text.hidden": text.layers[0].mlp_in.kernel.shape[1],
        "text.positions": text.positions.shape[0],
        "text.token_types": 0 if text.types is None else text.types.shape[0],
    }


def _places(tensors: Tensors) -> Iterator[tuple[str, str, int]]:
    """Settings with the tensor and axis whose length they are."""
    for module in PROJECTIONS.values():
        yield "embedding_dim", f"{outer_prefix(tensors)}{module}.weight", 0
    seen, text = image(tensors), text_prefix(tensors)
    if seen is not None:
        yield "video.width", seen.prefix + seen.patches, 0
        yield "video.patch", seen.prefix + seen.patches, -1
    if text is not None:
        yield "text.pieces", text + WORDS, 0
        yield "text.width", text + WORDS, 1
        yield "text.positions", f"{text}embeddings.position_embeddings.weight", 0
        yield "text.token_types", f"{text}embeddings.token_type_embeddings.weight", 0
        for hidden in _TEXTS.values():
            yield "text.hidden", text + hidden, 0


def _depth(tensors: Tensors, layers: str) -> int:
    pattern = re.compile(rf"{re.escape(layers)}\.(\d+)\.")
    return len({match[1] for key in tensors if (match := pattern.match(key))})
