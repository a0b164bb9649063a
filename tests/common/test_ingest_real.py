"""Real camera clips against ffmpeg's own tools: frames, duration, sound level and offset."""

import json
import shutil
import subprocess

import cv2
import numpy as np
import pytest
import real_clips

from common.data import convert, records, tables

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (shutil.which("ffprobe") and shutil.which("ffmpeg")),
        reason="needs ffmpeg and ffprobe: apt-get install ffmpeg",
    ),
]
RATE = 16000


@pytest.fixture(scope="module")
def folder():
    try:
        return real_clips.fetch()
    except real_clips.Unavailable as error:
        pytest.skip(str(error))


def probe(path, *options):
    command = ["ffprobe", "-v", "error", "-of", "json", "-show_streams", *options, str(path)]
    streams = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    return {stream["codec_type"]: stream for stream in streams["streams"]}


def ffmpeg(*arguments):
    command = ["ffmpeg", "-v", "error", "-y", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, check=True).stdout


def clip_of(path, **settings):
    outcome = convert.convert(
        tables.Item("x", str(path), "x"), (), convert.Settings(audio_rate=RATE, **settings)
    )
    assert outcome.record is not None, outcome.reason
    return records.deserialize(outcome.record)


@pytest.mark.parametrize("name", real_clips.NAMES)
def test_frame_count_and_duration_are_those_of_ffprobe(folder, name):
    video = probe(folder / name, "-count_frames")["video"]
    numerator, denominator = map(int, video["avg_frame_rate"].split("/"))
    clip = clip_of(folder / name, frame_rate=numerator / denominator)
    assert len(clip.frames_jpeg) == int(video["nb_read_frames"])
    clip = clip_of(folder / name)  # at most 25 frames/s
    assert abs(len(clip.frames_jpeg) / clip.frame_rate - float(video["duration"])) <= 0.5 / 25
    assert clip.end_s - clip.start_s == pytest.approx(float(video["duration"]), abs=0.5 / 25)


@pytest.mark.parametrize("name", ["bigbuckbunny.mp4", "bikes.mp4"])
def test_the_pictures_are_those_of_ffmpeg(folder, name):
    clip = clip_of(folder / name)
    height, width = convert.jpeg_size(clip.frames_jpeg[0])
    scale = f"scale={width}:{height}"
    raw = ffmpeg("-i", folder / name, "-vf", scale, "-f", "rawvideo", "-pix_fmt", "bgr24", "-")
    reference = np.frombuffer(raw, np.uint8).reshape(-1, height, width, 3)
    for index in (0, len(reference) // 2, len(reference) - 1):
        jpeg = np.frombuffer(clip.frames_jpeg[index], np.uint8)
        ours = cv2.imdecode(jpeg, cv2.IMREAD_COLOR).astype(int)
        assert np.abs(ours - reference[index]).mean() < 3  # what JPEG costs
        # The neighbours are further away: it is this very frame.
        for other in {max(index - 2, 0), min(index + 2, len(reference) - 1)} - {index}:
            assert np.abs(ours - reference[other]).mean() > np.abs(ours - reference[index]).mean()


def test_sound_is_that_of_ffmpeg_sample_by_sample(folder):
    path = folder / "bigbuckbunny.mp4"
    raw = ffmpeg("-i", path, "-ac", 1, "-ar", RATE, "-f", "s32le", "-")
    reference = np.frombuffer(raw, "<i4") / 2**31
    clip = clip_of(path)
    assert len(clip.waveform) == round(len(clip.frames_jpeg) / clip.frame_rate * RATE)
    reference = reference[: len(clip.waveform)]
    level = 10 * np.log10(np.mean(np.square(reference)))
    assert convert.rms_dbfs(clip.waveform) == pytest.approx(level, abs=0.01)
    np.testing.assert_allclose(clip.waveform, reference, atol=1e-5)


@pytest.mark.parametrize("offset", [0.35, -0.4])
def test_an_offset_between_sound_and_pictures_is_kept(folder, tmp_path, offset):
    path, shifted = folder / "bigbuckbunny.mp4", tmp_path / "shifted.mkv"
    one, other = ("-itsoffset", offset), ()
    if offset < 0:
        one, other = (), ("-itsoffset", -offset)
    inputs = [*other, "-i", path, *one, "-i", path]
    ffmpeg(*inputs, "-map", "0:v", "-map", "1:a", "-c", "copy", shifted)
    streams = probe(shifted)
    measured = float(streams["audio"]["start_time"]) - float(streams["video"]["start_time"])
    assert measured == pytest.approx(offset, abs=0.03)  # Matroska counts milliseconds

    before, after = clip_of(path).waveform, clip_of(shifted).waveform
    wanted = round(measured * RATE)
    window = slice(2 * RATE, 4 * RATE)
    lags = range(wanted - 400, wanted + 400, 8)
    moved = after[window]
    errors = [np.abs(before[2 * RATE - lag : 4 * RATE - lag] - moved).mean() for lag in lags]
    assert abs(lags[int(np.argmin(errors))] - wanted) <= 0.002 * RATE
    assert len(after) == len(before)
