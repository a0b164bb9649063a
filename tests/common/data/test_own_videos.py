"""A user's own folder becomes training and held-out clips."""

import json
import os

import pytest

from common.data import own_videos, tables
from common.errors import UserError


@pytest.fixture
def lengths(monkeypatch):
    """Durations by file name, so that no video needs to be encoded."""
    known = {}
    monkeypatch.setattr(own_videos, "_duration", lambda path: known[path.rsplit("/", 1)[1]])
    return known


def make(folder, name, lengths, seconds):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    lengths[path.name] = seconds


def read(folder, split):
    return [json.loads(line) for line in (folder / f"{split}.jsonl").read_text().splitlines()]


def test_names_that_are_no_unicode_come_through_the_table(tmp_path, lengths):
    name = os.fsdecode(b"b\xffd\xe2\x80\xa8.mp4")  # a byte that is no UTF-8, and U+2028
    for number in range(10):
        make(tmp_path / "videos", f"{number}-{name}", lengths, 25.0)
    own_videos.write_tables(tmp_path / "videos", tmp_path / "tables", 10.0)
    items = tables.read_source(tmp_path / "tables" / "train.jsonl").items
    assert len({item.path for item in items}) == 10
    assert all(os.path.exists(item.path) and not item.problem for item in items)


def test_folders_are_labels_and_whole_files_are_held_out(tmp_path, lengths):
    videos, tables = tmp_path / "videos", tmp_path / "tables"
    for label in ("cat", "dog"):
        for number in range(10):
            make(videos, f"{label}/{label}{number}.mp4", lengths, 25.0)
    counts = own_videos.write_tables(videos, tables, 10.0)
    train, test = read(tables, "train"), read(tables, "test")
    assert counts == {"train": len(train), "test": len(test)} == {"train": 48, "test": 12}
    assert not {row["path"] for row in train} & {row["path"] for row in test}
    assert {row["labels"][0] for row in test} == {"cat", "dog"}


def test_without_folders_the_last_part_of_each_file_is_held_out(tmp_path, lengths):
    videos, tables = tmp_path / "videos", tmp_path / "tables"
    make(videos, "long a.mp4", lengths, 103.0)
    make(videos, "b.mp4", lengths, 30.5)
    make(videos, "short.mp4", lengths, 3.0)
    own_videos.write_tables(videos, tables, 10.0)
    train, test = read(tables, "train"), read(tables, "test")
    assert {row["labels"][0] for row in test} == {"long a.mp4", "b.mp4"}
    for name in ("long a.mp4", "b.mp4"):
        last = max(row["end"] for row in train if row["labels"] == [name])
        assert all(row["start"] >= last for row in test if row["labels"] == [name])
    assert [row for row in train if row["labels"] == ["short.mp4"]] == [
        {"path": str(videos / "short.mp4"), "labels": ["short.mp4"]}
    ]


@pytest.mark.parametrize("seconds", [0.0, 3.0, 10.0, 10.5, 11.0, 19.9, 20.0, 61.2])
def test_segments_cover_the_whole_file_without_gaps(tmp_path, lengths, seconds):
    make(tmp_path, "a.mp4", lengths, seconds)
    own_videos.write_tables(tmp_path, tmp_path / "tables", 10.0)
    rows = read(tmp_path / "tables", "train") + read(tmp_path / "tables", "test")
    if len(rows) == 1:
        assert "start" not in rows[0]
        return
    assert rows[0]["start"] == 0
    assert rows[-1]["end"] == seconds
    assert all(a["end"] == b["start"] for a, b in zip(rows, rows[1:], strict=False))
    assert all(row["end"] - row["start"] >= 1 for row in rows)


def test_a_folder_for_each_file_is_no_label(tmp_path, lengths):
    for number in range(6):
        make(tmp_path / "videos", f"{number}/{number}.mp4", lengths, 25.0)
    counts = own_videos.write_tables(tmp_path / "videos", tmp_path / "tables", 10.0)
    assert counts == {"train": 12, "test": 6}
    assert len({row["labels"][0] for row in read(tmp_path / "tables", "test")}) == 6


def test_clips_in_which_something_is_said_have_it_and_the_others_are_left_out(
    tmp_path, lengths, capsys
):
    videos, told, tables = (tmp_path / name for name in ("videos", "told", "tables"))
    for name in ("c1.mp4", "a/c1.mp4", "a/mute.mp4"):  # two of one name
        make(videos, name, lengths, 25.0)
    for name, text in (("c1.csv", "top"), ("a/c1.csv", "below")):
        (told / name).parent.mkdir(parents=True, exist_ok=True)
        (told / name).write_text(f"start,end,text\n1,4,{text}\n21,24,{text} late\n")
    assert own_videos.write_tables(videos, tables, 10.0, str(told))["train"] == 2
    (test, *_), train = read(tables, "test"), read(tables, "train")
    assert {row["path"]: [c["text"] for c in row["captions"]] for row in train} == {
        str(videos / "c1.mp4"): ["top"],
        str(videos / "a" / "c1.mp4"): ["below"],
    }
    assert test["captions"][0] == {"text": "top late", "start": 21.0, "end": 24.0}
    assert "2 of 3 clips have some" in capsys.readouterr().err


def test_no_file_is_a_mistake(tmp_path):
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="none"):
        own_videos.write_tables(tmp_path / "none", tmp_path / "tables", 10.0)
