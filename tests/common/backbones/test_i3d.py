"""Size, shapes and forms of I3D."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from common import target
from common.backbones import inception
from common.backbones.i3d import I3D


def _abstract():
    return nnx.eval_shape(lambda: I3D(rngs=nnx.Rngs(0)))


def test_the_network_has_i3ds_number_of_parameters():
    params = nnx.state(_abstract(), nnx.Param)
    assert sum(x.size for x in jax.tree.leaves(params)) == 12_287_264


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sizes", "wanted"),
    [
        ((16, 224, 224), [(8, 112, 112), (8, 56, 56), (8, 28, 28), (4, 14, 14), (2, 7, 7)]),
        ((9, 75, 91), [(5, 38, 46), (5, 19, 23), (5, 10, 12), (3, 5, 6), (2, 3, 3)]),
    ],
    ids=["even", "odd"],
)
def test_feature_maps_halve_as_those_of_inception(sizes, wanted):
    model = _abstract()
    graphdef, variables = nnx.split(model)
    video = jax.ShapeDtypeStruct((1, *sizes, 3), jnp.float32)
    maps = jax.eval_shape(
        lambda variables, x: nnx.merge(graphdef, variables).endpoints(x), variables, video
    )
    assert "gating" not in maps
    names = ["conv1", "conv_2c", "mixed_3c", "mixed_4f", "mixed_5c"]
    channels = [64, 192, 480, 832, model.num_features]
    assert [maps[name].shape for name in names] == [
        (1, *size, c) for size, c in zip(wanted, channels, strict=True)
    ]
    assert model.num_features == 1024


@pytest.mark.slow
def test_both_forms_of_convolution_embed_alike(monkeypatch):
    monkeypatch.setattr(inception, "BLOCKS", {"mixed_5c": (8, 4, 8, 4, 8, 8)})
    video = jax.random.uniform(jax.random.key(0), (2, 5, 21, 18, 3))
    embeddings = []
    for convolution in ("joint", "folded", None):
        model = I3D(convolution, rngs=nnx.Rngs(0))
        embeddings.append(nnx.jit(lambda model, x: model(x))(model, video))
    for embedding in embeddings[1:]:
        assert embedding.shape == (2, 32)
        np.testing.assert_allclose(embedding, embeddings[0], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(6, 16, 24), (5, 14, 18)], ids=["pooled apart", "whole"])
def test_the_forms_for_tpus_embed_alike(size, monkeypatch):
    monkeypatch.setattr(
        inception, "BLOCKS", dict.fromkeys(("mixed_3b", "mixed_5c"), (8, 4, 8, 4, 8, 8))
    )
    video = jax.random.uniform(jax.random.key(0), (2, *size, 3))
    graphdef, variables = nnx.split(I3D(rngs=nnx.Rngs(0)))
    embeddings = []
    for platform in ("cpu", "tpu"):
        with target.described(platform), target.sharing(8):
            embed = jax.jit(lambda variables, x: nnx.merge(graphdef, variables)(x))
            embeddings.append(embed(variables, video))
    np.testing.assert_allclose(*embeddings, rtol=1e-4, atol=1e-5)
