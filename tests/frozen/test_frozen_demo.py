"""The demo, whole: real files, real processes, real training, only smaller."""

import json

import pytest
import tiny_media
from tool_flags import run_module


def demo(output, *arguments):
    return run_module("frozen.demo", f"--output={output}", *arguments)


@pytest.mark.slow
def test_the_demo_goes_from_captioned_videos_to_a_search(tmp_path):
    output = tmp_path / "demo"
    done = demo(output, "--train_clips=8", "--test_clips=8", "--steps=3", "--search=a star opens")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[11/11] Writing the report" in done.stdout
    rows = json.loads((output / "retrieval.json").read_text())["rows"]
    assert {(row["features"], row["direction"]) for row in rows} == {
        (features, direction)
        for features in ("trained", "random")
        for direction in ("text to video", "video to text")
    }
    found = done.stdout.partition("Searching them")[2].partition("Writing the report")[0]
    assert "a star opens" in found and found.count("/test/") == 8
    page = (output / "report.html").read_text()
    table = (output / "videos" / "test.jsonl").read_text().splitlines()
    captions = [json.loads(line)["captions"][0]["text"] for line in table]
    assert any(f"<li>{caption}</li>" in page for caption in captions), "words are shown as words"


@pytest.mark.slow
def test_the_demo_takes_your_own_videos_and_captions(tmp_path):
    videos, captions = tmp_path / "videos", tmp_path / "captions"
    videos.mkdir()
    captions.mkdir()
    for number, words in enumerate(("a ball rolls", "the cat sleeps", "a dog runs", "")):
        tiny_media.write_video(videos / f"{number}.mp4", seed=number, frames=50, sound=False)
        if words:  # in the last one nothing is said: it is left out of training
            (captions / f"{number}.srt").write_text(f"1\n00:00:00,500 --> 00:00:01,500\n{words}\n")
    where = (f"--videos={videos}", f"--narrations={captions}")
    done = demo(tmp_path / "demo", *where, "--steps=2", "--search=a dog")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "demo" / "index.npz").exists()
    assert (
        "fewer than two are held out" in done.stdout
    )  # four files in one folder, too short to be cut


def test_own_videos_need_their_captions(tmp_path):
    done = demo(tmp_path / "out", f"--videos={tmp_path}")
    assert done.returncode == 2
    assert "--narrations go together" in done.stderr
    assert "Traceback" not in done.stderr
