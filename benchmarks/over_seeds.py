"""What benchmarks that train several seeds share: their stages, their table, their report."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import platform
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from common.stages import Stages, shorter_run

FEATURES = {"trained": "BraVe", "random": "untrained network", "pixels": "raw input"}

Rows = Sequence[Mapping[str, Any]]
"""The rows of one evaluation, as ``common.evaluate`` writes them."""


def train(
    config: str,
    workdir: pathlib.Path,
    seed: int,
    source: pathlib.Path,
    steps: int,
    *overrides: str,
) -> None:
    """Trains one run, or continues it; 0 steps keep the config's."""
    Stages().run(
        f"Training with seed {seed}",
        "common.train", f"--config={config}", f"--workdir={workdir}", f"--config.seed={seed}",
        f"--config.data.train={source}", *shorter_run(steps), *overrides,
    )  # fmt: skip


def measure(
    train_seed: Callable[[int], Mapping[str, Rows]],
    seeds: int,
    tasks: Mapping[str, str],
    output: pathlib.Path,
) -> None:
    """Trains and evaluates each seed, prints the report and keeps it in ``output/table.md``.

    Args:
        train_seed: from a seed to the rows of each task.
        seeds: how many, from 0.
        tasks: title of each task.
        output: folder that exists.
    """
    began = time.monotonic()
    runs = [train_seed(seed) for seed in range(seeds)]
    keep(report(summarise(runs, tasks), seeds, (time.monotonic() - began) / 60), output)


def keep(text: str, output: pathlib.Path) -> None:
    """Prints a report and writes it to ``output/table.md``."""
    (output / "table.md").write_text(text + "\n")
    print("\n" + text + f"\n\nKept in {output / 'table.md'}.")


def summarise(runs: Sequence[Mapping[str, Rows]], tasks: Mapping[str, str]) -> list[list[str]]:
    """Returns heading and rows of the table: top-1 in percent by features and task.

    Several runs give the mean over seeds with Student's t interval; a single run, and what is the
    same in all of them, the bootstrap interval over test videos.

    Args:
        runs: by seed, the rows of each task.
        tasks: title of each task.
    """
    from common.evaluation.intervals import Interval, over_seeds

    table = [["features", *(f"{title} (top-1, %)" for title in tasks.values())]]
    for features, title in FEATURES.items():
        cells = []
        for task in tasks:
            found = [
                Interval(**row["metrics"]["top1"])
                for run in runs
                for row in run[task]
                if row["features"] == features
            ]
            seedless = len({interval.value for interval in found}) == 1
            mean = found[0] if seedless else over_seeds([interval.value for interval in found])
            cells.append(mean.percent())
        table.append([title, *cells])
    first = {task: runs[0][task][0] for task in tasks}
    commonest = [f"{100 * first[task]['always_the_commonest']:.1f}" for task in tasks]
    table.append(["always the commonest class", *commonest])
    table.append(
        ["test clips / classes"]
        + [f"{first[task]['test_videos']} / {first[task]['classes']}" for task in tasks]
    )
    return table


def summarise_retrieval(
    runs: Sequence[Mapping[str, Any]], metrics: Sequence[str] = ("R@1", "R@10", "median rank")
) -> list[list[str]]:
    """Returns heading and rows of a table of text-to-video retrieval: each training on each test.

    Several runs give the values by seed and the mean with Student's t interval; a single one the
    bootstrap interval over test clips.

    Args:
        runs: by seed, what `retrieved` returns of each kind of training, by its title.
        metrics: the columns.
    """
    from common.evaluation.intervals import Interval, over_seeds

    table = [["test (clips)", "training", *metrics]]
    for title in next(iter(runs[0].values())):
        for kind in runs[0]:
            found = [run[kind][title] for run in runs]
            cells = []
            for name in metrics:
                scale = 100 if name.startswith("R@") else 1
                values = [scale * row[name]["value"] for row in found]
                interval = Interval(**found[0][name])
                if len(found) > 1:
                    interval = over_seeds([row[name]["value"] for row in found])
                mean = interval.text(scale)
                by_seed = " / ".join(f"{value:.1f}" for value in values)
                cells.append(f"{by_seed}: {mean}" if len(found) > 1 else mean)
            table.append([f"{title} ({found[0]['candidates']})", kind, *cells])
    return table


def retrieved(results: pathlib.Path) -> dict[str, dict[str, Any]]:
    """Returns the text-to-video metrics of one ``common.retrieve --output`` by kind of features."""
    return {
        row["features"]: {**row["metrics"], "candidates": row["candidates"]}
        for row in json.loads(results.read_text())["rows"]
        if row["direction"] == "text to video"
    }


def report(rows: Sequence[Sequence[str]], seeds: int, minutes: float) -> str:
    """Returns machine, command and table as Markdown; the first row is the heading."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "|" + " --- |" * len(rows[0]))
    module = pathlib.Path(sys.argv[0]).stem
    head = [
        f"Machine: {_machine()}",
        f"Command: python -m benchmarks.{module} {shlex.join(sys.argv[1:])}".rstrip(),
        f"Training and evaluation of {seeds} seeds: {minutes:.0f} minutes (less where a "
        "stopped run was continued)",
        "Intervals are 95%: over seeds where there are several, else over test clips.",
        "",
    ]
    return "\n".join([*head, *lines])


def _machine() -> str:
    """Returns the processor's name and count, in words."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):  # only Linux says more
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        name = next((x.split(": ")[1] for x in lines if x.startswith("model name")), name)
    return f"{os.cpu_count()} cores of {name}"
