import dataclasses
from fractions import Fraction

import av
import numpy as np
import pytest

from common.data.playground_motion import ACTIONS, MATERIALS, POOLS, Camera, draw_scene
from common.data.playground_scene import render
from common.data.playground_sound import finish, synthesize
from common.data.playground_video import encode

_RATE = 16_000
_SECONDS = 2.4
_SAMPLES = int(_RATE * _SECONDS)
_STILL = Camera((0, 0), (0, 0), (1, 0), (0, 0), (0, 1, 0))


def _scene(action, seed=0, **changes):
    scene = draw_scene(np.random.default_rng(seed), action, POOLS["train"], _SECONDS)
    return dataclasses.replace(scene, **changes)


def _sound(scene):
    return synthesize(scene, _SAMPLES, _RATE, np.random.default_rng(0))


def _centroid(sound_N):
    power = np.abs(np.fft.rfft(sound_N * np.hanning(len(sound_N)))) ** 2
    return (np.fft.rfftfreq(len(sound_N), 1 / _RATE) * power).sum() / power.sum()


def _steady(start=0.3, end=0.7):
    """A motion at constant speed between two fractions of the clip."""
    return tuple(np.clip((np.linspace(0, 1, 129) - start) / (end - start), 0, 1))


@pytest.mark.parametrize("action", ["fall", "close", "approach"])
def test_an_impact_is_heard_in_the_frame_in_which_the_motion_ends(action, tmp_path):
    # Backward actions run the profile in reverse: both end in the middle of frame 21 of 30.
    ends = 21.5 / 30
    start, end = (1 - ends, 0.7) if action in ("fall", "close") else (0.3, ends)
    changes = {"profile": _steady(start, end), "camera": _STILL, "distractors": ()}
    scene = _scene(action, 4, material="stone", **changes)
    frame_rate = Fraction(25, 2)
    pcm_N = finish(_sound(scene), 0, _RATE, np.random.default_rng(0))
    encode(tmp_path / "x.mp4", render(scene, 30, 12.5, 128), pcm_N, frame_rate, _RATE)

    with av.open(str(tmp_path / "x.mp4")) as container:
        grey = [f.to_ndarray(format="gray").astype(float) for f in container.decode(video=0)]
        container.seek(0)
        heard_N = np.concatenate([f.to_ndarray()[0] for f in container.decode(audio=0)])
    assert len(grey) == 30
    assert len(heard_N) == pytest.approx(_SAMPLES, abs=1024)  # AAC comes in blocks of 1024
    change = np.array([np.abs(b - a).mean() for a, b in zip(grey[:-1], grey[1:], strict=True)])
    last_moving = np.flatnonzero(change > 0.5 * np.median(change[10:18]))[-1] + 1
    heard = np.abs(heard_N).argmax() / _RATE * 12.5
    assert abs(heard - (last_moving + 0.5)) <= 1.0
    assert abs(heard - scene.impact() * 12.5) <= 0.5


def test_a_hit_is_heard_when_the_two_are_closest():
    for seed in range(4):
        scene = _scene("hit", seed, material="stone")
        seconds_T = np.linspace(0, _SECONDS, 500)
        away_T2 = scene.state(seconds_T)["place"] - np.array(scene.path.partner)
        closest = seconds_T[np.hypot(*away_T2.T).argmin()]
        heard = np.abs(_sound(scene)).argmax() / _RATE
        assert heard == pytest.approx(closest, abs=0.04)


@pytest.mark.parametrize("action,rises", [("rise", True), ("fall", False), ("shrink", True)])
def test_pitch_follows_the_motion(action, rises):
    sound_N = _sound(_scene(action, 1, profile=_steady(0.1, 0.9)))
    early, late = (_centroid(sound_N[int(s * _SAMPLES) :][:4000]) for s in (0.15, 0.65))
    assert (late > 1.2 * early) if rises else (late < early / 1.2)


def test_small_objects_sound_higher():
    small, large = (_sound(_scene("fall", 2, size=(r, 1.5 * r))) for r in (0.15, 0.35))
    assert _centroid(small) > 1.3 * _centroid(large)


def test_materials_ring_each_in_their_way():
    ringing = {}
    for material in MATERIALS:
        scene = _scene("hit", 3, material=material)
        blow = int(scene.impact() * _RATE)
        tail = _sound(scene)[blow:]
        ringing[material] = np.std(tail[3200:6400]) / np.std(tail[:800])
    assert ringing["metal"] > 2 * ringing["stone"]
    assert ringing["metal"] > 2 * ringing["rubber"]


@pytest.mark.parametrize("action", ACTIONS)
def test_the_sound_of_every_action_is_whole(action):
    sound_N = _sound(_scene(action, 6))
    assert np.isfinite(sound_N).all()
    assert np.std(sound_N) == pytest.approx(1.0, rel=0.05)
    pcm_N = finish(sound_N, 3, _RATE, np.random.default_rng(1))
    assert pcm_N.dtype == np.int16 and len(pcm_N) == _SAMPLES
    level = 20 * np.log10(np.std(pcm_N / 32768))
    assert -30 < level < -15


def test_background_noise_covers_a_wide_range_of_levels():
    silence_N = np.zeros(_SAMPLES)
    silence_N[: _SAMPLES // 2] = _sound(_scene("rise", 0))[: _SAMPLES // 2]
    levels = []
    for seed in range(20):
        pcm_N = finish(silence_N, seed, _RATE, np.random.default_rng(seed)).astype(float)
        half = _SAMPLES // 2
        levels.append(20 * np.log10(np.std(pcm_N[half:]) / np.std(pcm_N[:half])))
    assert min(levels) < -22 and max(levels) > -14


def test_the_same_object_sounds_otherwise_with_another_timbre():
    one, other = (_sound(_scene("fall", 2, timbre=number)) for number in (0, POOLS["test"].first))
    assert not np.allclose(one, other)


def test_without_clutter_the_background_is_always_faint():
    half = _RATE // 2
    tone_N = np.sin(2 * np.pi * 440 * np.arange(half) / _RATE)
    dry_N = np.concatenate([np.zeros(half), 2 * tone_N])  # of unit power

    def background_db(clutter, seed):
        pcm_N = finish(dry_N, 3, _RATE, np.random.default_rng(seed), clutter).astype(float)
        return 20 * np.log10(np.std(pcm_N[:half]) / np.std(pcm_N))

    calm, full = ([background_db(clutter, seed) for seed in range(20)] for clutter in (0.0, 1.0))
    np.testing.assert_allclose(calm, -30, atol=1.5)
    assert max(full) > -12 and min(full) > -32
