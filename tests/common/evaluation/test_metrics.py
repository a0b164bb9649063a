import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from common.evaluation import metrics


def test_top_k_counts_the_label_among_the_k_highest_scores():
    scores = np.array([[0.1, 0.9, 0.5], [0.3, 0.2, 0.1], [-np.inf, 0.0, 1.0]])
    labels = np.array([2, 2, 0])
    assert metrics.top_k_credit(scores, labels, 1).tolist() == [0, 0, 0]
    assert metrics.top_k_credit(scores, labels, 2).tolist() == [1, 0, 0]
    assert metrics.top_k_credit(scores, labels, 3).tolist() == [1, 1, 1]


@given(st.integers(2, 9), st.integers(1, 9), st.integers(0, 8))
@settings(max_examples=30, deadline=None)
def test_constant_scores_earn_exactly_chance_whatever_the_label(num_classes, k, label):
    credit = metrics.top_k_credit(np.zeros((1, num_classes)), np.array([label % num_classes]), k)
    assert credit[0] == pytest.approx(min(k / num_classes, 1))


@given(st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_tied_scores_earn_what_random_tie_breaking_earns_on_average(seed):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 3, (4, 5)).astype(float)
    labels = rng.integers(0, 5, 4)
    broken = [
        metrics.top_k_credit(
            scores + 1e-3 * rng.permuted(np.tile(np.arange(5), (4, 1)), axis=1), labels, 2
        )
        for _ in range(600)
    ]
    np.testing.assert_allclose(
        np.mean(broken, 0), metrics.top_k_credit(scores, labels, 2), atol=0.1
    )


def test_scores_that_are_not_numbers_are_refused():
    scores = np.array([[0.0, np.nan]])
    with pytest.raises(ValueError, match="NaN"):
        metrics.top_k_credit(scores, np.array([0]), 1)
    with pytest.raises(ValueError, match="NaN"):
        metrics.MeanAveragePrecision(scores, scores > 0)


def test_labels_outside_the_classes_are_refused():
    with pytest.raises(ValueError, match="Labels"):
        metrics.top_k_credit(np.zeros((1, 3)), np.array([3]), 1)


@given(st.integers(0, 10_000), st.integers(1, 40), st.booleans())
@settings(max_examples=60, deadline=None)
def test_average_precision_equals_scikit_learn_with_ties_and_weights(seed, num_videos, tied):
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(num_videos, 3))
    if tied:
        scores = np.round(scores)
    relevant = rng.random((num_videos, 3)) < 0.4
    weights = rng.integers(0, 4, num_videos).astype(float)
    ours = metrics.MeanAveragePrecision(scores, relevant).per_class(weights)
    for c in range(3):
        if weights @ relevant[:, c] == 0:
            assert np.isnan(ours[c])
        else:
            theirs = average_precision_score(relevant[:, c], scores[:, c], sample_weight=weights)
            assert ours[c] == pytest.approx(theirs)


def test_a_weight_counts_how_often_a_video_occurs():
    rng = np.random.default_rng(0)
    scores, relevant = rng.normal(size=(20, 4)), rng.random((20, 4)) < 0.3
    times = rng.integers(0, 3, 20)
    repeated = metrics.MeanAveragePrecision(
        np.repeat(scores, times, 0), np.repeat(relevant, times, 0)
    )
    assert metrics.MeanAveragePrecision(scores, relevant)(times) == pytest.approx(repeated())


def test_classes_without_a_relevant_video_are_left_out_of_the_mean():
    scores = np.array([[1.0, 0.0], [0.0, 1.0]])
    relevant = np.array([[True, False], [False, False]])
    assert metrics.MeanAveragePrecision(scores, relevant)() == 1.0
    assert np.isnan(metrics.MeanAveragePrecision(scores, np.zeros((2, 2), bool))())
