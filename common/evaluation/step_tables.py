"""Which steps a task has and where videos show them, from csv tables or from CrossTask's files.

CrossTask is released as ``tasks_primary.txt`` (blocks of five lines: task, title, address, number
of steps, the steps with commas between them), a folder of annotations (``TASK_VIDEO.csv`` with
lines ``step,start,end``) and lists of videos (lines ``task,video,address``; Zhukov et al., 2019,
github.com/DmZhukov/CrossTask).
"""

from __future__ import annotations

import csv
import dataclasses
import itertools
import math
import os
import pathlib
from collections.abc import Sequence

from common.errors import UserError
from common.evaluation import csv_rows
from common.evaluation.step_localisation import Step

STEP_COLUMNS = ("task", "video", "step", "start", "end")
TEXT_COLUMNS = ("task", "step", "text")
_BLOCK = 5  # lines of a task in CrossTask's file


@dataclasses.dataclass(frozen=True)
class Task:
    """What is done: its title, and a text for each of its steps in order."""

    title: str
    texts: tuple[str, ...]


def read_steps(path: str | os.PathLike[str]) -> list[Step]:
    """Reads annotations: a csv with columns task, video, step (from 1), start, end (seconds).

    A folder holds CrossTask's annotations instead; its other files are passed over.

    Raises:
        UserError: nothing is annotated, a column is missing or a cell is wrong; names file, line
            and column.
    """
    if os.path.isdir(path):
        return _read_folder(pathlib.Path(path))
    return [
        Step(row.text("task"), row.text("video"), _step_number(row), *row.span())
        for row in csv_rows.read(path, STEP_COLUMNS)
    ]


def read_tasks(path: str | os.PathLike[str]) -> dict[str, Task]:
    """Reads the steps of each task: a csv with columns task, step (from 1) and text.

    A file of another ending than .csv is CrossTask's.

    Raises:
        UserError: it cannot be read, a number is left out or given twice, or a block is not as
            published; names file and line.
    """
    if pathlib.Path(path).suffix.lower() != ".csv":
        return _read_blocks(path)
    texts: dict[str, dict[int, str]] = {}
    for row in csv_rows.read(path, TEXT_COLUMNS):
        of_task = texts.setdefault(row.text("task"), {})
        if (number := _step_number(row)) in of_task:
            row.refuse("step", f"step {number} of task {row.text('task')!r} is there already")
        of_task[number] = row.text("text")
    for task, of_task in texts.items():
        if missing := set(range(1, max(of_task) + 1)) - set(of_task):
            raise UserError(f"{path} has no text of step {min(missing)} of task {task!r}. Add it.")
    return {
        task: Task(task, tuple(of_task[number] for number in sorted(of_task)))
        for task, of_task in texts.items()
    }


def read_videos(path: str | os.PathLike[str]) -> set[tuple[str, str]]:
    """Reads task and video of every line of one of CrossTask's lists, such as videos_val.csv.

    Raises:
        UserError: it cannot be read, is empty, or a line has no two cells.
    """
    rows = _rows_without_heading(path, ("task", "video"))
    if not rows:
        raise UserError(f"{path} names no videos.")
    return {(row.text("task"), row.text("video")) for row in rows}


def _read_folder(folder: pathlib.Path) -> list[Step]:
    steps = []
    for path in sorted(folder.glob("*_*.csv")):
        task, _, video = path.stem.partition("_")
        for row in _rows_without_heading(path, ("step", "start", "end")):
            number, start, end = _step_number(row), row.seconds("start"), row.seconds("end")
            if math.ceil(end) <= math.floor(start):
                row.refuse("end", f"no second lies between the start, {start:g}, and {end:g}")
            steps.append(Step(task, video, number, start, end))
    if not steps:
        raise UserError(
            f"{folder} holds no annotation: files TASK_VIDEO.csv with lines step,start,end."
        )
    return steps


def _rows_without_heading(
    path: str | os.PathLike[str], columns: Sequence[str]
) -> list[csv_rows.Row]:
    """Returns the lines of a csv that has no heading; cells after these columns are passed over."""
    reader = csv.reader(_read(path).splitlines(keepends=True))
    try:
        return [
            csv_rows.Row(str(path), reader.line_num, dict(zip(columns, cells, strict=False)))
            for cells in reader
            if any(cells)
        ]
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: {error}.") from error


def _read_blocks(path: str | os.PathLike[str]) -> dict[str, Task]:
    tasks: dict[str, Task] = {}
    numbered = enumerate((line.strip() for line in _read(path).splitlines()), 1)
    for filled, lines in itertools.groupby(numbered, key=lambda line: bool(line[1])):
        if not filled:
            continue
        (first, task), *rest = lines
        if len(rest) != _BLOCK - 1:
            raise UserError(
                f"{path}, line {first}: the block of task {task!r} has {len(rest) + 1} lines "
                f"instead of {_BLOCK}: task, title, address, number of steps, the steps with "
                "commas between them. (A csv with columns task, step, text must be named so.)"
            )
        (_, title), _, (_, number), (line, listed) = rest
        texts = tuple(text.strip() for text in listed.split(","))
        if number != str(len(texts)) or not all(texts):
            raise UserError(
                f"{path}, line {line}: these are {len(texts)} steps, {texts.count('')} of them "
                f"empty; the line before says {number}."
            )
        if task in tasks:
            raise UserError(f"{path}, line {first}: task {task!r} is there already.")
        tasks[task] = Task(title, texts)
    if not tasks:
        raise UserError(f"{path} holds no tasks.")
    return tasks


def _read(path: str | os.PathLike[str]) -> str:
    try:
        return pathlib.Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as text in UTF-8: {error}") from error


def _step_number(row: csv_rows.Row) -> int:
    number = row.text("step")
    if not (number.isascii() and number.isdigit()) or int(number) < 1:
        row.refuse("step", f"{number!r} is not a step number, which count from 1")
    return int(number)
