"""The retrieval metrics of Frozen in Time's published code, with several captions and with ties."""

import json
import pathlib

import golden_rules
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.evaluation import captioned, retrieval

FOLDER = pathlib.Path(golden_rules.__file__).parent / "frozen"
MANIFEST = json.loads((FOLDER / "manifest.json").read_text())
CASES = sorted(name for name in MANIFEST["cases"] if name.startswith("metrics_"))
SHARES = {"R@1": "R1", "R@5": "R5", "R@10": "R10", "R@50": "R50"}
SHARES["geometric mean"] = "geometric_mean_R1-R5-R10"
PLACES = {"median rank": "MedR", "mean rank": "MeanR"}


def case(name):
    """Scores of captions by videos, the video of each caption, and the stored numbers."""
    spec = MANIFEST["cases"][name]
    scores = golden_rules.make_input(spec["inputs"]["sims"], MANIFEST["seed"])
    with np.load(FOLDER / spec["file"]) as file:
        stored = dict(file)
    captions, videos = scores.shape
    video_of = np.repeat(np.arange(videos), captions // videos)
    scores[np.arange(captions), video_of] += np.float32(spec["options"]["add_to_positives"])
    if spec["options"]["round"]:
        scores = np.round(scores)
    if name == "metrics_constant":
        scores = np.zeros_like(scores)
    exists = stored.pop("query_mask", np.ones(captions, bool)).reshape(-1).astype(bool)
    return scores[exists], video_of[exists], stored


def metrics(scores, right, ties):
    found = retrieval.outcome(retrieval.ranks(scores, right), ties, resamples=1).metrics
    return {name: interval.value for name, interval in found.items()}


def check(ours, stored, direction):
    for scale, names in ((100, SHARES), (1, PLACES)):
        for name, key in names.items():
            wanted = float(stored[f"{direction}/{key}"])
            assert scale * ours[name] == pytest.approx(wanted, rel=1e-12), name


@pytest.mark.parametrize("name", CASES)
def test_optimistic_ties_give_the_published_text_to_video(name):
    scores, video_of, stored = case(name)
    check(metrics(scores, video_of, "optimistic"), stored, "t2v")


@pytest.mark.parametrize("name", CASES)
def test_averaged_ties_give_the_published_video_to_text(name):
    scores, video_of, stored = case(name)
    captions_of = [np.flatnonzero(video_of == video) for video in range(scores.shape[1])]
    check(metrics(scores.T, captions_of, "averaged"), stored, "v2t")


def test_the_cases_hold_ties_missing_captions_and_several_captions():
    kinds = {name: case(name) for name in CASES}
    assert len(kinds["metrics_multi_mask"][0]) == 58 < len(kinds["metrics_multi"][0]) == 60
    for name in ("metrics_ties", "metrics_multi_ties", "metrics_constant"):
        scores, video_of, _ = kinds[name]
        assert (retrieval.ranks(scores, video_of).tied_N > 1).any(), name


def test_scores_that_say_nothing_earn_everything_by_one_published_rule_and_nothing_by_the_other():
    scores, video_of, _ = case("metrics_constant")
    assert metrics(scores, video_of, "optimistic")["geometric mean"] == 1
    assert metrics(scores, video_of, "averaged")["R@10"] == 0
    assert metrics(scores, video_of, "middle")["R@10"] == pytest.approx(10 / 30)


@given(st.integers(0, 10_000))
def test_without_ties_all_positions_agree(seed):
    scores = np.random.default_rng(seed).permutation(30).reshape(5, 6)
    found = retrieval.ranks(scores, [[0], [1, 2], [3], [4], [5, 0]])
    for k in (1, 2, 5):
        for ties in ("middle", "optimistic", "pessimistic", "averaged"):
            np.testing.assert_array_equal(found.position(ties), found.position("middle"))
            np.testing.assert_array_equal(found.credit(k, ties), found.credit(k, "middle"))


def test_clips_with_different_numbers_of_captions_need_no_mask():
    scores, video_of, stored = case("metrics_multi_mask")
    counts = np.bincount(video_of)
    clips = [captioned.Captioned(str(n), ("a caption",) * count) for n, count in enumerate(counts)]
    _, number_Q = captioned.pairs(clips)
    check(metrics(scores, number_Q, "optimistic"), stored, "t2v")
