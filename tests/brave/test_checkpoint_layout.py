"""Published BraVe checkpoints in and out."""

from __future__ import annotations

import copy

import brave_golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from brave import checkpoint_layout
from common import state
from common.errors import UserError
from common.weights import loading
from configs import brave_base

CONFIG_FIELDS = {
    "include_video_in_broad_view",
    "include_audio_in_broad_view",
    "num_frames_narrow",
    "image_size_narrow",
    "step_broad",
    "num_frames_broad",
    "image_size_broad",
    "step_narrow",
    "output_dims",
    "tsm_resnet_width_multiplier",
    "num_spectrogram_bins",
    "fft_step",
    "dataset_shards",
    "input_video_sample_rate",
    "input_audio_sample_rate",
}


def _tiny(**changes):
    config = brave_base.get_config().model
    config.update(changes)
    for view in (config.narrow, config.video, config.flow, config.audio):
        view.blocks, view.width = (1, 2), 0.125
    config.projector_hidden, config.projection_dim = 16, 8
    return config


def _filled(config, seed=0):
    """A model with random values everywhere and norms that have seen one to nine batches."""
    model = brave_golden.abstract_model(config)
    generator = np.random.default_rng(seed)

    def value(x):
        if x.dtype == jnp.int32:
            return jnp.asarray(generator.integers(1, 10), x.dtype)
        return jnp.asarray(generator.standard_normal(x.shape), x.dtype)

    graphdef, variables = nnx.split(model)
    return nnx.merge(graphdef, jax.tree.map(value, variables))


def _values(model):
    return {k: np.asarray(x) for part in state.split(model) for k, x in state.flatten(part).items()}


def _assert_equal(values, wanted):
    assert values.keys() == wanted.keys()
    for name, value in values.items():
        np.testing.assert_array_equal(value, wanted[name], err_msg=name)


def _saved(tmp_path, config=None, name="model.npy"):
    config = config or _tiny()
    model = _filled(config)
    checkpoint_layout.save(tmp_path / name, model, config)
    return tmp_path / name, model, config


def _rewritten(path, change):
    """A copy of a checkpoint with `change` applied to its contents."""
    contents = copy.deepcopy(np.load(path, allow_pickle=True).item())
    change(contents)
    changed = path.with_name("changed.npy")
    np.save(changed, np.array(contents, dtype=object))
    return changed


@pytest.mark.parametrize("checkpoint", ["va", "vv"])
def test_our_names_are_the_published_ones(checkpoint):
    entries = brave_golden.PACK.manifest["checkpoints"][checkpoint]["entries"]
    # Heads that the published initialisation makes by accident and never applies.
    wanted = {tuple(e[0].split("|")) for e in entries if "shared_project_1" not in e[0]}
    ours = set()
    for layer in checkpoint_layout.layers_of(
        brave_golden.abstract_model(brave_golden.config(checkpoint))
    ):
        ours |= {("params", layer.module, name) for _, name in layer.parameters()}
        for _, module in layer.averages():
            ours |= {("state", module, name) for name in ("average", "counter", "hidden")}
    assert ours == wanted


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"broad": ("video", "video", "flow", "audio")},
        {"broad": ("video",), "share_backbone": "all", "share_projector": False},
        {"share_projector": False, "share_predictor": False},
    ],
)
def test_what_is_saved_is_loaded(changes, tmp_path):
    path, model, config = _saved(tmp_path, _tiny(**changes))
    other = _filled(config, seed=1)
    assert checkpoint_layout.load(path, other) == []
    _assert_equal(_values(other), _values(model))


def test_a_saved_file_is_what_the_published_code_reads(tmp_path):
    path, model, config = _saved(tmp_path)
    contents = np.load(path, allow_pickle=True).item()
    assert contents.keys() == {"params", "state", "config"}
    assert contents["config"].keys() == CONFIG_FIELDS
    assert contents["config"]["num_frames_broad"] == 64
    for kind in ("params", "state"):
        for tensors in contents[kind].values():
            assert all(type(x) is np.ndarray for x in tensors.values())
    norm = "narrow_video_embedding/TSMResNetV2/tsm_resnet_unit_0/block_0/batch_norm_1"
    ours = model.narrow.trunk.units[0][0].norm_1
    assert contents["params"][norm]["scale"].shape == (1, 1, 1, 8)
    for running, module in ((ours.mean, "mean_ema"), (ours.var, "var_ema")):
        stored = contents["state"][f"{norm}/~/{module}"]
        assert stored["counter"].dtype == np.int32 and stored["counter"] == ours.count[...]
        np.testing.assert_array_equal(stored["average"].reshape(-1), running[...])
        hidden = np.asarray(running[...]) * (1 - 0.9 ** int(ours.count[...]))
        np.testing.assert_allclose(stored["hidden"].reshape(-1), hidden, rtol=1e-6)
    head = contents["params"]["shared_project/projector/batch_norm_1"]
    assert head["offset"].shape == (1, 8)


def test_the_published_configuration_is_that_of_the_released_file():
    published = brave_golden.PACK.manifest["checkpoints"]
    for name, checkpoint in published.items():
        ours = checkpoint_layout.published_config(brave_golden.config(name))
        assert ours == checkpoint["config"]


def test_saving_never_overwrites_a_file(tmp_path):
    path, model, config = _saved(tmp_path)
    before = path.read_bytes()
    with pytest.raises(UserError, match="exists already"):
        checkpoint_layout.save(path, model, config)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path], "no partial files are left"


def test_what_the_layout_cannot_say_is_not_written(tmp_path):
    path, model, config = _saved(tmp_path)
    other = config.copy_and_resolve_references()
    other.audio.fft_window = 640
    with pytest.raises(UserError, match="fft_window is 640, .* would take 320"):
        checkpoint_layout.save(tmp_path / "other.npy", model, other)
    unused = config.copy_and_resolve_references()
    unused.video.input = "difference"  # of a view that this model has not
    checkpoint_layout.save(tmp_path / "unused.npy", model, unused)
    assert (tmp_path / "unused.npy").exists() and not (tmp_path / "other.npy").exists()


@pytest.mark.parametrize("value", [None, [1], "text", np.array([1j])])
def test_a_malformed_file_is_named(tmp_path, value):
    path, model, config = _saved(tmp_path)

    def change(contents):
        contents["params"]["shared_project/predictor/linear_1"]["b"] = value

    with pytest.raises(UserError, match=r"changed\.npy: params\|shared_project"):
        checkpoint_layout.load(_rewritten(path, change), model)
    with pytest.raises(UserError, match=r"changed\.npy: params\|"):
        checkpoint_layout.load(_rewritten(path, lambda c: c.update(params=value)), model)


def test_an_encoder_loads_alone(tmp_path):
    path, model, config = _saved(tmp_path)

    def strip(contents):
        for kind in ("params", "state"):
            kept = {k: v for k, v in contents[kind].items() if k.startswith("narrow_")}
            contents[kind] = {**kept, "flow_net/conv": {"w": np.zeros(3)}}

    other = _filled(config, seed=1)
    before = _values(other)
    unused = checkpoint_layout.load(_rewritten(path, strip), other, ["video"])
    assert unused == ["params|flow_net/conv", "state|flow_net/conv"]
    loaded = {k: v for k, v in _values(model).items() if k.startswith("backbones/narrow/")}
    assert loaded
    _assert_equal(_values(other), {**before, **loaded})


def _drop(contents):
    del contents["params"]["shared_project/predictor/linear_1"]["b"]


def _drop_state(contents):
    del contents["state"]["broad_audio_embedding/res_net_v2/batch_norm/~/var_ema"]


def _widen(contents):
    stem = contents["params"]["narrow_video_embedding/TSMResNetV2/tsm_resnet_stem"]
    stem["w"] = np.concatenate([stem["w"], stem["w"]], -1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_drop, r"changed\.npy: params\|shared_project/predictor/linear_1\|b is missing"),
        (_drop_state, r"state\|broad_audio_embedding/.*/var_ema\|average is missing"),
        (_widen, r"tsm_resnet_stem\|w has shape \(7, 7, 3, 16\), the model needs \(7, 7, 3, 8\)"),
        (lambda contents: contents.pop("state"), "no 'params' and 'state'"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_and_changes_nothing(change, message, tmp_path):
    path, _, config = _saved(tmp_path)
    other = _filled(config, seed=1)
    before = _values(other)
    with pytest.raises(UserError, match=message):
        checkpoint_layout.load(_rewritten(path, change), other)
    _assert_equal(_values(other), before)


@pytest.mark.slow
def test_a_released_file_loads_and_its_dead_heads_are_named(tmp_path):
    path = tmp_path / "released.npy"
    contents = brave_golden.PACK.checkpoint("va")
    np.save(path, np.array(contents, dtype=object))
    model = brave_golden.abstract_model(brave_golden.config("va"))
    unused = checkpoint_layout.load(path, model)
    assert unused and all(name.split("|")[1].startswith("shared_project_1/") for name in unused)
    again = tmp_path / "again.npy"
    checkpoint_layout.save(again, model, brave_golden.config("va"))
    written = np.load(again, allow_pickle=True).item()
    for kind in ("params", "state"):
        for module, tensors in written[kind].items():
            for name, value in tensors.items():
                wanted = contents[kind][module][name]
                assert value.dtype == wanted.dtype and value.shape == wanted.shape
                np.testing.assert_allclose(value, wanted, rtol=1e-6, err_msg=f"{module}|{name}")


@pytest.mark.slow
def test_a_model_of_one_encoder_offers_no_other(tmp_path):
    config = brave_base.smoke(brave_base.get_config())
    model = _filled(config.model)
    path = tmp_path / "model.npy"
    checkpoint_layout.save(path, model, config.model)

    def strip(contents):
        for kind in ("params", "state"):
            kept = contents[kind].items()
            contents[kind] = {k: v for k, v in kept if k.startswith("narrow_")}

    path = _rewritten(path, strip)
    loaded = loading.from_published(path, config, ["video"])
    assert loaded.method.encoders.keys() == {"video"}, "the other would be untrained"
    for name, value in _values(loaded.model).items():
        if name.startswith("backbones/narrow/"):
            np.testing.assert_array_equal(value, _values(model)[name])
