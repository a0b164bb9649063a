"""Retrieval: where the right candidate stands in the list of each query, and recall at K.

Ranks come from a score matrix, or block by block from embeddings where the matrix would not fit.
Equal scores are kept as what they are, ties, until a rule of `TIES` says what they count.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np

from common.errors import UserError
from common.evaluation import intervals
from common.evaluation.intervals import Interval, Statistic

TIES = {
    "middle": "expected under random order of equal scores",
    "optimistic": "equal scores ranked in favour of the query",
    "pessimistic": "equal scores ranked against the query",
    "averaged": "the mean position of equal scores, as Frozen in Time's published video-to-text",
    "published": "MIL-NCE's published count: every tied position is one more query",
}
RECALL_AT = (1, 5, 10)  # of which the geometric mean is taken
_CUTOFFS = (*RECALL_AT, 50)
_BLOCK_SCORES = 1 << 23  # scores held at once: 64 MiB

Right = np.ndarray | Sequence[Any]
"""The right candidates: bool (N, M), or for each of N queries an index or several."""


@dataclasses.dataclass(frozen=True)
class Ranks:
    """Where the best right candidate of each of N queries stands; all int64 (N,).

    Attributes:
        higher_N: candidates that score higher.
        tied_N: candidates that score the same, itself included.
        right_tied_N: how many of those are right.
        right_N: right candidates at any score.
    """

    higher_N: np.ndarray
    tied_N: np.ndarray
    right_tied_N: np.ndarray
    right_N: np.ndarray

    def __len__(self) -> int:
        return len(self.higher_N)

    def position(self, ties: str) -> np.ndarray:
        """Returns the rank, from 1, by a key of `TIES` other than "published"; float64 (N,).

        "averaged" is the mean over all tied positions, whether right or not, as published; "middle"
        is lower where several right candidates are tied, since the first of them counts.
        """
        if ties == "optimistic":
            return self.higher_N + 1.0
        if ties == "pessimistic":
            return self.higher_N + self.tied_N - self.right_tied_N + 1.0
        if ties == "averaged":
            return self.higher_N + (self.tied_N + 1) / 2
        return self.higher_N + (self.tied_N + 1) / (self.right_tied_N + 1)

    def credit(self, k: int, ties: str) -> np.ndarray:
        """Returns the chance that a right candidate is among the first k; float64 (N,).

        The rules are those of `position`; all but "middle" give 0 or 1. By "averaged" a rank
        between k and k + 1 is among the first k, except for k = 1, as published.
        """
        if ties == "averaged" and k > 1:
            return (self.position(ties) < k + 1).astype(np.float64)
        if ties != "middle":
            return (self.position(ties) <= k).astype(np.float64)
        free_N = np.clip(k - self.higher_N, 0, self.tied_N)  # places the tied ones share
        missed_N = np.ones(len(self))
        for place in range(int(free_N.max(initial=0))):
            wrong_N = np.maximum(self.tied_N - self.right_tied_N - place, 0)
            chance_N = wrong_N / np.maximum(self.tied_N - place, 1)
            missed_N *= np.where(place < free_N, chance_N, 1.0)
        return 1.0 - missed_N


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Retrieval metrics with 95% intervals.

    Attributes:
        ties: the rule, a key of `TIES`.
        num_queries: how many queries were ranked.
        num_groups: how many independent groups they form, which the intervals resample.
        metrics: "R@1", "R@5", "R@10", "R@50" and "geometric mean", of the first three, as
            fractions; "median rank" and "mean rank" from 1.
    """

    ties: str
    num_queries: int
    num_groups: int
    metrics: dict[str, Interval]

    def as_dict(self) -> dict[str, Any]:
        """Returns what is written to JSON."""
        return dataclasses.asdict(self)


def ranks(scores_NM: np.ndarray, right: Right) -> Ranks:
    """Ranks the right candidates of each query by a matrix of scores.

    Args:
        scores_NM: N queries by M candidates, higher is more alike; infinities are allowed.
        right: the right candidates of each query, at least one.

    Raises:
        UserError: a score is NaN, or a query has no right candidate; says which.
        ValueError: the right candidates do not fit the matrix.
    """
    scores_NM = np.asarray(scores_NM)
    return _ranks(lambda first, end: scores_NM[first:end], *scores_NM.shape, right, None)


def ranks_from_embeddings(
    queries_ND: np.ndarray, candidates_MD: np.ndarray, right: Right, block_rows: int | None = None
) -> Ranks:
    """Ranks by inner products in float64, without holding the whole matrix of scores.

    Candidates that are equal to the last bit, as those of repeated captions, score exactly the
    same. For cosine similarity normalise the rows first.

    Args:
        queries_ND: one row per query.
        candidates_MD: one row per candidate.
        right: the right candidates of each query, at least one.
        block_rows: queries scored at once; by default as many as make 64 MiB of scores.

    Raises:
        UserError: an embedding is not finite, or a query has no right candidate; says which.
        ValueError: the right candidates do not fit.
    """
    queries_ND, candidates_MD = np.asarray(queries_ND), np.asarray(candidates_MD)
    for what, rows in (("query", queries_ND), ("candidate", candidates_MD)):
        if len(broken := np.flatnonzero(~np.isfinite(rows).all(axis=1))):
            raise UserError(
                f"The embedding of {what} {broken[0]} ({len(broken)} of {len(rows)}) holds values "
                "that are not finite numbers, so it cannot be ranked. Look at the clip or text it "
                "comes from, and at the weights."
            )
    # A matrix product may round equal columns differently by where they stand, which would break
    # their tie in favour of one; so each distinct row is scored once.
    distinct_UD, place_M = distinct(candidates_MD)
    repeated = len(distinct_UD) < len(candidates_MD)

    def scores(first: int, end: int) -> np.ndarray:
        scores_BU = queries_ND[first:end].astype(np.float64) @ distinct_UD.T
        return scores_BU[:, place_M] if repeated else scores_BU

    return _ranks(scores, len(queries_ND), len(candidates_MD), right, block_rows)


def distinct(rows_ND: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns each different row once, float64 (U, D), and which of them every row is, int (N,)."""
    first_of: dict[bytes, int] = {}
    place_N = np.array([first_of.setdefault(row.tobytes(), len(first_of)) for row in rows_ND])
    _, first_U = np.unique(place_N, return_index=True)
    return rows_ND[first_U].astype(np.float64), place_N


def outcome(
    found: Ranks,
    ties: str = "middle",
    groups: Sequence[Hashable] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Outcome:
    """Returns recall at 1, 5, 10 and 50, median and mean rank, with bootstrap intervals.

    Args:
        found: of `ranks` or `ranks_from_embeddings`.
        ties: a key of `TIES`.
        groups: for each query the video it belongs to, where several belong to one: they agree with
            one another, so whole groups are resampled; by default every query stands alone.
        resamples: sets drawn for the intervals.
        seed: of the draws.

    Raises:
        UserError: there is no such rule, or it is not defined for these queries.
    """
    if ties not in TIES:
        listed = "".join(f"\n  {name}: {about}" for name, about in TIES.items())
        raise UserError(f"There is no rule {ties!r} for ties. Choose one of:{listed}")
    if not len(found):
        raise UserError("There are no queries to score.")
    group_N = np.arange(len(found))
    if groups is not None:
        numbers: dict[Hashable, int] = {}
        group_N = np.array([numbers.setdefault(group, len(numbers)) for group in groups])
    if len(group_N) != len(found):
        raise ValueError(f"{len(group_N)} groups for {len(found)} queries")
    num_groups = int(group_N.max()) + 1
    statistics = _published(found) if ties == "published" else _by_position(found, ties)
    statistics["geometric mean"] = _geometric([statistics[f"R@{k}"] for k in RECALL_AT])
    metrics = {
        name: intervals.over_videos(_of_groups(statistic, group_N), num_groups, resamples, seed)
        for name, statistic in statistics.items()
    }
    return Outcome(ties, len(found), num_groups, metrics)


def _of_groups(statistic: Statistic, group_N: np.ndarray) -> Statistic:
    return lambda weights_G: statistic(weights_G[group_N])


def _geometric(statistics: Sequence[Statistic]) -> Statistic:
    return lambda weights_N: (
        math.prod(one(weights_N) for one in statistics) ** (1 / len(statistics))
    )


def _by_position(found: Ranks, ties: str) -> dict[str, Statistic]:
    statistics = {f"R@{k}": intervals.weighted_mean(found.credit(k, ties)) for k in _CUTOFFS}
    position_N = found.position(ties)
    order_N = np.argsort(position_N, kind="stable")
    sorted_N = position_N[order_N]
    statistics["median rank"] = lambda weights_N: _median(sorted_N, weights_N[order_N])
    statistics["mean rank"] = intervals.weighted_mean(position_N)
    return statistics


def _published(found: Ranks) -> dict[str, Statistic]:
    """Metrics in which a query with T candidates at its score counts as T queries.

    Raises:
        UserError: a query has several right candidates, which the published code does not know.
    """
    if len(several := np.flatnonzero(found.right_N != 1)):
        raise UserError(
            f"Query {several[0]} has {found.right_N[several[0]]} right candidates, but the rule "
            "'published' is defined for one. Use another rule for ties."
        )
    higher_N, tied_N = found.higher_N, found.tied_N

    def mean(total_N: np.ndarray) -> Statistic:
        return lambda weights_N: float(weights_N @ total_N / (weights_N @ tied_N))

    def median(weights_N: np.ndarray) -> float:
        last = int((higher_N + tied_N).max())
        begun_K = np.bincount(higher_N, weights_N, last + 1)
        ended_K = np.bincount(higher_N + tied_N, weights_N, last + 1)
        return _median(np.arange(1.0, last + 1), np.cumsum(begun_K - ended_K)[:-1])

    statistics = {f"R@{k}": mean(np.clip(k - higher_N, 0, tied_N)) for k in _CUTOFFS}
    statistics["median rank"] = median
    statistics["mean rank"] = mean(tied_N * higher_N + tied_N * (tied_N + 1) / 2)
    return statistics


def _median(sorted_N: np.ndarray, weights_N: np.ndarray) -> float:
    """Returns the median of values of which each occurs as often as its weight says."""
    reached_N = np.cumsum(weights_N)
    half = reached_N[-1] / 2
    middle = [np.searchsorted(reached_N, half, side) for side in ("left", "right")]
    return float(sorted_N[middle].mean())


def _ranks(
    scores: Callable[[int, int], np.ndarray],
    num_queries: int,
    num_candidates: int,
    right: Right,
    block_rows: int | None,
) -> Ranks:
    """Ranks block by block; ``scores(first, end)`` gives the rows of some queries."""
    candidate_P, start_N = _answers(right, num_queries, num_candidates)
    block_rows = block_rows or max(1, _BLOCK_SCORES // max(num_candidates, 1))
    counted = np.zeros((3, num_queries), np.int64)
    for first in range(0, num_queries, block_rows):
        end = min(first + block_rows, num_queries)
        begin, stop = start_N[first], start_N[end]
        counted[:, first:end] = _count(
            scores(first, end), candidate_P[begin:stop], start_N[first:end] - begin, first
        )
    return Ranks(*counted, right_N=np.diff(start_N))


def _count(
    scores_BM: np.ndarray, candidate_P: np.ndarray, start_B: np.ndarray, first: int
) -> np.ndarray:
    """Returns the first three fields of `Ranks` for a block of queries, int64 (3, B)."""
    if np.isnan(scores_BM).any():
        row, candidate = np.argwhere(np.isnan(scores_BM))[0]
        raise UserError(
            f"The score of query {first + row} and candidate {candidate} is NaN, so it has no "
            "order. Look at the embeddings of the two."
        )
    row_P = np.repeat(np.arange(len(start_B)), np.diff(start_B, append=len(candidate_P)))
    own_P = scores_BM[row_P, candidate_P]
    best_B = np.maximum.reduceat(own_P, start_B)
    higher_B = (scores_BM > best_B[:, None]).sum(axis=1)
    tied_B = (scores_BM == best_B[:, None]).sum(axis=1)
    right_tied_B = np.add.reduceat((own_P == best_B[row_P]).astype(np.int64), start_B)
    return np.stack([higher_B, tied_B, right_tied_B])


def _answers(right: Right, num_queries: int, num_candidates: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the right candidates of all queries in turn (P,), and where each begins (N + 1,)."""
    if isinstance(right, np.ndarray) and right.dtype == bool:
        if right.shape != (num_queries, num_candidates):
            raise ValueError(f"right is {right.shape}, scores {(num_queries, num_candidates)}")
        lists = [np.flatnonzero(row) for row in right]
    else:
        lists = [np.unique(np.asarray(indices, np.int64)) for indices in right]
    if len(lists) != num_queries:
        raise ValueError(f"right candidates of {len(lists)} queries, but scores of {num_queries}")
    candidate_P = np.concatenate([*lists, np.zeros(0, np.int64)])
    if len(candidate_P) and not 0 <= candidate_P.min() <= candidate_P.max() < num_candidates:
        raise ValueError(f"Right candidates must lie in [0, {num_candidates}).")
    count_N = np.array([len(found) for found in lists], np.int64)
    if len(without := np.flatnonzero(count_N == 0)):
        raise UserError(
            f"Query {without[0]} has no right candidate ({len(without)} such queries), so it has "
            "no rank. Leave it out, or add its candidate."
        )
    return candidate_P, np.concatenate([[0], np.cumsum(count_N)])
