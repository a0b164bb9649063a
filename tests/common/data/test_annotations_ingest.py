"""Published annotations on their way to records: what is wrong is said once, with the fix."""

import json
import os

import media_files
import pytest
import tool_flags
from annotation_files import put, touch

from common import ingest
from common.data import annotations, convert, records, shards
from common.errors import UserError


@pytest.mark.parametrize(
    "name, split, cut, message",
    [
        ("webvit", "train", "", "did you mean webvid"),
        ("webvid", "test", "2M", "webvid has the splits train, val"),
        ("webvid", "train", "", "--cut is needed: webvid has the cuts 2M, 10M"),
        ("webvid", "train", "3M", "--cut=3M: webvid has the cuts 2M, 10M"),
        ("msvd", "train", "2M", "--cut=2M: msvd has no cuts"),
    ],
)
def test_a_wrong_name_split_or_cut_is_told_with_the_right_ones(tmp_path, name, split, cut, message):
    with pytest.raises(UserError, match=message):
        annotations.read(name, tmp_path, split, cut)


@pytest.mark.parametrize("name", annotations.FORMATS)
def test_an_empty_folder_is_told_with_the_files_that_were_looked_for(tmp_path, name):
    format_ = annotations.FORMATS[name]
    for cut in format_.cuts:
        for split in format_.splits:
            with pytest.raises(
                UserError, match=r"none of the annotation files(.|\n)*\n  \w|alone|not p"
            ):
                annotations.read(name, tmp_path, split, cut)


def test_a_missing_column_field_or_list_is_named(tmp_path):
    put(tmp_path / "results_2M_val.csv", "videoid,name\n1,x\n")
    with pytest.raises(UserError, match="no column 'page_dir'; its columns are videoid, name"):
        annotations.read("webvid", tmp_path, "val", "2M")
    put(tmp_path / "test_data.json", [{"video": "a", "times": []}])
    with pytest.raises(UserError, match="no 'description'"):
        annotations.read("didemo", tmp_path, "test")
    put(tmp_path / "dataset_coco.json", {"info": 1})
    with pytest.raises(UserError, match="no list 'images'; it holds info"):
        annotations.read("coco", tmp_path, "val", "karpathy")
    put(tmp_path / "train.json", [])
    with pytest.raises(UserError, match="holds a list, expected a dict"):
        annotations.read("activitynet", tmp_path, "train")


def test_paragraphs_are_for_captions_that_tell_a_video_in_order(tmp_path):
    with pytest.raises(UserError, match=r"one after the other \(activitynet, didemo\)"):
        annotations.read("webvid", tmp_path, "train", "2M", paragraph=True)


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "trapped"),)

    put(tmp_path / "raw-captions.pkl", {"a": Trap()})
    put(tmp_path / "train_list.txt", "a")
    with pytest.raises(UserError, match="nothing in it was executed"):
        annotations.read("msvd", tmp_path, "train")
    assert not (tmp_path / "trapped").exists()


def test_a_media_file_is_missing_or_has_a_double_and_the_others_go_on(tmp_path):
    put(tmp_path / "train_list.txt", "a_1_2\nb_1_2\nc_1_2")
    put(tmp_path / "raw-captions.pkl", {name: [["x"]] for name in ("a_1_2", "b_1_2", "c_1_2")})
    touch(tmp_path, "YouTubeClips/a_1_2.avi", "x/b_1_2.mp4", "y/b_1_2.mp4", "y/c_1_2.txt")
    good, double, missing = annotations.read("msvd", tmp_path, "train").items
    assert not good.problem
    assert double.problem == "several files have its name: x/b_1_2.mp4, y/b_1_2.mp4"
    assert "no such file" in convert.convert(missing, (), convert.Settings()).reason


def test_a_source_without_any_of_the_media_is_refused(tmp_path):
    put(tmp_path / "notes" / "train_list.txt", "a_1_2")
    put(tmp_path / "notes" / "raw-captions.pkl", {"a_1_2": [["x"]]})
    (tmp_path / "videos").mkdir()
    folder = tmp_path / "notes"
    with pytest.raises(UserError, match=r"'a_1_2' was looked for as YouTubeClips/a_1_2\.avi"):
        annotations.read("msvd", tmp_path / "videos", "train", folder=folder)
    with pytest.raises(UserError, match="--annotations_folder=.*no such folder"):
        annotations.read("msvd", tmp_path, "train", folder=tmp_path / "nowhere")


def test_the_end_of_what_people_saw_cuts_long_videos_and_leaves_short_ones_whole(tmp_path):
    entry = {"description": "a", "times": [[0, 0]]}
    put(tmp_path / "test_data.json", [{"video": name, **entry} for name in ("s.mov", "l.mov")])
    media_files.write_video(tmp_path / "s.mp4", num_frames=50)
    media_files.write_video(tmp_path / "l.mp4", num_frames=155, rate=5)
    items = annotations.read("didemo", tmp_path, "test").items
    outcomes = [convert.convert(item, (), convert.Settings()) for item in items]
    assert [outcome.facts["seconds"] for outcome in outcomes] == [2.0, 30.0]
    assert [outcome.facts["captions"] for outcome in outcomes] == [1, 1]


def test_a_published_data_set_becomes_records_and_an_interrupted_run_goes_on(tmp_path):
    source, output = tmp_path / "msvd", tmp_path / "out"
    put(
        source / "raw-captions.pkl",
        {k: [["a", "man"], ["he"]] for k in ("a_1_2", "b_1_2", "c_1_2")},
    )
    put(source / "test_list.txt", "a_1_2\nb_1_2\nc_1_2")
    (source / "YouTubeClips").mkdir()
    for name in "ab":
        media_files.write_video(source / "YouTubeClips" / f"{name}_1_2.avi", num_frames=5)
    options = (f"--source={source}", f"--output={output}", "--split=test", "--workers=1")
    done = tool_flags.run_module("common.ingest", *options, "--annotations=msvd")
    assert done.returncode == 0, done.stderr
    record_set = shards.RecordSet.open(output / "test")
    clips = [records.deserialize(record_set.read(n)) for n in range(len(record_set))]
    assert [clip.id for clip in clips] == ["a_1_2", "b_1_2"]
    assert all([t for t, _, _ in clip.captions] == ["a man", "he"] for clip in clips)
    (reject,) = map(json.loads, (output / "rejects.jsonl").read_text().splitlines())
    assert (reject["id"], reject["reason"]) == ("c_1_2", "there is no such file")
    again = tool_flags.run_module("common.ingest", *options, "--annotations=msvd")
    assert again.returncode == 0 and "already finished" in again.stdout


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--cut=2M"], "--cut goes with --annotations"),
        (["--annotations=msvd", "--labels_from=folder"], "does not go with --annotations"),
    ],
)
def test_flags_that_would_be_ignored_are_refused(tmp_path, flags, message):
    paths = (f"--source={tmp_path}", f"--output={tmp_path / 'o'}")
    with (
        tool_flags.tool_flags(ingest, *paths, *flags),
        pytest.raises(UserError, match=message),
    ):
        ingest.main(["ingest"])
