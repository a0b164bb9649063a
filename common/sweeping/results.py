"""What became of the runs of a sweep: its table, its plot, and the best configuration."""

from __future__ import annotations

import csv
import dataclasses
import difflib
import io
import json
import math
import os
import pathlib
import statistics
from collections.abc import Sequence
from typing import Any

from common import config as config_lib
from common.data import files
from common.errors import UserError
from common.sweeping.definition import Overrides, Sweep, configuration, keys_of, name_of

OUTCOME = "sweep_run.json"  # in the folder of each run that ended
DONE, FAILED, UNFINISHED, NOT_BEGUN = "done", "failed", "not finished", "not begun"
_LAST = 0.1  # of the logged steps, over which a training metric is averaged
_VALIDATION = "validation/"


@dataclasses.dataclass(frozen=True)
class Result:
    """One run.

    Attributes:
        overrides: of the configuration.
        workdir: its folder.
        status: one of `DONE`, `FAILED`, `UNFINISHED`, `NOT_BEGUN`.
        value: of the sweep's metric so far, None where there is none or it is not finite.
    """

    overrides: Overrides
    workdir: pathlib.Path
    status: str
    value: float | None


@dataclasses.dataclass(frozen=True)
class Setting:
    """Runs that differ in the seed alone.

    Attributes:
        overrides: without the seed.
        results: of every seed.
    """

    overrides: Overrides
    results: Sequence[Result]

    @property
    def values(self) -> list[float]:
        """The metric of those that are done."""
        return [r.value for r in self.results if r.status == DONE and r.value is not None]

    @property
    def complete(self) -> bool:
        """Whether every seed is done and has a finite metric: only such settings compare."""
        return len(self.values) == len(self.results)


def collect(sweep: Sweep, workdir: pathlib.Path) -> list[Result]:
    """Reads the folder of each run; those that another process writes are read as they are."""
    found = []
    for name, overrides in zip(sweep.names(), sweep.runs, strict=True):
        folder = workdir / name
        value = _metric(folder, sweep.metric) if folder.exists() else None
        found.append(Result(overrides, folder, _status(folder), value))
    return found


def refuse_changed(sweep: Sweep, workdir: pathlib.Path) -> None:
    """Checks that what was trained is what the sweep describes.

    Raises:
        UserError: a run has another configuration than its file gives now; names the keys.
    """
    for name, overrides in zip(sweep.names(), sweep.runs, strict=True):
        folder = workdir / name
        if not (folder / config_lib.FILE_NAME).exists() or _status(folder) == FAILED:
            continue  # of what failed, the training itself looks whether it may go on
        before = config_lib.read(folder)
        now = configuration(sweep.config, overrides, name)
        changes = config_lib.differences(before, now)
        if before.steps != now.steps and not any(line.startswith("steps:") for line in changes):
            changes.append(f"steps: {before.steps} there, {now.steps} now")
        if changes:
            raise UserError(
                f"{folder} was trained with another configuration than {sweep.config} "
                "gives now:\n"
                + config_lib.listed(changes)
                + "\nUse another --workdir or the same values."
            )


def check_metric(sweep: Sweep, folder: pathlib.Path) -> None:
    """Checks that a run that is done has what the sweep compares by.

    Raises:
        UserError: no such metric was ever written; names the nearest.
    """
    from common import metrics, validation  # slow to import: JAX

    prefix = _VALIDATION if sweep.metric.startswith(_VALIDATION) else ""
    rows = _rows(folder / (validation.FILE_NAME if prefix else metrics.FILE_NAME))
    known = sorted({f"{prefix}{key}" for row in rows for key in row})
    if sweep.metric not in known:
        near = difflib.get_close_matches(sweep.metric, known, 3, 0.0)
        raise UserError(
            f"{folder} has no metric {sweep.metric!r}, by which the sweep compares; it has "
            f"{', '.join(near) or 'none'}{', ...' if len(known) > len(near) else ''}."
        )


def write_outcome(folder: pathlib.Path, status: int, seconds: float) -> None:
    """Notes that a run ended with an exit status after so many seconds."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"exit_status": status, "seconds": round(seconds, 1)}) + "\n"
    files.write_whole(os.fspath(folder / OUTCOME), text.encode())


def _status(folder: pathlib.Path) -> str:
    if not folder.exists():
        return NOT_BEGUN
    try:
        status = json.loads((folder / OUTCOME).read_text())["exit_status"]
    except FileNotFoundError:
        return UNFINISHED
    except (ValueError, KeyError) as error:
        raise UserError(f"{folder / OUTCOME} cannot be read ({error!r}); delete it.") from None
    return FAILED if status else DONE


def _metric(folder: pathlib.Path, name: str) -> float | None:
    from common import metrics, validation  # slow to import: JAX

    if name.startswith(_VALIDATION):
        values = [validation.best_metrics(folder).get(name.removeprefix(_VALIDATION))]
    else:
        values = [row[name] for row in _rows(folder / metrics.FILE_NAME) if name in row]
        values = values[-max(1, round(_LAST * len(values))) :]
    if not values or any(v is None or not math.isfinite(v) for v in values):
        return None
    return statistics.fmean(values)


def _rows(path: pathlib.Path) -> list[dict[str, Any]]:
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError:
        return []
    rows = []
    for line in lines:
        try:
            rows.append(json.loads(line))
        except ValueError:  # the line that is being written
            break
    return rows


def settings(results: Sequence[Result], goal: str) -> list[Setting]:
    """Groups runs by all but their seed, the best first, those that do not compare last."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(name_of(_without_seed(result.overrides)), []).append(result)
    found = [Setting(_without_seed(group[0].overrides), group) for group in groups.values()]
    sign = 1 if goal == "min" else -1
    return sorted(
        found, key=lambda s: (not s.complete, sign * statistics.fmean(s.values or [math.inf]))
    )


def _without_seed(overrides: Overrides) -> dict[str, Any]:
    return {key: value for key, value in overrides.items() if key != "seed"}


def table(sweep: Sweep, found: Sequence[Setting]) -> str:
    """The settings as a Markdown table, the best first; keys that are the same in all are not."""
    keys = keys_of(setting.overrides for setting in found)
    keys = [key for key in keys if len({str(s.overrides.get(key)) for s in found}) > 1]
    head = [*keys, sweep.metric, "standard deviation over seeds", "runs"]
    lines = [head, ["---"] * len(head)]
    for setting in found:
        values, results = setting.values, setting.results
        spread = f"{statistics.stdev(values):.3g}" if len(values) > 1 else ""
        counts = [
            f"{sum(r.status == status for r in results)} {status}"
            for status in (DONE, FAILED, UNFINISHED, NOT_BEGUN)
        ]
        lines.append(
            [
                *(str(setting.overrides.get(key, "")) for key in keys),
                f"{statistics.fmean(values):.5g}" if values else "",
                spread,
                ", ".join(count for count in counts if not count.startswith("0 ")),
            ]
        )
    return "".join("| " + " | ".join(cells) + " |\n" for cells in lines)


def rows_as_csv(results: Sequence[Result], metric: str) -> str:
    """Every run, one a line, for spreadsheets."""
    keys = keys_of(result.overrides for result in results)
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow([*keys, metric, "status", "workdir"])
    for result in results:
        values = [result.overrides.get(key, "") for key in keys]
        known = "" if result.value is None else result.value
        writer.writerow([*values, known, result.status, result.workdir])
    return text.getvalue()


def best_config(sweep: Sweep, best: Setting) -> str:
    """A file for ``--config`` with the configuration of the best setting's first run."""
    run = best.results[0]
    text = config_lib.to_json(config_lib.read(run.workdir))
    mean, seeds = statistics.fmean(best.values), len(best.values)
    over = f", the mean of {seeds} seeds" if seeds > 1 else ""
    return (
        f'"""The best of a sweep of {sweep.config}: {sweep.metric} {mean:.5g}{over}.\n\n'
        f'Run {run.workdir.name}, as it was trained.\n"""\n\n'
        "from common import config\n\n\n"
        "def get_config():\n"
        '    """Returns the configuration, every key of it."""\n'
        f'    return config.from_json(r"""{text}""")\n'
    )


def write(sweep: Sweep, results: Sequence[Result], workdir: pathlib.Path) -> str:
    """Writes table, runs, plot and best configuration into the sweep's folder.

    The plot is there when a run is done, the configuration when every seed of a setting is.

    Returns:
        The table, and what there is.
    """
    from common.sweeping import plot

    found = settings(results, sweep.goal)
    text = table(sweep, found)
    made = {"table.md": text, "results.csv": rows_as_csv(results, sweep.metric)}
    if any(setting.values for setting in found):
        made["plot.png"] = plot.draw(sweep, results)
    if found[0].complete:
        made["best_config.py"] = best_config(sweep, found[0])
    workdir.mkdir(parents=True, exist_ok=True)
    for name in {"plot.png", "best_config.py"} - made.keys():  # of what was there before
        (workdir / name).unlink(missing_ok=True)
    for name, content in made.items():
        data = content if isinstance(content, bytes) else content.encode()
        files.write_whole(os.fspath(workdir / name), data)
    written = "\n".join(f"Wrote {workdir / name}" for name in made)
    return f"{text}\n{written}"
