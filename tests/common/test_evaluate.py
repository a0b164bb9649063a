import io
import json
import pathlib
import subprocess
import sys
import time

import numpy as np
import pytest
import tiny_brave
import tiny_media
from PIL import Image
from tool_flags import tool_flags

from common import evaluate, export
from common.data import records, shards
from common.errors import UserError

COLOURS = {"red": (200, 40, 40), "green": (40, 200, 40), "blue": (40, 40, 200)}


def _clip(number, colour, rng, sound=True):
    """A noisy clip of one colour, with a tone whose pitch goes with it."""
    jpegs = []
    for _ in range(10):
        noise = rng.integers(-40, 41, (32, 40, 3))
        picture = np.clip(np.array(COLOURS[colour]) + noise, 0, 255).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "JPEG", quality=90)
        jpegs.append(file.getvalue())
    pitch = 300 * (1 + list(COLOURS).index(colour))
    tone = 0.5 * np.sin(2 * np.pi * pitch * np.arange(6400) / 16000).astype(np.float32)
    waveform = tone + 0.01 * rng.normal(size=6400).astype(np.float32) if sound else None
    return records.Clip(f"clip{number}", "", jpegs, 25.0, waveform, 16000, label_texts=[colour])


def _write(folder, count, seed, labels=True, damage=None):
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    data = bytearray()
    for number in range(count):
        clip = _clip(number, list(COLOURS)[number % 3], rng)
        if not labels:
            clip.label_texts = []
        frame = bytearray(shards.frame(records.serialize(clip)))
        if number == damage:
            frame[len(frame) // 2] ^= 1
        data += frame
    (folder / "clips-00000-of-00001.tfrecord").write_bytes(bytes(data))
    return str(folder)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A run of an untrained network, and records of which one cannot be read."""
    folder = tmp_path_factory.mktemp("evaluate")
    tiny_brave.make_run(folder / "run")
    _write(folder / "train", 36, seed=0, damage=7)
    _write(folder / "test", 18, seed=1)
    return folder


def _evaluate(world, *arguments, train="train", test="test"):
    """Runs the tool on the tiny run in this process; returns what it writes."""
    output = world / f"results-{abs(hash(arguments))}-{train}-{test}.json"
    where = [f"--workdir={world / 'run'}", f"--train={world / train}", f"--test={world / test}"]
    with tool_flags(evaluate, *where, f"--output={output}", "--protocol=quick", *arguments):
        evaluate.main(["evaluate"])
    return json.loads(output.read_text())


def _row(results, **wanted):
    (row,) = (r for r in results["rows"] if wanted.items() <= r.items())
    return row


@pytest.mark.slow
def test_every_encoder_and_baseline_is_scored_on_the_same_videos(world, capsys):
    baselines = "--baselines=random,pixels,noise"
    results = _evaluate(world, baselines, "--C=0.01")
    assert len(results["rows"]) == 8
    for encoder in ("video", "audio"):
        for kind in ("trained", "random", "pixels", "noise"):
            row = _row(results, encoder=encoder, features=kind)
            assert row["train_videos"] == 35
            assert row["left_out"]["train_unreadable"] == 1
            assert row["test_videos"] == 18
            top1 = row["metrics"]["top1"]
            assert top1["low"] <= top1["value"] <= top1["high"]
        # Colour and pitch show in raw pixels and spectrograms, and not in noise.
        assert _row(results, encoder=encoder, features="pixels")["metrics"]["top1"]["value"] == 1
        noise = _row(results, encoder=encoder, features="noise")
        assert noise["metrics"]["top1"]["value"] < 0.8
        assert noise["trained_is_better_by"]["value"] == pytest.approx(
            _row(results, encoder=encoder, features="trained")["metrics"]["top1"]["value"]
            - noise["metrics"]["top1"]["value"]
        )
    printed = capsys.readouterr().out
    assert "left out 1 train unreadable" in printed
    assert "video    trained   labels" in printed
    assert results["model"]["step"] == 7


@pytest.mark.slow
def test_a_second_probe_computes_no_features_again(world, monkeypatch):
    first = _evaluate(world, "--encoder=video", "--C=0.01")

    def refuse(*_):
        raise AssertionError("features should be there")

    monkeypatch.setattr("common.evaluation.embedding.Embedder.__call__", refuse)
    again = _evaluate(world, "--encoder=video", "--C=0.01", "--probe=svm")
    assert first["rows"] == again["rows"]
    other = _evaluate(world, "--encoder=video", "--probe=logistic", "--sweep")
    assert other["rows"][0]["probe"] == "logistic"
    assert "training videos" in other["rows"][0]["notes"][0]


@pytest.mark.slow
def test_the_released_protocol_takes_random_training_clips_and_thirty_test_clips(world):
    with tool_flags(
        evaluate, f"--workdir={world / 'run'}", f"--train={world / 'train'}",
        f"--test={world / 'test'}", "--encoder=video", "--protocol=released", "--C=0.01",
        f"--features={world / 'features'}",
    ):  # fmt: skip
        evaluate.main(["evaluate"])
    counts = {}
    for folder in (world / "features").iterdir():
        split = json.loads((folder / "description.json").read_text())["source"].rpartition("/")[2]
        lines = (folder / "videos.jsonl").read_text().splitlines()
        counts[split] = {json.loads(line)["count"] for line in lines}
    assert counts == {"train": {0, 10}, "test": {30}}


@pytest.mark.slow
def test_a_bundle_and_the_run_it_came_from_score_the_same(world, tmp_path):
    with tool_flags(export, f"--workdir={world / 'run'}", f"--output={tmp_path / 'bundle'}"):
        export.main(["export"])
    expected = _evaluate(world, "--encoder=video", "--C=0.01")
    output = tmp_path / "results.json"
    with tool_flags(
        evaluate, f"--bundle={tmp_path / 'bundle'}", f"--train={world / 'train'}",
        f"--test={world / 'test'}", "--encoder=video", "--C=0.01", "--protocol=quick",
        f"--output={output}",
    ):  # fmt: skip
        evaluate.main(["evaluate"])
    ours = json.loads(output.read_text())
    assert ours["rows"] == expected["rows"]
    assert ours["model"]["kind"] == "bundle"


@pytest.mark.slow
def test_published_weights_are_written_read_and_evaluated(world, tmp_path):
    published = tmp_path / "weights.npy"
    with tool_flags(
        export, f"--workdir={world / 'run'}", "--format=published", f"--output={published}"
    ):
        export.main(["export"])
    page = tmp_path / "config.py"
    page.write_text("import tiny_brave\n\ndef get_config():\n    return tiny_brave.get_config()\n")
    expected = _evaluate(world, "--encoder=video", "--C=0.01")
    output = tmp_path / "results.json"
    with tool_flags(
        evaluate, f"--checkpoint={published}", f"--config={page}", f"--train={world / 'train'}",
        f"--test={world / 'test'}", "--encoder=video", "--C=0.01", "--protocol=quick",
        f"--output={output}",
    ):  # fmt: skip
        evaluate.main(["evaluate"])
    ours = json.loads(output.read_text())
    assert ours["rows"][0]["metrics"] == expected["rows"][0]["metrics"]


@pytest.mark.slow
def test_labels_can_be_taken_from_columns_of_the_tables(world):
    tables = []
    for split, count in (("train", 36), ("test", 18)):
        lines = [
            {
                "path": f"{i}.mp4",
                "id": f"clip{i}",
                "labels": ["x"],
                "warm": ["cold", "warm"][i % 3 == 0],
            }
            for i in range(count)
        ]
        tables.append(world / f"{split}.jsonl")
        tables[-1].write_text("".join(json.dumps(line) + "\n" for line in lines))
    results = _evaluate(
        world, "--encoder=video", "--baselines=pixels", "--label_columns=warm", "--C=0.01",
        f"--tables={tables[0]},{tables[1]}",
    )  # fmt: skip
    row = _row(results, features="pixels", labels="warm")
    assert row["classes"] == 2
    assert row["metrics"]["top1"]["value"] == 1.0


def test_an_older_result_is_kept_beside_the_new_one(tmp_path, capsys):
    output = tmp_path / "results.json"
    evaluate.write_results({"rows": 1}, output)
    evaluate.write_results({"rows": 1}, output)
    assert list(tmp_path.iterdir()) == [output]
    evaluate.write_results({"rows": 2}, output)
    assert json.loads(output.read_text()) == {"rows": 2}
    assert json.loads((tmp_path / "results-1.json").read_text()) == {"rows": 1}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "exactly one of --workdir, --checkpoint, --bundle"),
        (["--workdir={world}/nowhere"], "holds no run"),
        (["--workdir={world}/run", "--bundle={world}/run"], "these are given: --workdir, --bundle"),
        (["--bundle={world}/run"], "is no bundle"),
        (["--checkpoint={world}/x.npy"], "--config is missing"),
        (["--workdir={world}/run", "--step=3"], "no checkpoint of step 3; it holds .7."),
        (["--workdir={world}/run", "--step=best"], "no best checkpoint: nothing was validated"),
        (["--workdir={world}/run", "--step=last"], "the number of a step, 'newest' or 'best'"),
        (["--bundle={world}/run", "--step=best"], "--step goes with --workdir"),
        (["--workdir={world}/run", "--encoder=text"], "no encoder 'text'.*video, audio"),
        (["--workdir={world}/run", "--protocol=relased"], "no protocol 'relased'"),
        (["--workdir={world}/run", "--baselines=pixel"], "random, pixels, noise"),
        (["--workdir={world}/run", "--test={world}/nowhere"], "--test: .*nowhere"),
        (["--workdir={world}/run", "--train=fake"], "real videos"),
        (["--workdir={world}/run", "--label_columns=x"], "--tables=TRAIN,TEST"),
    ],
)
def test_a_mistake_is_answered_with_what_to_do(world, arguments, message):
    arguments = [argument.format(world=world) for argument in arguments]
    given = [argument.partition("=")[0] for argument in arguments]
    for split in ("--train", "--test"):
        if split not in given:
            arguments.append(f"{split}={world / split[2:]}")
    with tool_flags(evaluate, *arguments), pytest.raises(UserError, match=message):
        evaluate.main(["evaluate"])


def test_splits_without_labels_or_records_are_mistakes(world):
    _write(world / "unlabelled", 4, seed=2, labels=False)
    with pytest.raises(UserError, match="--train: none of its 4 videos has a label"):
        _evaluate(world, "--encoder=video", "--baselines=noise", train="unlabelled")
    (world / "empty").mkdir()
    with pytest.raises(UserError, match="--test: .*empty"):
        _evaluate(world, "--encoder=video", test="empty")


def test_an_export_overwrites_nothing_and_says_what_is_wrong(world, tmp_path):
    run = f"--workdir={world / 'run'}"
    with tool_flags(export, run, f"--output={tmp_path}"), pytest.raises(UserError, match="exists"):
        export.main(["export"])
    results = tmp_path / "results.json"
    results.write_text("{}")
    wrong = [run, f"--output={tmp_path / 'b'}", f"--results={results}"]
    message = "not what --output of common.evaluate"
    with tool_flags(export, *wrong), pytest.raises(UserError, match=message):
        export.main(["export"])
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("tool", ["evaluate", "export", "embed"])
def test_help_is_quick(tool):
    command = [sys.executable, "-m", f"common.{tool}", "--help"]
    began = time.process_time()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "--bundle" in done.stdout
    assert "Traceback" not in done.stderr
    imported = subprocess.run(
        [sys.executable, "-c", f"import common.{tool}, sys; print(sorted(sys.modules))"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    for slow in ("jax", "flax", "tensorflow", "sklearn", "orbax"):
        assert f"'{slow}'" not in imported.stdout
    assert time.process_time() - began < 2


@pytest.mark.slow
def test_the_commands_work_from_the_run_to_features_of_a_file(world, tmp_path):
    def run(tool, *arguments):
        command = [sys.executable, "-m", f"common.{tool}", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    bundle, output = tmp_path / "bundle", tmp_path / "features.npz"
    done = run("export", f"--workdir={world / 'run'}", f"--output={bundle}")
    assert done.returncode == 0, done.stderr
    video = tiny_media.write_video(tmp_path / "a b.mp4")
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(pathlib.Path(video).read_bytes()[:200])
    done = run("embed", f"--bundle={bundle}", f"--output={output}", cut)
    assert done.returncode == 2 and "none of 1 files can be embedded" in done.stderr
    assert not list(tmp_path.glob("*.npz"))
    done = run("embed", f"--bundle={bundle}", f"--output={output}", video, cut, video)
    assert done.returncode == 0, done.stderr
    assert f"1 of 3 files are left out:\n  {cut}: " in done.stderr
    with np.load(output) as written:
        assert written["features"].shape == (2, 256)
        assert written["paths"].tolist() == [video, video]
    done = run("embed", f"--bundle={bundle}", f"--output={output}", video)
    assert done.returncode == 2
    assert "exists already" in done.stderr
    assert "Traceback" not in done.stderr
