"""What Frozen in Time learns is measured from rendering to table, part by part."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
import tool_flags

from benchmarks import captioned_learning

ROOT = pathlib.Path(__file__).parents[2]


def test_the_curriculum_sees_single_frames_first_and_then_both_in_turn():
    places = [pathlib.Path(name) for name in ("videos", "images")]
    kinds = captioned_learning.Data("c.py", *places, {}).kinds(steps=100)
    assert list(kinds) == ["videos alone", "images and videos", "with curriculum"]
    assert not kinds["videos alone"].curriculum
    first, then = kinds["with curriculum"].curriculum
    assert first == "0: data.train=images,videos model.video.num_frames=1"
    assert then == "60: data.train=images model.video.num_frames=1 | data.train=videos"


@pytest.mark.slow
def test_the_playground_is_learned_from_rendering_to_table(tmp_path, monkeypatch):
    # The others train less of the same.
    every_kind = captioned_learning.Data.kinds
    last = lambda data, steps: {"with curriculum": every_kind(data, steps)["with curriculum"]}  # noqa: E731
    monkeypatch.setattr(captioned_learning.Data, "kinds", last)
    monkeypatch.chdir(ROOT)
    sizes = ["--data=playground", "--train=8", "--test=8", "--steps=5", "--seeds=1", "--smoke"]
    with tool_flags.tool_flags(captioned_learning, f"--output={tmp_path}", *sizes):
        captioned_learning.main([])
    table = (tmp_path / "table.md").read_text()
    assert table.count("| held-out clips (8) |") == 2
    card = json.loads((tmp_path / "records" / "dataset.json").read_text())
    assert card["splits"]["images"]["clips"] == 8
    config = json.loads((tmp_path / "with_curriculum" / "seed_0" / "config.json").read_text())
    assert len(config["curriculum"]) == 2


def test_it_is_skipped_where_the_registry_is_out_of_reach(tmp_path):
    environment = os.environ | {"PATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.captioned_learning", "--data=emoji"],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("skipped: ")
