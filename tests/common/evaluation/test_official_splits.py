"""Official split files become what each split trains and tests on."""

import numpy as np
import pytest

from common.errors import UserError
from common.evaluation import official_splits
from common.evaluation.features import Features, Video

CSV = """video_id,label,split1,split2,split3
April_09_brush_hair_u_nm_np1_ba_goo_0.avi,brush_hair_test,1,1,2
#20_Rhythm_clap_u_nm_np1_fr_goo_0.avi,clap_test,2,0,1
What!_(a)__[b]_clap_u_cm_np1_fr_med_1.avi,clap_test,1,2,1
Hair_2_brush_hair_f_cm_np2_ri_goo_0.avi,brush_hair_test,2,1,0
"""
IDS = (
    "brush_hair/April_09_brush_hair_u_nm_np1_ba_goo_0.avi",
    "clap/#20_Rhythm_clap_u_nm_np1_fr_goo_0.avi",
    "clap/What!_(a)__[b]_clap_u_cm_np1_fr_med_1.mp4",
    "Hair_2_brush_hair_f_cm_np2_ri_goo_0",
)
A, B, C, D = IDS
HAIR, CLAP = ("brush_hair",), ("clap",)
PARTS = {
    "split1": {"train": {A: HAIR, C: CLAP}, "test": {B: CLAP, D: HAIR}},
    "split2": {"train": {A: HAIR, D: HAIR}, "test": {C: CLAP}},
    "split3": {"train": {B: CLAP, C: CLAP}, "test": {A: HAIR}},
}


def _find(path, ids=IDS):
    return official_splits.find(official_splits.read(path), {"train": ids, "test": ids})


def _write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def _lists(folder, csv=CSV):
    """The same splits as HMDB-51 is distributed with: one list per class and split."""
    for line in csv.splitlines()[1:]:
        file, label, *values = line.split(",")
        for number, value in enumerate(values, 1):
            folder.mkdir(exist_ok=True)
            with open(folder / f"{label}_split{number}.txt", "a") as out:
                out.write(f"{file} {value} \n")
    return folder


def test_the_published_csv_of_hmdb_and_its_lists_say_the_same(tmp_path):
    assert _find(_write(tmp_path / "hmdb51.csv", CSV)) == PARTS
    assert _find(_lists(tmp_path / "lists")) == PARTS


def test_the_lists_of_ucf_are_read_with_the_folder_as_label(tmp_path):
    folder = tmp_path / "ucfTrainTestlist"
    _write(folder / "classInd.txt", "1 ApplyEyeMakeup\r\n2 Archery\r\n")
    _write(
        folder / "trainlist01.txt",
        "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1\r\nArchery/v_Archery_g08_c01.avi 2\r\n\r\n",
    )
    _write(folder / "testlist01.txt", "Archery/v_Archery_g01_c01.avi\n")
    _write(folder / "trainlist02.txt", "Archery/v_Archery_g01_c01.avi 2\n")
    _write(folder / "testlist02.txt", "Archery/v_Archery_g08_c01.avi\n")
    ids = ["ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi"]
    ids += [f"Archery/v_Archery_g0{group}_c01.mp4" for group in (1, 8)]
    archery = ("Archery",)
    assert _find(folder, ids) == {
        "split1": {
            "train": {ids[0]: ("ApplyEyeMakeup",), ids[2]: archery},
            "test": {ids[1]: archery},
        },
        "split2": {"train": {ids[1]: archery}, "test": {ids[2]: archery}},
    }


def test_videos_that_a_table_cut_are_found(tmp_path):
    entries = official_splits.read(_write(tmp_path / "a.csv", CSV))
    first = [entry for entry in entries if entry.split == "split1"]
    cut = {name: f"{name}#-20.000" for name in (A, B, C, D)}
    found = official_splits.find(first, {"train": [cut[C], cut[A]], "test": [cut[B], cut[D]]})
    wanted = {
        role: {cut[name]: labels for name, labels in part.items()}
        for role, part in PARTS["split1"].items()
    }
    assert found == {"split1": wanted}


def test_files_of_one_name_are_told_apart_by_the_folder_of_the_label(tmp_path):
    ids = [*IDS, "other/" + A.partition("/")[2]]
    assert _find(_write(tmp_path / "a.csv", CSV), ids) == PARTS


def test_train_and_test_may_be_record_sets_of_their_own(tmp_path):
    entries = official_splits.read(_write(tmp_path / "a.csv", CSV))
    first = [entry for entry in entries if entry.split == "split1"]
    found = official_splits.find(first, {"train": [C, A], "test": [B, D, "another"]})
    assert found == {"split1": PARTS["split1"]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (CSV.replace("split1", "first"), "line 1: the columns are .* needed: video_id, label, spl"),
        (CSV.replace("clap_test,2,0", "clap_test,2,3"), "line 3, column 'split2': '3' is none of"),
        (
            CSV.replace("clap_test,2,0", "clap_test,2,"),
            "line 3, column 'split2': the cell is empty",
        ),
        (
            CSV + "gone.avi,clap_test,0,1,1\n",
            r"line 6: no record of --train is 'gone' \(2 of 12 en",
        ),
        (CSV + CSV.splitlines()[1], "line 6: 'April_09_.*' is listed before, in .*line 2"),
        (CSV.replace("2,0,1", "1,0,1").replace("2,1,0", "1,1,0"), "split1 has no videos to test"),
    ],
)
def test_a_mistake_in_the_table_is_named_by_line(tmp_path, text, message):
    path = _write(tmp_path / "hmdb51.csv", text)
    with pytest.raises(UserError, match=message) as caught:
        _find(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("trainlist01.txt", "v_Archery_g08_c01.avi 2\n", "line 1: expected LABEL/FILE"),
        ("clap_test_split1.txt", "a.avi 1\n\nb.avi 4\n", "line 3: expected FILE and 0, 1 or 2"),
        ("list.txt", "a.avi 1\n", "holds neither trainlist01.txt"),
    ],
)
def test_a_mistake_in_a_folder_is_named(tmp_path, name, text, message):
    _write(tmp_path / "lists" / name, text)
    with pytest.raises(UserError, match=message):
        official_splits.read(tmp_path / "lists")


def test_records_of_one_name_that_cannot_be_told_apart_are_refused(tmp_path):
    path = _write(tmp_path / "a.csv", CSV)
    with pytest.raises(UserError, match="several records of --train are 'April"):
        _find(path, [*IDS, "more/" + A])


def test_a_video_that_trains_and_tests_in_one_split_is_refused(tmp_path):
    for role in ("train", "test"):
        _write(tmp_path / "lists" / f"{role}list01.txt", "Archery/v_Archery_g01_c01.avi\n")
    with pytest.raises(UserError, match="is listed before, in .*testlist01.txt, line 1"):
        _find(tmp_path / "lists", ["v_Archery_g01_c01.avi"])


def test_only_listed_videos_are_selected_readable_or_not():
    rows = np.arange(8, dtype=np.float32).reshape(4, 2)
    videos = (Video("a", ("own",), 0, 2), Video("c", (), 2, 1), Video("d", (), 3, 1))
    every = Features(rows, videos, (Video("1", bad="broken"), Video("4", bad="broken")))
    names = ["a", "b", "c", "d", "e"]
    chosen = official_splits.select(every, {"a": HAIR, "b": CLAP, "d": CLAP}, names)
    assert [(v.id, v.labels, v.start, v.count) for v in chosen.videos] == [
        ("a", HAIR, 0, 2),
        ("d", CLAP, 3, 1),
    ]
    assert [video.id for video in chosen.bad] == ["1"]
