"""Step localisation against brute force and by hand."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import UserError
from common.evaluation import step_localisation
from common.evaluation.step_localisation import Step


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(0, 5), st.booleans())
def test_the_places_are_the_best_of_all_in_order(seed, num_steps, spare, tied):
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(num_steps + spare, num_steps))
    if tied:
        scores = np.round(scores)
    found = step_localisation.assign(scores)
    assert found.dtype == np.int64
    assert (np.diff(found) > 0).all()
    steps = np.arange(num_steps)
    totals = {
        places: scores[list(places), steps].sum()
        for places in itertools.combinations(range(len(scores)), num_steps)
    }
    assert scores[found, steps].sum() == pytest.approx(max(totals.values()))
    if not tied:
        assert tuple(found) == max(totals, key=totals.get)


def test_equally_good_seconds_are_taken_early():
    assert step_localisation.assign(np.zeros((9, 3))).tolist() == [0, 1, 2]


def test_steps_are_kept_in_order_even_where_their_best_seconds_are_not():
    scores = np.array([[0.0, 9.0], [8.0, 0.0], [0.0, 2.0]])
    assert step_localisation.assign(scores).tolist() == [1, 2]


def test_more_steps_than_seconds_are_refused():
    with pytest.raises(UserError, match="3 steps do not fit"):
        step_localisation.assign(np.zeros((2, 3)))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_score_that_is_not_a_number_is_named(bad):
    scores = np.zeros((5, 3))
    scores[4, 1] = bad
    with pytest.raises(UserError, match="second 4 and step 2"):
        step_localisation.assign(scores)
    with pytest.raises(UserError, match="Video 'a' of task 'tea': .*second 4"):
        step_localisation.recall({("tea", "a"): scores}, [Step("tea", "a", 1, 0, 1)])


def _placed(num_seconds, *seconds):
    """Scores that put each step at the second given."""
    scores = np.zeros((num_seconds, len(seconds)))
    scores[list(seconds), np.arange(len(seconds))] = 1.0
    return scores


def test_recall_sums_over_the_videos_of_a_task_and_averages_over_tasks():
    scores = {
        ("tea", "a"): _placed(10, 2, 5),
        ("tea", "b"): _placed(10, 1, 8),
        ("coffee", "a"): _placed(6, 3),
        ("coffee", "not annotated"): _placed(6, 3),
    }
    steps = [
        Step("tea", "a", 1, 2.0, 3.0),  # found
        Step("tea", "a", 2, 6.0, 7.0),  # missed
        Step("tea", "a", 2, 8.0, 9.0),  # shown again: still one step
        Step("tea", "b", 2, 7.5, 8.5),  # found; step 1 is not shown
        Step("coffee", "a", 1, 4.0, 5.0),  # missed
    ]
    found = step_localisation.recall(scores, steps)
    assert found.by_task == {"coffee": 0.0, "tea": pytest.approx(2 / 3)}
    assert found.average.value == pytest.approx(1 / 3)
    assert found.average.low <= found.average.value <= found.average.high
    assert (found.shown_by_task, found.num_videos) == ({"coffee": 1, "tea": 3}, 3)


@pytest.mark.parametrize(
    ("second", "inside"), [(1, False), (2, True), (3, True), (4, True), (5, False)]
)
def test_an_interval_is_widened_to_whole_seconds(second, inside):
    found = step_localisation.recall(
        {("t", "v"): _placed(9, second)}, [Step("t", "v", 1, 2.7, 4.1)]
    )
    assert found.by_task == {"t": float(inside)}


def test_a_step_shown_after_the_last_second_with_scores_does_not_count():
    steps = [Step("t", "v", 1, 0, 1), Step("t", "v", 2, 5.0, 7.0)]
    assert step_localisation.recall({("t", "v"): _placed(5, 0, 3)}, steps).by_task == {"t": 1.0}
    with pytest.raises(UserError, match="No annotated step"):
        step_localisation.recall({("t", "v"): _placed(5, 0, 3)}, steps[1:])


def test_a_video_without_scores_and_a_step_without_scores_are_named():
    scores = {("t", "v"): _placed(5, 0, 3)}
    with pytest.raises(UserError, match="Video 'w' of task 't' is annotated"):
        step_localisation.recall(scores, [Step("t", "w", 1, 0, 1)])
    with pytest.raises(UserError, match="step 3 of task 't', but there are scores for 2"):
        step_localisation.recall(scores, [Step("t", "v", 3, 0, 1)])
