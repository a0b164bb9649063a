"""Narrated videos out of single clips, and the table of what is learned from them."""

import json
import os
import pathlib
import subprocess
import sys

import av
import numpy as np
import pytest

from benchmarks import narrated_emoji, over_seeds
from benchmarks.real_data_sources import FRAME_RATE, Emoji
from common.data import tables

ROOT = pathlib.Path(__file__).parents[2]
EMOJIS = [Emoji(f"c{n}", f"thing{n}: dark", f"thing{n}", "things", 0) for n in range(60)]
FRAMES = {emoji.code: 48 + n % 5 for n, emoji in enumerate(EMOJIS)}


def test_every_clip_is_shown_in_every_round_and_videos_have_several():
    videos = narrated_emoji.plan(EMOJIS, FRAMES)
    shown = [emoji.code for video in videos for emoji in video.emojis]
    assert sorted(shown) == sorted(narrated_emoji.ROUNDS * list(FRAMES))
    assert all(len(video.emojis) >= narrated_emoji.CLIPS[0] for video in videos)
    assert videos == narrated_emoji.plan(EMOJIS, FRAMES)
    assert videos != narrated_emoji.plan(EMOJIS, FRAMES, seed=1)


def test_about_half_of_what_is_said_is_about_what_is_shown_then():
    fits = []
    for video in narrated_emoji.plan(EMOJIS, FRAMES):
        last = video.starts[-1] + FRAMES[video.emojis[-1].code] / FRAME_RATE
        assert [c["start"] for c in video.captions] == sorted(c["start"] for c in video.captions)
        for line in video.captions:
            assert 0 <= line["start"] < line["end"] <= last + 1e-3
            on = np.searchsorted(video.starts, (line["start"] + line["end"]) / 2, "right") - 1
            about = video.emojis[on].concept in line["text"].split()
            assert about or line["timing"] != "aligned"
            fits.append(about)
    assert 0.4 < np.mean(fits) < 0.65


def _clip(path: pathlib.Path, grey: int, frames: int) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FRAME_RATE)
        stream.width = stream.height = narrated_emoji.SIZE
        for _ in range(frames):
            picture = np.full((narrated_emoji.SIZE,) * 2 + (3,), grey, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(stream.encode())


def test_a_joined_video_shows_its_clips_one_after_the_other_with_their_narration(tmp_path):
    emojis = EMOJIS[:6]
    for number, emoji in enumerate(emojis):
        _clip(tmp_path / f"{emoji.code}.mp4", 20 + 40 * number, 6 + number)
    table = narrated_emoji.write_training(emojis, tmp_path, tmp_path / "videos")
    items = tables.read_source(table).items
    assert len(items) == narrated_emoji.ROUNDS
    for item in items:
        order = [int(label.removeprefix("thing")) for label in item.labels]
        expected = [20 + 40 * n for n in order for _ in range(6 + n)]
        with av.open(str(item.path)) as container:
            found = [frame.to_ndarray(format="rgb24").mean() for frame in container.decode(video=0)]
        np.testing.assert_allclose(found, expected, atol=3)
        assert len(item.captions) == len(emojis)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "videos").glob("*.mp4")}
    narrated_emoji.write_training(emojis, tmp_path, tmp_path / "videos")
    assert before == {path: path.stat().st_mtime_ns for path in before}  # what is there is kept


def test_clips_to_be_found_have_the_name_of_their_concept(tmp_path):
    table = narrated_emoji.write_test(EMOJIS[:3], tmp_path / "clips", tmp_path / "test.jsonl")
    items = tables.read_source(table).items
    assert [item.captions[0][0] for item in items] == ["thing0", "thing1", "thing2"]
    assert items[0].path == str(tmp_path / "clips" / "c0.mp4")


def _run(*by_kind: float) -> dict:
    metrics = (
        {
            name: {"value": value, "low": value / 2, "high": 2 * value}
            for name in ("R@1", "R@10", "median rank")
        }
        | {"candidates": 40}
        for value in by_kind
    )
    kinds = ("MIL-NCE, K = 5", "NCE, K = 1", "untrained network")
    return {kind: {"clips": row} for kind, row in zip(kinds, metrics, strict=True)}


def test_the_table_gives_shares_in_percent_ranks_as_they_are_and_intervals_over_seeds():
    table = over_seeds.summarise_retrieval([_run(0.1, 0.2, 0.3), _run(0.2, 0.2, 0.3)])
    half = 12.706 * 5 * 2**0.5 / 2**0.5  # Student's t of one degree of freedom, deviation 7.07
    assert table[1][:2] == ["clips (40)", "MIL-NCE, K = 5"]
    assert table[1][2] == f"10.0 / 20.0: 15.0 [{15 - half:.1f}, {15 + half:.1f}]"
    assert table[1][4].startswith("0.1 / 0.2: 0.2 [")
    (single,) = over_seeds.summarise_retrieval([_run(0.1, 0.2, 0.3)])[1:2]
    assert single[2] == "10.0 [5.0, 20.0]"


@pytest.mark.slow
def test_the_playground_is_learned_from_rendering_to_table(tmp_path):
    sizes = ["--train=8", "--test=8", "--steps=2", "--seeds=1"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.narrated_learning", f"--output={tmp_path}", *sizes],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    table = (tmp_path / "table.md").read_text()
    assert table.count("| held-out clips (8) |") == 3
    config = json.loads((tmp_path / "candidates_1" / "seed_0" / "config.json").read_text())
    assert config["model"]["text"]["candidates"] == 1


def test_it_is_skipped_where_the_registry_is_out_of_reach(tmp_path):
    environment = os.environ | {"PATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.narrated_learning", "--data=emoji"],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("skipped: ")
