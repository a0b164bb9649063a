"""BERT and DistilBERT as Hugging Face publishes them: which of our modules is which tensor.

Files of models that contain one, such as heads for other tasks, sentence encoders (MiniLM) and
Frozen in Time, have the same names behind a prefix.
"""

from __future__ import annotations

import re

from common.backbones.bert import Bert
from common.backbones.bert import Layer as BertLayer
from common.errors import UserError
from common.weights import torch_layout
from common.weights.torch_layout import Layer, Published, Table

_WORDS = "embeddings.word_embeddings.weight"
_POSITION_IDS = "embeddings.position_ids"  # 0, 1, 2, ...: no weights
# Of each kind: where its layers are and what is in one, in the order of the attributes below.
_ATTRIBUTES = (
    "query", "key", "value", "output", "attention_norm", "mlp_in", "mlp_out", "mlp_norm",
)  # fmt: skip
_LAYERS = {"BERT": "encoder.layer", "DistilBERT": "transformer.layer"}
_NAMES = {
    "BERT": (
        "attention.self.query", "attention.self.key", "attention.self.value",
        "attention.output.dense", "attention.output.LayerNorm",
        "intermediate.dense", "output.dense", "output.LayerNorm",
    ),
    "DistilBERT": (
        "attention.q_lin", "attention.k_lin", "attention.v_lin",
        "attention.out_lin", "sa_layer_norm",
        "ffn.lin1", "ffn.lin2", "output_layer_norm",
    ),
}  # fmt: skip
_OLD_NORMS = {".gamma": ".weight", ".beta": ".bias"}  # as files converted in 2018 and 2019 have


def layers_of(model: Bert, prefix: str = "") -> list[Layer]:
    """Layers of the network in the published order, their keys below `prefix`.

    A network with token types is named as BERT, one without as DistilBERT.
    """
    beginning = f"{prefix}embeddings"
    layers: list[Layer] = [
        Table(model.words, f"{prefix}{_WORDS}"),
        Table(model.positions, f"{beginning}.position_embeddings.weight"),
    ]
    if model.types is not None:
        layers.append(Table(model.types, f"{beginning}.token_type_embeddings.weight"))
    layers.append(Layer(model.norm, f"{beginning}.LayerNorm"))
    kind = _kind(model)
    for number, layer in enumerate(model.layers):
        layers += _layer(layer, f"{prefix}{_LAYERS[kind]}.{number}", kind)
    return layers


def read(model: Bert, published: Published, source: str) -> list[str]:
    """Fills the network with published tensors, behind whatever prefix they are.

    Everything is checked before anything is changed, but for the number of heads, which the shapes
    do not show.

    Args:
        model: the network.
        published: tensors by name; may hold more than the network, such as heads and poolers.
        source: what to call the file in messages.

    Returns:
        Sorted keys of the published tensors that were not used.

    Raises:
        UserError: there is no such network in the mapping, several are, or its kind or sizes are
            others.
    """
    renamed = {_current(key): key for key in published}
    tensors = {name: published[key] for name, key in renamed.items()}
    prefix = _prefix(tensors, source)
    _check_kind(model, tensors, prefix, source)
    unread = torch_layout.read(layers_of(model, prefix), tensors, source)
    return sorted(renamed[name] for name in unread if name != f"{prefix}{_POSITION_IDS}")


def _layer(layer: BertLayer, module: str, kind: str) -> list[Layer]:
    names = zip(_ATTRIBUTES, _NAMES[kind], strict=True)
    return [Layer(getattr(layer, ours), f"{module}.{name}") for ours, name in names]


def _kind(model: Bert) -> str:
    return "DistilBERT" if model.types is None else "BERT"


def _current(key: str) -> str:
    for old, new in _OLD_NORMS.items():
        if key.endswith(f"LayerNorm{old}"):
            return key.removesuffix(old) + new
    return key


def _prefix(published: Published, source: str) -> str:
    """What comes before the names of the network."""
    found = [key.removesuffix(_WORDS) for key in published if key.endswith(_WORDS)]
    if len(found) != 1:
        count = f"{len(found)} of them ({', '.join(map(repr, found))})" if found else "none"
        raise UserError(
            f"{source}: a BERT or DistilBERT has one tensor whose name ends in {_WORDS}; this file "
            f"has {count}."
        )
    return found[0]


def _check_kind(model: Bert, published: Published, prefix: str, source: str) -> None:
    depths = {
        kind: len({m[1] for key in published if (m := re.match(pattern, key))})
        for kind, pattern in (
            (kind, rf"{re.escape(f'{prefix}{layers}')}\.(\d+)\.")
            for kind, layers in _LAYERS.items()
        )
    }
    other = next(kind for kind in _LAYERS if kind != _kind(model))
    if depths[other]:
        raise UserError(
            f"{source} holds a {other}, the config describes a {_kind(model)}: "
            "BERT has token types (2), DistilBERT none (0)."
        )
    if depths[_kind(model)] != len(model.layers):
        raise UserError(
            f"{source} has {depths[_kind(model)]} layers, the text network {len(model.layers)}; "
            "its depth in the config must be that of the file."
        )
