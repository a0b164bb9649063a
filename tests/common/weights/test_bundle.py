import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import tiny_brave
import tiny_media
import tiny_mil_nce
import tool_flags
from flax import nnx

from common import export
from common.data import convert
from common.errors import UserError
from common.evaluation import protocols
from common.weights import bundle as bundle_lib
from common.weights import load_bundle, loading

ROOT = pathlib.Path(__file__).parents[3]
EVEN = protocols.get("even")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run, its model, and its bundle."""
    folder = tmp_path_factory.mktemp("bundle")
    tiny_brave.make_run(folder / "run")
    loaded = loading.from_workdir(folder / "run")
    bundle_lib.save_bundle(loaded, folder / "bundle", EVEN, convert.Settings(short_side=48))
    return folder, loaded


def _clips(number=5):
    rng = np.random.default_rng(0)
    video = rng.integers(0, 256, (number, 4, 28, 28, 3), np.uint8)
    sound = rng.integers(-(2**15), 2**15, (number, 3200)).astype(np.int16)
    return video, sound


def _in_process(loaded, name, clips):
    """Features as the method itself gives them, away from all of evaluation."""
    loaded.model.eval()
    return np.asarray(nnx.jit(loaded.encoder(name).embed)(loaded.model, clips))


@pytest.mark.slow
def test_a_bundle_gives_the_features_of_the_run_it_was_made_from(made):
    folder, loaded = made
    bundle = load_bundle(folder / "bundle")
    for name, clips in zip(("video", "audio"), _clips(), strict=True):
        ours = bundle.embed(name, clips)
        np.testing.assert_allclose(ours, _in_process(loaded, name, clips), atol=1e-5, rtol=1e-5)
        assert ours.std() > 0
        assert ours.dtype == np.float32


@pytest.mark.slow
def test_a_bundle_loads_in_a_fresh_process_without_the_trainer_and_gives_the_same(made, tmp_path):
    folder, loaded = made
    video, sound = _clips()
    np.savez(tmp_path / "clips.npz", video=video, audio=sound)
    script = textwrap.dedent(f"""
        import sys
        import numpy as np
        from common.weights import load_bundle
        bundle = load_bundle({str(folder / "bundle")!r})
        clips = np.load({str(tmp_path / "clips.npz")!r})
        features = {{name: bundle.embed(name, clips[name]) for name in ("video", "audio")}}
        np.savez({str(tmp_path / "features.npz")!r}, **features)
        banned = ("tensorflow", "orbax", "common.tf", "common.loop", "common.step", "common.train",
                  "common.checkpoint", "common.optimizers", "sklearn", "tensorflow_datasets")
        print([name for name in banned if name in sys.modules])
    """)
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert run.stdout.strip() == "[]"
    features = np.load(tmp_path / "features.npz")
    for name, clips in (("video", video), ("audio", sound)):
        expected = _in_process(loaded, name, clips)
        np.testing.assert_allclose(features[name], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_a_bundle_stands_alone(made, tmp_path):
    folder, _ = made
    moved = tmp_path / "elsewhere"
    (folder / "bundle").rename(moved)
    try:
        load_bundle(moved)
        names = {entry.name for entry in moved.iterdir()}
    finally:
        moved.rename(folder / "bundle")
    assert names == {
        "README.md",
        "config.json",
        "preprocessing.json",
        "versions.json",
        "weights.safetensors",
    }


@pytest.mark.slow
def test_files_are_embedded_as_evaluation_embeds_their_records(made, tmp_path):
    from common.data import records, tables
    from common.evaluation import reading

    folder, loaded = made
    paths = [
        tiny_media.write_video(tmp_path / f"é {i}.mp4", seed=i, frames=20 + 7 * i) for i in range(3)
    ]
    bundle = load_bundle(folder / "bundle")
    for name, embed in (("video", bundle.embed_videos), ("audio", bundle.embed_audio)):
        features = embed(paths)
        assert features.shape == (3, loaded.encoder(name).dim)
        settings = convert.Settings(short_side=48, audio_rate=16_000)
        for path, row in zip(paths, features, strict=True):
            outcome = convert.convert(tables.Item(path, path, path), (), settings)
            clip = records.deserialize(outcome.record)
            clips = reading.cut(clip, loaded.encoder(name).inputs, EVEN)
            expected = _in_process(loaded, name, clips).mean(axis=0)
            np.testing.assert_allclose(row, expected, atol=1e-5, rtol=1e-4)
        np.testing.assert_array_equal(embed(paths[1:2]), features[1:2])
        assert np.abs(features[0] - features[1]).max() > 1e-6


@pytest.mark.slow
def test_files_that_cannot_be_embedded_are_all_named_with_their_reasons(made, tmp_path):
    folder, _ = made
    good = tiny_media.write_video(tmp_path / "good.mp4", sound=False)
    text = tmp_path / "text.mp4"
    text.write_text("not a video")
    bundle = load_bundle(folder / "bundle")
    with pytest.raises(UserError) as caught:
        bundle.embed_videos([good, text, tmp_path / "missing.mp4"])
    assert "2 of 3 files" in str(caught.value)
    assert "text.mp4" in str(caught.value)
    assert "missing.mp4: there is no such file" in str(caught.value)
    with pytest.raises(UserError, match="good.mp4: .*sound"):
        bundle.embed_audio([good])
    with pytest.raises(UserError, match="list of paths"):
        bundle.embed_videos(good)


def test_a_bundle_says_nothing_of_what_its_encoders_leave_at_its_default(made):
    """So that bundles load that were made before there was a choice."""
    said = json.loads((made[0] / "bundle" / "preprocessing.json").read_text())
    video = {"input", "dim", "num_frames", "frame_rate", "stride", "size"}
    assert said["encoders"]["video"].keys() == video


def test_clips_of_another_shape_or_dtype_are_refused(made):
    folder, _ = made
    bundle = load_bundle(folder / "bundle")
    video, sound = _clips()
    with pytest.raises(UserError, match=r"uint8 arrays of shape \(N, 4, 28, 28, 3\)"):
        bundle.embed("video", video[:, :3])
    with pytest.raises(UserError, match="int16"):
        bundle.embed("audio", sound.astype(np.float32))
    with pytest.raises(UserError, match="no encoder 'text'.*video, audio"):
        bundle.embed("text", sound)


def test_a_bundle_is_never_overwritten_and_never_half_written(made, tmp_path, monkeypatch):
    folder, loaded = made
    with pytest.raises(UserError, match="exists already"):
        bundle_lib.save_bundle(loaded, folder / "bundle", EVEN, convert.Settings())

    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(bundle_lib.model_card, "render", fail)
    with pytest.raises(OSError, match="disk full"):
        bundle_lib.save_bundle(loaded, tmp_path / "new", EVEN, convert.Settings())
    assert list(tmp_path.iterdir()) == []


def _copy(folder, target):
    target.mkdir()
    for entry in folder.iterdir():
        (target / entry.name).write_bytes(entry.read_bytes())
    return target


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("weights.safetensors", None, "is no bundle: .*weights.safetensors"),
        ("config.json", lambda data: data[:100], "no whole bundle"),
        ("weights.safetensors", lambda data: data[: len(data) // 2], "no whole bundle"),
        ("versions.json", lambda data: data.replace(b'"format": 1', b'"format": 9'), "format 9"),
        ("preprocessing.json", lambda data: data.replace(b'"size": 28', b'"size": 29'), "shapes"),
        ("config.json", lambda data: data.replace(b"0.125", b"0.25"), "shapes"),
        ("versions.json", lambda data: data.replace(b"made_from", b"made"), "whole .*made_from"),
        ("preprocessing.json", lambda data: data.replace(b"encoders", b"e"), "whole .*encoders"),
        ("config.json", lambda data: data.replace(b'"brave"', b'"../x"'), "no whole bundle"),
        (
            "config.json",
            lambda data: data.replace(b"projector_hidden", b"hidden"),
            "does not hold this model .*expected",
        ),
    ],
)
def test_a_damaged_bundle_is_refused_with_what_is_wrong(made, tmp_path, name, change, message):
    folder, _ = made
    copy = _copy(folder / "bundle", tmp_path / "copy")
    data = (copy / name).read_bytes()
    (copy / name).unlink()
    if change:
        assert change(data) != data
        (copy / name).write_bytes(change(data))
    with pytest.raises(UserError, match=message):
        load_bundle(copy)


def test_weights_of_another_model_are_refused(made, tmp_path):
    from safetensors.numpy import load_file, save_file

    folder, _ = made
    copy = _copy(folder / "bundle", tmp_path / "copy")
    arrays = load_file(copy / "weights.safetensors")
    first = min(arrays)
    arrays["params/other"] = arrays.pop(first)
    save_file(arrays, copy / "weights.safetensors")
    with pytest.raises(UserError, match="does not hold this model .2 arrays differ"):
        load_bundle(copy)


@pytest.mark.parametrize("dtype", [np.int32, np.float16, bool])
def test_weights_of_another_type_are_refused(made, tmp_path, dtype):
    from safetensors.numpy import load_file, save_file

    copy = _copy(made[0] / "bundle", tmp_path / "copy")
    arrays = load_file(copy / "weights.safetensors")
    first = min(name for name in arrays if arrays[name].dtype == np.float32)
    arrays[first] = arrays[first].astype(dtype)
    save_file(arrays, copy / "weights.safetensors")
    with pytest.raises(UserError, match=f"{first} is of {np.dtype(dtype)}, expected float32"):
        load_bundle(copy)


def test_a_bundle_without_a_file_of_its_own_is_not_whole(tmp_path):
    words = tmp_path / "words.txt"
    words.write_text("ball\nbox\n")
    tiny_mil_nce.make_run(tmp_path / "run", words)
    loaded = loading.from_workdir(tmp_path / "run")
    bundle_lib.save_bundle(loaded, tmp_path / "bundle", EVEN, convert.Settings())
    load_bundle(tmp_path / "bundle")
    shutil.rmtree(tmp_path / "bundle" / "files")  # the original is still where it was
    with pytest.raises(UserError, match="no whole bundle: .*text.vocabulary.txt is missing"):
        load_bundle(tmp_path / "bundle")


def test_of_nothing_there_are_no_features(made):
    bundle = load_bundle(made[0] / "bundle")
    video, _ = _clips()
    assert bundle.embed("video", video[:0]).shape == (0, bundle.encoders["video"].dim)
    assert bundle.embed_videos([]).shape == (0, bundle.encoders["video"].dim)
    with pytest.raises(UserError, match=r"these are int64 of shape \(2,\)"):
        bundle.embed("video", [1, 2])


@pytest.mark.slow
def test_a_bundle_of_a_bundle_embeds_by_the_same_protocol(made, tmp_path):
    quick, again = tmp_path / "quick", tmp_path / "again"
    one = dataclasses.replace(EVEN, test_clips=1)
    bundle_lib.save_bundle(made[1], quick, one, convert.Settings(short_side=48))
    with tool_flags.tool_flags(export, f"--bundle={quick}", f"--output={again}"):
        export.main([])
    assert load_bundle(again).protocol == one


@pytest.mark.slow
def test_the_moving_average_is_what_is_exported(tmp_path):
    made = tiny_brave.make_run(tmp_path / "run", ema_decay=0.9)
    loaded = loading.from_workdir(tmp_path / "run")
    assert loaded.origin["averaged"]
    kernel = loaded.model.predictors["narrow"].linear_0.kernel[...]
    saved = made.ema["predictors"]["narrow"]["linear_0"]["kernel"]
    np.testing.assert_array_equal(kernel, saved)


def test_the_model_card_says_what_the_model_is_and_how_it_scored(made, tmp_path):
    _, loaded = made
    interval = {"value": 0.5, "low": 0.4, "high": 0.6}
    row = {"encoder": "video", "features": "trained", "labels": "labels", "classes": 3}
    row |= {"metrics": {"top1": interval}, "train_metrics": {"top1": 0.9}, "test_videos": 40}
    protocol = {"name": "even", "about": EVEN.about}
    row |= {"notes": [], "left_out": {"unreadable": 2}}
    results = {"train": "a", "test": "b", "protocol": protocol, "rows": [row]}
    results |= {"evaluation": "probes", "splits": ""}
    bundle_lib.save_bundle(loaded, tmp_path / "b", EVEN, convert.Settings(), [results])
    card = (tmp_path / "b" / "README.md").read_text()
    assert "50.0 [40.0, 60.0]" in card
    assert "Trained on a, tested on b; protocol even" in card
    assert "left out 2 unreadable" in card
    assert "embed_videos" in card
    assert "step 7" in card
    versions = json.loads((tmp_path / "b" / "versions.json").read_text())
    assert versions["made_from"]["step"] == 7
    assert "jax" in versions


@pytest.mark.slow
def test_models_are_told_apart_by_their_weights():
    config = tiny_brave.get_config()
    first, again, other = (tiny_brave.loaded(config, seed) for seed in (0, 0, 1))
    assert loading.fingerprint(first.model) == loading.fingerprint(again.model)
    assert loading.fingerprint(first.model) != loading.fingerprint(other.model)


def test_a_mistake_in_a_method_is_not_taken_for_an_old_config(monkeypatch):
    def broken(config):
        return {}["shape"]

    monkeypatch.setattr(loading.methods, "create", broken)
    with pytest.raises(KeyError, match="shape"):
        loading.create_method(tiny_brave.get_config(), "config.json")
