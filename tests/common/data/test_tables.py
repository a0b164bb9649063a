"""Tables and folders become the same items, and mistakes are named by row and column."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.data import tables
from common.errors import UserError

ROWS = [
    {"path": "a b/ü.mp4", "start": 1.5, "end": "0:04.25", "labels": "run;walk", "id": "x"},
    {"path": "b.wav", "labels": "run", "captions": [{"text": "hi", "start": 1, "end": 2}, "yo"]},
]


def write(path, rows):
    if path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        import csv

        columns = list(dict.fromkeys(key for row in rows for key in row))
        with open(path, "w", newline="") as file:
            delimiter = "\t" if path.suffix == ".tsv" else ","
            out = csv.DictWriter(file, columns, delimiter=delimiter)
            out.writeheader()
            for row in rows:
                cells = {k: json.dumps(v) if isinstance(v, list) else v for k, v in row.items()}
                out.writerow(cells)
    return path


def items_of(path, *rows):
    return tables.read_source(write(path, rows)).items


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".json", ".jsonl"])
def test_all_kinds_of_table_say_the_same(tmp_path, suffix):
    first, second = tables.read_source(write(tmp_path / f"t{suffix}", ROWS)).items
    assert first.id == "x" and first.path == str(tmp_path / "a b" / "ü.mp4")
    assert (first.start_s, first.end_s, first.labels) == (1.5, 4.25, ("run", "walk"))
    assert second.id == "b.wav" and second.labels == ("run",) and not second.problem
    assert second.captions[0] == ("hi", 1.0, 2.0)
    assert second.captions[1][0] == "yo" and math.isnan(second.captions[1][1])


def test_two_stretches_of_one_file_get_two_names(tmp_path):
    rows = [{"path": "a.mp4", "start": 0, "end": 1}, {"path": "a.mp4", "start": 1, "end": 2}]
    items = tables.read_source(write(tmp_path / "t.jsonl", rows)).items
    assert [item.id for item in items] == ["a.mp4#0.000-1.000", "a.mp4#1.000-2.000"]


def test_a_table_without_paths_is_refused_with_its_columns(tmp_path):
    with pytest.raises(UserError, match=r"no column 'path'; its columns are \['file'\]"):
        tables.read_source(write(tmp_path / "t.csv", [{"file": "a.mp4"}]))


def test_an_unknown_label_column_is_refused(tmp_path):
    with pytest.raises(UserError, match="no column 'klass'"):
        tables.read_source(write(tmp_path / "t.csv", ROWS), label_column="klass")


@pytest.mark.parametrize(
    "row, problem",
    [
        ({"path": ""}, "no path"),
        ({"path": "a", "start": "soon"}, "'soon' is not a time"),
        ({"path": "a", "start": 3, "end": 2}, "not after start"),
        ({"path": "a", "start": -1}, "before the file begins"),
        ({"path": "a", "captions": [{"start": 1}]}, "has no 'text'"),
        ({"path": "a", "captions": [{"text": "x", "end": 1e20}]}, "no time in a video"),
        ({"path": "a", "captions": '["cut'}, "not a list in json"),
        ({"path": "a", "captions": "half \ud83d"}, "not valid Unicode"),
        ({"path": "a", "labels": ["half \ud83d"]}, "not valid Unicode"),
        ({"path": "a\ud83d.mp4"}, "not valid Unicode"),
    ],
)
def test_a_wrong_row_is_one_reject_and_not_the_end(tmp_path, row, problem):
    items = tables.read_source(write(tmp_path / "t.jsonl", [row, {"path": "ok.mp4"}])).items
    assert problem in items[0].problem and not items[1].problem


def test_of_two_items_with_one_id_the_first_stays(tmp_path):
    rows = [{"path": "a.mp4", "id": "x"}, {"path": "b.mp4", "id": "x"}]
    items = tables.read_source(write(tmp_path / "t.jsonl", rows)).items
    assert not items[0].problem and "duplicate id 'x' (also of a.mp4)" in items[1].problem


@pytest.mark.parametrize(
    "name, text", [("t.json", "{}"), ("t.jsonl", "[1]"), ("t.json", "["), ("t.csv", "path\n")]
)
def test_a_file_that_is_no_table_is_refused(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=str(tmp_path / name)):
        tables.read_source(tmp_path / name)


def test_a_csv_text_with_a_comma_and_no_quotes_is_not_cut(tmp_path):
    (tmp_path / "t.csv").write_text("path,captions\na,A dog runs, then it sits\nb,fine,\n")
    cut, fine = tables.read_source(tmp_path / "t.csv").items
    assert "' then it sits' is in no column" in cut.problem and "needs quotes" in cut.problem
    assert not fine.problem and fine.captions[0][0] == "fine"


def test_a_quote_that_is_not_closed_swallows_no_rows(tmp_path):
    (tmp_path / "t.csv").write_text('path,captions\na,"open\nb,x\nc,y\n')
    with pytest.raises(UserError, match="line 4: unexpected end of data"):
        tables.read_source(tmp_path / "t.csv")


@pytest.mark.parametrize("mark", ["\u2028", "\x85", "\x0b"])
@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_rows_end_where_lines_do_and_nowhere_else(tmp_path, suffix, mark):
    row = f"a,first{mark}second" if suffix == ".csv" else ""
    text = f"path,captions\n{row}\n" if row else f'{{"path": "a", "captions": "first{mark}second"}}'
    if mark == "\x0b" and suffix == ".jsonl":
        text = text.replace(mark, "\\u000b")  # json allows no control characters
    (tmp_path / f"t{suffix}").write_text(text, encoding="utf-8")
    (item,) = tables.read_source(tmp_path / f"t{suffix}").items
    assert item.captions[0][0] == f"first{mark}second"


def test_a_mistake_in_a_line_of_json_is_named_by_its_line(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"path": "a"}\n\n{"path": }\n')
    with pytest.raises(UserError, match="line 3, character 10: Expecting value"):
        tables.read_source(tmp_path / "t.jsonl")


@pytest.mark.parametrize(
    "cell, texts",
    [
        ("[Music] a man sings", ["[Music] a man sings"]),
        ("[2024]", ["[2024]"]),
        ('["x", {"text": "y"}]', ["x", "y"]),
        ([None, {"text": None}, "z", float("nan")], ["z"]),
        ([], []),
    ],
)
def test_captions_are_lists_only_where_they_look_like_lists_of_texts(tmp_path, cell, texts):
    (item,) = tables.read_source(
        write(tmp_path / "t.jsonl", [{"path": "a", "captions": cell}])
    ).items
    assert [text for text, _, _ in item.captions] == texts and not item.problem


def test_labels_in_a_csv_cell_may_be_a_list_and_missing_ones_are_none(tmp_path):
    rows = [{"path": "a", "labels": ["x", "y"]}, {"path": "b", "labels": "x;y"}]
    items = tables.read_source(write(tmp_path / "t.csv", rows)).items
    assert [item.labels for item in items] == [("x", "y"), ("x", "y")]
    (item,) = tables.read_source(
        write(tmp_path / "u.jsonl", [{"path": "a", "labels": [None]}])
    ).items
    assert item.labels == ()


def test_many_captions_fit_into_a_cell(tmp_path):
    captions = [{"text": f"words {n}", "start": n, "end": n + 1} for n in range(4000)]
    (item,) = tables.read_source(
        write(tmp_path / "t.csv", [{"path": "a", "captions": captions}])
    ).items
    assert len(item.captions) == 4000


def test_a_good_row_is_no_duplicate_of_a_bad_one(tmp_path):
    rows = [{"path": "a", "start": 2, "end": 1}, {"path": "a"}, {"path": "a", "start": "soon"}]
    items = tables.read_source(write(tmp_path / "t.jsonl", rows)).items
    assert [bool(item.problem) for item in items] == [True, False, True]
    assert len({item.id for item in items}) == 3


def test_labels_come_from_folders_or_from_a_column_and_what_is_not_used_is_said(tmp_path):
    table = write(tmp_path / "t.jsonl", [{"path": "cats/a.mp4", "labels": "dog"}])
    with pytest.raises(UserError, match="do not go together"):
        tables.read_source(table, "folder", "labels")
    found = tables.read_source(table, "folder")
    assert found.items[0].labels == ("cats",) and found.unused == ("column 'labels'",)


def test_a_tilde_that_is_no_home_is_part_of_the_name(tmp_path):
    (item,) = tables.read_source(write(tmp_path / "t.jsonl", [{"path": "~tmp.mp4"}])).items
    assert item.path == str(tmp_path / "~tmp.mp4") and not item.problem


def test_a_folder_is_searched_in_order_and_labels_by_sub_folder(tmp_path):
    for name in ["b/2.mp4", "b/1.webm", "a/x.jpg", "top.wav", "a/notes.txt", ".hidden/z.mp4"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = tables.read_source(tmp_path, labels_from="folder")
    assert [item.id for item in found.items] == ["top.wav", "a/x.jpg", "b/1.webm", "b/2.mp4"]
    assert [item.labels for item in found.items] == [(), ("a",), ("b",), ("b",)]
    assert found.unused == ("1 x .txt",)


def test_a_data_set_inside_its_source_is_no_part_of_it(tmp_path):
    for name in ["a.mp4", "records/.ingest/x", "records/contact_sheet.jpg"]:
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).touch()
    assert [item.id for item in tables.read_source(tmp_path).items] == ["a.mp4"]


def test_an_empty_or_missing_source_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no media files"):
        tables.read_source(tmp_path)
    with pytest.raises(UserError, match="no such folder or table"):
        tables.read_source(tmp_path / "nowhere")


@given(st.integers(0, 99), st.integers(0, 59), st.integers(0, 59999))
def test_times_read_as_seconds_or_as_clock(hours, minutes, milliseconds):
    total = hours * 3600 + minutes * 60 + milliseconds / 1000
    clock = f"{hours}:{minutes:02d}:{milliseconds / 1000:06.3f}"
    assert tables.seconds(clock) == pytest.approx(total)
    assert tables.seconds(str(total)) == tables.seconds(total) == total


@pytest.mark.parametrize("text", ["-0:30", "1:-5", "0:0:0:1", "soon"])
def test_what_is_no_time_is_no_time(text):
    with pytest.raises(ValueError, match="is not a time in seconds or h:m:s"):
        tables.seconds(text)
