"""The demo, whole: real files, real processes, real training, only smaller."""

import json

import pytest
from tool_flags import run_module


def demo(output, *arguments):
    return run_module("brave.demo", f"--output={output}", *arguments)


@pytest.mark.slow
def test_the_demo_goes_from_videos_to_a_bundle_and_a_report(tmp_path):
    output = tmp_path / "demo"
    done = demo(output, "--train_clips=28", "--test_clips=14", "--steps=3")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[8/8] Writing the report" in done.stdout
    assert "What to type next" in done.stdout
    rows = json.loads((output / "results.json").read_text())["rows"]
    assert {(row["encoder"], row["features"]) for row in rows} == {
        (encoder, features)
        for encoder in ("video", "audio")
        for features in ("trained", "random", "pixels", "noise")
    }
    assert (output / "bundle" / "weights.safetensors").stat().st_size > 0
    page = (output / "report.html").read_text()
    assert page.count("data:image/png") == 1 + 4  # curves, and four clips
    assert "<table>" in page


def test_a_folder_that_does_not_exist_is_a_mistake_that_is_named(tmp_path):
    done = demo(tmp_path / "out", f"--videos={tmp_path / 'nowhere'}")
    assert done.returncode == 2
    assert "nowhere" in done.stderr
    assert "Traceback" not in done.stderr
