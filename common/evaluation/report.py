"""What is shown of the results of probes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from common.evaluation.intervals import Interval
from common.evaluation.result_tables import Table

Rows = Sequence[Mapping[str, Any]]


def tables(results: Mapping[str, Any]) -> list[Table]:
    """Returns the one table of the results of ``common.evaluate``."""
    protocol, rows = results["protocol"], results["rows"]
    about = (
        f"Trained on {results['train']}, tested on {results['test']}; protocol "
        f"{protocol['name']}: {protocol['about']}.",
        "In percent, with 95% intervals over test videos.",
    )
    trained = [row["features"] == "trained" for row in rows]
    notes = [*(averages(rows) if results["splits"] else []), *remarks(rows)]
    return [Table("Linear probes of frozen features", about, cells(rows), trained, notes)]


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
