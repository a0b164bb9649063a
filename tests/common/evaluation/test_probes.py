import golden_rules
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from common.errors import UserError
from common.evaluation import metrics, probes


def _blobs(num_rows, dim, num_classes, seed=0, spread=1.5):
    centres = np.random.default_rng(99).normal(size=(num_classes, dim))
    rng = np.random.default_rng(seed)
    labels = np.arange(num_rows) % num_classes
    return (centres[labels] + spread * rng.normal(size=(num_rows, dim))).astype(np.float32), labels


@pytest.mark.parametrize("C", [1.0, 0.01])
def test_the_svm_protocol_gives_the_accuracies_of_the_published_one(C):
    pack = golden_rules.Pack("brave")
    drawn, golden = pack.inputs("linear_svm"), pack.stored("linear_svm")
    train_labels = np.arange(90) % 6
    test_labels = 5 * np.arange(10) % 6
    train = drawn["train"] + drawn["centres"][train_labels]
    test = drawn["test"] + drawn["centres"][np.repeat(test_labels, 3)]

    probe = probes.fit_svm(train, train_labels, 6, C=C, max_iter=100_000)
    scores = probes.mean_per_video(probe.scores(test), np.arange(0, 30, 3))
    for k, accuracy in zip((1, 5), golden[f"C{C}/test"], strict=True):
        assert metrics.top_k_credit(scores, test_labels, k).mean() == pytest.approx(accuracy)
    for k, accuracy in zip((1, 5), golden[f"C{C}/train"], strict=True):
        credit = metrics.top_k_credit(probe.scores(train), train_labels, k)
        assert credit.mean() == pytest.approx(accuracy)


def test_an_svm_that_did_not_converge_says_so():
    features, labels = _blobs(200, 30, 5)
    assert "before convergence" in probes.fit_svm(features, labels, 5, C=10, max_iter=1).notes[0]
    assert not probes.fit_svm(features, labels, 5, C=1e-4).notes


def test_more_columns_than_rows_change_nothing_but_the_work():
    features, labels = _blobs(40, 100, 3, spread=3.0)
    standard = StandardScaler().fit_transform(features.astype(np.float64))
    theirs = LinearSVC(C=0.01, dual=True, max_iter=100_000, tol=1e-10).fit(standard, labels)
    ours = probes.fit_svm(features, labels, 3, C=0.01, max_iter=100_000).scores(features)
    np.testing.assert_allclose(ours, theirs.decision_function(standard), atol=1e-3)


@pytest.mark.parametrize("shape", [(90, 20), (30, 70)])
def test_the_ridge_probe_is_scikit_learns_classifier(shape):
    from sklearn.linear_model import RidgeClassifier

    features, labels = _blobs(*shape, 3, spread=3.0)
    standard = StandardScaler().fit_transform(features.astype(np.float64))
    theirs = RidgeClassifier(alpha=10.0).fit(standard, labels).decision_function(standard)
    ours = probes.fit_ridge(features, labels, 3, C=0.1)
    np.testing.assert_allclose(ours.scores(features), theirs, rtol=1e-4, atol=1e-5)
    several = probes.fit_ridge(features, labels[:, None] == np.arange(3), 3, C=0.1)
    np.testing.assert_allclose(several.scores(features), theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fit", [probes.fit_svm, probes.fit_ridge, probes.fit_logistic])
def test_two_classes_and_classes_without_a_row_are_scored(fit):
    features, labels = _blobs(120, 8, 2)
    probe = fit(features, labels * 2, 4)  # classes 0 and 2 occur, 1 and 3 do not
    scores = probe.scores(features)
    assert scores.shape == (120, 4)
    assert np.all(np.isneginf(scores[:, [1, 3]]))
    assert (scores.argmax(axis=1) == labels * 2).mean() > 0.9


@pytest.mark.parametrize("fit", [probes.fit_svm, probes.fit_logistic])
def test_several_labels_per_video_are_learned_one_question_each(fit):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(300, 10)).astype(np.float32)
    targets = np.concatenate([features[:, :3] > 0.3, np.zeros((300, 1), bool)], axis=1)
    scores = fit(features, targets, 4, C=1.0).scores(features)
    assert metrics.MeanAveragePrecision(scores, targets)() > 0.95


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("C", [0.01, 1.0])
def test_the_streaming_probe_agrees_with_scikit_learn(tmp_path, monkeypatch, classes, C):
    monkeypatch.setattr(probes, "CHUNK_ROWS", 250)  # three chunks, the last a shorter one
    features, labels = _blobs(600, 12, classes, spread=2.0)
    path = tmp_path / "features.npy"
    np.save(path, features)
    ours = probes.fit_logistic(np.load(path, mmap_mode="r"), labels, classes, C=C)
    standard = StandardScaler().fit_transform(features.astype(np.float64))
    theirs = LogisticRegression(C=C, max_iter=10_000, tol=1e-8).fit(standard, labels)
    logits = ours.scores(features)
    logits -= logits.max(axis=1, keepdims=True)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(probabilities, theirs.predict_proba(standard), atol=1e-3)
    assert ours.notes == ()


def test_the_streaming_probe_says_where_it_stopped_short():
    features, labels = _blobs(200, 12, 3, spread=2.0)
    (note,) = probes.fit_logistic(features, labels, 3, C=1.0, max_iter=2).notes
    assert "stopped after 2 steps, before convergence" in note


def test_the_streaming_probe_reads_only_a_batch_or_a_chunk_at_a_time():
    class Watched:
        def __init__(self, array):
            self.array, self.shape, self.most = array, array.shape, 0

        def __len__(self):
            return len(self.array)

        def __getitem__(self, rows):
            part = self.array[rows]
            self.most = max(self.most, len(part))
            return part

    features, labels = _blobs(3 * probes.CHUNK_ROWS, 2, 3)
    watched = Watched(features)
    probes.fit_logistic(watched, labels, 3, max_iter=2).scores(watched)
    assert watched.most == probes.CHUNK_ROWS


def test_standardisation_equals_scikit_learn_even_for_constant_columns():
    features = np.random.default_rng(0).normal(3, 2, (500, 4)).astype(np.float32)
    features[:, 1] = 0.1
    scaler = StandardScaler().fit(features.astype(np.float64))
    mean, scale = probes.standardisation(features)
    np.testing.assert_allclose(mean, scaler.mean_, rtol=1e-12)
    np.testing.assert_allclose(scale, scaler.scale_, rtol=1e-10)


def test_scores_are_averaged_over_the_rows_of_a_video():
    scores = np.array([[1.0, 0], [3, 0], [5, 1]])
    assert probes.mean_per_video(scores, np.array([0, 2])).tolist() == [[2, 0], [5, 1]]


def test_a_training_split_of_one_class_is_a_mistake_the_message_names():
    features = np.zeros((10, 3), np.float32)
    for fit in (probes.fit_svm, probes.fit_logistic):
        with pytest.raises(UserError, match="at least two"):
            fit(features, np.zeros(10, int), 5)
        with pytest.raises(UserError, match="nothing"):
            fit(features, np.ones((10, 5), bool), 5)
