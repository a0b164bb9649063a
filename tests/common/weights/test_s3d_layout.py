"""The published S3D layout: names, shapes, way in and way out."""

from __future__ import annotations

import golden_rules
import jax
import numpy as np
import pytest
from flax import nnx

from common.backbones.s3d import S3D
from common.errors import UserError
from common.weights import s3d_layout, torch_layout

PACK = golden_rules.Pack("mil_nce")
PREFIX = {"s2d": "", "plain": "module."}


def _model(checkpoint):
    stem = PACK.manifest["checkpoints"][checkpoint]["stem"]
    return nnx.eval_shape(lambda: S3D(stem, rngs=nnx.Rngs(0)))


def _published(checkpoint):
    return PACK.flat_checkpoint(checkpoint, without="text_module")


@pytest.mark.slow
@pytest.mark.parametrize("checkpoint", PREFIX)
def test_what_is_written_is_what_was_read(checkpoint):
    published, prefix = _published(checkpoint), PREFIX[checkpoint]
    layers = s3d_layout.layers_of(_model(checkpoint), prefix)
    left = torch_layout.read(layers, published, checkpoint)
    assert left == [f"{prefix}fc.bias", f"{prefix}fc.weight"]
    written = torch_layout.write(layers)
    assert [*written, f"{prefix}fc.weight", f"{prefix}fc.bias"] == list(published)
    for key, value in written.items():
        assert value.dtype == published[key].dtype, key
        np.testing.assert_array_equal(value, published[key], err_msg=key)


def test_the_layers_are_all_of_the_network():
    model = _model("plain")
    listed = {id(v) for layer in s3d_layout.layers_of(model) for v, _ in layer.variables()}
    assert listed == {id(v) for _, v in nnx.iter_graph(model) if isinstance(v, nnx.Variable)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: file.pop("gating.fc.weight"), r"a\.pth: gating\.fc\.weight is missing"),
        (
            lambda file: file.update({"conv1.conv1.weight": np.zeros((64, 3, 3, 7, 7))}),
            r"conv1\.conv1\.weight has shape \(64, 3, 3, 7, 7\).*needs \(2, 4, 4, 24, 64\)",
        ),
    ],
    ids=["missing", "other_stem"],
)
def test_a_file_of_another_model_is_refused_before_anything_changes(change, message):
    published = dict(_published("s2d"))
    change(published)
    model = _model("s2d")
    with pytest.raises(UserError, match=message):
        torch_layout.read(s3d_layout.layers_of(model), published, "a.pth")
    assert isinstance(model.conv1.norms[0].scale.get_value(), jax.ShapeDtypeStruct)
