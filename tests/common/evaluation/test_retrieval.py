"""Ranks, tie rules and recall: published numbers, brute force, and what must hold of them."""

import itertools
import json
import math
import tracemalloc

import golden_rules
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import UserError
from common.evaluation import dual_softmax, retrieval

PACK = golden_rules.Pack("mil_nce")
CASES = ("metrics_plain", "metrics_ties", "metrics_quarters")
STORED = {"R@1": "R1", "R@5": "R5", "R@10": "R10", "median rank": "MR"}
seeds = st.integers(0, 10_000)


def _published_scores(case):
    options = PACK.case(case)["options"]
    scores = PACK.inputs(case)["scores"]
    scores = scores + np.float32(options["add_diagonal"]) * np.eye(len(scores), dtype=np.float32)
    if step := options["round_to"]:
        scores = np.round(scores / step) * step
    return scores


def _values(found, ties, **options):
    return {k: v.value for k, v in _metrics(found, ties, **options).items()}


def _metrics(found, ties, groups=None, resamples=1, seed=0):
    return retrieval.outcome(found, ties, groups, resamples, seed).metrics


def _random(seed, queries=6, candidates=5, levels=3, several=True):
    """Scores with ties, and the right candidates as a matrix."""
    rng = np.random.default_rng(seed)
    right = rng.random((queries, candidates)) < (0.3 if several else 0.0)
    right[np.arange(queries), rng.integers(0, candidates, queries)] = True
    return rng.integers(0, levels, (queries, candidates)).astype(float), right


@pytest.mark.parametrize(
    ("ties", "stored"),
    [("published", "published"), ("optimistic", "first"), ("pessimistic", "last")],
)
@pytest.mark.parametrize("case", CASES)
def test_each_rule_for_ties_gives_the_reference_numbers(case, ties, stored):
    scores = _published_scores(case)
    ours = _values(retrieval.ranks(scores, np.arange(len(scores))), ties)
    reference = PACK.stored(case)
    for name, key in STORED.items():
        assert ours[name] == pytest.approx(float(reference[f"{stored}/{key}"]), rel=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_ties_counted_as_ranked_halfway_give_the_reference_numbers(case):
    scores = _published_scores(case)
    found = retrieval.ranks(scores, np.arange(len(scores)))
    halfway = (found.position("optimistic") + found.position("pessimistic")) // 2
    reference = PACK.stored(case)
    for k in retrieval.RECALL_AT:
        assert (halfway <= k).mean() == pytest.approx(float(reference[f"middle/R{k}"]), rel=1e-12)
    assert np.median(halfway) == float(reference["middle/MR"])
    assert np.abs(found.position("middle") - halfway).max() <= 0.5


@settings(max_examples=25, deadline=None)
@given(seeds)
def test_the_middle_is_what_random_order_of_equal_scores_gives_on_average(seed):
    scores, right = _random(seed, queries=3)
    found = retrieval.ranks(scores, right)
    orders = list(itertools.permutations(range(5)))
    broken = [retrieval.ranks(scores + 1e-3 * np.array(order), right) for order in orders]
    for k in (1, 2, 3, 5):
        mean = np.mean([one.credit(k, "optimistic") for one in broken], axis=0)
        np.testing.assert_allclose(found.credit(k, "middle"), mean, atol=1e-12)
    mean = np.mean([one.position("optimistic") for one in broken], axis=0)
    np.testing.assert_allclose(found.position("middle"), mean)


@given(seeds)
def test_the_middle_lies_between_optimistic_and_pessimistic(seed):
    found = retrieval.ranks(*_random(seed))
    low, middle, high = (found.position(t) for t in ("optimistic", "middle", "pessimistic"))
    assert (low <= middle).all()
    assert (middle <= high).all()
    for k in range(1, 6):
        most, some, least = (
            found.credit(k, ties) for ties in ("optimistic", "middle", "pessimistic")
        )
        assert (most >= some).all()
        assert (some >= least).all()


@given(seeds)
def test_the_order_of_candidates_does_not_matter(seed):
    scores, right = _random(seed)
    order = np.random.default_rng(seed).permutation(scores.shape[1])
    found, again = (
        retrieval.ranks(scores[:, columns], right[:, columns]) for columns in (slice(None), order)
    )
    for field in ("higher_N", "tied_N", "right_tied_N", "right_N"):
        np.testing.assert_array_equal(getattr(found, field), getattr(again, field))


@given(seeds)
def test_ranks_are_those_of_sorting(seed):
    rng = np.random.default_rng(seed)
    scores, (_, right) = rng.normal(size=(6, 5)), _random(seed)
    order = np.argsort(-scores, axis=1)
    first_right = np.take_along_axis(right, order, axis=1).argmax(axis=1) + 1
    found = retrieval.ranks(scores, right)
    for ties in ("optimistic", "middle", "pessimistic"):
        np.testing.assert_array_equal(found.position(ties), first_right)


def test_a_perfect_matrix_has_recall_one_and_rank_one_by_every_rule():
    found = retrieval.ranks(np.eye(12), np.eye(12, dtype=bool))
    for ties in retrieval.TIES:
        for name, interval in _metrics(found, ties, resamples=20).items():
            assert (interval.value, interval.low, interval.high) == (1, 1, 1), name


def test_scores_that_say_nothing_earn_chance_not_everything():
    found = retrieval.ranks(np.zeros((20, 20)), np.arange(20))
    expected = {"R@1": 0.05, "R@5": 0.25, "R@10": 0.5, "R@50": 1.0, "median rank": 10.5}
    expected |= {"mean rank": 10.5, "geometric mean": (0.05 * 0.25 * 0.5) ** (1 / 3)}
    assert _values(found, "middle") == pytest.approx(expected)
    assert _values(found, "optimistic")["R@1"] == 1.0
    assert _values(found, "pessimistic")["R@10"] == 0.0


def test_any_caption_of_a_video_is_right_for_it():
    scores = np.array([[0.9, 0.1, 0.8, 0.2], [0.9, 0.3, 0.1, 0.2]])  # captions 0, 1 and 2, 3
    found = retrieval.ranks(scores, [[0, 1], [2, 3]])
    np.testing.assert_array_equal(found.position("middle"), [1, 3])


@given(seeds)
def test_right_candidates_may_come_as_matrix_or_as_indices_in_any_order(seed):
    scores, right = _random(seed)
    lists = [np.flatnonzero(row)[::-1].repeat(2) for row in right]  # named twice, counted once
    np.testing.assert_array_equal(
        retrieval.ranks(scores, right).right_N, retrieval.ranks(scores, lists).right_N
    )
    np.testing.assert_array_equal(
        retrieval.ranks(scores, right).position("middle"),
        retrieval.ranks(scores, lists).position("middle"),
    )


@settings(max_examples=30, deadline=None)
@given(seeds, st.integers(1, 9))
def test_blocks_of_embeddings_give_the_ranks_of_the_whole_matrix(seed, block_rows):
    rng = np.random.default_rng(seed)
    queries, candidates = rng.integers(-2, 3, (8, 4)), rng.integers(-2, 3, (5, 4))
    _, right = _random(seed, queries=8)
    dense = retrieval.ranks(queries @ candidates.T, right)
    blocks = retrieval.ranks_from_embeddings(
        queries.astype(np.float32), candidates.astype(np.float32), right, block_rows
    )
    for field in ("higher_N", "tied_N", "right_tied_N", "right_N"):
        np.testing.assert_array_equal(getattr(dense, field), getattr(blocks, field))


@pytest.mark.parametrize("number", [30, 101, 1003])
def test_equal_embeddings_tie_wherever_they_stand(number):
    rng = np.random.default_rng(0)
    once, queries = rng.normal(size=(number, 512)), rng.normal(size=(37, 512))
    candidates = np.concatenate([once, once[rng.permutation(number)]])
    found = retrieval.ranks_from_embeddings(queries, candidates, np.arange(37) % number)
    assert (found.tied_N == 2).all()


def test_a_hundred_thousand_candidates_are_ranked_in_little_memory():
    rng = np.random.default_rng(0)
    candidates = rng.normal(size=(100_000, 8)).astype(np.float32)
    wanted = rng.integers(0, len(candidates), 500)
    tracemalloc.start()
    found = retrieval.ranks_from_embeddings(10 * candidates[wanted], candidates, wanted)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200e6  # all scores are 400 MB
    assert 0 < np.median(found.position("middle")) < 1000


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("what", ["query", "candidate"])
def test_an_embedding_that_is_not_a_number_is_named(what, bad):
    rows = {"query": np.ones((4, 2)), "candidate": np.ones((4, 2))}
    rows[what][2, 1] = bad
    with pytest.raises(UserError, match=rf"{what} 2 \(1 of 4\)"):
        retrieval.ranks_from_embeddings(rows["query"], rows["candidate"], np.arange(4))


def test_a_score_that_is_not_a_number_is_named():
    scores = np.zeros((3, 4))
    scores[2, 1] = np.nan
    with pytest.raises(UserError, match="query 2 and candidate 1 is NaN"):
        retrieval.ranks(scores, np.arange(3))
    with pytest.raises(UserError, match="query 2 and candidate 1"):
        dual_softmax.dual_softmax(scores, 100.0)


def test_right_candidates_that_do_not_fit_are_refused():
    scores = np.zeros((2, 3))
    with pytest.raises(UserError, match="Query 1 has no right candidate"):
        retrieval.ranks(scores, [[0], []])
    with pytest.raises(ValueError, match=r"lie in \[0, 3\)"):
        retrieval.ranks(scores, [0, 3])
    with pytest.raises(ValueError, match="of 3 queries"):
        retrieval.ranks(scores, [0, 1, 2])
    with pytest.raises(ValueError, match="right is"):
        retrieval.ranks(scores, np.zeros((3, 2), bool))


def test_a_rule_that_does_not_exist_or_does_not_apply_is_refused():
    found = retrieval.ranks(np.eye(2), [[0, 1], [1]])
    with pytest.raises(UserError, match="no rule 'lucky'(.|\n)*optimistic: "):
        retrieval.outcome(found, "lucky")
    with pytest.raises(UserError, match="Query 0 has 2 right candidates"):
        retrieval.outcome(found, "published")
    with pytest.raises(ValueError, match="3 groups for 2 queries"):
        retrieval.outcome(found, groups="abc")
    with pytest.raises(UserError, match="no queries"):
        retrieval.outcome(retrieval.ranks(np.zeros((0, 2)), []))


@settings(max_examples=40, deadline=None)
@given(seeds, st.sampled_from(sorted(retrieval.TIES)))
def test_a_resample_is_scored_like_the_queries_it_holds(seed, ties):
    scores, right = _random(seed, queries=7, several=False)
    groups = np.random.default_rng(seed).integers(0, 4, 7)
    drawn = _metrics(retrieval.ranks(scores, right), ties, groups.tolist(), 1, seed)
    number = {g: i for i, g in enumerate(dict.fromkeys(groups.tolist()))}
    size = len(number)
    times = np.random.default_rng(seed).multinomial(size, np.full(size, 1 / size))
    rows = [i for i, g in enumerate(groups.tolist()) for _ in range(times[number[g]])]
    whole = _values(retrieval.ranks(scores[rows], right[rows]), ties)
    for name, interval in drawn.items():
        assert interval.low == interval.high == pytest.approx(whole[name]), name


@pytest.mark.parametrize("ties", sorted(retrieval.TIES))
def test_captions_of_a_video_that_agree_do_not_narrow_the_interval(ties):
    scores = np.random.default_rng(0).normal(size=(40, 40)) + 1.5 * np.eye(40)
    right, videos = np.eye(40, dtype=bool), np.arange(40)
    once = retrieval.outcome(retrieval.ranks(scores, right), ties)
    thrice = retrieval.outcome(
        retrieval.ranks(scores.repeat(3, 0), right.repeat(3, 0)), ties, videos.repeat(3).tolist()
    )
    for name, interval in once.metrics.items():
        assert thrice.metrics[name].as_dict() == pytest.approx(interval.as_dict()), name
    assert (once.num_queries, thrice.num_queries, thrice.num_groups) == (40, 120, 40)
    assert once.metrics["R@1"].low < once.metrics["R@1"].value < once.metrics["R@1"].high


def test_an_outcome_says_its_rule_and_is_written_to_json():
    found = retrieval.ranks(np.eye(3), np.arange(3))
    written = json.loads(json.dumps(retrieval.outcome(found, resamples=10).as_dict()))
    assert (written["ties"], written["num_queries"], written["num_groups"]) == ("middle", 3, 3)
    assert written["metrics"]["median rank"] == {"value": 1.0, "low": 1.0, "high": 1.0}


def test_dual_softmax_multiplies_by_the_share_among_queries():
    scores = np.array([[0.5, 0.25], [0.0, 1.0], [0.5, 0.75]])
    changed = dual_softmax.dual_softmax(scores, 2.0)
    share = math.exp(1.0) / (2 * math.exp(1.0) + 1)
    assert changed[:, 0] == pytest.approx([0.5 * share, 0.0, 0.5 * share])
    share = math.exp(2.0) / (math.exp(0.5) + math.exp(2.0) + math.exp(1.5))
    assert changed[1, 1] == pytest.approx(share)
    assert np.isfinite(dual_softmax.dual_softmax(1000 * scores, 1000.0)).all()


def test_dual_softmax_takes_from_a_candidate_that_suits_every_query():
    scores = np.array([[0.5, 0.6, 0.0], [0.0, 0.7, 0.0], [0.0, 0.6, 0.5]])
    plain = retrieval.ranks(scores, np.arange(3))
    dual = retrieval.ranks(dual_softmax.dual_softmax(scores, 20.0), np.arange(3))
    assert plain.position("middle").tolist() == [2, 1, 2]
    assert dual.position("middle").tolist() == [1, 1, 1]
