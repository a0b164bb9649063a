import json
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

from common.errors import UserError
from common.evaluation import features

NUM_VIDEOS, DIM = 9, 3


def _read(number):
    if number == 4:
        raise features.BadClip("shard-0:4: checksum differs")
    values = np.arange(1 + number % 3, dtype=np.float32)[:, None] + 10 * number
    return features.Example(f"video{number}", (f"class{number % 2}",), values)


def _embed(clips_B1, ids_B2):
    assert len(clips_B1) == 4
    return np.concatenate([clips_B1, ids_B2.astype(np.float32)], axis=1)


def _extract(root, read=_read, embed=_embed, **changes):
    description = {"source": "here", "weights": "abc", **changes}
    return features.extract(root, description, NUM_VIDEOS, DIM, read, embed, 4, threads=2)


def test_every_video_has_its_own_rows_in_order(tmp_path):
    extracted = _extract(tmp_path)
    assert [v.id for v in extracted.videos] == [f"video{i}" for i in range(9) if i != 4]
    for video in extracted.videos:
        number = int(video.id[5:])
        rows = extracted.rows_RD[video.start : video.start + video.count]
        clip = np.arange(1 + number % 3)
        expected = np.stack([10 * number + clip, np.full_like(clip, number), clip], axis=1)
        np.testing.assert_array_equal(rows, expected)
        assert video.labels == (f"class{number % 2}",)


def test_clips_of_different_shapes_are_embedded_apart_and_stay_in_order(tmp_path):
    lengths = (3, 3, 1, 1, 1, 1, 1, 3, 1)

    def read(number):
        clip = np.full((1, lengths[number], 2), number, np.float32)
        return features.Example(f"video{number}", (), clip)

    shapes = []

    def embed(clips_BT2, ids_B2):
        shapes.append(clips_BT2.shape)
        length = np.full(len(clips_BT2), clips_BT2.shape[1])
        return np.stack([clips_BT2[:, 0, 0], length, ids_B2[:, 0]], axis=1).astype(np.float32)

    extracted = _extract(tmp_path, read, embed)
    expected = np.stack([np.arange(9), lengths, np.arange(9)], axis=1)
    np.testing.assert_array_equal(extracted.rows_RD, expected)
    assert shapes == [(4, length, 2) for length in (3, 1, 1, 3, 1)]


def test_a_video_that_cannot_be_read_is_named_and_has_neither_rows_nor_labels(tmp_path, caplog):
    extracted = _extract(tmp_path)
    (bad,) = extracted.bad
    assert bad.bad == "shard-0:4: checksum differs"
    assert bad.count == 0
    assert "checksum differs" in caplog.text
    assert "1 of 9 videos" in caplog.text


def test_features_are_computed_once_and_kept_apart_by_what_made_them(tmp_path):
    first = _extract(tmp_path)

    def refuse(*_):
        raise AssertionError("nothing should be computed")

    again = _extract(tmp_path, refuse, refuse)
    np.testing.assert_array_equal(first.rows_RD, again.rows_RD)
    assert first.videos == again.videos
    assert first.bad == again.bad
    with pytest.raises(AssertionError):
        _extract(tmp_path, refuse, refuse, weights="other")


@pytest.mark.parametrize("stop_at", [0, 3, 5, 8])
def test_a_stopped_extraction_continues_to_the_same_rows(tmp_path, stop_at):
    whole = _extract(tmp_path / "whole")
    asked = []

    def failing(number):
        if number == stop_at:
            raise RuntimeError("killed")
        return _read(number)

    def counting(number):
        asked.append(number)
        return _read(number)

    with pytest.raises(RuntimeError):
        _extract(tmp_path / "parts", failing)
    continued = _extract(tmp_path / "parts", counting)
    np.testing.assert_array_equal(whole.rows_RD, continued.rows_RD)
    assert whole.videos == continued.videos
    assert stop_at < 4 or min(asked) > 0  # what was done is not done again


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_folder_cut_off_anywhere_is_completed_to_the_same_rows(tmp_path, cut):
    whole = _extract(tmp_path / "whole")
    _extract(tmp_path / "cut")
    (folder,) = (tmp_path / "cut").iterdir()
    for name, share in (("videos.jsonl", 9), ("rows.f32", 2)):
        path = folder / name
        os.truncate(path, max(0, path.stat().st_size - cut * share))
    continued = _extract(tmp_path / "cut")
    np.testing.assert_array_equal(whole.rows_RD, continued.rows_RD)
    assert whole.videos == continued.videos


def test_a_source_without_one_readable_video_is_a_mistake_that_says_why(tmp_path):
    def bad(number):
        raise features.BadClip(f"shard-0:{number}: no frames")

    with pytest.raises(UserError, match="None of the 9 videos of here.*no frames"):
        _extract(tmp_path, bad)


def test_two_processes_never_write_the_same_features(tmp_path):
    def read(number):
        with pytest.raises(UserError, match="Another process"):
            _extract(tmp_path)
        return _read(number)

    _extract(tmp_path, read)


@pytest.mark.slow
def test_a_killed_process_leaves_features_that_continue(tmp_path):
    script = tmp_path / "extract.py"
    script.write_text(
        textwrap.dedent("""
        import sys, time
        import test_features
        def slow(number):
            time.sleep(0.05)
            return test_features._read(number)
        test_features._extract(sys.argv[1], slow)
        """)
    )
    here = pathlib.Path(__file__)
    environment = {**os.environ, "PYTHONPATH": f"{here.parent}:{here.parents[3]}"}
    process = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path / "parts")], env=environment
    )
    lines = None
    while process.poll() is None:
        lines = next((tmp_path / "parts").glob("*/videos.jsonl"), None)
        if lines and len(lines.read_text().splitlines()) >= 3:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.01)
    process.wait()
    done = [json.loads(line) for line in lines.read_text().splitlines() if line.endswith("}")]
    assert 3 <= len(done) < NUM_VIDEOS
    whole, continued = _extract(tmp_path / "whole"), _extract(tmp_path / "parts")
    np.testing.assert_array_equal(whole.rows_RD, continued.rows_RD)
