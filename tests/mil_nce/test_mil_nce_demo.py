"""The demo, whole: real files, real processes, real training, only smaller."""

import json
import subprocess
import sys

import pytest
import tiny_media
from tool_flags import ROOT, run_module


def demo(output, *arguments):
    return run_module("mil_nce.demo", f"--output={output}", *arguments)


@pytest.mark.slow
def test_the_demo_goes_from_narrated_videos_to_a_search(tmp_path):
    output = tmp_path / "demo"
    done = demo(output, "--train_videos=8", "--test_clips=8", "--steps=3")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[10/10] Writing the report" in done.stdout
    rows = json.loads((output / "retrieval.json").read_text())["rows"]
    assert {(row["features"], row["direction"]) for row in rows} == {
        (features, direction)
        for features in ("trained", "random")
        for direction in ("text to video", "video to text")
    }
    assert (output / "report.html").stat().st_size > 0
    typed = next(line for line in done.stdout.splitlines() if "common.search" in line)
    search = subprocess.run(
        typed.strip().replace("python", sys.executable, 1), shell=True,
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert search.returncode == 0, search.stderr
    assert search.stdout.count("/test/") == 8


@pytest.mark.slow
def test_the_demo_takes_your_own_videos_and_subtitles(tmp_path):
    videos, subtitles = tmp_path / "videos", tmp_path / "subtitles"
    videos.mkdir()
    subtitles.mkdir()
    for number, words in enumerate(("a ball rolls", "the cat sleeps", "a dog runs", "it rains")):
        tiny_media.write_video(videos / f"{number}.mp4", seed=number, frames=50, sound=False)
        (subtitles / f"{number}.srt").write_text(f"1\n00:00:00,500 --> 00:00:01,500\n{words}\n")
    where = (f"--videos={videos}", f"--narrations={subtitles}")
    done = demo(tmp_path / "demo", *where, "--steps=2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "demo" / "index.npz").exists()
    assert (
        "fewer than two are held out" in done.stdout
    )  # four files in one folder, too short to be cut


def test_own_videos_need_their_narrations(tmp_path):
    done = demo(tmp_path / "out", f"--videos={tmp_path}")
    assert done.returncode == 2
    assert "--narrations go together" in done.stderr
    assert "Traceback" not in done.stderr
