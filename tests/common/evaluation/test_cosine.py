"""Features compared by cosine, with the norms of Frozen in Time's published code."""

import json
import pathlib

import golden_rules
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import UserError
from common.evaluation import retrieval, zero_shot
from common.method import COSINE, DOT

FOLDER = pathlib.Path(golden_rules.__file__).parent / "frozen"
MANIFEST = json.loads((FOLDER / "manifest.json").read_text())


def case():
    """Features of both sides in float64, one of zeros and one with a tiny norm among them."""
    spec = MANIFEST["cases"]["cosine"]
    made = {k: golden_rules.make_input(v, MANIFEST["seed"]) for k, v in spec["inputs"].items()}
    a_ND, b_MD = made["a"].astype(np.float64), made["b"].astype(np.float64)
    a_ND[2] = 0
    b_MD[1] *= 1e-9
    with np.load(FOLDER / spec["file"]) as file:
        return a_ND, b_MD, file["sim"]


def test_scores_are_the_published_ones():
    a_ND, b_MD, wanted_NM = case()
    assert np.abs(wanted_NM[2]).max() == 0 and np.linalg.norm(b_MD[1]) < 1e-8
    ours_NM = zero_shot.scores(a_ND, b_MD, COSINE)
    np.testing.assert_allclose(ours_NM, wanted_NM, rtol=0, atol=1e-12)
    assert np.abs(zero_shot.scores(a_ND, b_MD, DOT) - wanted_NM).max() > 0.1


def test_ranks_are_those_of_the_scores():
    a_ND, b_MD, wanted_NM = case()
    clip_N = np.array([0, 1, 2, 3, 4, 4])
    embedded = zero_shot.Embedded(b_MD, a_ND, clip_N, tuple("abcde"), {}, COSINE)
    to_video, to_text = zero_shot.rows(embedded, "middle")
    expected = retrieval.ranks(wanted_NM, clip_N).position("middle").mean()
    assert to_video["metrics"]["mean rank"]["value"] == pytest.approx(expected)
    captions_of = [np.flatnonzero(clip_N == clip) for clip in range(5)]
    expected = retrieval.ranks(wanted_NM.T, captions_of).position("middle").mean()
    assert to_text["metrics"]["mean rank"]["value"] == pytest.approx(expected)
    assert to_video["scores"] == to_text["scores"] == "cosine"


@given(st.integers(0, 10_000), st.floats(1e-6, 1e6))
def test_only_the_direction_of_a_feature_counts(seed, scale):
    rng = np.random.default_rng(seed)
    a_ND, b_MD = rng.normal(size=(3, 4)), rng.normal(size=(5, 4))
    scores_NM = zero_shot.scores(a_ND, b_MD, COSINE)
    assert np.abs(scores_NM).max() <= 1 + 1e-12
    np.testing.assert_allclose(zero_shot.scores(scale * a_ND, b_MD, COSINE), scores_NM, atol=1e-12)
    np.testing.assert_allclose(zero_shot.scores(b_MD, a_ND, COSINE), scores_NM.T, atol=1e-12)


def test_equal_features_are_ties_to_the_last_bit():
    rng = np.random.default_rng(0)
    b_MD = rng.normal(size=(1, 7)).astype(np.float32).repeat(9, axis=0)
    scores_NM = zero_shot.scores(rng.normal(size=(3, 7)).astype(np.float32), b_MD, COSINE)
    assert (scores_NM == scores_NM[:, :1]).all()


def test_a_feature_that_is_not_finite_is_refused():
    broken = np.array([[np.inf, 1.0], [1.0, 1.0]])
    embedded = zero_shot.Embedded(broken, np.ones((2, 2)), np.arange(2), ("a", "b"), {}, COSINE)
    with pytest.raises(UserError, match="candidate 0 .* not finite numbers"):
        zero_shot.rows(embedded, "middle")
