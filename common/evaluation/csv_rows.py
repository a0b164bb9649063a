"""Rows of a csv table whose mistakes are named by file, line and column."""

from __future__ import annotations

import csv
import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import NoReturn

from common.data import tables
from common.errors import UserError


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of a table, with the line it ends on."""

    path: str
    line: int
    cells: Mapping[str, str]

    def text(self, column: str) -> str:
        """Returns what a cell holds, without spaces around it; raises `UserError` if nothing."""
        cell = (self.cells.get(column) or "").strip()
        return cell or self.refuse(column, "the cell is empty")

    def seconds(self, column: str) -> float:
        """Returns a time, 0 or later, given in seconds or h:m:s; raises `UserError` if none."""
        cell = self.text(column)
        try:
            time = tables.seconds(cell)
        except ValueError as error:
            self.refuse(column, str(error))
        return time if time >= 0 else self.refuse(column, f"{cell} lies before the video begins")

    def span(self) -> tuple[float, float]:
        """Returns columns "start" and "end"; raises `UserError` where the end is not after."""
        start, end = self.seconds("start"), self.seconds("end")
        if end <= start:
            self.refuse("end", f"{end:g} is not after the start, {start:g}")
        return start, end

    def refuse(self, column: str, why: str) -> NoReturn:
        """Raises the `UserError` that says where the mistake is."""
        raise UserError(f"{self.path}, line {self.line}, column {column!r}: {why}.")


def read(path: str | os.PathLike[str], *choices: Sequence[str]) -> list[Row]:
    """Reads a csv in UTF-8 whose first line names its columns.

    Args:
        path: of the table.
        choices: sets of columns; the table must have all of one of them.

    Raises:
        UserError: it cannot be read, has no rows, or lacks columns.
    """
    try:
        text = pathlib.Path(path).read_text(encoding="utf-8-sig")
        reader = tables.csv_reader(text)
        rows = [Row(str(path), reader.line_num, cells) for cells in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as csv in UTF-8: {error}") from error
    columns = reader.fieldnames or []
    if not any(set(choice) <= set(columns) for choice in choices):
        wanted = " or ".join(", ".join(choice) for choice in choices)
        raise UserError(f"{path}, line 1: the columns are {', '.join(columns)}; needed: {wanted}.")
    if not rows:
        raise UserError(f"{path} has no rows below its heading.")
    for row in rows:
        try:
            tables.refuse_surplus(row.cells)
        except ValueError as error:
            raise UserError(f"{path}, line {row.line}: {error}.") from error
    return rows
