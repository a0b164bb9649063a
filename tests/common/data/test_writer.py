"""A partial shard cut off anywhere goes on to the very same bytes."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.data import convert, shards, tables, writer
from common.errors import UserError

ROOT = pathlib.Path(__file__).parents[3]
ITEMS = [tables.Item(str(number), f"/{number}.mp4", f"{number}.mp4") for number in range(6)]


def outcome(task):
    if task.number % 3 == 1:
        return convert.Outcome(None, {}, "broken")
    return convert.Outcome(bytes([task.number]) * 50, {"bytes": 50})


def begin(folder, **changes):
    output = writer.Output(folder, "train")
    output.begin(ITEMS, convert.Settings(**changes), clips_per_shard=6)
    return output


def finish(output):
    for shard in output.unfinished():
        tasks = output.remaining(shard)
        if tasks:
            shard_writer = output.open_shard(shard)
            for task in tasks:
                shard_writer.add(task, outcome(task))
            shard_writer.finish()


@settings(max_examples=60, deadline=None)
@given(done=st.integers(0, 6), cut_shard=st.integers(0, 80), cut_journal=st.integers(0, 80))
def test_cut_off_anywhere_it_ends_the_same(tmp_path_factory, done, cut_shard, cut_journal):
    folder = tmp_path_factory.mktemp("out")
    output = begin(folder)
    shard_writer = output.open_shard(0)
    for task in output.tasks(0)[:done]:
        shard_writer.add(task, outcome(task))
    shard_writer.close()
    assert output.unfinished() == [0]
    partial, journal = next((folder / "train").glob(".*.partial")), output._journal(0)
    for path, cut in ((partial, cut_shard), (journal, cut_journal)):
        path.write_bytes(path.read_bytes()[: max(0, path.stat().st_size - cut)])

    again = begin(folder)
    finish(again)
    assert again.unfinished() == []
    records = shards.RecordSet.open(folder / "train")
    expected = [outcome(task).record for task in again.tasks(0) if outcome(task).record]
    assert [records.read(number) for number in range(len(records))] == expected
    entries = writer.journal_entries(folder)["train"]
    assert [entry["item"] for entry in entries] == list(range(6))
    assert shards.stored_index(again.shard_path(0)) is not None


_KILLED_AT_THE_INDEX = """
import os, pathlib, sys
from common.data import shards, writer
replace = os.replace

def killed(old, new):
    if str(new).endswith(shards.INDEX_SUFFIX):
        os._exit(9)
    replace(old, new)

os.replace = killed
writer.ShardWriter(*map(pathlib.Path, sys.argv[1:])).finish()
"""


def test_what_a_kill_leaves_of_an_index_goes_with_the_next_run(tmp_path):
    output = begin(tmp_path)
    shard_writer = output.open_shard(0)
    for task in output.tasks(0):
        shard_writer.add(task, outcome(task))
    shard_writer.close()
    arguments = (output.shard_path(0), output._journal(0))
    killed = subprocess.run([sys.executable, "-c", _KILLED_AT_THE_INDEX, *arguments], cwd=ROOT)
    assert killed.returncode == 9
    assert len(list((tmp_path / "train").iterdir())) == 2  # the shard, and the index begun
    finish(begin(tmp_path))
    shard = output.shard_path(0).name
    names = {path.name for path in (tmp_path / "train").iterdir()}
    assert names == {shard, f"{shard}{shards.INDEX_SUFFIX}"}


def test_what_is_done_is_not_done_again(tmp_path):
    output = begin(tmp_path)
    shard_writer = output.open_shard(0)
    for task in output.tasks(0)[:4]:
        shard_writer.add(task, outcome(task))
    shard_writer.close()
    assert [task.number for task in begin(tmp_path).remaining(0)] == [4, 5]


def test_a_shard_appears_only_when_finished_and_after_its_index(tmp_path):
    output = begin(tmp_path)
    shard_writer = output.open_shard(0)
    for task in output.tasks(0):
        shard_writer.add(task, outcome(task))
        assert not output.shard_path(0).exists()
    shard_writer.finish()
    assert sorted(path.name for path in (tmp_path / "train").iterdir()) == [
        "train-00000-of-00001.tfrecord",
        "train-00000-of-00001.tfrecord.index",
    ]


def test_other_settings_or_items_are_refused_by_name(tmp_path):
    begin(tmp_path)
    with pytest.raises(UserError, match="--short_side: 256 there, 128 now"):
        begin(tmp_path, short_side=128)
    output = writer.Output(tmp_path, "train")
    with pytest.raises(UserError, match="1 clips are new or changed, 0 are gone"):
        more = [*ITEMS, tables.Item("new", "/n.mp4", "n.mp4")]
        output.begin(more, convert.Settings(), clips_per_shard=6)


def test_a_folder_of_other_files_is_left_alone(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="nothing is ever overwritten"):
        begin(tmp_path)


def test_two_writers_at_once_are_refused(tmp_path):
    with (
        writer.exclusive(tmp_path),
        pytest.raises(UserError, match="Another ingest"),
        writer.exclusive(tmp_path),
    ):
        pass


@given(st.lists(st.sets(st.text(max_size=3), max_size=5), min_size=1, max_size=4))
@settings(max_examples=30, deadline=None)
def test_label_indices_never_change(tmp_path_factory, additions):
    folder = tmp_path_factory.mktemp("labels")
    before = {}
    for names in additions:
        after = writer.extend_labels(folder, names)
        assert before.items() <= after.items()
        assert sorted(after.values()) == list(range(len(after))) and names <= after.keys()
        before = after
    first = sorted(additions[0])
    assert [before[name] for name in first] == list(range(len(first)))


def test_a_damaged_label_map_is_not_replaced(tmp_path):
    (tmp_path / writer.LABELS).write_text(json.dumps({"a": 0, "b": 5}))
    with pytest.raises(UserError, match="is damaged"):
        writer.extend_labels(tmp_path, ["c"])


def test_items_are_numbered_through_all_shards(tmp_path):
    output = writer.Output(tmp_path, "train")
    output.begin(ITEMS, convert.Settings(), clips_per_shard=4)
    assert output.num_shards == 2
    numbers = [task.number for shard in range(2) for task in output.tasks(shard)]
    np.testing.assert_array_equal(numbers, range(6))
