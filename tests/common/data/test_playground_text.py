import collections

import numpy as np
import pytest

from common.data.playground_motion import ACTIONS, POOLS, draw_scene
from common.data.playground_text import caption, narrate
from common.data.playground_video import Settings, plan


def _scene(action, seed=0):
    return draw_scene(np.random.default_rng(seed), action, POOLS["train"], 3.0)


@pytest.mark.parametrize("action", ACTIONS)
def test_captions_vary_and_leave_no_placeholder(action):
    rng = np.random.default_rng(0)
    said = {caption(_scene(action, seed), rng) for seed in range(30)}
    assert len(said) > 10
    assert all("{" not in text and "  " not in text and text.startswith("a ") for text in said)


def test_captions_tell_the_two_of_a_pair_apart():
    rng = np.random.default_rng(0)
    rising = {caption(_scene("rise", seed), rng) for seed in range(60)}
    falling = {caption(_scene("fall", seed), rng) for seed in range(60)}
    assert not rising & falling


def test_about_half_of_what_is_said_fits_what_is_seen():
    settings = Settings(seed=3)
    timings = collections.Counter(
        line.timing
        for number in range(60)
        for line in plan(settings, "long_train", number).captions
    )
    total = sum(timings.values())
    assert total > 250
    assert 0.42 < timings["aligned"] / total < 0.58
    assert all(timings[name] / total > 0.08 for name in ("early", "late", "other"))


def test_early_is_early_and_late_is_late():
    event = _scene("grow", 1)
    first, last = (20.0 + seconds for seconds in event.span())
    rng = np.random.default_rng(0)
    for line in (narrate([(20.0, event)], 45.0, rng)[0] for _ in range(200)):
        middle = (line.start + line.end) / 2
        if line.timing == "aligned":
            assert first < middle < last
        if line.timing == "early":
            assert middle < (first + last) / 2 - 2.4
        if line.timing == "late":
            assert middle > (first + last) / 2 + 2.4


def test_narrations_lie_inside_the_video_in_order():
    for number in range(20):
        video = plan(Settings(), "long_test", number)
        assert 15 <= video.duration <= 40
        starts = [line.start for line in video.captions]
        assert starts == sorted(starts)
        assert all(0 <= line.start < line.end <= video.duration + 1e-3 for line in video.captions)
        assert len(video.captions) == len(video.scenes) >= 4
