import dataclasses

import numpy as np
import pytest

from common.errors import UserError
from common.evaluation import linear
from common.evaluation.features import Features, Video, relabelled


def _features(labels_of, clips=2, seed=0, noise=0.3, dim=6):
    """Rows that show which classes a video has, one coordinate per class."""
    rng = np.random.default_rng(seed)
    names = ("a", "b", "c")
    rows, videos = [], []
    for number, labels in enumerate(labels_of):
        shown = [2.0 * (name in labels) for name in names] + [0.0] * (dim - 3)
        rows.append(np.array(shown) + noise * rng.normal(size=(clips, dim)))
        videos.append(Video(f"video{number}", tuple(labels), number * clips, clips))
    return Features(np.concatenate(rows).astype(np.float32), tuple(videos), ())


def _single(count, **options):
    return _features([("a", "b", "c")[i % 3 : i % 3 + 1] for i in range(count)], **options)


@pytest.mark.parametrize("probe", ["svm", "logistic"])
def test_one_label_per_video_is_scored_by_accuracy_over_videos(probe):
    outcome = linear.run(_single(60), _single(30, seed=1), linear.ProbeSettings(probe, C=0.1))
    assert outcome.row["metrics"]["top1"]["value"] == 1.0
    assert outcome.row["metrics"]["top5"]["value"] == 1.0
    assert outcome.row["train_rows"] == 120
    assert outcome.row["test_videos"] == 30
    assert outcome.row["always_the_commonest"] == pytest.approx(1 / 3)


def test_features_that_know_nothing_score_chance():
    train, test = _single(300, noise=100.0), _single(300, seed=1, noise=100.0)
    top1 = linear.run(train, test, linear.ProbeSettings()).row["metrics"]["top1"]
    assert top1["low"] < 1 / 3 < top1["high"]


def test_several_labels_per_video_are_scored_by_mean_average_precision():
    rng = np.random.default_rng(0)
    sets = [[n for n in "abc" if rng.random() < 0.5] or ["a"] for _ in range(80)]
    outcome = linear.run(
        _features(sets[:50]), _features(sets[50:], seed=1), linear.ProbeSettings(C=0.1)
    )
    assert outcome.row["metrics"]["mAP"]["value"] > 0.95
    assert "top1" not in outcome.row["metrics"]


def test_videos_without_a_label_and_unreadable_ones_are_counted_and_left_out():
    labels_of = [(("a", "b", "c")[i % 3],) if i % 4 else () for i in range(60)]
    train = _features(labels_of)
    train = Features(train.rows_RD, train.videos, (Video("x", bad="no frames"),))
    row = linear.run(train, _single(30, seed=1), linear.ProbeSettings(C=0.1)).row
    assert row["left_out"]["train_unlabelled"] == 15
    assert row["left_out"]["train_unreadable"] == 1
    assert row["train_videos"] == 45
    assert row["metrics"]["top1"]["value"] == 1.0


@pytest.mark.parametrize("split", ["--train", "--test"])
def test_a_split_without_labels_is_a_mistake_that_names_it(split):
    nothing = _features([()] * 10)
    train, test = (nothing, _single(9)) if split == "--train" else (_single(9), nothing)
    with pytest.raises(UserError, match=f"{split}: none of its 10 videos has a label"):
        linear.run(train, test, linear.ProbeSettings())


def test_the_sweep_chooses_C_on_training_videos_alone_and_says_so():
    train = _single(100, noise=2.0)
    first = linear.run(train, _single(30, seed=1), linear.ProbeSettings(sweep=True)).row
    second = linear.run(train, _single(60, seed=2), linear.ProbeSettings(sweep=True)).row
    assert first["C"] == second["C"]
    assert first["C"] in linear.SWEEP_C
    assert "20 of 100 training videos" in first["notes"][0]


@pytest.mark.parametrize("probe", ["ridge", "logistic"])
def test_the_sweep_does_not_end_where_every_answer_is_the_commonest(probe):
    labels = [("a",) if n % 10 else ("b",) for n in range(600)]
    generator = np.random.default_rng(0)
    rows = generator.normal(size=(600, 16)).astype(np.float32)
    rows[::10, :3] += 2.5
    features = _features(labels, clips=1)
    features = dataclasses.replace(features, rows_RD=rows)
    row = linear.run(features, features, linear.ProbeSettings(probe, sweep=True)).row
    assert row["metrics"]["top1"]["value"] > row["always_the_commonest"] + 0.03


def test_a_class_that_training_never_saw_counts_as_missed_and_is_named():
    test = _features([("a",), ("b",), ("d",), ("d",)])
    row = linear.run(_single(60), test, linear.ProbeSettings(C=0.1)).row
    assert row["metrics"]["top1"]["value"] == 0.5
    assert any("d" in note for note in row["notes"])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_no_numbers_are_named_and_not_scored(value):
    whole, broken = _single(30, seed=1), _single(30, seed=1)
    broken.rows_RD[broken.videos[7].start, 0] = value
    for train, test, flag in ((broken, whole, "--train"), (whole, broken, "--test")):
        wanted = f"{flag}: the features of {broken.videos[7].id} are not finite"
        with pytest.raises(UserError, match=wanted):
            linear.run(train, test, linear.ProbeSettings("ridge"))


def test_a_sweep_that_leaves_one_class_says_that_it_is_the_sweep():
    one = _single(2, seed=0)
    with pytest.raises(UserError, match="--sweep holds 1 of the 2 videos of --train out"):
        linear.run(one, one, linear.ProbeSettings(sweep=True))


def test_labels_can_come_from_elsewhere():
    halves = {f"video{i}": ("rest",) if i % 3 else ("first",) for i in range(59)}
    train, test = (relabelled(each, halves) for each in (_single(60), _single(30, seed=1)))
    row = linear.run(train, test, linear.ProbeSettings(C=0.1)).row
    assert row["classes"] == 2
    assert row["left_out"]["train_unlabelled"] == 1
    assert row["metrics"]["top1"]["value"] == 1.0


def test_probe_settings_that_cannot_be_are_refused():
    with pytest.raises(UserError, match="svm, ridge, logistic"):
        linear.ProbeSettings("knn")
    with pytest.raises(UserError, match="positive"):
        linear.ProbeSettings(C=-1.0)
