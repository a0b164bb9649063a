"""What is shown of the results of step localisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from common.evaluation.intervals import Interval
from common.evaluation.result_tables import Table, named


def tables(results: Mapping[str, Any]) -> list[Table]:
    """Returns the tables of the results of ``common.localise``: the average, and of each task."""
    rows = results["rows"]
    about = (
        f"Tested on {results['test']} with the annotation of {results['steps']}"
        + (f", videos of {results['videos']}" if results["videos"] else "")
        + f"; {results['protocol']['about']}.",
        "Recall in percent, the mean over tasks, with 95% interval over videos.",
    )
    average = [["weights", "recall", "tasks", "videos", "steps shown"]]
    for row in rows:
        shown = sum(task["steps_shown"] for task in row["by_task"].values())
        counts = (len(row["by_task"]), row["num_videos"], shown)
        average.append([row["features"], Interval(**row["recall"]).percent(), *map(str, counts)])
    trained = [row["features"] == "trained" for row in rows]
    of_each = [["task", "title", *(row["features"] for row in rows), "steps shown"]]
    for task, facts in rows[0]["by_task"].items():
        title = facts["title"] if facts["title"] != task else ""
        recalls = [f"{100 * row['by_task'][task]['recall']:.1f}" for row in rows]
        of_each.append([task, title, *recalls, str(facts["steps_shown"])])
    return [
        Table("Zero-shot step localisation", about, average, trained, _remarks(rows)),
        Table("Recall of each task", ("In percent.",), of_each, [False] * (len(of_each) - 1), []),
    ]


def _remarks(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    lines, first = [], rows[0]
    if left_out := first["left_out"]:
        lines.append(
            f"Left out: {len(left_out)} annotated videos. This recall does not compare with that "
            "of all."
        )
        lines += named(f"{v['video']} ({v['task']}): {v['reason']}" for v in left_out)
    if late := first["steps_after_the_end"]:
        lines.append(f"{late} annotated steps begin after the end of their video and do not count.")
    if unknown := first["texts_without_known_words"]:
        lines.append(f"{unknown} steps have no word that the text encoder knows.")
    return lines
