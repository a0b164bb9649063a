"""Result tables, for the terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from common.evaluation.intervals import Interval

Rows = Sequence[Mapping[str, Any]]


def cells(rows: Rows) -> list[list[str]]:
    """Returns heading and rows of the table of ``results["rows"]``; metrics in percent."""
    names = list(dict.fromkeys(name for row in rows for name in row["metrics"]))
    table = [["encoder", "features", "labels", *names, "on training", "classes", "test videos"]]
    for row in rows:
        metrics = [
            Interval(**row["metrics"][name]).percent() if name in row["metrics"] else ""
            for name in names
        ]
        trained = next(iter(row["train_metrics"].values()))
        table.append(
            [
                row["encoder"],
                row["features"],
                row["labels"],
                *metrics,
                f"{100 * trained:.1f}",
                str(row["classes"]),
                str(row["test_videos"]),
            ]
        )
    return table


def text(rows: Rows) -> str:
    """Returns the table with aligned columns."""
    table = cells(rows)
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    lines = [
        "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in table
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def markdown(rows: Rows) -> list[str]:
    """Returns the table as lines of Markdown."""
    heading, *body = cells(rows)
    lines = [heading, ["---"] * len(heading), *body]
    return ["| " + " | ".join(line) + " |" for line in lines]


def averages(rows: Rows) -> list[str]:
    """Returns for each kind of features its main metric's plain mean over several splits."""
    kinds: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        kinds.setdefault((row["encoder"], row["features"]), []).append(row)
    lines = []
    for (encoder, features), own in kinds.items():
        name = next(iter(own[0]["metrics"]))
        mean = sum(row["metrics"][name]["value"] for row in own) / len(own)
        splits = ", ".join(row["labels"] for row in own)
        if len(own) > 1:
            lines.append(f"{encoder}, {features}: {name} is {100 * mean:.1f}, the mean of {splits}")
    return lines


def remarks(rows: Rows) -> list[str]:
    """Returns what a reader of the table has to know beside it, each thing said once."""
    lines = []
    for row in rows:
        where = f"{row['encoder']}, {row['features']}, {row['labels']}"
        lines += [f"{where}: {note}" for note in row["notes"]]
        left_out = [f"{n} {what.replace('_', ' ')}" for what, n in row["left_out"].items() if n]
        if left_out:
            lines.append(f"{where}: left out {', '.join(left_out)}")
        if row.get("trained_is_better_by"):
            margin = Interval(**row["trained_is_better_by"])
            lines.append(f"{where}: trained features are better by {margin.percent()} points")
    for row in rows[:1]:
        if "always_the_commonest" in row:
            share = 100 * row["always_the_commonest"]
            lines.append(f"Always answering the commonest class would score {share:.1f}.")
    return lines
