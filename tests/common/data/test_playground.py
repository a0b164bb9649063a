import collections
import json
from fractions import Fraction

import av
import numpy as np
import pytest

from common import locks
from common.data import playground, tables
from common.data.playground_motion import ACTIONS
from common.data.playground_video import Settings, Video, draw, plan, row
from common.errors import UserError

_SMALL = Settings(seed=5, size=32)


def _decode(file):
    with av.open(str(file)) as container:
        frames = np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])
        container.seek(0)
        sound = np.concatenate([f.to_ndarray()[0] for f in container.decode(audio=0)])
    return frames, sound


def _create(folder, workers=1, settings=_SMALL, **counts):
    playground.create(folder, counts, settings, workers)


def test_clips_decode_to_what_was_drawn(tmp_path):
    _create(tmp_path, train=2)
    for line in (tmp_path / "train.jsonl").read_text().splitlines():
        listed = json.loads(line)
        drawn_THWC, pcm_N = draw(_SMALL, "train", int(listed["id"].split("-")[1]))
        frames_THWC, sound_N = _decode(tmp_path / listed["path"])
        assert frames_THWC.shape == drawn_THWC.shape
        # Brightness alone: h264 as everyone writes it keeps colours at half the width and height.
        error = (frames_THWC.astype(float) - drawn_THWC) @ (0.299, 0.587, 0.114)
        assert np.abs(error).mean() < 4
        assert len(frames_THWC) / Fraction(_SMALL.frame_rate) == pytest.approx(listed["duration"])
        assert len(pcm_N) / _SMALL.audio_rate == pytest.approx(listed["duration"])
        assert abs(len(sound_N) - len(pcm_N)) < 1024  # AAC comes in blocks of 1024
        same = min(len(sound_N), len(pcm_N))
        assert np.corrcoef(sound_N[:same], pcm_N[:same])[0, 1] > 0.9  # no delay either


@pytest.mark.slow
def test_the_number_of_workers_changes_nothing(tmp_path):
    for workers in (1, 2):
        _create(tmp_path / str(workers), workers, train=8, long_test=1)
    names = sorted(p.relative_to(tmp_path / "1") for p in (tmp_path / "1").rglob("*.*"))
    assert len(names) == 9 + 2 + 1 + 1  # videos, tables, settings, lock
    for name in names:
        one, two = (tmp_path / workers / name for workers in "12")
        if name.suffix != ".mp4":
            assert one.read_bytes() == two.read_bytes()
            continue
        for first, second in zip(_decode(one), _decode(two), strict=True):
            np.testing.assert_array_equal(first, second)


def test_a_video_is_a_function_of_seed_split_and_number():
    frames, sound = draw(_SMALL, "train", 3)
    for again, expected in zip(draw(_SMALL, "train", 3), (frames, sound), strict=True):
        np.testing.assert_array_equal(again, expected)
    for other in (draw(_SMALL, "test", 3), draw(Settings(seed=6, size=32), "train", 3)):
        assert other[0].shape != frames.shape or (other[0] != frames).mean() > 0.5


def test_a_stopped_run_keeps_what_it_finished_and_adds_the_rest(tmp_path):
    _create(tmp_path, train=2)
    whole = tmp_path / "train" / "000000.mp4"
    before = whole.stat().st_mtime_ns
    (tmp_path / "train" / "000001.mp4").rename(tmp_path / "train" / "000001.part")  # was killed
    _create(tmp_path, train=3)
    assert whole.stat().st_mtime_ns == before
    assert sorted(p.name for p in (tmp_path / "train").iterdir()) == [
        "000000.mp4",
        "000001.mp4",
        "000002.mp4",
    ]
    assert len((tmp_path / "train.jsonl").read_text().splitlines()) == 3


def test_a_folder_is_filled_by_one_process_at_a_time(tmp_path):
    with locks.exclusive(tmp_path / ".lock", ""), pytest.raises(UserError, match="Another process"):
        _create(tmp_path, train=1)
    _create(tmp_path, train=1)


def test_a_folder_with_another_world_is_refused(tmp_path):
    _create(tmp_path, train=1)
    with pytest.raises(UserError, match="another playground"):
        _create(tmp_path, train=1, settings=Settings(seed=6, size=32))
    _create(tmp_path, train=1, settings=Settings(seed=5, size=32, frame_rate="25/2"))  # the same


@pytest.mark.parametrize(
    "settings",
    [
        Settings(size=31),
        Settings(frame_rate="29.97"),
        Settings(frame_rate="often"),
        Settings(frame_rate="0"),
        Settings(seed=-1),
        Settings(clutter=1.5),
    ],
)
def test_impossible_settings_are_refused_before_anything_is_written(settings, tmp_path):
    with pytest.raises(UserError, match="--"):
        _create(tmp_path / "new", settings=settings, train=1)
    assert not (tmp_path / "new").exists()


def test_the_tables_are_read_by_ingest(tmp_path):
    _create(tmp_path, train=2, long_test=1)
    short = tables.read_source(tmp_path / "train.jsonl")
    assert [item.id for item in short.items] == ["train-000000", "train-000001"]
    for number, item in enumerate(short.items):
        scene = plan(_SMALL, "train", number).scenes[0]
        assert item.labels == (scene.action,) and not item.problem
        assert len(item.captions) == 1
    by_object = tables.read_source(tmp_path / "train.jsonl", label_column="object").items[0]
    assert by_object.labels == (plan(_SMALL, "train", 0).scenes[0].look.kind,)
    long = tables.read_source(tmp_path / "long_test.jsonl").items[0]
    assert len(long.captions) >= 4 and set(long.labels) <= set(ACTIONS)


def test_actions_are_balanced():
    count = 3 * len(ACTIONS)
    seen = collections.Counter(plan(_SMALL, "test", n).scenes[0].action for n in range(count))
    assert seen == dict.fromkeys(ACTIONS, 3)


def test_held_out_clips_share_no_texture_background_timbre_or_ambience_with_training():
    def pools(video: Video) -> dict[str, set[int]]:
        looks = [look for s in video.scenes for look in (s.look, s.partner_look)]
        looks += [d.look for s in video.scenes for d in s.distractors]
        return {
            "texture": {look.texture for look in looks},
            "background": {s.background for s in video.scenes},
            "timbre": {s.timbre for s in video.scenes},
            "ambience": {video.ambience},
        }

    used = collections.defaultdict(set)
    for split in ("train", "long_train", "test", "long_test"):
        for number in range(30):
            for name, numbers in pools(plan(_SMALL, split, number)).items():
                used[name, split.removeprefix("long_")] |= numbers
    for name in ("texture", "background", "timbre", "ambience"):
        assert len(used[name, "train"]) > 20
        assert not used[name, "train"] & used[name, "test"]


def test_impacts_and_events_lie_inside_their_video():
    for split in ("train", "long_train"):
        for number in range(20):
            listed = row(_SMALL, split, number)
            for event in listed["events"]:
                assert 0 <= event["start"] < event["end"] <= listed["duration"]
                if event["impact"] is not None:
                    assert event["start"] < event["impact"] <= event["end"]


@pytest.mark.parametrize("rate", ["12.5", "20", "25", "50"])
def test_sound_and_pictures_never_drift(rate):
    settings = Settings(size=32, frame_rate=rate)
    assert settings.samples_per_frame * Fraction(rate) == settings.audio_rate
