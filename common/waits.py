"""Says when training waits for its data, how much faster they must come, and what helps."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

SHARE = 0.2  # of the time that a run waits for data, from which on it is called input-bound
_STEPS, _SECONDS = 50, 10.0  # at least, of which the share is taken
_PATIENCE = 1000  # steps between two warnings

_log = logging.getLogger(__name__)


def verdict(waiting: float, step: float, clips_per_second: float) -> str | None:
    """Says how far the data lag behind; None where a run does not wait for them.

    Args:
        waiting: seconds of a step that are spent waiting for its batch.
        step: seconds of a step.
        clips_per_second: that are trained on.
    """
    if waiting < SHARE * step:
        return None
    lag = step / max(step - waiting, 1e-3 * step)
    return (
        f"input-bound: {waiting / step:.0%} of the time is waiting for data. They come at "
        f"{clips_per_second:,.0f} clips/s, and without waiting it would be "
        f"{clips_per_second * lag:,.0f}: {lag:.1f} times as many"
    )


def advice(data: Any, cores: int | None = None) -> str:
    """Says what of a configuration (its ``data``) may make data come faster."""
    cores = cores or os.cpu_count() or 1
    threads = data.threads or cores
    said = []
    if threads < cores:
        said.append(f"raise config.data.threads={threads} to 0, which takes all {cores} cores")
    if not data.reduced_decode:
        said.append("set config.data.reduced_decode=True")
    said += [
        f"more cores ({cores} here)",
        "records of smaller frames (common.ingest --short_side, a little more than the crop)",
        "files nearer to the machine",
    ]
    return f"What helps: {'; '.join(said)}. docs/input.md says how to find out which."


class Watch:
    """Warns where a run is input-bound, at most once in a thousand steps."""

    def __init__(self, data: Any):
        """Takes the ``data`` of the run's configuration."""
        self._data = data
        self._last: int | None = None  # step of the last lap
        self._quiet_until = 0
        self._begin()

    def _begin(self) -> None:
        self._steps = 0
        self._seconds = self._waiting = self._clips = 0.0

    def see(self, step: int, values: Mapping[str, float]) -> bool:
        """Looks at what was logged at a step; returns whether it warned.

        The first lap is not looked at: until then pipelines fill.
        """
        if "time/step" not in values:
            return False
        last, self._last = self._last, step
        if last is None:
            return False
        steps = step - last
        self._steps += steps
        self._seconds += steps * values["time/step"]
        self._waiting += steps * values["time/data"]
        self._clips += steps * values["time/step"] * values["clips_per_second"]
        if self._steps < _STEPS or self._seconds < _SECONDS:
            return False
        said = verdict(
            self._waiting / self._steps, self._seconds / self._steps, self._clips / self._seconds
        )
        self._begin()
        if said is None or step < self._quiet_until:
            return False
        self._quiet_until = step + _PATIENCE
        _log.warning("step %d: %s. %s", step, said, advice(self._data))
        return True
