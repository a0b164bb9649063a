"""The plot of a sweep: its metric against every key that it changes."""

from __future__ import annotations

import io
import numbers
import statistics
from collections.abc import Sequence
from typing import Any

from common.sweeping.definition import Sweep, keys_of
from common.sweeping.results import DONE, Result

_WIDTH, _HEIGHT = 4.2, 3.4  # inches of a panel
_LOGARITHMIC = 9.0  # largest over smallest value from which on an axis is


def draw(sweep: Sweep, results: Sequence[Result]) -> bytes:
    """Returns a PNG: a panel for each key, a dot for each run that is done, a line of means."""
    from matplotlib.figure import Figure

    known = [r for r in results if r.status == DONE and r.value is not None]
    varied = [key for key in keys_of(r.overrides for r in results) if len(_values(known, key)) > 1]
    keys = [key for key in varied if key != "seed"] or varied
    columns = min(len(keys), 4) or 1
    rows = -(-len(keys) // columns) or 1
    figure = Figure((_WIDTH * columns, _HEIGHT * rows), layout="constrained")
    for number, key in enumerate(keys):
        axes = figure.add_subplot(rows, columns, number + 1)
        _panel(axes, key, known)
        axes.set_xlabel(key)
        axes.set_ylabel(sweep.metric)
    if not keys:
        figure.suptitle(f"{sweep.metric}: {', '.join(f'{r.value:.5g}' for r in known)}")
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=120)
    return file.getvalue()


def _panel(axes: Any, key: str, known: Sequence[Result]) -> None:
    values = _values(known, key)
    numeric = all(isinstance(v, numbers.Real) and not isinstance(v, bool) for v in values)
    place = {v: v if numeric else at for at, v in enumerate(values)}
    with_key = [r for r in known if key in r.overrides]
    axes.scatter(
        [place[r.overrides[key]] for r in with_key], [r.value for r in with_key], s=18, alpha=0.6
    )
    means = [
        statistics.fmean(r.value for r in with_key if r.overrides[key] == value) for value in values
    ]
    axes.plot([place[v] for v in values], means, color="0.3", linewidth=1)
    if not numeric:
        axes.set_xticks(range(len(values)), [str(v) for v in values])
    elif min(values) > 0 and max(values) / min(values) >= _LOGARITHMIC:
        axes.set_xscale("log")
    axes.grid(alpha=0.3)


def _values(results: Sequence[Result], key: str) -> list[Any]:
    """The values of a key, in order where they have one."""
    values = list(dict.fromkeys(r.overrides[key] for r in results if key in r.overrides))
    try:
        return sorted(values)
    except TypeError:
        return values
