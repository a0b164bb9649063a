"""Files that must not break ingest: each becomes a right record or a reason."""

import json
import pathlib
import subprocess
import sys

import cv2
import media_files as files
import numpy as np
import pytest
from PIL import Image

from common.data import convert, records, tables

ROOT = pathlib.Path(__file__).parents[2]
SETTINGS = convert.Settings(audio_rate=16000)


def noise(number, width, height):
    return np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture(scope="session")
def hostile(tmp_path_factory):
    """A folder of them; sub-folders would hide nothing."""
    folder = tmp_path_factory.mktemp("hostile ünï çødé 名前")
    good = files.write_video(folder / "good.mp4", 25, sound=files.tone(1.0, 16000))
    faststart = {"movflags": "faststart"}
    long = files.write_video(
        folder / "a.mp4", 60, width=160, height=120, picture=noise, options=faststart
    )
    files.cut(long, folder / "truncated with header.mp4", 0.5)
    long.unlink()
    files.cut(good, folder / "truncated without header.mp4", 0.7)
    files.write_video(folder / "zero frames.mp4", 0)
    files.write_video(folder / "no audio.mp4", 25)
    files.write_wav(folder / "mono.wav", files.tone(1.0, 16000), 16000)
    files.write_wav(folder / "stereo 48k.wav", files.tone(1.0, 48000, 2), 48000)
    files.write_wav(folder / "8-bit 8k.wav", files.tone(1.0, 8000), 8000, width=1)
    files.write_video(
        folder / "5.1.mkv", sound=files.tone(1.0, 48000, 6), sound_rate=48000, layout="5.1"
    )
    times = [0.0, 0.04, 0.4, 0.44, 1.0]
    files.write_video(folder / "variable.mkv", times=times, sound=files.tone(1.0, 16000))
    files.write_video(folder / "rotated.mp4", 5, width=64, height=32)
    files.set_rotation(folder / "rotated.mp4", 0, 1, -1, 0)
    files.write_video(folder / "odd.mp4", 5, width=33, height=47)
    files.write_video(folder / "one.gif", 1, rate=10, codec="gif")
    (folder / "text.mp4").write_text("Dear diary, today nothing happened.\n" * 50)
    (folder / "empty.mp4").touch()
    (folder / "garbage.avi").write_bytes(np.random.default_rng(0).bytes(5000))
    files.write_video(folder / " 名前 & (1)'\"#?%20.mp4", 5)
    Image.fromarray(noise(0, 300, 400)).save(folder / "photo.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter clockwise, as phones hold
    Image.new("RGB", (60, 40)).save(folder / "phone.jpg", exif=exif)
    (folder / "half.jpg").write_bytes((folder / "phone.jpg").read_bytes()[:300])
    return folder


@pytest.fixture(scope="session")
def outcomes(hostile):
    items = tables.read_source(hostile).items
    return {item.name: convert.convert(item, (), SETTINGS) for item in items}


def clip_of(outcome):
    assert outcome.record is not None, outcome.reason
    return records.deserialize(outcome.record)


REASONS = {
    "truncated with header.mp4": "truncated or damaged",
    "truncated without header.mp4": "not a media file that can be read",
    "zero frames.mp4": "not a media file|no frames|neither video nor sound",
    "text.mp4": "not a media file that can be read",
    "empty.mp4": "0 bytes",
    "garbage.avi": "not a media file that can be read",
    "half.jpg": "not a picture that can be read",
}


@pytest.mark.parametrize("name, reason", REASONS.items())
def test_what_cannot_be_read_is_rejected_with_a_reason(outcomes, name, reason):
    import re

    assert outcomes[name].record is None
    assert re.search(reason, outcomes[name].reason), outcomes[name].reason


def test_nothing_else_is_rejected(outcomes):
    assert {name for name, outcome in outcomes.items() if outcome.record is None} == set(REASONS)


@pytest.mark.parametrize("name", ["good.mp4", "5.1.mkv", "variable.mkv"])
def test_sound_has_the_length_of_the_frames(outcomes, name):
    clip = clip_of(outcomes[name])
    assert len(clip.waveform) == round(len(clip.frames_jpeg) / clip.frame_rate * 16000)
    assert convert.rms_dbfs(clip.waveform) > -20


def test_no_audio_is_a_clip_without_sound(outcomes):
    clip = clip_of(outcomes["no audio.mp4"])
    assert clip.waveform is None and len(clip.frames_jpeg) == 25


@pytest.mark.parametrize("name", ["mono.wav", "stereo 48k.wav", "8-bit 8k.wav"])
def test_sound_alone_is_a_clip_without_frames(outcomes, name):
    clip = clip_of(outcomes[name])
    assert clip.frames_jpeg == [] and clip.audio_rate == 16000
    assert len(clip.waveform) == 16000
    assert convert.rms_dbfs(clip.waveform) == pytest.approx(-9.03, abs=0.2)  # 0.5 / sqrt(2)


@pytest.mark.parametrize(
    "name, size",
    [
        ("odd.mp4", [47, 33]),
        ("rotated.mp4", [64, 32]),
        ("photo.png", [341, 256]),
        ("phone.jpg", [60, 40]),
    ],
)
def test_pictures_are_upright_and_keep_their_shape(outcomes, name, size):
    clip = clip_of(outcomes[name])
    assert convert.jpeg_size(clip.frames_jpeg[0]) == size
    image = cv2.imdecode(np.frombuffer(clip.frames_jpeg[0], np.uint8), cv2.IMREAD_COLOR)
    assert list(image.shape[:2]) == size


@pytest.mark.parametrize("name", ["one.gif", "photo.png", "phone.jpg"])
def test_a_picture_is_a_video_of_one_frame(outcomes, name):
    clip = clip_of(outcomes[name])
    assert len(clip.frames_jpeg) == 1 and clip.waveform is None


def test_captions_outside_the_clip_are_left_out_and_counted(hostile):
    captions = (("before", -3.0, -1.0), ("in", 0.2, 0.4), ("across", 0.9, 5.0), ("after", 7.0, 8.0))
    untimed = ("any time", float("nan"), float("nan"))
    item = tables.Item("x", str(hostile / "good.mp4"), "g", captions=(*captions, untimed))
    outcome = convert.convert(item, (), SETTINGS)
    clip = clip_of(outcome)
    assert [text for text, _, _ in clip.captions] == ["in", "across", "any time"]
    assert clip.captions[1][1:] == (0.9, 5.0)
    assert outcome.facts["captions_outside"] == 2


def test_caption_times_count_from_the_start_of_the_clip(hostile):
    item = tables.Item("x", str(hostile / "good.mp4"), "g", 0.4, 0.8, (("in", 0.6, 0.7),))
    clip = clip_of(convert.convert(item, (), SETTINGS))
    assert clip.captions[0][1:] == pytest.approx((0.2, 0.3))
    assert (clip.start_s, clip.end_s) == pytest.approx((0.4, 0.8)) and len(clip.frames_jpeg) == 10


def test_required_sound_rejects_what_has_none(hostile):
    item = tables.Item("x", str(hostile / "no audio.mp4"), "n")
    outcome = convert.convert(item, (), convert.Settings(require_sound=True))
    assert outcome.record is None and "no sound" in outcome.reason


def test_required_sound_rejects_pictures_too(hostile):
    item = tables.Item("x", str(hostile / "photo.png"), "n")
    outcome = convert.convert(item, (), convert.Settings(require_sound=True))
    assert outcome.record is None and "no sound" in outcome.reason


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_keep_their_shades(tmp_path, suffix):
    ramp_HW = np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (32, 1))
    Image.fromarray(ramp_HW).save(tmp_path / f"ramp{suffix}")
    item = tables.Item("x", str(tmp_path / f"ramp{suffix}"), "n")
    clip = clip_of(convert.convert(item, (), convert.Settings(jpeg_quality=100)))
    stored_HW = cv2.imdecode(np.frombuffer(clip.frames_jpeg[0], np.uint8), cv2.IMREAD_GRAYSCALE)
    assert np.abs(stored_HW[16] - np.linspace(0, 255, 64)).max() <= 3


def test_numbers_whose_white_nobody_knows_are_rejected(tmp_path):
    Image.fromarray(np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)).save(tmp_path / "x.tif")
    item = tables.Item("x", str(tmp_path / "x.tif"), "n")
    assert "which number of mode F is white?" in convert.convert(item, (), SETTINGS).reason


def test_what_cannot_be_stored_is_a_reason_and_no_end(hostile):
    item = tables.Item("x", str(hostile / "good.mp4"), "n", captions=(("half \ud83d", 0.0, 1.0),))
    assert "UnicodeEncodeError" in convert.convert(item, (), SETTINGS).reason


def test_names_that_are_no_unicode_are_read(tmp_path):
    name = b"caf\xe9.mp4"
    good = files.write_video(tmp_path / "good.mp4", 3)
    try:
        (pathlib.Path(tmp_path) / name.decode("utf-8", "surrogateescape")).write_bytes(
            good.read_bytes()
        )
    except OSError:
        pytest.skip("this file system takes names in UTF-8 only")
    items = tables.read_source(tmp_path).items
    assert [item.id for item in items] == ["caf\\xe9.mp4", "good.mp4"]
    assert len(clip_of(convert.convert(items[0], (), SETTINGS)).frames_jpeg) == 3


def test_the_whole_folder_and_a_table_with_duplicates_run_to_the_end(hostile, tmp_path):
    rows = [{"path": str(path)} for path in sorted(hostile.iterdir())]
    rows += [{"path": str(hostile / "good.mp4"), "id": name} for name in ("twin", "twin")]
    rows.append({"path": str(hostile / "missing.mp4")})
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    arguments = [f"--source={tmp_path}/t.jsonl", f"--output={tmp_path}/out", "--audio_rate=16000"]
    done = subprocess.run(
        [sys.executable, "-m", "common.ingest", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()
    rejects = {line["id"]: line["reason"] for line in map(json.loads, lines)}
    assert len(rejects) == len(REASONS) + 2
    assert "duplicate id 'twin'" in next(r for i, r in rejects.items() if i.startswith("twin"))
    assert rejects[str(hostile / "missing.mp4")] == "there is no such file"
    card = json.loads((tmp_path / "out" / "dataset.json").read_text())["splits"]["train"]
    assert card["clips"] == len(rows) - len(rejects)
    assert card["rejected"] == len(rejects)


def test_a_folder_of_nothing_readable_says_so(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "x.mp4").write_text("nothing")
    arguments = [f"--source={tmp_path}/in", f"--output={tmp_path}/out"]
    done = subprocess.run(
        [sys.executable, "-m", "common.ingest", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "No file could be read" in done.stderr
    assert "Traceback" not in done.stderr
