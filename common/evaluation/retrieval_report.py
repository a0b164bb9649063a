"""What is shown of the results of zero-shot retrieval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from common.evaluation import tie_rules
from common.evaluation.intervals import Interval
from common.evaluation.result_tables import Table, named
from common.evaluation.zero_shot import is_dual_softmax

_METRICS = ("R@1", "R@5", "R@10", "median rank", "mean rank")
_ALL_METRICS = ("R@1", "R@5", "R@10", "R@50", "geometric mean", "median rank", "mean rank")
_SHARES = ("R@", "geometric")  # shown in percent


def tables(results: Mapping[str, Any]) -> list[Table]:
    """Returns the one table of the results of ``common.retrieve``."""
    protocol, rows, ties = results["protocol"], results["rows"], results["ties"]
    captions = f" with the captions of {results['table']}" if results["table"] else ""
    about = (
        f"Tested on {results['test']}{captions}; protocol {protocol['name']}: {protocol['about']}.",
        "R@K in percent, ranks from 1, with 95% intervals over videos.",
        f"Ties: {ties} ({tie_rules.RULES[ties]}).",
    )
    trained = [row["features"] == "trained" for row in rows]
    # Results of earlier versions do not say what is shown.
    shown = _ALL_METRICS if results.get("all_metrics", False) else _METRICS
    return [Table("Zero-shot retrieval", about, _cells(rows, shown), trained, _remarks(rows))]


def _cells(rows: Sequence[Mapping[str, Any]], shown: Sequence[str]) -> list[list[str]]:
    table = [["weights", "scores", "direction", *shown, "queries", "candidates"]]
    for row in rows:
        line = [row["features"], row["scores"], row["direction"]]
        for name in shown:
            interval = Interval(**row["metrics"][name]) if row["metrics"] else None
            if interval is None:
                line.append("undefined")
            elif name.startswith(_SHARES):
                line.append(interval.percent())
            else:
                line.append(interval.text())
        table.append([*line, str(row["num_queries"]), str(row["candidates"])])
    return table


def _remarks(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns what a reader of the table has to know beside it."""
    lines, first = [], rows[0]
    if left_out := first["left_out"]:
        lines.append(
            f"Left out with their captions: {len(left_out)} clips that cannot be read. Among fewer "
            "candidates the task is easier, so these numbers do not compare with those of all."
        )
        lines += named(f"{clip['clip']}: {clip['reason']}" for clip in left_out)
    if unknown := first["captions_without_known_words"]:
        lines.append(f"{unknown} captions have no word that the text encoder knows.")
    if any(not row["metrics"] for row in rows):
        lines.append("--ties=published is not defined where a clip has several right captions.")
    if any(is_dual_softmax(row) for row in rows):
        lines.append("Dual softmax looks at all queries at once: a task of its own.")
    return lines
