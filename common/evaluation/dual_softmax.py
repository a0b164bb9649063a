"""Dual softmax: scores changed by all test queries together; a task of its own."""

from __future__ import annotations

import numpy as np

from common.errors import UserError


def dual_softmax(scores_NM: np.ndarray, inverse_temperature: float) -> np.ndarray:
    """Returns each score times its softmax over the queries, float64 (N, M).

    A candidate that suits many queries is worth less to each (Cheng et al., 2021, CAMoE). Every
    score then depends on all test queries, so this is another task than ranking one query at a
    time: report it beside the plain numbers, with the temperature, never in their place. Published
    codes differ in the temperature.

    Args:
        scores_NM: N queries by M candidates.
        inverse_temperature: factor of the scores inside the softmax.

    Raises:
        UserError: a score is not a finite number; says which.
    """
    scores_NM = np.asarray(scores_NM, np.float64)
    if len(broken := np.argwhere(~np.isfinite(scores_NM))):
        query, candidate = broken[0]
        raise UserError(
            f"The score of query {query} and candidate {candidate} ({len(broken)} such) is not a "
            "finite number, so there is no softmax over it."
        )
    scaled_NM = inverse_temperature * scores_NM
    weights_NM = np.exp(scaled_NM - scaled_NM.max(axis=0))
    return scores_NM * (weights_NM / weights_NM.sum(axis=0))
