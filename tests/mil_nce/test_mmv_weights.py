"""The video network of a checkpoint of MMV, read into the S3D that it shares with MIL-NCE."""

import pickle
import types

import golden_rules
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from common.backbones.s3d import S3D
from common.errors import UserError
from common.weights import haiku_layout, loading
from configs import mil_nce_base
from mil_nce import checkpoint_layout

PACK = golden_rules.Pack("mmv")
ROOT = "text_audio_video/visual_module/~/S3D"
STEM = f"{ROOT}/Conv2d_1a_7x7/~/conv3_d"


def _published(norm=haiku_layout.S3D_NORM):
    """A checkpoint made by rule, with a head and a text tower beside the network."""
    found = {
        kind: {
            module.replace(haiku_layout.S3D_NORM, norm): dict(arrays)
            for module, arrays in PACK.checkpoint("s3d")[kind].items()
        }
        for kind in ("params", "state")
    }
    head = {"w": np.zeros((1024, 512), np.float32)}
    found["params"]["text_audio_video/vid2audio_embd/final_projection"] = head
    return found


def _write(path, contents):
    path.write_bytes(pickle.dumps(contents, protocol=4))
    return path


def _model(stem="space_to_depth"):
    """A model without numbers, with the video network alone: no other part of one is filled."""
    network = nnx.eval_shape(lambda: S3D(stem, rngs=nnx.Rngs(0)))
    return types.SimpleNamespace(video=network)


@pytest.fixture(scope="module")
def other():
    """A model for files that are refused, which leave it as it is."""
    model = _model()
    yield model
    assert isinstance(model.video.conv1.norms[0].scale.get_value(), jax.ShapeDtypeStruct)


@pytest.mark.slow
def test_a_checkpoint_embeds_as_in_haiku(tmp_path):
    path = _write(tmp_path / "mmv_s3d.pkl", _published())
    config = mil_nce_base.smoke(mil_nce_base.get_config())
    loaded = loading.from_published(path, config, ["video"])
    assert list(loaded.method.encoders) == ["video"]
    loaded.model.eval()
    graphdef, variables = nnx.split(loaded.model)
    pixels = jnp.asarray(PACK.inputs("s3d")["video"]) * 255
    embed = loaded.encoder("video").embed
    ours = jax.jit(lambda v, x: embed(nnx.merge(graphdef, v), x))(variables, pixels)
    tolerance = PACK.case("s3d")["tolerance"]["float32"]["rtol_of_max"]
    wanted = PACK.stored("s3d")["embedding"]
    assert np.abs(wanted[0] - wanted[1]).max() > 100 * tolerance * np.abs(wanted).max()
    assert golden_rules.error_of_max(ours, wanted) < tolerance


def test_what_is_written_is_what_was_read_and_all_of_the_network():
    model = nnx.eval_shape(lambda: S3D("space_to_depth", rngs=nnx.Rngs(0)))
    layers, published = haiku_layout.s3d(model, ROOT), PACK.checkpoint("s3d")
    assert haiku_layout.read(layers, published, "a.pkl") == []
    written = haiku_layout.write(layers)
    for kind in ("params", "state"):
        assert written[kind].keys() == published[kind].keys()
        for module, arrays in published[kind].items():
            assert written[kind][module].keys() == arrays.keys()
            for name in arrays.keys() - {"hidden"}:  # follows from the others
                np.testing.assert_array_equal(written[kind][module][name], arrays[name])
    read = {id(v) for layer in layers for v, _ in (*layer.parameters(), *layer.averages())}
    read |= {id(layer.ours.count) for layer in layers if any(layer.averages())}
    assert read == {id(v) for _, v in nnx.iter_graph(model) if isinstance(v, nnx.Variable)}


def test_norms_may_go_by_the_other_name_of_the_published_code(tmp_path):
    model = _model()
    path = _write(tmp_path / "a.pkl", _published("__batch_norm"))
    unread = checkpoint_layout.load(path, model, ["video"])
    assert unread == ["params|text_audio_video/vid2audio_embd/final_projection"]
    second = f"{ROOT}/Mixed_5c/Branch_1_Conv2d_0b_3x3/{haiku_layout.S3D_NORM}_1"
    scale = PACK.checkpoint("s3d")["params"][second]["scale"]
    ours = model.video.blocks["mixed_5c"].conv_b1_b.norms[1].scale[...]
    np.testing.assert_array_equal(ours, scale.reshape(-1))


@pytest.mark.parametrize("encoders", [[], ["video_joint"], ["video", "text"]])
def test_only_the_video_network_can_be_read(tmp_path, other, encoders):
    path = _write(tmp_path / "a.pkl", {})
    with pytest.raises(UserError, match="Give --encoder=video"):
        checkpoint_layout.load(path, other, encoders)


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ([1, 2], "not a checkpoint of MMV with an S3D"),
        ({"params": [1], "state": {}}, "not a checkpoint of MMV with an S3D"),
        ({"params": {STEM: {}}, "state": {}}, r"the first convolution has shape \(\)"),
        (
            {"params": {"visual_module/TSMResNetV2/stem": {}}, "state": {}},
            "not a checkpoint of MMV",
        ),
        ({"params": {STEM: {"w": np.zeros((7, 7, 7, 3, 64))}}, "state": {}}, r"\(7, 7, 7, 3, 64\)"),
        ({"params": {STEM: {"w": np.zeros((2, 4, 4, 24, 64))}}, "state": {}}, "is missing"),
    ],
)
def test_another_file_is_refused_by_what_it_lacks(tmp_path, other, contents, message):
    path = _write(tmp_path / "a.pkl", contents)
    with pytest.raises(UserError, match=message):
        checkpoint_layout.load(path, other, ["video"])


def test_a_model_with_another_stem_is_told_which(tmp_path):
    path = _write(tmp_path / "a.pkl", _published())
    with pytest.raises(UserError, match="is of config.model.video.stem='space_to_depth'"):
        checkpoint_layout.load(path, _model("plain"), ["video"])


def test_nothing_in_a_file_is_executed(tmp_path, other):
    class Touch:
        def __reduce__(self):
            return (open, (str(tmp_path / "mark"), "w"))

    path = _write(tmp_path / "a.pkl", {"params": Touch(), "state": {}})
    with pytest.raises(UserError, match="it was not read"):
        checkpoint_layout.load(path, other, ["video"])
    assert not (tmp_path / "mark").exists()
