"""The table of benchmarks that train several seeds."""

import pathlib
import subprocess
import sys

import pytest

from benchmarks import over_seeds

ROOT = pathlib.Path(__file__).parents[2]

TASKS = {"concept": "the concept", "group": "the group"}


def _row(features: str, top1: float) -> dict:
    return {
        "features": features,
        "metrics": {"top1": {"value": top1, "low": top1 - 0.1, "high": top1 + 0.1}},
        "always_the_commonest": 0.25,
        "test_videos": 40,
        "classes": 4,
    }


def _results(*by_seed: tuple[float, float, float]) -> list[dict]:
    names = ("trained", "random", "pixels")
    return [
        {task: [_row(*pair) for pair in zip(names, seed, strict=True)] for task in TASKS}
        for seed in by_seed
    ]


def test_the_table_gives_the_interval_over_seeds_but_over_clips_where_the_seed_changes_nothing():
    table = over_seeds.summarise(_results((0.7, 0.2, 0.5), (0.8, 0.3, 0.5), (0.9, 0.4, 0.5)), TASKS)
    cells = {row[0]: row[1] for row in table}
    half = 4.3027 * 10 / 3**0.5  # Student's t of two degrees of freedom, deviation 10 points
    assert cells["BraVe"] == f"80.0 [{80 - half:.1f}, {80 + half:.1f}]"
    assert cells["untrained network"] == f"30.0 [{30 - half:.1f}, {30 + half:.1f}]"
    assert cells["raw input"] == "50.0 [40.0, 60.0]"
    assert cells["always the commonest class"] == "25.0"
    assert cells["test clips / classes"] == "40 / 4"


def test_a_single_run_has_the_interval_over_test_clips():
    table = over_seeds.summarise(_results((0.7, 0.3, 0.5)), TASKS)
    assert [row[2] for row in table[1:3]] == ["70.0 [60.0, 80.0]", "30.0 [20.0, 40.0]"]


@pytest.mark.slow
def test_the_playground_is_learned_from_rendering_to_table(tmp_path):
    command = [sys.executable, "-m", "benchmarks.playground_learning", f"--output={tmp_path}"]
    sizes = ["--train=28", "--test=14", "--steps=2", "--seeds=1"]
    done = subprocess.run([*command, *sizes], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    table = (tmp_path / "table.md").read_text()
    assert "Command: python -m benchmarks.playground_learning --output=" in table
    for title in ("BraVe", "untrained network", "raw input"):
        (row,) = [line for line in table.splitlines() if line.startswith(f"| {title} |")]
        assert row.count("[") == 2  # an interval for video, and one for sound
    assert "| test clips / classes | 14 / 14 | 14 / 14 |" in table
