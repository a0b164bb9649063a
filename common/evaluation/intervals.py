"""95% intervals: over the videos of one evaluation, and over the seeds of several runs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

LEVEL = 0.95

Statistic = Callable[[np.ndarray], float]
"""A number computed from a set of videos, given how often each of them occurs."""


@dataclasses.dataclass(frozen=True)
class Interval:
    """An estimate with the ends of its 95% interval."""

    value: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        """Returns what is written to JSON."""
        return dataclasses.asdict(self)

    def percent(self) -> str:
        """Returns the interval as people read it: ``71.3 [68.9, 73.6]``, in percent."""
        return self.text(100)

    def text(self, scale: float = 1) -> str:
        """Returns the interval times `scale`, as people read it."""
        value, low, high = (scale * number for number in (self.value, self.low, self.high))
        return f"{value:.1f} [{low:.1f}, {high:.1f}]"


def weighted_mean(values_N: np.ndarray) -> Statistic:
    """Returns the mean over videos of one number per video, as a `Statistic`."""
    values_N = np.asarray(values_N, np.float64)
    return lambda weights_N: float(weights_N @ values_N / weights_N.sum())


def difference(ours: Statistic, theirs: Statistic) -> Statistic:
    """Returns ours minus theirs on the same videos, which keeps the pairing when resampled."""
    return lambda weights_N: ours(weights_N) - theirs(weights_N)


def over_videos(
    statistic: Statistic, num_videos: int, resamples: int = 1000, seed: int = 0
) -> Interval:
    """Returns the percentile bootstrap interval when the test videos are drawn anew.

    Videos are resampled, not clips or rows: the clips of one video agree with one another, and an
    interval that took them for independent would be far too narrow (Efron, 1979). The training set
    and the trained weights are held fixed; `over_seeds` covers those.

    Args:
        statistic: the number of interest.
        num_videos: how many videos it is computed from.
        resamples: how many sets are drawn.
        seed: of the draws; the same seed gives the same interval.
    """
    value = statistic(np.ones(num_videos))
    rng = np.random.default_rng(seed)
    shares_N = np.full(num_videos, 1 / num_videos)
    draws = [
        statistic(rng.multinomial(num_videos, shares_N).astype(np.float64))
        for _ in range(resamples)
    ]
    low, high = np.nanquantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value, float(low), float(high))


def over_seeds(values: Sequence[float]) -> Interval:
    """Returns the mean of independent runs with its Student-t interval.

    With the three to five runs that are usual, resampling them would understate the spread badly;
    Student's t is exact for normal scatter. A single run has no such interval: its ends are NaN.
    """
    values = [float(v) for v in values]
    mean = sum(values) / len(values)
    if len(values) == 1:
        return Interval(mean, math.nan, math.nan)
    from scipy import stats

    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    half = float(stats.t.ppf((1 + LEVEL) / 2, df=len(values) - 1)) * error
    return Interval(mean, mean - half, mean + half)
