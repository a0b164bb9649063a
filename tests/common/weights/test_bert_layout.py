"""The published layouts of BERT and DistilBERT: names, shapes, way in and way out."""

import jax
import numpy as np
import pytest
import text_golden
from flax import nnx

from common.errors import UserError
from common.weights import bert_layout, torch_layout

PACK = text_golden.PACK
PREFIX = {"small": "text_model.", "bert": "bert.", "full": "module.text_model."}
BESIDE = ("txt_proj", "pooler")  # what the checkpoints hold that is not of the network


def _published(checkpoint, prefix=None):
    """The network's tensors of a checkpoint, behind another prefix where one is given."""
    old = PREFIX[checkpoint]
    return {
        key.replace(old, old if prefix is None else prefix, 1): value
        for key, value in PACK.flat_checkpoint(checkpoint).items()
        if not any(name in key for name in BESIDE)
    }


@pytest.mark.parametrize(
    "checkpoint", ["small", "bert", pytest.param("full", marks=pytest.mark.slow)]
)
def test_what_is_written_is_what_was_read(checkpoint):
    model = text_golden.abstract(checkpoint)
    published = PACK.flat_checkpoint(checkpoint)
    unread = bert_layout.read(model, published, checkpoint)
    assert unread == sorted(key for key in published if any(name in key for name in BESIDE))
    written = torch_layout.write(bert_layout.layers_of(model, PREFIX[checkpoint]))
    assert list(written) == list(_published(checkpoint))
    for key, value in written.items():
        assert value.dtype == published[key].dtype, key
        np.testing.assert_array_equal(value, published[key], err_msg=key)


@pytest.mark.parametrize("checkpoint", ["small", "bert"])
def test_the_layers_are_all_of_the_network(checkpoint):
    model = text_golden.abstract(checkpoint)
    listed = {id(v) for layer in bert_layout.layers_of(model) for v, _ in layer.variables()}
    assert listed == {id(v) for _, v in nnx.iter_graph(model) if isinstance(v, nnx.Variable)}


@pytest.mark.parametrize("checkpoint", ["small", "bert"])
@pytest.mark.parametrize("prefix", ["", "distilbert.", "bert.", "text_model.", "0.auto_model."])
def test_any_prefix_is_found_and_other_tensors_are_named(checkpoint, prefix):
    model, published = text_golden.abstract(checkpoint), _published(checkpoint, prefix)
    heads = {"vocab_transform.weight", "cls.predictions.bias", f"{prefix}pooler.dense.bias"}
    ids = {f"{prefix}embeddings.position_ids": np.arange(40)[None]}
    unread = bert_layout.read(model, published | ids | dict.fromkeys(heads, np.zeros(3)), "a.bin")
    assert unread == sorted(heads)
    key = f"{prefix}embeddings.word_embeddings.weight"
    np.testing.assert_array_equal(model.words[...], published[key])


def test_norms_by_their_old_names_are_read():
    def old(key):
        for new, name in ((".weight", ".gamma"), (".bias", ".beta")):
            key = key.replace(f"LayerNorm{new}", f"LayerNorm{name}")
        return key

    published = {old(key): value for key, value in _published("bert").items()}
    assert sum(key.endswith("LayerNorm.gamma") for key in published) == 5
    model = text_golden.abstract("bert")
    head = {"cls.predictions.transform.LayerNorm.gamma": np.zeros(3)}
    assert bert_layout.read(model, published | head, "a.bin") == list(head)
    written = torch_layout.write(bert_layout.layers_of(model, "bert."))
    np.testing.assert_array_equal(
        written["bert.encoder.layer.1.output.LayerNorm.weight"],
        published["bert.encoder.layer.1.output.LayerNorm.gamma"],
    )


def _without(part):
    return lambda file: {key: value for key, value in file.items() if part not in key}


@pytest.mark.parametrize(
    ("model", "published", "change", "message"),
    [
        ("small", "bert", lambda f: f, r"a\.bin holds a BERT, the config describes a DistilBERT"),
        ("bert", "small", lambda f: f, r"a\.bin holds a DistilBERT, the config describes a BERT"),
        ("small", "small", _without("layer.1."), "a.bin has 1 layers, the text network 2"),
        ("bert", "bert", _without(".layer."), "a.bin has 0 layers, the text network 2"),
        ("small", "small", _without("lin2.bias"), r"layer\.0\.ffn\.lin2\.bias is missing"),
        ("small", "small", _without("word_embeddings"), "this file has none"),
        (
            "small",
            "small",
            lambda f: f | {"x.embeddings.word_embeddings.weight": np.zeros(3)},
            r"this file has 2 of them \('text_model\.', 'x\.'\)",
        ),
        (
            "small",
            "small",
            lambda f: f | {"text_model.embeddings.word_embeddings.weight": np.zeros((99, 48))},
            r"word_embeddings\.weight has shape \(99, 48\).*needs \(120, 48\)",
        ),
    ],
)
def test_a_file_of_another_network_is_refused_before_anything_changes(
    model, published, change, message
):
    ours = text_golden.abstract(model)
    with pytest.raises(UserError, match=message):
        bert_layout.read(ours, change(_published(published)), "a.bin")
    assert isinstance(ours.norm.scale.get_value(), jax.ShapeDtypeStruct)
