"""Annotations and texts of steps are read from csv tables and as CrossTask publishes them."""

import pytest

from common.errors import UserError
from common.evaluation import step_tables
from common.evaluation.step_localisation import Step
from common.evaluation.step_tables import Task

TASKS = """16815
Jack Up a Car
https://www.wikihow.com/Jack-Up-a-Car
3
brake on,jack up, lower jack

23521
Make Jello Shots
https://www.wikihow.com/Make-Jello-Shots
2
pour water,stir mixture
"""


def _table(folder, *lines, heading="task,video,step,start,end"):
    path = folder / "steps.csv"
    path.write_text("\n".join([heading, *lines]) + "\n")
    return path


def test_annotations_are_read_from_a_csv_whatever_the_order_of_its_columns(tmp_path):
    path = _table(tmp_path, "0.5,12,v,2,t", "1:01,62.5,v,1,t", heading="start,end,video,step,task")
    assert step_tables.read_steps(path) == [
        Step("t", "v", 2, 0.5, 12.0),
        Step("t", "v", 1, 61.0, 62.5),
    ]


@pytest.mark.parametrize(
    ("row", "column", "message"),
    [
        ("t,v,0,1,2", "step", "'0' is not a step number"),
        ("t,v,two,1,2", "step", "'two' is not a step number"),
        ("t,,1,1,2", "video", "the cell is empty"),
        ("t,v,1,1", "end", "the cell is empty"),
        ("t,v,1,soon,2", "start", "'soon' is not a time"),
        ("t,v,1,nan,2", "start", "'nan' is not a time"),
        ("t,v,1,-1,2", "start", "-1 lies before the video begins"),
        ("t,v,1,3,2", "end", "2 is not after the start, 3"),
    ],
)
def test_a_mistake_in_the_csv_is_named_by_file_line_and_column(tmp_path, row, column, message):
    path = _table(tmp_path, "t,v,1,1,2", row)
    with pytest.raises(UserError, match=f"{path}, line 3, column '{column}': {message}"):
        step_tables.read_steps(path)


def test_a_csv_without_a_column_or_without_rows_is_refused(tmp_path):
    with pytest.raises(UserError, match="line 1: the columns are video,.* needed: task, video"):
        step_tables.read_steps(_table(tmp_path, "v,1,1,2", heading="video,step,start,end"))
    with pytest.raises(UserError, match="no rows"):
        step_tables.read_steps(_table(tmp_path))
    with pytest.raises(UserError, match="cannot be read"):
        step_tables.read_steps(tmp_path / "missing.csv")


def _write(path, text):
    path.write_text(text)
    return path


def test_the_annotations_of_crosstask_are_files_of_a_task_and_a_video(tmp_path):
    _write(tmp_path / "16815_-a_b.csv", "3,0.3,7.25\n1,9,9.5\n")
    _write(tmp_path / "23521_c.csv", "2,4,5\n\n")
    _write(tmp_path / "23521_d.csv", "")  # shows no step
    _write(tmp_path / "readme.csv", "other files are passed over")
    assert step_tables.read_steps(tmp_path) == [
        Step("16815", "-a_b", 3, 0.3, 7.25),
        Step("16815", "-a_b", 1, 9.0, 9.5),
        Step("23521", "c", 2, 4.0, 5.0),
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("0,1,2", "column 'step': '0' is not a step number"),
        ("1,1", "column 'end': the cell is empty"),
        ("1,3,2", "column 'end': no second lies between the start, 3, and 2"),
        ("1,3,3", "column 'end': no second lies"),
    ],
)
def test_a_mistake_in_an_annotation_of_crosstask_is_named(tmp_path, row, message):
    path = _write(tmp_path / "1_v.csv", f"1,1,2\n{row}\n")
    with pytest.raises(UserError, match=f"{path}, line 2, {message}"):
        step_tables.read_steps(tmp_path)


def test_a_folder_without_annotations_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no annotation: files TASK_VIDEO.csv"):
        step_tables.read_steps(tmp_path)


def test_the_tasks_of_crosstask_are_blocks_of_five_lines(tmp_path):
    for text in (TASKS, "\n" + TASKS.replace("\n\n", "\n\n\n"), TASKS.replace("\n", "\r\n")):
        assert step_tables.read_tasks(_write(tmp_path / "tasks_primary.txt", text)) == {
            "16815": Task("Jack Up a Car", ("brake on", "jack up", "lower jack")),
            "23521": Task("Make Jello Shots", ("pour water", "stir mixture")),
        }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (TASKS.replace("\n3\n", "\n4\n"), "line 5: these are 3 steps, .* the line before says 4"),
        (TASKS.replace("jack up", ""), "line 5: these are 3 steps, 1 of them empty"),
        (TASKS.replace("\n2\n", "\n"), "line 7: the block of task '23521' has 4 lines"),
        (TASKS + "\n" + TASKS, "line 13: task '16815' is there already"),
        ("\n", "holds no tasks"),
    ],
)
def test_a_mistake_in_the_tasks_of_crosstask_is_named(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        step_tables.read_tasks(_write(tmp_path / "tasks.txt", text))
    with pytest.raises(UserError, match="nothing.txt cannot be read"):
        step_tables.read_tasks(tmp_path / "nothing.txt")


def test_texts_are_read_from_a_csv_in_the_order_of_their_numbers(tmp_path):
    path = _write(
        tmp_path / "texts.csv", 'task,step,text\ntea,2,pour\njam,1,cook\ntea,1,"boil, slow"\n'
    )
    assert step_tables.read_tasks(path) == {
        "tea": Task("tea", ("boil, slow", "pour")),
        "jam": Task("jam", ("cook",)),
    }


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("tea,1,boil\ntea,3,drink", "no text of step 2 of task 'tea'"),
        ("tea,1,boil\ntea,1,pour", "line 3, column 'step': step 1 of task 'tea' is there already"),
        ("tea,1, ", "line 2, column 'text': the cell is empty"),
        ("tea,1,boil, slow", "line 2: ' slow' is in no column"),
        ('tea,1,"boil\ntea,2,pour', "cannot be read as csv"),
    ],
)
def test_a_text_that_is_missing_or_double_is_named(tmp_path, rows, message):
    with pytest.raises(UserError, match=message):
        step_tables.read_tasks(_write(tmp_path / "texts.csv", f"task,step,text\n{rows}\n"))


def test_a_list_of_videos_names_tasks_and_videos(tmp_path):
    path = _write(tmp_path / "videos_val.csv", "1,a,https://x/a\n2,b,https://x/b\n")
    assert step_tables.read_videos(path) == {("1", "a"), ("2", "b")}
    with pytest.raises(UserError, match="line 1, column 'video': the cell is empty"):
        step_tables.read_videos(_write(path, "1\n"))
    with pytest.raises(UserError, match="names no videos"):
        step_tables.read_videos(_write(path, ""))
