"""Training begins with the weights of runs, bundles and published files."""

from __future__ import annotations

import logging

import jax
import numpy as np
import pytest
import tiny_brave
import toy_method

import brave.checkpoint_layout
import mil_nce.checkpoint_layout
from common import attachments, checkpoint, initial_weights, methods, state
from common import config as config_lib
from common.data import convert
from common.errors import UserError
from common.evaluation import protocols
from common.weights import bundle as bundle_lib
from common.weights import loading
from configs import mil_nce_base


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A run, its bundle, and a published file of its weights."""
    folder = tmp_path_factory.mktemp("init")
    made = tiny_brave.make_run(folder / "run", ema_decay=0.5)
    loaded = loading.from_workdir(folder / "run")
    settings = convert.Settings(short_side=48)
    bundle_lib.save_bundle(loaded, folder / "bundle", protocols.get("even"), settings)
    brave.checkpoint_layout.save(folder / "a.npy", loaded.model, loaded.config.model)
    return folder, made


def _begin(init, **changes):
    """What a run begins with: its leaves by path, before and after; and the filled ones."""
    config = tiny_brave.get_config(**changes)
    with config.unlocked():
        config.init = tuple(map(str, init))
    method = methods.create(config)
    fresh = tiny_brave.random_state(method, config, seed=9)
    params, rest = initial_weights.fill(method, config, fresh.params, fresh.model_state)
    before = _flat(fresh.params, fresh.model_state)
    after = _flat(params, rest)
    assert after.keys() == before.keys()
    for path, leaf in after.items():
        assert isinstance(leaf, np.ndarray), "arrays stay on the host"
        assert (leaf.shape, leaf.dtype) == (before[path].shape, before[path].dtype), path
    return before, after, {path for path in after if after[path] is not before[path]}


def _flat(params, rest):
    return state.flatten({"params": params, "state": rest})


def _assert_equal(values, wanted):
    assert values.keys() == wanted.keys()
    for path, value in values.items():
        np.testing.assert_array_equal(value, wanted[path], err_msg=path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["run", "bundle", "a.npy"])
def test_a_run_begins_with_the_averaged_weights_and_statistics_of_another(kind, place, caplog):
    folder, made = place
    with caplog.at_level(logging.INFO, logger=initial_weights.__name__):
        _, after, filled = _begin([folder / kind])
    _assert_equal(after, _flat(made.ema, made.model_state))
    assert filled == after.keys()
    (said,) = (r.getMessage() for r in caplog.records if r.name == initial_weights.__name__)
    assert said.startswith(f"initial weights of {folder / kind}:\n  filled: ")
    if kind == "a.npy":
        assert said.endswith("filled: the networks of audio, narrow and their heads")
    else:
        assert said.endswith(f"filled: {len(after)} of the model's {len(after)} arrays")


@pytest.mark.slow
def test_what_fits_is_taken_and_everything_is_accounted_for(place, caplog):
    folder, made = place
    saved = _flat(made.ema, made.model_state)
    with caplog.at_level(logging.INFO, logger=initial_weights.__name__):
        before, after, filled = _begin(
            [folder / "bundle"], model__projection_dim=6, model__audio__blocks=(2, 1, 1, 1)
        )
    assert 0 < len(filled) < len(after)
    wanted = {path: saved[path] if path in filled else leaf for path, leaf in before.items()}
    _assert_equal(after, wanted)
    fitting = {p for p in after if p in saved and saved[p].shape == after[p].shape}
    assert filled == fitting
    (text,) = (r.getMessage() for r in caplog.records if r.name == initial_weights.__name__)
    assert f"{folder / 'bundle'}:\n  filled: {len(filled)} of the model's {len(after)}" in text
    for path in saved.keys() & after.keys() - filled:
        assert f"{path} has shape {saved[path].shape} there and {after[path].shape} here" in text
    assert f"only here: params/backbones ({_new(after, saved, 'params')}), state" in text


def _new(after, saved, part):
    return len([path for path in after.keys() - saved.keys() if path.startswith(part)])


def _toy_run(workdir, seed=1, extra=0):
    """Saves a run of the toy; its last bias is longer by `extra` than the toy's is."""
    config = toy_method.get_config()
    config_lib.claim(config, workdir)
    made = tiny_brave.random_state(toy_method.Toy(), config, seed)
    bias = made.params["layers"]["1"]["bias"]
    made.params["layers"]["1"]["bias"] = np.concatenate([bias, np.ones(extra, bias.dtype)])
    checkpoints = checkpoint.Checkpoints(workdir, config)
    checkpoints.save(3, jax.tree.map(jax.numpy.asarray, made))
    checkpoints.finish()
    return _flat(made.params, made.model_state)


def _toy_begins(*init):
    config = toy_method.get_config(init=tuple(map(str, init)))
    method = toy_method.Toy()
    _, *shapes = loading.abstract(method)
    return _flat(*initial_weights.fill(method, config, *shapes))


def test_of_several_places_the_last_one_that_has_an_array_counts(tmp_path):
    one = _toy_run(tmp_path / "one")
    other = _toy_run(tmp_path / "other", seed=2, extra=1)
    _assert_equal(_toy_begins(tmp_path / "other", tmp_path / "one"), one)
    bias = "params/layers/1/bias"
    _assert_equal(_toy_begins(tmp_path / "one", tmp_path / "other"), other | {bias: one[bias]})


@pytest.mark.slow
def test_weights_of_other_words_are_not_taken_for_those_of_ones_own(tmp_path):
    def config(words, text):
        path = tmp_path / words
        path.write_text(text)
        changed = mil_nce_base.smoke(mil_nce_base.get_config())
        changed.model.text.vocabulary = str(path)
        return changed

    run, before = tmp_path / "run", config("a.txt", "ball\nbox\n")
    method = methods.create(before)
    config_lib.claim(before, run)
    attachments.keep(before, run)
    made = tiny_brave.random_state(method, before, 1)
    checkpoints = checkpoint.Checkpoints(run, before)
    checkpoints.save(3, jax.tree.map(jax.numpy.asarray, made))
    checkpoints.finish()

    def begin(config):
        config.init = (str(run),)
        _, *shapes = loading.abstract(method)
        return _flat(*initial_weights.fill(method, config, *shapes))

    _assert_equal(begin(config("same.txt", "ball\nbox\n")), _flat(made.params, made.model_state))
    with pytest.raises(UserError, match=r"another config.model.text.vocabulary: .*files"):
        begin(config("other.txt", "box\nball\n"))
    wider = config("other.txt", "box\nball\n")  # the words alone still fit
    wider.model.embedding_dim += 8
    wider.init = (str(run),)
    with pytest.raises(UserError, match=r"another config.model.text.vocabulary: .*files"):
        initial_weights.fill(method, wider, *loading.abstract(methods.create(wider))[1:])


def test_shapes_are_filled_before_there_are_numbers(tmp_path):
    _toy_run(tmp_path / "run", extra=1)
    after = _toy_begins(tmp_path / "run")
    left = {path for path, leaf in after.items() if isinstance(leaf, jax.ShapeDtypeStruct)}
    assert left == {"params/layers/1/bias"}
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in _toy_begins().values())


def test_a_place_that_nothing_can_be_taken_from_is_named(place, tmp_path):
    with pytest.raises(UserError, match=r"config\.init: there is no .*nowhere"):
        _toy_begins(tmp_path / "nowhere")
    with pytest.raises(UserError, match="neither the folder of a run.*nor a bundle.*the file"):
        _toy_begins(tmp_path)
    for kind in ("run", "bundle"):
        with pytest.raises(UserError, match=rf"no parameter in .*{kind} has the path.*only there"):
            _toy_begins(place[0] / kind)
    with pytest.raises(UserError, match="'toy' has no published layout"):
        _toy_begins(place[0] / "a.npy")
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "weights.safetensors").write_bytes(b"cut")
    with pytest.raises(UserError, match=r"cut.weights\.safetensors: not a readable"):
        _toy_begins(tmp_path / "cut")


def test_a_published_file_of_another_size_is_refused(place):
    with pytest.raises(UserError, match=r"a\.npy: .* has shape"):
        _begin([place[0] / "a.npy"], model__projection_dim=6)


@pytest.mark.parametrize(
    ("name", "encoders", "filled"),
    [
        ("a.pth", (), ["filled: the video network, its projection and the text network"]),
        (
            "mmv.pkl",
            ["video"],
            [
                "filled: the video network",
                "left as they begin: the projection and the text network",
            ],
        ),
    ],
)
def test_mil_nce_reads_of_a_published_file_what_it_holds(name, encoders, filled, monkeypatch):
    seen = []

    def load(path, model, encoders):
        seen.append((path, encoders))
        return ["head/a", "head/b"]

    monkeypatch.setattr(mil_nce.checkpoint_layout, "load", load)
    said = mil_nce.checkpoint_layout.initialise(name, None, None)
    assert seen == [(name, encoders)]
    assert said == [*filled, "not used of the file: 2 tensors, such as head/a"]
