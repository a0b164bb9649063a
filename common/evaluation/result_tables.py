"""Results as tables: the same ones on the terminal, on a model card and on the page about a run."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from common.errors import UserError

PROBES, RETRIEVAL, STEPS = "probes", "retrieval", "step localisation"  # "evaluation" of results

_NAMED = 10  # of what was left out; all of it is in the JSON
_TOOLS = {PROBES: "common.evaluate", RETRIEVAL: "common.retrieve", STEPS: "common.localise"}


@dataclasses.dataclass(frozen=True)
class Table:
    """One table and what has to be known to read it.

    Attributes:
        title: what was measured.
        about: sentences before the table.
        cells: heading and rows.
        trained: for each row whether it is of the trained model; the others are baselines.
        remarks: lines after the table.
    """

    title: str
    about: tuple[str, ...]
    cells: list[list[str]]
    trained: list[bool]
    remarks: list[str]

    def text(self) -> str:
        """Returns the table with aligned columns, for a terminal."""
        widths = [max(map(len, column)) for column in zip(*self.cells, strict=True)]
        heading, *body = [
            "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip()
            for line in self.cells
        ]
        table = [heading, "-" * len(heading), *body]
        return "\n".join([f"\n{self.title}", *self.about, "", *table, *self.remarks])

    def markdown(self) -> list[str]:
        """Returns lines of Markdown."""
        heading, *body = self.cells
        table = ["| " + " | ".join(c) + " |" for c in (heading, ["---"] * len(heading), *body)]
        remarks = [f"- {remark.strip()}" for remark in self.remarks]
        return [f"### {self.title}", "", " ".join(self.about), "", *table, "", *remarks]


def named(left_out: Iterable[str]) -> list[str]:
    """Returns the first lines about what was left out of an evaluation, and how many more."""
    lines = list(left_out)
    shown = [f"  {line}" for line in lines[:_NAMED]]
    if more := len(lines) - len(shown):
        shown.append(f"  and {more} more; --output has them all")
    return shown


def show(results: Mapping[str, Any]) -> None:
    """Prints the tables of results."""
    for table in tables(results):
        print(table.text())


def tables(results: Mapping[str, Any]) -> list[Table]:
    """Returns the tables of results; their ``evaluation`` says of which kind they are."""
    from common.evaluation import report, retrieval_report, steps_report  # which make a `Table`

    of = {PROBES: report.tables, RETRIEVAL: retrieval_report.tables, STEPS: steps_report.tables}
    return of[results["evaluation"]](results)


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads the JSON that an evaluation wrote.

    Raises:
        UserError: it cannot be read, or is of no evaluation.
    """
    try:
        results = json.loads(pathlib.Path(path).read_text())
        if not isinstance(results, dict) or results.get("evaluation") not in _TOOLS:
            raise ValueError('it has no "evaluation" that is known')
        tables(results)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"--results={path} is not what --output of {', '.join(_TOOLS.values())} writes: {error}"
        ) from None
    return results
