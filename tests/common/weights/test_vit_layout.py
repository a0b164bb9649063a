"""Weights of image and video transformers: five kinds of files in, one out."""

from __future__ import annotations

import golden_rules
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import example, given, settings
from hypothesis import strategies as st

from common.backbones.space_time_transformer import SpaceTimeTransformer, resize_positions
from common.errors import UserError
from common.weights import torch_layout, vit_layout

FROZEN, VIT = golden_rules.Pack("frozen"), golden_rules.Pack("vit")
SMALL = {"size": 64, "width": 64, "depth": 3, "heads": 4}
OTHER = {"size": 64, "width": 32, "depth": 2, "heads": 4, "mlp_ratio": 2.0}
CLIP = {"pre_norm": True, "activation": "quick_gelu", "eps": 1e-5}


def _abstract(**options):
    return nnx.eval_shape(lambda: SpaceTimeTransformer(**options, rngs=nnx.Rngs(0)))


def _begun(**options):
    """A network as training begins with it; compiled, which is quicker."""
    return nnx.jit(lambda: SpaceTimeTransformer(**options, rngs=nnx.Rngs(0)))()


def _frozen():
    return dict(FROZEN.flat_checkpoint("small", without="text_model"))


def _hugging_face():
    return dict(VIT.flat_checkpoint("hf_vit"))


def _clip():
    return dict(VIT.flat_checkpoint("hf_clip"))


def _openai(hugging_face):
    """Hugging Face's copy of a CLIP in OpenAI's own names."""
    stem = {
        "embeddings.class_embedding": "class_embedding",
        "embeddings.patch_embedding.weight": "conv1.weight",
        "embeddings.position_embedding.weight": "positional_embedding",
    }
    parts = {
        "encoder.layers": "transformer.resblocks",
        "pre_layrnorm": "ln_pre",
        "post_layernorm": "ln_post",
        "layer_norm": "ln_",
        "self_attn.out_proj": "attn.out_proj",
        "fc1": "c_fc",
        "fc2": "c_proj",
    }
    found, apart = {}, {}
    for key, value in hugging_face.items():
        key = key.removeprefix("vision_model.")
        key = stem.get(key, key)
        for theirs, openai in parts.items():
            key = key.replace(theirs, openai)
        path, attention, leaf = key.partition("self_attn.")
        if attention:
            part, leaf = leaf.split("_proj.")
            apart.setdefault(f"{path}attn.in_proj_{leaf}", {})[part] = value
        else:
            found[key] = value
    joint = {key: np.concatenate([of[p] for p in "qkv"]) for key, of in apart.items()}
    text = {"token_embedding.weight": np.zeros((5, 8)), "transformer.resblocks.0.ln_1.weight": 1}
    return {f"visual.{k}": v for k, v in (found | joint).items()} | text


def _embedding(model, case):
    """The network on the image of a case, in float64."""
    graphdef, variables = nnx.split(model)
    with golden_rules.x64():
        variables = jax.tree.map(lambda x: x.astype("float64"), variables)
        image = jnp.asarray(VIT.inputs(case)["image"], "float64")
        return jax.jit(lambda v, x: nnx.merge(graphdef, v)(x))(variables, image)


def test_what_is_written_is_what_was_read():
    published, model = _frozen(), _abstract(**SMALL)
    left = vit_layout.read(model, published, "small")
    assert left == [
        f"{p}.{leaf}" for p in ("txt_proj.1", "vid_proj.0") for leaf in ("bias", "weight")
    ]
    written = torch_layout.write(vit_layout.layers_of(model))
    assert list(written) == [key for key in published if key.startswith("video_model.")]
    for key, value in written.items():
        np.testing.assert_array_equal(value, published[key], err_msg=key)


def test_the_layers_are_all_of_the_network_with_the_released_names():
    model = _abstract()
    listed = {id(v): k for layer in vit_layout.layers_of(model) for v, k in layer.variables()}
    assert listed.keys() == {id(v) for _, v in nnx.iter_graph(model) if isinstance(v, nnx.Variable)}
    entries = FROZEN.manifest["checkpoints"]["full"]["entries"]
    released = [entry[0] for entry in entries if "video_model" in entry[0]]
    assert [f"module.{key}" for key in listed.values()] == released


@pytest.mark.parametrize("prefix", ["", "module.", "model.encoder."])
def test_what_is_in_front_of_all_names_does_not_matter(prefix):
    model = _abstract(**SMALL)
    vit_layout.read(model, {prefix + key: value for key, value in _frozen().items()}, "small")
    times = _frozen()["video_model.temporal_embed"][0]
    np.testing.assert_array_equal(model.times[...], times)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["hf_vit", "hf_vit_large_image"])
def test_a_vit_of_hugging_face_embeds_images_as_there(case):
    model = _begun(**OTHER, eps=1e-12)
    left = vit_layout.read(model, _hugging_face(), "vit")
    assert left == ["vit.pooler.dense.bias", "vit.pooler.dense.weight"]
    assert golden_rules.error_of_max(_embedding(model, case), VIT.stored(case)["cls"]) < 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("names", ["hugging_face", "openai"])
def test_a_clip_embeds_images_as_there(names):
    published = VIT.flat_checkpoint("hf_clip")
    if names == "openai":
        published = _openai(published)
    model = _begun(**OTHER, **CLIP)
    left = vit_layout.read(model, published, "clip")
    assert not [key for key in left if "vis" in key]
    assert (
        golden_rules.error_of_max(_embedding(model, "hf_clip"), VIT.stored("hf_clip")["cls"]) < 1e-9
    )


@pytest.mark.slow
def test_an_image_network_leaves_attention_in_time_as_it_begins():
    model = _begun(**SMALL)
    vit_layout.read(model, FROZEN.flat_checkpoint("vit_small"), "vit")
    for block in model.blocks:
        assert (block.time.qkv.kernel[...] == 0).all()
        assert (block.time.output.kernel[...] == 1).all()
        assert (block.time_norm.scale[...] == 1).all()
    assert (model.times[...] == 0).all()


@pytest.mark.parametrize("frames", [1, 4])
@pytest.mark.parametrize("how", vit_layout.TEMPORAL_RESIZES)
def test_positions_in_time_are_fitted_to_other_numbers_of_frames_as_published(frames, how):
    case = f"temporal_resize_from{frames}"
    times, stored = FROZEN.inputs(case)["temporal_embed"], FROZEN.stored(case)
    for number in (1, 2, 4, 6, 8, 16):
        fitting = vit_layout.resize_times(times, number, how)
        np.testing.assert_allclose(fitting, stored[f"to{number}_{how}"], rtol=0, atol=1e-6)
        assert fitting.dtype == times.dtype


@pytest.mark.parametrize("frames", [2, 6])
def test_a_file_of_another_number_of_frames_is_read(frames):
    model, published = _abstract(**SMALL, num_frames=frames), _frozen()
    vit_layout.read(model, published, "small", "bilinear")
    wanted = vit_layout.resize_times(published["video_model.temporal_embed"], frames, "bilinear")
    np.testing.assert_array_equal(model.times[...], wanted[0])


def test_a_file_of_another_resolution_is_read():
    model, published = _abstract(**(SMALL | {"size": 96})), _frozen()
    vit_layout.read(model, published, "small")
    wanted = resize_positions(published["video_model.pos_embed"][0], (6, 6))
    np.testing.assert_array_equal(model.positions[...], wanted)


@pytest.mark.parametrize(
    ("options", "file", "change", "message"),
    [
        (SMALL, _frozen, lambda f: f.clear(), "small holds no ViT of a known kind"),
        (
            SMALL,
            _frozen,
            lambda f: f.update({f"ema.{k}": v for k, v in list(f.items())}),
            "several image networks, below 'video_model.', 'ema.video_model.'",
        ),
        (
            SMALL,
            _frozen,
            lambda f: f.pop("video_model.blocks.1.norm3.bias"),
            r"small: video_model\.blocks\.1\.norm3\.bias is missing",
        ),
        (
            OTHER,
            _hugging_face,
            lambda f: f.pop("vit.encoder.layer.1.attention.attention.key.bias"),
            r"attention\.attention\.\{query,key,value\}\.bias is missing",
        ),
        (
            SMALL | {"depth": 2},
            _frozen,
            lambda f: None,
            r"video_model\.blocks\.2\.attn\.proj\.bias has no place in a network of 2 blocks \(18",
        ),
        (
            SMALL,
            _frozen,
            lambda f: f.update({"video_model.blocks.0.ls1.gamma": np.ones(64)}),
            r"blocks\.0\.ls1\.gamma has no place",
        ),
        (
            SMALL,
            _frozen,
            lambda f: f.update({"video_model.pos_embed": np.zeros((1, 19, 64))}),
            "pos_embed has 19 rows, which is not one and a square",
        ),
        (SMALL | CLIP, _frozen, lambda f: None, "does not normalise tokens.*pre_norm=False"),
        (
            OTHER,
            _clip,
            lambda f: None,
            "normalises tokens before the first block.*pre_norm=True",
        ),
        (
            SMALL | {"width": 32},
            _frozen,
            lambda f: None,
            r"cls_token has shape \(1, 1, 64\).*needs \(32,\)",
        ),
    ],
    ids=[
        "none",
        "several",
        "missing",
        "missing_third",
        "deeper",
        "other_blocks",
        "other_tokens",
        "no_clip",
        "clip",
        "width",
    ],
)
def test_a_file_of_another_network_is_refused_before_anything_changes(
    options, file, change, message
):
    published, model = file(), _abstract(**options)
    change(published)
    with pytest.raises(UserError, match=message):
        vit_layout.read(model, published, "small")
    assert isinstance(model.class_D.get_value(), jax.ShapeDtypeStruct)


SHAPES = st.lists(st.sampled_from([0, 1, 2, 4, 5, 17, 64]), max_size=4).map(tuple)


@pytest.mark.parametrize(
    ("file", "options", "key"),
    [
        (_frozen, SMALL, "video_model.cls_token"),
        (_frozen, SMALL, "video_model.pos_embed"),
        (_frozen, SMALL, "video_model.temporal_embed"),
        (_clip, OTHER | CLIP, "embeddings.class_embedding"),
        (_clip, OTHER | CLIP, "embeddings.position_embedding.weight"),
        (_hugging_face, OTHER, "vit.encoder.layer.1.attention.attention.key.bias"),
    ],
)
def test_tables_of_any_shape_are_read_or_refused_by_name(file, options, key):
    model, published = _abstract(**options), file()
    (key,) = [known for known in published if known.endswith(key)]
    right = np.shape(published[key])

    @settings(max_examples=40, deadline=None)
    @given(shape=SHAPES)
    @example(shape=())
    @example(shape=right[:-1])
    @example(shape=(*right, 1))
    @example(shape=(*right[:-1], 0))
    @example(shape=(*right[:-2], 0, right[-1]))
    @example(shape=(*right[:-2], 1, right[-1]))
    @example(shape=(*right[:-2], 5, right[-1] + 1))
    def try_shape(shape):
        published[key] = np.zeros(shape, np.float32)
        try:
            vit_layout.read(model, published, "the file")
        except UserError as error:
            assert "the file: " in str(error) and key in str(error).replace(
                "{query,key,value}", "key"
            )
        else:
            assert len(shape) == len(right) and shape[-1] == right[-1]

    try_shape()


@pytest.mark.parametrize(
    ("key", "shape", "message"),
    [
        ("cls_token", (64,), r"\(64,\); it must have 3 axes, 2 of length one and then the width"),
        ("pos_embed", (17, 64), r"\(17, 64\); it must have 3 axes, 1 of length one and then a row"),
        ("pos_embed", (1, 0, 64), r"\(1, 0, 64\); .*none of them empty"),
        ("pos_embed", (1, 1, 64), "1 rows, which is not one and a square of patches"),
        ("temporal_embed", (4, 64), r"\(4, 64\); .* then a row for each frame"),
        ("temporal_embed", (1, 0, 64), "none of them empty"),
    ],
)
def test_what_is_wrong_with_a_table_is_said_with_what_it_must_be(key, shape, message):
    published = _frozen() | {f"video_model.{key}": np.zeros(shape, np.float32)}
    with pytest.raises(UserError, match=rf"the file: video_model\.{key} has .*{message}"):
        vit_layout.read(_abstract(**SMALL), published, "the file")


def test_an_unknown_way_to_fit_frames_is_refused_with_those_there_are():
    with pytest.raises(UserError, match="temporal_resize is 'nearest'.*'zeros', 'interp'"):
        vit_layout.read(_abstract(**SMALL), _frozen(), "small", "nearest")
