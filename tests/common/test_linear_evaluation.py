"""Linear evaluation by official splits, from video files to the numbers anyone gets by hand."""

import csv
import dataclasses
import io
import json

import jax
import numpy as np
import pytest
import tiny_brave
import tiny_media
from flax import nnx
from PIL import Image
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from tool_flags import tool_flags

from common import checkpoint, evaluate, ingest, methods, state
from common import config as config_lib
from common.data import records, shards
from common.errors import UserError
from common.evaluation import embedding
from common.weights import loading

LABELS = ("brush_hair", "clap", "wave")
NUM_VIDEOS, WINDOWS, FRAMES, SIZE = 45, 10, 4, 28


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Video files of 30 frames/s in folders, their records, HMDB-51's csv of them, and a run."""
    folder = tmp_path_factory.mktemp("linear")
    rng = np.random.default_rng(0)
    rows = []
    for number in range(NUM_VIDEOS):
        label = LABELS[number % 3]
        name = f"#{number}_it's_[{label}]_u_nm_np1.mp4"
        (folder / "videos" / label).mkdir(parents=True, exist_ok=True)
        frames = int(rng.integers(2, 40))  # some are shorter than a window
        path = folder / "videos" / label / name
        tiny_media.write_video(path, number, frames, sound=False, rate=30)
        rows.append([name, f"{label}_test", *rng.choice([0, 1, 2], 3, p=[0.1, 0.6, 0.3])])
    with open(folder / "hmdb51.csv", "w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["video_id", "label", "split1", "split2", "split3"])
        out.writerows(rows)
    (folder / "lists").mkdir()
    for role, value in (("train", 1), ("test", 2)):
        listed = [f"{row[1][:-5]}/{row[0]} 7\n" for row in rows if row[2] == value]
        (folder / "lists" / f"{role}list01.txt").write_text("".join(listed))
    options = ("--split=all", "--frame_rate=30", "--audio_rate=0", "--workers=1", "--short_side=48")
    source = (f"--source={folder / 'videos'}", f"--output={folder / 'records'}")
    with tool_flags(ingest, *source, *options):
        assert not ingest.main(["ingest"])
    _make_run(folder / "run")
    return folder, rows


def _make_run(workdir):
    """A run of random numbers, with norms that keep what tells one video from another."""
    config = tiny_brave.get_config(seed=3)
    config_lib.claim(config, workdir)
    made = tiny_brave.random_state(methods.create(config), config, 3)

    def tamed(path, leaf):
        kind = state.path_of(path).rpartition("/")[2]
        return {"scale": abs(leaf) + 0.3, "offset": 0.1 * leaf}.get(kind, leaf)

    params = jax.tree_util.tree_map_with_path(tamed, made.params)
    made = dataclasses.replace(made, params=params, ema=params)
    checkpoints = checkpoint.Checkpoints(workdir, config)
    checkpoints.save(1, jax.tree.map(jax.numpy.asarray, made))
    checkpoints.finish()


def _evaluate(world, *arguments):
    """Runs the command in this process; returns the rows that it writes."""
    folder, _ = world
    output = folder / "results.json"
    output.unlink(missing_ok=True)
    source = folder / "records" / "all"
    given = (f"--workdir={folder / 'run'}", f"--train={source}", f"--test={source}")
    with tool_flags(evaluate, *given, "--encoder=video", f"--output={output}", *arguments):
        evaluate.main(["evaluate"])
    return json.loads(output.read_text())["rows"]


def _stored(kept):
    """Features that the command kept: by role and the file's name the ten rows of a video."""
    parts = {}
    for made in kept.iterdir():
        description = json.loads((made / "description.json").read_text())
        role = "test" if description["random_clips_seed"] is None else "train"
        lines = map(json.loads, (made / "videos.jsonl").read_text().splitlines())
        rows_RD = np.fromfile(made / "rows.f32", np.float32).reshape(NUM_VIDEOS * WINDOWS, -1)
        parts[role] = {
            video["id"].rpartition("/")[2]: rows_RD[video["start"] :][:WINDOWS] for video in lines
        }
    return parts


def _part(features, rows, place, value):
    """Rows and class of each video that has a value in a split, in the order of the records.

    The order matters where the solver stops early.
    """
    listed = {row[0]: LABELS.index(row[1][:-5]) for row in rows if row[2 + place] == value}
    return [(own, listed[name]) for name, own in features.items() if name in listed]


def _hmdb_features_by_hand(folder):
    """The ten window features of each video, by its file's name: (10, D)."""
    loaded = loading.from_workdir(folder / "run")
    encoder = loaded.encoder("video")
    assert (encoder.inputs.num_frames, encoder.inputs.size) == (FRAMES, SIZE)
    loaded.model.eval()
    record_set = shards.RecordSet.open(folder / "records" / "all")
    graphdef, variables = nnx.split(loaded.model)
    embed = jax.jit(lambda variables, clips: encoder.embed(nnx.merge(graphdef, variables), clips))
    features = {}
    for number in range(len(record_set)):
        clip = records.deserialize(record_set.read(number))
        assert clip.frame_rate == 30.0
        video = []
        for jpeg in clip.frames_jpeg:
            image = Image.open(io.BytesIO(jpeg))
            assert image.size == (60, 48)
            square = image.crop((6, 0, 54, 48))
            video.append(np.asarray(square).astype(np.float32))
        video = [_resized(image) for image in video]
        video += [np.zeros((SIZE, SIZE, 3), np.uint8)] * (FRAMES - len(video))
        begin = np.linspace(0, len(video) - FRAMES, WINDOWS, dtype=int)
        clips = np.stack([video[b : b + FRAMES] for b in begin])
        features[clip.id.rpartition("/")[2]] = np.asarray(embed(variables, clips))
    return features


def _resized(image_HWC):
    from common.tf import tf

    return tf.image.resize(image_HWC, (SIZE, SIZE)).numpy().astype(np.uint8)


def _accuracy(classifier, features, targets, scaler=None):
    """Published scoring: decision values summed over a video's windows, the largest wins."""
    flat = np.concatenate(features)
    flat = flat if scaler is None else scaler.transform(flat)
    decisions = classifier.decision_function(flat).reshape(len(features), -1, len(LABELS))
    return float((decisions.sum(axis=1).argmax(axis=1) == targets).mean())


@pytest.mark.slow
def test_the_three_splits_of_hmdb_score_what_scikit_learn_gives_by_hand(world, capsys, monkeypatch):
    folder, rows = world
    calls = []
    embed = embedding.Embedder.__call__
    monkeypatch.setattr(
        embedding.Embedder, "__call__", lambda *a: calls.append(len(a[1])) or embed(*a)
    )
    kept = folder / "hmdb51"
    results = _evaluate(
        world, "--protocol=hmdb51", f"--splits={folder / 'hmdb51.csv'}", f"--features={kept}"
    )
    assert sum(calls) == 16 * -(-NUM_VIDEOS * WINDOWS // 16)  # once for all the splits
    assert [row["labels"] for row in results] == ["split1", "split2", "split3"]
    features = _stored(kept)["test"]  # also of training
    by_hand = _hmdb_features_by_hand(folder)
    assert set(by_hand) == set(features) == {row[0] for row in rows}
    assert np.std([own[0] for own in features.values()], axis=0).mean() > 1e-3
    for name, own in features.items():
        np.testing.assert_allclose(own, by_hand[name], rtol=1e-4, atol=1e-5)
    found = []
    for place, row in enumerate(results):
        train, test = (_part(features, rows, place, value) for value in (1, 2))
        assert (row["train_videos"], row["test_videos"]) == (len(train), len(test))
        assert row["train_rows"] == WINDOWS * len(train)
        assert not any(row["left_out"].values())
        assert (row["C"], row["standardised"]) == (100.0, False)
        classifier = LinearSVC(C=100.0, dual=True, random_state=0)
        classifier.fit(np.concatenate([f for f, _ in train]), np.repeat([y for _, y in train], 10))
        top1 = _accuracy(classifier, *zip(*test, strict=True))
        assert row["metrics"]["top1"]["value"] == pytest.approx(top1)
        found.append(top1)
    assert len(set(found)) > 1 and min(found) < 1
    mean = 100 * sum(found) / 3
    wanted = f"video, trained: top1 is {mean:.1f}, the mean of split1, split2, split3"
    assert wanted in capsys.readouterr().out


@pytest.mark.slow
def test_the_linear_protocol_of_ucf_scores_what_scikit_learn_gives_by_hand(world):
    folder, rows = world
    kept = folder / "features"
    (row,) = _evaluate(
        world, "--protocol=ucf101", f"--splits={folder / 'lists'}", f"--features={kept}",
        "--split_names=split1",
    )  # fmt: skip
    assert (row["C"], row["standardised"], row["labels"]) == (1e-3, True, "split1")
    stored = _stored(kept)
    train, test = (
        list(zip(*_part(stored[role], rows, 0, value), strict=True))
        for role, value in (("train", 1), ("test", 2))
    )
    train, targets = np.concatenate(train[0]), np.repeat(train[1], WINDOWS)
    scaler = StandardScaler().fit(train)
    classifier = LinearSVC(C=1e-3, dual=True, random_state=0).fit(scaler.transform(train), targets)
    top1 = _accuracy(classifier, *test, scaler)
    assert row["metrics"]["top1"]["value"] == pytest.approx(top1)
    assert not np.array_equal(train[0], train[1])  # random clips, not ten times the same


@pytest.mark.slow
def test_flags_come_before_the_protocols_probe(world):
    one = (f"--splits={world[0] / 'hmdb51.csv'}", "--protocol=hmdb51", "--split_names=split2")
    (row,) = _evaluate(world, *one, "--C=0.5")
    assert (row["C"], row["standardised"], row["labels"]) == (0.5, False, "split2")
    (row,) = _evaluate(world, *one, "--probe=ridge")
    assert (row["C"], row["standardised"]) == (1e-3, True)
    (row,) = _evaluate(world, *one, "--sweep")
    assert "C chosen on" in row["notes"][0]


@pytest.mark.slow  # for its files
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--splits={0}/nowhere.csv"], "nowhere.csv cannot be read"),
        (["--splits={0}/hmdb51.csv", "--split_names=split4"], "holds split1, split2, split3"),
        (["--split_names=split1"], "goes with --splits"),
        (["--splits={0}/hmdb51.csv", "--label_columns=x"], "brings its own labels"),
    ],
)
def test_a_mistake_about_splits_is_answered_with_what_to_do(world, arguments, message):
    with pytest.raises(UserError, match=message):
        _evaluate(world, *(argument.format(world[0]) for argument in arguments))
