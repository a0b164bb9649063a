"""Tar shards of samples become records, and a shard that is cut off loses no more than it must."""

import io
import json
import pathlib
import re
import tarfile
import tempfile

import media_files
import pytest
import tool_flags
from hypothesis import given, settings
from hypothesis import strategies as st

from common.data import convert, records, shards, tables, tar_source
from common.errors import UserError

SAMPLE = {"000.mp4": b"m" * 700, "000.txt": b"a cat\n", "000.json": b'{"text": "b", "width": 3}'}


def write_tar(path, members, end=True):
    """Writes members in order; without the end mark where that is wanted."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items() if isinstance(members, dict) else members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        offset = tar.offset
    if not end:
        path.write_bytes(path.read_bytes()[:offset])
    return path


def told(source):
    return {item.id: [text for text, _, _ in item.captions] for item in source.items}


def problems(source):
    return {item.id: item.problem for item in source.items if item.problem}


def contents(item):
    with tar_source.on_disk(item) as found:
        return pathlib.Path(found.path).read_bytes()


def test_members_with_one_stem_are_one_sample(tmp_path):
    members = {**SAMPLE, "x/001.seg.jpg": b"p", "x/001.jpg": b"picture", "x/001.cls": b"7"}
    path = write_tar(tmp_path / "s-0.tar", members)
    first, second = (source := tar_source.read_source(path)).items
    assert (first.id, first.name, contents(first)) == ("s-0/000", "s-0.tar/000.mp4", b"m" * 700)
    assert (second.id, contents(second), second.labels) == ("s-0/x/001", b"p", ("7",))
    assert told(source) == {"s-0/000": ["a cat"], "s-0/x/001": []}
    assert source.unused == ("1 x .jpg beside the media", "1 x json key 'width'")


@pytest.mark.parametrize(
    "facts, captions, labels",
    [
        ({"caption": "a"}, ["a"], ()),
        ({"text": "a", "label": "x"}, ["a"], ("x",)),
        ({"captions": ["a", " ", "b"], "labels": ["x", "y", "x"]}, ["a", "b"], ("x", "y")),
        ({"caption": None, "text": "a", "label": 3}, ["a"], ("3",)),
    ],
)
def test_captions_and_labels_come_from_json(tmp_path, facts, captions, labels):
    path = write_tar(tmp_path / "s.tar", {"a.jpg": b"p", "a.json": json.dumps(facts).encode()})
    (item,) = tar_source.read_source(path).items
    assert [text for text, _, _ in item.captions] == captions and item.labels == labels


def test_labels_may_have_another_key(tmp_path):
    path = write_tar(tmp_path / "s.tar", {"a.jpg": b"p", "a.json": b'{"label": "x", "kind": "y"}'})
    (item,) = tar_source.read_source(path, label_key="kind").items
    assert item.labels == ("y",)


def test_a_video_is_taken_before_its_picture_and_its_sound(tmp_path):
    path = write_tar(tmp_path / "s.tar", {"a.wav": b"s", "a.jpg": b"p", "a.webm": b"v"})
    (item,) = (source := tar_source.read_source(path)).items
    assert contents(item) == b"v"
    assert source.unused == ("1 x .jpg beside the media", "1 x .wav beside the media")


def test_a_folder_a_glob_and_a_tar_are_sources(tmp_path):
    for number in range(3):
        write_tar(tmp_path / "sub" / f"s-{number}.tar", SAMPLE)
    (tmp_path / "sub" / "s-0_stats.json").write_text("{}")
    wanted = {tmp_path: "sub/s-0/000", tmp_path / "sub" / "s-[01].tar": "s-0/000"}
    for source, identity in wanted.items():
        assert tar_source.is_tars(source)
        assert tar_source.read_source(source).items[0].id == identity
    assert len(tar_source.read_source(tmp_path / "sub" / "s-[01].tar").items) == 2
    with pytest.raises(UserError, match="there is no such tar"):
        tar_source.read_source(tmp_path / "t-*.tar")


def test_a_folder_of_media_beside_a_tar_stays_a_folder_of_media(tmp_path):
    write_tar(tmp_path / "YouTubeClips.tar", SAMPLE)
    assert tar_source.is_tars(tmp_path)
    (tmp_path / "YouTubeClips").mkdir()
    (tmp_path / "YouTubeClips" / "a.avi").touch()
    assert not tar_source.is_tars(tmp_path)
    assert not tar_source.is_tars(tmp_path / "nowhere") and not tar_source.is_tars("table.csv")


def test_a_sample_without_media_or_with_doubles_or_bad_facts_is_named(tmp_path):
    members = [("a.txt", b"no media"), ("b.jpg", b"1"), ("b.jpg", b"2"), ("c.jpg", b"p")]
    members += [("c.json", b"{"), ("d.jpg", b"p"), ("d.txt", b"\xff"), ("e.jpg", b"p")]
    members += [("f.jpg", b"p"), ("f.json", b"[1]"), ("g.jpg", b"p"), ("g.json", b'{"text": {}}')]
    source = tar_source.read_source(write_tar(tmp_path / "s.tar", members))
    wanted = {"a": "no media file; its members: .txt", "b": "several members .jpg"}
    wanted |= {"c": "c.json is not json", "d": "d.txt is not UTF-8", "f": "expected an object"}
    wanted |= {"g": "should be a text"}
    found = problems(source)
    assert set(found) == {f"s/{key}" for key in wanted}
    assert all(text in found[f"s/{key}"] for key, text in wanted.items())
    reasons = [convert.convert(item, (), convert.Settings()).reason for item in source.items]
    assert reasons[0] == found["s/a"]


def many(count=4):
    members = {}
    for number in range(count):
        members |= {f"{number}.jpg": bytes([65 + number]) * 600, f"{number}.txt": b"%d" % number}
    return members


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 1 << 30))
def test_what_a_cut_tar_still_gives_is_right_and_the_cut_is_named(cut):
    with tempfile.TemporaryDirectory() as folder:
        whole = write_tar(pathlib.Path(folder) / "whole" / "s.tar", many())
        data = whole.read_bytes()
        with tarfile.open(whole) as tar:
            end = tar.getmembers()[-1].offset_data + 512
        part = pathlib.Path(folder) / "part" / "s.tar"
        part.parent.mkdir()
        part.write_bytes(data[: 1 + cut % (end - 1)])  # the cut is before the end mark
        intact = {item.id: item for item in tar_source.read_source(whole).items}
        try:
            items = tar_source.read_source(part).items
        except UserError as error:  # nothing is left of it
            assert "s.tar: " in str(error)
            return
        for item in items[:-1]:
            assert not item.problem and contents(item) == contents(intact[item.id])
            assert item.captions[0][0] == intact[item.id].captions[0][0]
        assert re.search(
            rf"cut off or damaged at byte \d+ of {part.stat().st_size}", items[-1].problem
        )


def test_a_tar_without_its_end_mark_loses_its_last_sample(tmp_path):
    source = tar_source.read_source(write_tar(tmp_path / "s.tar", many(3), end=False))
    assert list(problems(source)) == ["s/2"] and "may lack a part" in problems(source)["s/2"]


def test_a_damaged_header_in_the_middle_is_not_taken_for_the_end(tmp_path):
    path = write_tar(tmp_path / "s.tar", many(3))
    data = bytearray(path.read_bytes())
    place = data.index(b"2.jpg")
    data[place : place + 5] = b"\xffXXXX"
    path.write_bytes(data)
    source = tar_source.read_source(path)
    assert [item.id for item in source.items] == ["s/0", "s/1"]
    assert f"damaged at byte {place} of {len(data)}" in problems(source)["s/1"]


def test_a_file_that_is_no_tar_is_a_reject_and_the_others_go_on(tmp_path):
    write_tar(tmp_path / "b.tar", SAMPLE)
    (tmp_path / "a.tar").write_bytes(b"no tar" * 1000)
    (tmp_path / "c.tar").touch()
    source = tar_source.read_source(tmp_path)
    assert set(problems(source)) == {"a.tar", "c.tar"} and told(source)["b/000"] == ["a cat"]
    with pytest.raises(UserError, match=r"hold no media file.*a\.tar: not a tar"):
        tar_source.read_source(tmp_path / "a.tar")


def test_a_member_leaves_nothing_behind_and_a_changed_tar_is_told(tmp_path):
    (item,) = tar_source.read_source(write_tar(tmp_path / "s.tar", SAMPLE)).items
    with tar_source.on_disk(item) as found:
        copy = pathlib.Path(found.path)
        assert copy.suffix == ".mp4"
    assert not copy.exists()
    (tmp_path / "s.tar").write_bytes(b"short")
    assert "it ends before" in convert.convert(item, (), convert.Settings()).reason
    plain = tables.Item("a", "/a", "a")
    with tar_source.on_disk(plain) as found:
        assert found is plain


@pytest.mark.slow
def test_tars_become_records_and_an_interrupted_run_goes_on(tmp_path):
    members = {}
    for number in range(3):
        video = media_files.write_video(tmp_path / f"{number}.mp4", num_frames=4 + number)
        members |= {f"{number}.mp4": video.read_bytes(), f"{number}.txt": b"clip %d" % number}
    members["9.txt"] = b"no media"
    write_tar(tmp_path / "tars" / "s.tar", members)
    options = (f"--source={tmp_path / 'tars'}", "--workers=1", "--clips_per_shard=2")
    output = tmp_path / "out"
    done = tool_flags.run_module("common.ingest", *options, f"--output={output}")
    assert done.returncode == 0, done.stderr
    record_set = shards.RecordSet.open(output / "train")
    clips = [records.deserialize(record_set.read(n)) for n in range(len(record_set))]
    assert [clip.id for clip in clips] == ["s/0", "s/1", "s/2"]
    assert [len(clip.frames_jpeg) for clip in clips] == [4, 5, 6]
    assert [clip.captions[0][0] for clip in clips] == ["clip 0", "clip 1", "clip 2"]
    (reject,) = map(json.loads, (output / "rejects.jsonl").read_text().splitlines())
    assert reject["id"] == "s/9" and "no media file" in reject["reason"]

    last = sorted((output / "train").glob("*.tfrecord"))[-1]
    wanted = last.read_bytes()
    last.unlink()  # as if the run had been stopped before it
    (output / ".ingest" / "train" / "00001.jsonl").unlink()
    again = tool_flags.run_module("common.ingest", *options, f"--output={output}")
    assert again.returncode == 0 and "2/2" in again.stderr, again.stderr
    assert last.read_bytes() == wanted
