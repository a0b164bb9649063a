"""Narrations of every published form become captions, and mistakes are named by file and line."""

import csv
import json
import math
import pathlib
import pickle
import re
import subprocess
import sys

import media_files
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.data import narrations, records, shards, tables
from common.errors import UserError

ROOT = pathlib.Path(__file__).parents[3]
SAID = [("add the basil", 1.5, 4.0), ("don't stir, it's hot", 3.25, 7.0), ("über", 63.0, 64.5)]

CSV = "start,end,text\n1.5,4.0,add the basil\n3.25,7.0,\"don't stir, it's hot\"\n63,64.5,über\n"
SRT = """1
00:00:01,500 --> 00:00:04,000 X1:40 X2:600
<i>add</i> the
basil

2
00:00:03.25 --> 00:00:07,000
{\\an8}don't stir, <font color="red">it's hot</font>

3
00:01:03,000 --> 00:01:04,500
über
"""
VTT = """WEBVTT - a title
Kind: captions

STYLE
::cue { color: red }

NOTE a remark
of two lines

00:01.500 --> 00:04.000 align:start position:0%
<v Anna>add<00:00:02.000><c.colorE5E5E5> the</c>
basil

a name
00:00:03.250 --> 00:07.000
don&#39;t stir,&nbsp;it's hot

1:03.000 --> 1:04.500
über"""
FILES = {"a.csv": CSV, "a.srt": SRT, "a.vtt": VTT}


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def item(name="a.mp4", **fields):
    return tables.Item(name, f"/videos/{name}", name, **fields)


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("bom", ["", "\ufeff"])
@pytest.mark.parametrize("name", FILES)
def test_all_forms_say_the_same(tmp_path, name, bom, line_end):
    path = write(tmp_path / name, bom + FILES[name].replace("\n", line_end))
    assert narrations.read(path) == SAID  # the first two overlap, and stay as they are


@settings(max_examples=50, deadline=None)
@given(
    said=st.lists(
        st.tuples(
            st.text("abc '\",-é\n", min_size=1).filter(str.strip),
            st.floats(0, 1e5).map(lambda time: round(time, 3)),
            st.floats(0, 1e5).map(lambda time: round(time, 3)),
        )
    )
)
def test_what_csv_writers_write_is_read_as_it_was(tmp_path_factory, said):
    path = tmp_path_factory.mktemp("said") / "a.csv"
    with open(path, "w", newline="") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow(["", "start", "end", "text"])  # pandas numbers its rows
        out.writerows([place, start, end, text] for place, (text, start, end) in enumerate(said))
    assert narrations.read(path) == [(text.strip(), start, end) for text, start, end in said]


def test_rows_without_words_are_none_and_times_may_be_unknown(tmp_path):
    path = write(tmp_path / "a.csv", "text,start,end\n,1,2\nhi,,\n \t,3,4\nyo,1:02.5,\n")
    (hi, *times), (yo, start, end) = narrations.read(path)
    assert (hi, yo, start) == ("hi", "yo", 62.5) and all(map(math.isnan, [*times, end]))
    silent = write(tmp_path / "a.vtt", "WEBVTT\n\n00:01.0 --> 00:02.0\n<i></i>\n\n")
    assert narrations.read(silent) == []


def test_subrip_words_may_hold_empty_lines_and_numbers(tmp_path):
    text = "1\n00:00:01,0 --> 00:00:02,0\none\n\n22\nthree\n\n2\n00:00:03 --> 00:00:04\nlast\n"
    said = narrations.read(write(tmp_path / "a.srt", text))
    assert said == [("one 22 three", 1.0, 2.0), ("last", 3.0, 4.0)]


# As YouTube writes automatic captions: the line before, then the one being said, word by word.
ROLLING = """WEBVTT
Kind: captions
Language: en

00:00:00.030 --> 00:00:02.389 align:start position:0%
~
hi<00:00:00.320><c> everyone</c><00:00:00.640><c> today</c>

00:00:02.389 --> 00:00:02.399 align:start position:0%
hi everyone today
~

00:00:02.399 --> 00:00:05.030 align:start position:0%
hi everyone today
I&#39;m<00:00:02.560><c> going</c><00:00:02.800><c> to</c><00:00:03.000><c> fry</c>

00:00:05.030 --> 00:00:05.040 align:start position:0%
I&#39;m going to fry
~

00:00:05.040 --> 00:00:06.500 align:start position:0%
I&#39;m going to fry
eggs<00:00:05.500><c> okay</c>

00:00:06.500 --> 00:00:06.510 align:start position:0%
eggs okay
~

00:00:06.510 --> 00:00:08.000 align:start position:0%
eggs okay
eggs<00:00:06.700><c> okay</c>
""".replace("~", " ")  # lines of one space
SAID_ROLLING = [
    ("hi everyone today", 0.03, 2.389),
    ("I'm going to fry", 2.399, 5.03),
    ("eggs okay", 5.04, 6.5),
    ("eggs okay", 6.51, 8.0),  # said twice
]


def _as_srt(vtt):
    """The same cues as converters write them: no markup, no empty lines."""
    cues, out = vtt.split("\n\n")[1:], []
    for number, cue in enumerate(cues, 1):
        times, *lines = cue.strip("\n").split("\n")
        lines = [re.sub("<[^>]*>", "", line).replace("&#39;", "'") for line in lines]
        times = times.split(" align")[0].replace(".", ",")
        out += [str(number), times, *filter(str.strip, lines), ""]
    return "\n".join(out)


@pytest.mark.parametrize(("name", "data"), [("a.vtt", ROLLING), ("a.srt", _as_srt(ROLLING))])
def test_captions_that_roll_are_read_once_and_what_rolls_is_counted(tmp_path, name, data):
    write(tmp_path / "said" / name, data)
    assert narrations.read(tmp_path / "said" / name) == SAID_ROLLING
    write(tmp_path / "said" / "b.vtt", VTT)
    clips = [item(start_s=2.0, end_s=4.0), item("a/a.mp4"), item("b.mp4")]
    found = narrations.attach(clips, tmp_path / "said")
    assert [text for text, _, _ in found.items[0].captions] == [
        "hi everyone today",
        "I'm going to fry",
    ]
    assert found.repeated == {"a": 6}
    assert str(found) == (
        "Narrations: 3 of 3 clips have some; 6 lines that roll from caption to caption are read "
        "once (1 narrations; the first is a)."
    )


@given(st.lists(st.sampled_from("abc"), min_size=2), st.booleans())
def test_rolling_lines_of_any_words_are_each_taken_once(said, between):
    if not between:  # a line said twice can then not be told from one that stays
        said = [f"{line}{place}" for place, line in enumerate(said)]
    cues = [(said[:1], 0.0, 0.9)]
    for place in range(1, len(said)):
        if between:
            cues.append((said[place - 1 : place], place - 0.1, float(place)))
        cues.append((said[place - 1 : place + 1], float(place), place + 0.9))
    captions, count = narrations.unrolled(cues)
    assert captions == [(line, float(place), place + 0.9) for place, line in enumerate(said)]
    assert count == len(cues) - 1


@given(st.lists(st.lists(st.sampled_from(["yes", "no", "well"]), min_size=1, max_size=2)))
def test_captions_lose_nothing_unless_most_of_them_repeat_the_one_before(lines):
    cues = [
        each for place, own in enumerate(lines) for each in ((own, place, 1), (["-"], place, 2))
    ]
    captions, count = narrations.unrolled(cues)
    assert count == 0
    assert captions == [(" ".join(lines), start, end) for lines, start, end in cues]


def test_what_is_said_twice_in_ordinary_captions_stays():
    cues = [(["go"], 0, 1), (["go"], 1, 2), (["go"], 2, 3)]
    assert narrations.unrolled(cues) == ([("go", 0, 1), ("go", 1, 2), ("go", 2, 3)], 0)
    song = [(["la la", "la la"], 0, 1), (["la la", "dum"], 1, 2), (["da", "dum"], 2, 3)]
    song += [(["di", "dum"], 3, 4), (["end"], 4, 5)]
    assert narrations.unrolled(song)[1] == 0


@pytest.mark.parametrize(
    ("name", "data", "line", "message"),
    [
        ("a.csv", "start,stop,text\n1,2,hi\n", 1, "no column 'end'; needed are start, end, text"),
        ("a.csv", "", 1, "no column 'start'"),
        ("a.csv", 'start,end,text\n1,2,"two\nlines"\nsoon,2,hi\n', 4, "'soon' is not a time"),
        ("a.csv", "start,end,text\n1,2,hi\n3,4\n", 3, "cut short"),
        ("a.csv", 'start,end,text\n1,2,"hi\n', 2, "unexpected end of data"),
        ("a.csv", b"start,end,text\n1,2,hi\n1,2,\xff\n", 3, "not UTF-8"),
        ("a.srt", "1\n00:00:01 --> 00:00:02\nhi\n\n2\n00:03 -> x --> 00:04\nyo\n", 6, "no times"),
        ("a.srt", "1\n00:00:0x,000 --> 00:00:02,000\nhi\n", 2, "no times such as"),
        ("a.srt", "a letter\nto you\n", 1, "expected times, got 'a letter'"),
        ("a.vtt", "1\n00:01.0 --> 00:02.0\nhi\n", 1, "begins with WEBVTT"),
        ("a.vtt", "WEBVTT\n\n-00:01.0 --> 00:02.0\nhi\n", 3, "no times such as"),
    ],
)
def test_a_malformed_file_is_refused_by_name_and_line(tmp_path, name, data, line, message):
    path = write(tmp_path / name, data)
    with pytest.raises(UserError, match=message) as caught:
        narrations.read(path)
    assert f"{path}, line {line}: " in str(caught.value)


def howto100m(container):
    texts, starts, ends = (container(column) for column in zip(*SAID, strict=True))
    return {"a": {"start": starts, "end": ends, "text": texts}}


@pytest.mark.parametrize("suffix", [".json", ".pickle"])
def test_one_file_of_all_videos_is_read_by_name(tmp_path, suffix):
    path = tmp_path / f"caption{suffix}"
    if suffix == ".json":
        write(path, json.dumps(howto100m(list)))
    else:
        lists = {**howto100m(np.array), "b": howto100m(list)["a"]}
        write(path, pickle.dumps(lists))
    (found,) = narrations.attach([item()], path).items
    assert found.captions == tuple(SAID)


def test_a_pickle_is_never_executed(tmp_path):
    class Touch:
        def __reduce__(self):
            return (open, (str(tmp_path / "mark"), "w"))

    path = write(tmp_path / "caption.pickle", pickle.dumps({"a": Touch()}))
    with pytest.raises(UserError, match="nothing in it was executed"):
        narrations.attach([item()], path)
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ({"start": [1], "end": [2]}, "'a': expected lists named start, end, text"),
        ([1, 2], "'a': expected lists named"),
        ({"start": [1], "end": [2], "text": ["hi", "yo"]}, "different lengths 1, 1, 2"),
        ({"start": [1, "x"], "end": [2, 3], "text": ["hi", "yo"]}, "caption 1: 'x' is not a time"),
    ],
)
def test_a_wrong_entry_is_one_reject_and_not_the_end(tmp_path, entry, problem):
    path = write(tmp_path / "caption.json", json.dumps({"a": entry, "b": howto100m(list)["a"]}))
    bad, good = narrations.attach([item(), item("b.mp4")], path).items
    assert problem in bad.problem and str(path) in bad.problem
    assert good.captions == tuple(SAID) and not good.problem


def test_a_wrong_file_is_one_reject_and_not_the_end(tmp_path):
    path = write(tmp_path / "a.csv", "start,end,text\nx,1,hi\n")
    write(tmp_path / "b.csv", CSV)
    bad, good = narrations.attach([item(), item("b.mp4")], tmp_path).items
    assert f"{path}, line 2: 'x' is not a time" in bad.problem and not good.problem


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("caption.json", '{"a":\n oops}', "line 2"),
        ("caption.json", "[1]", "must map names of videos to lists"),
        ("caption.pickle", b"no pickle", "cannot be read as a pickle"),
        ("caption.txt", "hi", "neither a folder of .csv, .srt, .vtt files nor a .json"),
    ],
)
def test_what_holds_no_narrations_is_refused(tmp_path, name, data, message):
    with pytest.raises(UserError, match=message) as caught:
        narrations.attach([item()], write(tmp_path / name, data))
    assert str(tmp_path / name) in str(caught.value)


def test_narrations_are_found_by_id_and_by_file_name(tmp_path):
    for name in ("x.csv", "sub/b.SRT", "c.vtt", "d.srt"):
        write(tmp_path / name, FILES[f"a{pathlib.Path(name).suffix.lower()}"])
    write(tmp_path / "d.csv", "start,end,text\n1,2,of the csv\n")
    items = [
        tables.Item("x", "/videos/other.mp4", "other.mp4"),
        item("sub/b.mp4"),
        tables.Item("elsewhere/c.mp4#0-1", "/videos/elsewhere/c.mp4", "c"),
        item("d.mp4"),
    ]
    found = narrations.attach(items, tmp_path)
    assert [len(each.captions) for each in found.items] == [3, 3, 3, 1]
    assert found.items[3].captions[0][0] == "of the csv"
    assert str(found) == "Narrations: 4 of 4 clips have some."


def test_videos_without_narrations_are_counted_and_keep_what_they_have(tmp_path):
    write(tmp_path / "a.csv", CSV)
    write(tmp_path / "b.csv", "start,end,text\n")
    own = (("of the table", 0.0, 1.0),)
    items = [item(), item("b.mp4", captions=own), item("c.mp4", captions=own), item("d.mp4")]
    broken = item("e.mp4", problem="no such file")
    found = narrations.attach([*items, broken], tmp_path)
    assert [each.captions for each in found.items] == [tuple(SAID), (), own, (), ()]
    assert (found.missing, found.empty) == (["c.mp4", "d.mp4"], ["b.mp4"])
    assert str(found) == (
        "Narrations: 1 of 4 clips have some; 2 have none (the first is c.mp4); "
        "1 have one without words for them (the first is b.mp4)."
    )
    with pytest.raises(UserError, match="that of z/y.mp4 was looked for as z/y.mp4 or z/y or y"):
        narrations.attach([item("z/y.mp4")], tmp_path)


def test_a_stretch_of_a_video_has_the_captions_that_are_said_in_it(tmp_path):
    write(tmp_path / "a.csv", CSV + ",,of unknown time\n")
    (found,) = narrations.attach([item(start_s=4.0, end_s=63.0)], tmp_path).items
    assert [text for text, _, _ in found.captions] == [SAID[1][0], "of unknown time"]


def test_ingest_stores_narrations_on_the_clock_of_each_clip(tmp_path):
    (tmp_path / "videos").mkdir()
    media_files.write_video(tmp_path / "videos" / "a.mp4", 50)
    media_files.write_video(tmp_path / "videos" / "b.mp4", 10)
    write(tmp_path / "said" / "a.srt", "1\n00:00:01,200 --> 00:00:01,600\nadd the basil\n")
    rows = [{"path": "videos/a.mp4", "start": 1.0, "end": 1.8}, {"path": "videos/b.mp4"}]
    table = write(tmp_path / "t.jsonl", "\n".join(map(json.dumps, rows)))
    flags = [f"--source={table}", f"--output={tmp_path / 'out'}", "--audio_rate=0", "--workers=1"]
    done = subprocess.run(
        [sys.executable, "-m", "common.ingest", *flags, f"--narrations={tmp_path / 'said'}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "1 of 2 clips have some; 1 have none (the first is videos/b.mp4)." in done.stderr
    record_set = shards.RecordSet.open(tmp_path / "out" / "train")
    one, other = (records.deserialize(record_set.read(number)) for number in range(2))
    ((text, start, end),) = one.captions
    assert text == "add the basil" and other.captions == []
    np.testing.assert_allclose([start, end], [0.2, 0.6], atol=1e-4)
