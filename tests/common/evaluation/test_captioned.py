"""Clips with their captions, from records and from published tables."""

import dataclasses

import numpy as np
import pytest

from common.data import records, shards, tables
from common.data.sources import Source
from common.errors import UserError
from common.evaluation import captioned, retrieval
from common.evaluation.captioned import Captioned


def make_clip(name, *captions):
    nan = float("nan")
    return records.Clip(
        id=name, frames_jpeg=[b"\xff\xd8"], captions=[(text, nan, nan) for text in captions]
    )


def make_source(folder, *clips, damage=False):
    path = folder / "clips-00000-of-00001.tfrecord"
    data = bytearray(b"".join(shards.frame(records.serialize(clip)) for clip in clips))
    if damage:
        data[-6] ^= 1
    path.write_bytes(bytes(data))
    return Source(str(folder), 1.0, shards.RecordSet.open(folder), records.parse)


CLIPS = (make_clip("a", "one", "two"), make_clip("b"), make_clip("", " three ", " "))
CAPTIONED = [
    Captioned("a", ("one", "two")),
    Captioned("b", ()),
    Captioned("clips-00000-of-00001.tfrecord:2", ("three",)),
]


def test_a_record_gives_its_captions_and_those_without_stay_to_be_found(tmp_path):
    assert captioned.from_records(make_source(tmp_path, *CLIPS)) == CAPTIONED


def test_captions_are_the_same_where_only_they_are_read(tmp_path):
    make_source(tmp_path, *CLIPS)
    shards.write_index(tmp_path / "clips-00000-of-00001.tfrecord")
    in_parts = Source(str(tmp_path), 1.0, shards.RecordSet.open(tmp_path), records.parse)
    assert in_parts.in_parts
    in_parts.records.read = None  # whole records are not read
    assert captioned.from_records(in_parts) == CAPTIONED


def test_captions_read_through_tensorflow_are_the_same(tmp_path):
    def parse(*arguments):  # any other parser goes through its tensors
        return records.parse(*arguments)

    source = dataclasses.replace(make_source(tmp_path, *CLIPS), parse=parse)
    assert captioned.from_records(source) == CAPTIONED


def test_a_damaged_record_is_named_instead_of_left_out(tmp_path):
    source = make_source(tmp_path, make_clip("a", "one"), make_clip("b", "two"), damage=True)
    with pytest.raises(UserError, match="clips-00000-of-00001.tfrecord, record 1"):
        captioned.from_records(source)


def test_records_without_any_caption_are_refused(tmp_path):
    source = make_source(tmp_path, make_clip("a"))
    with pytest.raises(UserError, match="No record .* has a caption"):
        captioned.from_records(source)
    silent = dataclasses.replace(source, modalities=frozenset({"frames"}))
    with pytest.raises(UserError, match="has no captions"):
        captioned.from_records(silent)


def test_pairs_are_what_retrieval_takes_in_both_directions():
    clips = [Captioned("a", ("one", "two")), Captioned("b", ("three",))]
    texts, clip_of_text = captioned.pairs(clips)
    assert texts == ["one", "two", "three"]
    assert clip_of_text.tolist() == [0, 0, 1]
    scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7]])  # captions by clips
    to_video = retrieval.ranks(scores, clip_of_text)
    to_text = retrieval.ranks(scores.T, clip_of_text == np.arange(len(clips))[:, None])
    assert to_video.position("middle").tolist() == [1, 2, 1]
    assert to_text.position("middle").tolist() == [1, 2]


def _table(folder, *lines):
    path = folder / "table.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_msrvtt_sentences_are_gathered_by_video(tmp_path):
    path = _table(
        tmp_path,
        "key,vid_key,video_id,sentence",
        "ret0,msr1,video9770,a person is connecting something to system",
        'ret1,msr2,video9771,"a dog, running"',
        "ret2,msr1,video9770,wires",
    )
    ids = ["TestVideo/video9771.mp4", "video9770", "video1.mp4"]
    assert captioned.from_table(path, ids) == [
        Captioned("video9770", ("a person is connecting something to system", "wires")),
        Captioned("TestVideo/video9771.mp4", ("a dog, running",)),
    ]


def test_youcook2_clips_are_found_as_clips_or_within_their_video(tmp_path):
    path = _table(
        tmp_path,
        "end,start,task,text,video_id",
        "101,90,113,spread margarine,-fQp.2_x",
        "130,114,113,place cheese,-fQp.2_x",
    )
    clips = tmp_path / "clips.csv"
    clips.write_text("path,start,end\nvalidation/113/-fQp.2_x.mkv,90,101\n")
    ids = [item.id for item in tables.read_source(clips).items]  # as ingest names a clip
    assert captioned.from_table(path, [*ids, "validation/113/-fQp.2_x.mkv"]) == [
        Captioned(ids[0], ("spread margarine",)),
        Captioned("validation/113/-fQp.2_x.mkv", ("place cheese",), (114.0, 130.0)),
    ]


@pytest.mark.parametrize(
    ("record", "video", "span"),
    [
        ("a/#20_Rhythm_clap.avi", "#20_Rhythm_clap", ""),
        ("a/#20 clap.avi#1.000-2.500", "#20 clap", "1.000-2.500"),
        ("v.mp4#-20.000", "v", "-20.000"),
        ("v.mp4#3.000-", "v", "3.000-"),
        ("v#2-3", "v#2-3", ""),
    ],
)
def test_a_clip_is_told_from_a_name_with_a_number_sign(record, video, span):
    assert captioned.video_and_span(record) == (video, span)


def test_a_caption_with_a_comma_and_no_quotes_is_no_shorter_caption(tmp_path):
    path = _table(tmp_path, "video_id,sentence", "v1,a man, with a hat")
    with pytest.raises(UserError, match="line 2: ' with a hat' is in no column"):
        captioned.from_table(path, ["v1.mp4"])
    path = _table(tmp_path, "video_id,sentence", "v1,a man\u2028with a hat")
    assert captioned.from_table(path, ["v1.mp4"])[0].record == "v1.mp4"


def test_rows_without_a_record_are_counted_and_the_first_is_named(tmp_path):
    path = _table(tmp_path, "video_id,sentence", "v1,x", "v2,y", "v3,z")
    with pytest.raises(UserError, match=r"line 3, column 'video_id': no record is 'v2' \(2 of 3"):
        captioned.from_table(path, ["v1.mp4"])


def test_a_video_that_is_in_several_records_is_refused(tmp_path):
    path = _table(tmp_path, "video_id,sentence", "v1,x")
    with pytest.raises(UserError, match="several records are 'v1': a/v1.mp4, b/v1.mp4"):
        captioned.from_table(path, ["a/v1.mp4", "b/v1.mp4"])


def test_a_table_of_another_form_is_refused(tmp_path):
    path = _table(tmp_path, "video,caption", "v1,x")
    with pytest.raises(UserError, match="needed: video_id, sentence or video_id, start, end, text"):
        captioned.from_table(path, ["v1"])
    path = _table(tmp_path, "video_id,start,end,text", "v1,5,3,x")
    with pytest.raises(UserError, match="line 2, column 'end': 3 is not after the start, 5"):
        captioned.from_table(path, ["v1"])
