import math

import numpy as np
import pytest
from scipy import stats

from common.evaluation import intervals


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    truth, covered = 0.7, 0
    for trial in range(200):
        outcomes = (rng.random(150) < truth).astype(float)
        interval = intervals.over_videos(
            intervals.weighted_mean(outcomes), 150, resamples=200, seed=trial
        )
        covered += interval.low <= truth <= interval.high
    assert 0.89 <= covered / 200 <= 0.99


def test_the_interval_is_that_of_the_mean_for_many_videos():
    outcomes = np.random.default_rng(1).normal(size=2000)
    interval = intervals.over_videos(intervals.weighted_mean(outcomes), 2000)
    error = outcomes.std() / math.sqrt(2000)
    assert interval.value == pytest.approx(outcomes.mean())
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_the_same_seed_gives_the_same_interval():
    statistic = intervals.weighted_mean(np.arange(30.0))
    assert intervals.over_videos(statistic, 30, seed=3) == intervals.over_videos(
        statistic, 30, seed=3
    )


def test_a_difference_on_the_same_videos_is_narrower_than_two_separate_intervals():
    rng = np.random.default_rng(2)
    easy = rng.random(300)
    ours, theirs = intervals.weighted_mean(easy + 0.1), intervals.weighted_mean(easy)
    apart = intervals.over_videos(intervals.difference(ours, theirs), 300)
    assert apart.low == pytest.approx(0.1)
    assert apart.high == pytest.approx(0.1)
    single = intervals.over_videos(ours, 300)
    assert single.high - single.low > 0.05


def test_the_interval_over_seeds_is_students():
    values = [0.5, 0.6, 0.55]
    interval = intervals.over_seeds(values)
    low, high = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
    assert (interval.low, interval.high) == (pytest.approx(low), pytest.approx(high))


def test_one_seed_has_a_value_but_no_interval():
    interval = intervals.over_seeds([0.5])
    assert interval.value == 0.5
    assert math.isnan(interval.low)
    assert math.isnan(interval.high)
