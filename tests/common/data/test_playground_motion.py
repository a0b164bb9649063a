import dataclasses

import numpy as np
import pytest

from common.data.playground_motion import ACTIONS, PAIRS, POOLS, Camera, draw_scene
from common.data.playground_scene import render, texture

_RATE, _FRAMES = 12.5, 30


def _scene(action, seed=0, pool="train"):
    rng = np.random.default_rng(seed)
    return draw_scene(rng, action, POOLS[pool], _FRAMES / _RATE)


@pytest.mark.parametrize("forward,backward", PAIRS[:-1])
def test_a_backward_clip_is_its_forward_clip_in_reverse(forward, backward):
    one, other = (render(_scene(a, 3), _FRAMES, _RATE, 48) for a in (forward, backward))
    # Rendered times differ in the last float digit, which may round one grey level differently.
    difference = np.abs(one.astype(int) - other[::-1])
    assert difference.max() <= 1
    assert np.abs(one.astype(int) - other).max() > 20


@pytest.mark.parametrize("seed", range(5))
def test_hit_and_miss_stand_equally_far_apart_at_every_moment(seed):
    seconds_T = np.linspace(0, _FRAMES / _RATE, 50)
    scenes = [_scene(action, seed) for action in ("hit", "miss")]
    ways = [s.state(seconds_T)["place"] - np.array(s.path.partner) for s in scenes]
    hit_T, miss_T = (np.hypot(*way_T2.T) for way_T2 in ways)
    np.testing.assert_allclose(hit_T, miss_T, rtol=1e-6)
    hit_way, miss_way = (way_T2[0] @ way_T2[-1] for way_T2 in ways)
    assert hit_way > 0 > miss_way  # one turns back, the other comes out on the far side


def test_nothing_but_the_motion_depends_on_the_action():
    scenes = [_scene(action, 7) for action in ACTIONS]
    moving = {
        "action",
        "path",
        "profile",
    }  # the profile: what rises slows down, what falls speeds up
    for field in dataclasses.fields(scenes[0]):
        if field.name not in moving:
            values = [getattr(scene, field.name) for scene in scenes]
            assert all(value == values[0] for value in values), field.name


@pytest.mark.parametrize("action", ACTIONS)
def test_an_action_moves_one_attribute_and_no_other(action):
    scene = _scene(action, 5)
    state = scene.state(np.linspace(0, scene.duration, 20))
    spread = {
        "place": np.ptp(state["place"], axis=0).max(),
        "size": np.ptp(state["radius"]),
        "gap": np.ptp(state["gap"]),
        "angle": np.ptp(state["angle"]),
    }
    assert [name for name, value in spread.items() if value > 1e-9] == [scene.live]


@pytest.mark.parametrize(
    "action,attribute,sign",
    [
        ("rise", "y", -1),  # images count rows downward
        ("fall", "y", 1),
        ("right", "x", 1),
        ("left", "x", -1),
        ("grow", "radius", 1),
        ("shrink", "radius", -1),
        ("open", "gap", 1),
        ("close", "gap", -1),
        ("clockwise", "angle", 1),
        ("counter-clockwise", "angle", -1),
        ("approach", "distance", -1),
        ("leave", "distance", 1),
    ],
)
def test_actions_do_what_they_are_called(action, attribute, sign):
    for seed in range(4):
        scene = _scene(action, seed)
        state = scene.state(np.linspace(0, scene.duration, 20))
        away_T2 = state["place"] - np.array(scene.path.partner)
        state["x"], state["y"] = state["place"].T
        state["distance"] = np.hypot(*away_T2.T)
        assert sign * (state[attribute][-1] - state[attribute][0]) > 0.1
        assert (sign * np.diff(state[attribute]) >= -1e-9).all()


def test_a_random_frame_shows_the_same_range_of_states_whatever_the_action():
    rng = np.random.default_rng(0)
    radius = {"grow": [], "rise": []}
    for seed in range(300):
        for action, values in radius.items():
            scene = _scene(action, seed)
            moment = rng.uniform(0, scene.duration, 1)
            values.append(scene.state(moment)["radius"][0])
    quantiles = [np.quantile(values, (0.2, 0.5, 0.8)) for values in radius.values()]
    np.testing.assert_allclose(quantiles[0], quantiles[1], rtol=0.12)


def test_what_acts_stays_in_the_picture():
    for seed in range(15):
        for action in ACTIONS:
            scene = _scene(action, seed)
            place_T2 = scene.state(np.linspace(0, scene.duration, 9))["place"]
            assert np.abs(place_T2).max() < 0.8


def test_held_out_textures_are_other_textures():
    train = np.stack([texture(number, 32).ravel() for number in range(40)])
    for number in range(POOLS["test"].first, POOLS["test"].first + 20):
        assert np.abs(train - texture(number, 32).ravel()).mean(axis=1).min() > 0.02


def test_a_still_camera_sees_a_still_background():
    still = Camera((0, 0), (0, 0), (1, 0), (0, 0), (0, 1, 0))
    scene = dataclasses.replace(_scene("grow", 2), camera=still, distractors=())
    video = render(scene, _FRAMES, _RATE, 64).astype(int)
    place, radius = scene.state(np.zeros(1))["place"][0], max(scene.size)
    y, x = (np.mgrid[:64, :64] + 0.5) / 32 - 1
    far = np.hypot(x - place[0], y - place[1]) > 1.5 * radius + 0.1
    assert far.any()
    assert (np.ptp(video, axis=0)[far] == 0).all()
    assert np.ptp(video, axis=0)[~far].max() > 20


def test_without_clutter_nothing_but_the_action_moves():
    drawn = {
        clutter: draw_scene(np.random.default_rng(2), "rise", POOLS["train"], 2.4, clutter)
        for clutter in (0.0, 0.5, 1.0)
    }
    assert [len(drawn[clutter].distractors) for clutter in drawn] == [0, 1, 2]
    drift = {c: abs(scene.camera.x[1]) + scene.camera.wobble[0] for c, scene in drawn.items()}
    assert drift[0.0] == 0.0 < drift[0.5] < drift[1.0]
    contrast = {c: np.ptp(scene.background_colours, axis=0).max() for c, scene in drawn.items()}
    np.testing.assert_allclose(contrast[0.0], 0.25 * contrast[1.0])
    for field in ("path", "profile", "size", "angle", "frozen", "material", "timbre"):
        values = [getattr(scene, field) for scene in drawn.values()]
        assert values[0] == values[1] == values[2], field  # the event is the same
