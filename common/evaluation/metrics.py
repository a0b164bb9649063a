"""Top-k accuracy and mean average precision, exact where scores are tied.

Both come in a form that takes one weight per video, so that `common.evaluation.intervals` can
resample the videos without ranking the scores again.
"""

from __future__ import annotations

import numpy as np


def top_k_credit(scores_NC: np.ndarray, labels_N: np.ndarray, k: int) -> np.ndarray:
    """Returns for each of N videos the chance that its label is among the k highest scores.

    Without ties this is 0 or 1. Tied scores count as ranked in uniformly random order, so that
    constant scores earn exactly k / C and no class gains from where it stands in the list.

    Args:
        scores_NC: real scores, higher is likelier; minus infinity is allowed, NaN is not.
        labels_N: class numbers in [0, C).
        k: how many guesses are allowed.

    Returns:
        float64 of shape (N,), each in [0, 1].

    Raises:
        ValueError: a score is NaN, or a label is not a class number.
    """
    scores_NC = np.asarray(scores_NC)
    labels_N = np.asarray(labels_N)
    if np.isnan(scores_NC).any():
        raise ValueError("Scores hold NaN, so their order means nothing.")
    if len(labels_N) and (labels_N.min() < 0 or labels_N.max() >= scores_NC.shape[1]):
        raise ValueError(f"Labels must lie in [0, {scores_NC.shape[1]}).")
    own_N1 = np.take_along_axis(scores_NC, labels_N[:, None], axis=1)
    higher_N = (scores_NC > own_N1).sum(axis=1)
    tied_N = (scores_NC == own_N1).sum(axis=1)  # its own score included
    return np.clip((k - higher_N) / tied_N, 0.0, 1.0)


class MeanAveragePrecision:
    """Mean over classes of the average precision, ready to be asked with many weightings.

    The average precision of a class is the sum over thresholds of precision times the gain in
    recall, without interpolation; equal scores share one threshold. That is the definition of
    scikit-learn's ``average_precision_score`` and of AudioSet's published results. Classes without
    a relevant video have none and are left out of the mean.
    """

    def __init__(self, scores_NC: np.ndarray, relevant_NC: np.ndarray):
        scores_NC = np.asarray(scores_NC, np.float64)
        if np.isnan(scores_NC).any():
            raise ValueError("Scores hold NaN, so their order means nothing.")
        self._order_NC = np.argsort(-scores_NC, axis=0, kind="stable")
        self._relevant_NC = np.take_along_axis(
            np.asarray(relevant_NC, bool), self._order_NC, axis=0
        )
        self._group_end_NC = _last_of_ties(np.take_along_axis(scores_NC, self._order_NC, axis=0))

    def per_class(self, weights_N: np.ndarray | None = None) -> np.ndarray:
        """Returns the average precision of each class, float64 (C,), NaN where it has none.

        A weight counts how often its video occurs.
        """
        num_videos = len(self._order_NC)
        weights_N = np.ones(num_videos) if weights_N is None else np.asarray(weights_N, np.float64)
        weights_NC = weights_N[self._order_NC]
        found_NC = weights_NC * self._relevant_NC
        hits_NC = np.take_along_axis(np.cumsum(found_NC, axis=0), self._group_end_NC, axis=0)
        seen_NC = np.take_along_axis(np.cumsum(weights_NC, axis=0), self._group_end_NC, axis=0)
        precision_NC = np.divide(hits_NC, seen_NC, out=np.zeros_like(hits_NC), where=seen_NC > 0)
        total_C = found_NC.sum(axis=0)
        gained_C = (found_NC * precision_NC).sum(axis=0)
        return np.divide(gained_C, total_C, out=np.full_like(total_C, np.nan), where=total_C > 0)

    def __call__(self, weights_N: np.ndarray | None = None) -> float:
        """Returns the mean over the classes that have a relevant video; NaN if none has."""
        per_class_C = self.per_class(weights_N)
        known_C = per_class_C[~np.isnan(per_class_C)]
        return float(known_C.mean()) if len(known_C) else float("nan")


def _last_of_ties(sorted_NC: np.ndarray) -> np.ndarray:
    """Returns for each place the last place of its run of equal values, along the first axis."""
    num_rows = len(sorted_NC)
    ends_NC = np.ones(sorted_NC.shape, bool)
    ends_NC[:-1] = sorted_NC[1:] != sorted_NC[:-1]
    places_NC = np.where(ends_NC, np.arange(num_rows)[:, None], num_rows)
    return np.minimum.accumulate(places_NC[::-1], axis=0)[::-1]
