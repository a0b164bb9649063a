"""Published MIL-NCE checkpoints in and out."""

from __future__ import annotations

import pathlib
import pickle

import golden_rules
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from flax import nnx

from common import export, state
from common.errors import UserError
from common.weights import loading, torch_file
from configs import mil_nce_base, mil_nce_howto100m
from mil_nce import checkpoint_layout
from mil_nce.model import MilNceModel

PACK = golden_rules.Pack("mil_nce")
# Stem and words of the two published kinds of file.
KINDS = {"s2d": ("space_to_depth", 66_249), "plain": ("plain", 400)}


def _config(kind):
    config = mil_nce_base.get_config()
    config.model.video.stem, config.model.text.words = KINDS[kind]
    return config


def _tiny(stem="space_to_depth"):
    config = mil_nce_base.smoke(mil_nce_base.get_config())
    config.model.video.stem = stem
    return config


def _filled(config, seed=0):
    """A model with random values everywhere and norms that have seen one to nine batches."""
    model = nnx.eval_shape(lambda: MilNceModel(config.model, nnx.Rngs(0)))
    generator = np.random.default_rng(seed)

    def value(x):
        if x.dtype == jnp.int32:
            return jnp.asarray(generator.integers(1, 10, x.shape), x.dtype)
        return jnp.asarray(generator.random(x.shape, np.float32), x.dtype)

    graphdef, variables = nnx.split(model)
    return nnx.merge(graphdef, jax.tree.map(value, variables))


def _values(model):
    return {k: np.asarray(x) for part in state.split(model) for k, x in state.flatten(part).items()}


def _assert_equal(values, wanted):
    assert values.keys() == wanted.keys()
    for name, value in values.items():
        assert value.dtype == wanted[name].dtype, name
        np.testing.assert_array_equal(value, wanted[name], err_msg=name)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A small model in the layout of the release, and the tensors of its file."""
    config = _tiny()
    path = tmp_path_factory.mktemp("saved") / "model.pth"
    model = _filled(config)
    checkpoint_layout.save(path, model, config.model)
    return path, model, torch_file.load(path)


def _embed(loaded, inputs):
    """What the named encoders make of their inputs, compiled together."""
    loaded.model.eval()
    graphdef, variables = nnx.split(loaded.model)

    @jax.jit
    def embed(variables, inputs):
        model = nnx.merge(graphdef, variables)
        return {name: loaded.encoder(name).embed(model, x) for name, x in inputs.items()}

    found = embed(variables, inputs)
    return [found[name] for name in inputs]


def test_our_names_are_the_published_ones_in_their_order(saved):
    entries = PACK.manifest["checkpoints"]["s2d"]["entries"]
    assert [(key, str(x.dtype)) for key, x in saved[2].items()] == [(e[0], e[2]) for e in entries]


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_published_file_loads_and_embeds_as_published(kind, tmp_path):
    tensors = PACK.flat_checkpoint(kind)
    contents = {"plain": {"epoch": 3, "state_dict": tensors, "optimizer": {}}, "s2d": tensors}
    torch_file.save(tmp_path / "published.pth", contents[kind])
    loaded = loading.from_published(tmp_path / "published.pth", _config(kind))
    case = f"eval_{kind}_even"
    pixels = jnp.asarray(PACK.inputs(case)["video"]) * 255
    video, texts = PACK.stored(case), PACK.stored(f"text_tower_{kind}")
    ids = jnp.asarray(texts["ids"], jnp.int32)
    features, joint, text = _embed(loaded, {"video": pixels, "video_joint": pixels, "text": ids})
    assert golden_rules.error_of_max(features, video["mixed_5c_pooled"]) < 1e-5
    assert golden_rules.error_of_max(joint, video["video_embedding"]) < 1e-5
    assert golden_rules.error_of_max(text, texts["text_embedding"]) < 1e-5

    checkpoint_layout.save(tmp_path / "again.pth", loaded.model, loaded.config.model)
    again = torch_file.load(tmp_path / "again.pth")
    again = again["state_dict"] if kind == "plain" else again
    assert list(again) == list(tensors), "names, in their order"
    _assert_equal(again, tensors)


@pytest.fixture(scope="module")
def other():
    """A model of the same shapes and other values, for tests that leave it as it is."""
    return _filled(_tiny(), seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("stem", ["space_to_depth", "space_to_depth_torch", "plain"])
def test_what_is_saved_is_loaded(stem, tmp_path):
    config = _tiny(stem)
    model, other = _filled(config), _filled(config, seed=1)
    checkpoint_layout.save(tmp_path / "model.pth", model, config.model)
    assert ("state_dict" in torch_file.load(tmp_path / "model.pth")) == (stem == "plain")
    assert checkpoint_layout.load(tmp_path / "model.pth", other) == []
    _assert_equal(_values(other), _values(model))


def test_a_table_that_trains_is_saved_and_loaded_alike(saved):
    config = _tiny()
    config.model.text.frozen = False
    other = _filled(config, seed=1)
    checkpoint_layout.load(saved[0], other)
    np.testing.assert_array_equal(other.text.words[...], saved[1].text.words[...])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("encoder", "theirs", "ours"),
    [
        ("video", lambda key: not key.startswith(("fc.", "text_module.")), ("video/",)),
        (
            "video_joint",
            lambda key: not key.startswith("text_module."),
            ("video/", "video_projection/"),
        ),
        ("text", lambda key: key.startswith("text_module."), ("text/",)),
    ],
)
def test_an_encoder_loads_alone_and_the_rest_stays(encoder, theirs, ours, saved, tmp_path):
    _, model, tensors = saved
    part = {key: value for key, value in tensors.items() if theirs(key)}
    torch_file.save(tmp_path / "part.pth", {**part, "head.weight": np.zeros(3, np.float32)})
    other = _filled(_tiny(), seed=1)
    before = _values(other)
    unread = checkpoint_layout.load(tmp_path / "part.pth", other, [encoder])
    assert unread == ["head.weight"]
    loaded = {k: v for k, v in _values(model).items() if k.startswith(ours)}
    assert loaded and len(loaded) < len(before)
    _assert_equal(_values(other), {**before, **loaded})


@pytest.mark.slow
def test_a_model_of_one_encoder_offers_no_other(saved):
    loaded = loading.from_published(saved[0], _tiny(), ["text"])
    assert loaded.method.encoders.keys() == {"text"}, "the others would be untrained"


def _without(key):
    return lambda tensors: {k: v for k, v in tensors.items() if k != key}


def _with(key, shape):
    return lambda tensors: {**tensors, key: np.zeros(shape, np.float32)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without("mixed_4c.conv_b1_b.bn2.running_var"), r"b1_b\.bn2\.running_var is missing"),
        (_without("text_module.word_embd.weight"), r"word_embd\.weight is missing"),
        (_without("fc.bias"), r"changed\.pth: fc\.bias is missing"),
        (
            _with("text_module.word_embd.weight", (31, 9)),
            r"word_embd\.weight has shape \(31, 9\), the model needs \(21, 8\)\. The file is of "
            r"config\.model\.text\.words=30 and config\.model\.text\.word_dim=9\.",
        ),
        (_with("text_module.fc1.weight", (17, 8)), r"config\.model\.text\.hidden=17\."),
        (_with("fc.weight", (512, 1024)), r"config\.model\.embedding_dim=512\."),
        (
            _with("conv1.conv1.weight", (64, 3, 3, 7, 7)),
            r"conv1\.conv1\.weight has shape \(64, 3, 3, 7, 7\), the model needs "
            r"\(64, 24, 2, 4, 4\)\. The file is of config\.model\.video\.stem='plain'\.",
        ),
        (_with("conv1.conv1.weight", (64, 5, 3, 7, 7)), r"conv1\.conv1\.weight has shape"),
        (_with("text_module.word_embd.weight", (4,)), r"word_embd\.weight has shape \(4,\)"),
        (_with("conv_2c.bn1.weight", ()), r"conv_2c\.bn1\.weight has shape \(\)"),
        (lambda tensors: {"state_dict": {"fc.weight": "text"}}, "not an MIL-NCE checkpoint"),
        (lambda tensors: {"state_dict": [tensors["fc.bias"]]}, "not an MIL-NCE checkpoint"),
        (lambda tensors: [tensors["fc.bias"]], "not an MIL-NCE checkpoint"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_and_changes_nothing(
    change, message, saved, other, tmp_path
):
    torch_file.save(tmp_path / "changed.pth", change(saved[2]))
    before = _values(other)
    with pytest.raises(UserError, match=message):
        checkpoint_layout.load(tmp_path / "changed.pth", other)
    _assert_equal(_values(other), before)


class _Hostile:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (self.path,)


def test_a_file_that_would_run_code_is_refused_and_runs_nothing(other, tmp_path):
    victim = tmp_path / "victim"
    content = pickle.dumps({"state_dict": _Hostile(victim)})
    (tmp_path / "hostile.pth").write_bytes(content)
    with pytest.raises(UserError, match="hostile.pth"):
        checkpoint_layout.load(tmp_path / "hostile.pth", other)
    assert not victim.exists()
    pickle.loads(content)
    assert victim.exists(), "it would have"


def test_saving_never_overwrites_a_file(saved):
    path, model, _ = saved
    before = path.read_bytes()
    with pytest.raises(UserError, match="exists already"):
        checkpoint_layout.save(path, model, _tiny().model)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path], "no partial files are left"


def test_what_the_layout_cannot_say_is_not_written(saved, tmp_path):
    config = _tiny().model
    config.text.masked = True
    with pytest.raises(UserError, match=r"config\.model\.text\.masked is True"):
        checkpoint_layout.save(tmp_path / "model.pth", saved[1], config)
    config = _tiny().model
    config.video.input = "difference"
    with pytest.raises(UserError, match="video.input is 'difference'"):
        checkpoint_layout.save(tmp_path / "model.pth", saved[1], config)
    config = _tiny()
    config.model.video.backbone = "tsm_resnet"
    model = _filled(config)
    with pytest.raises(UserError, match="no place for the backbone TSMResNet"):
        checkpoint_layout.save(tmp_path / "model.pth", model, config.model)
    with pytest.raises(UserError, match="no place for the backbone TSMResNet"):
        checkpoint_layout.load(saved[0], model)
    assert checkpoint_layout.load(saved[0], model, ["text"]), "that tower is the same"
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_export_writes_the_published_layout(saved, tmp_path):
    path, output = saved[0], tmp_path / "exported.pth"
    page = pathlib.Path(mil_nce_howto100m.__file__)
    before = set(flags.FLAGS)
    export.define_flags()
    try:
        flags.FLAGS(
            ["export", f"--checkpoint={path}", f"--config={page}:smoke", "--format=published",
             f"--output={output}"]
        )  # fmt: skip
        export.main(["export"])
    finally:
        for name in set(flags.FLAGS) - before:
            delattr(flags.FLAGS, name)
    _assert_equal(torch_file.load(output), saved[2])
