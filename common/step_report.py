"""What happens to the metrics of a step: read one step late, written, watched, and told."""

from __future__ import annotations

import dataclasses
import json
import logging
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from common import checkpoint, collapse, hosts, waits
from common import clock as clock_lib
from common import metrics as metrics_lib
from common import state as state_lib
from common import validation as validation_lib
from common.accumulation import Metrics
from common.errors import UserError

COLLAPSE_PATIENCE = 500  # steps between two warnings

_log = logging.getLogger("common.loop")


@dataclasses.dataclass
class Pending:
    """A step that was dispatched and whose metrics have not been read."""

    step: int  # as counted after it: 1 for the first
    sample_ids: np.ndarray
    names: list[str]  # of the metrics
    values: jax.Array  # on the devices; see `in_one`

    def read(self) -> tuple[dict[str, np.ndarray], int]:
        """Waits for the step; returns its metrics, and the signal that came by then, or 0."""
        *values, signum = jax.device_get(self.values)
        return dict(zip(self.names, values, strict=True)), int(signum)


@jax.jit
def in_one(metrics: Metrics, signums_D: jax.Array) -> jax.Array:
    """Puts all metrics, sorted by name, into one array: reading each by itself takes longer.

    The last entry is the greatest number of a signal that any process has received, or 0.
    """
    values = [metrics[name] for name in sorted(metrics)]
    return jnp.stack([value.astype(jnp.float32) for value in [*values, signums_D.max()]])


class Report:
    """What happens to the metrics of a step once they are read."""

    def __init__(
        self,
        config: Any,
        writer: metrics_lib.MetricsWriter,
        clock: clock_lib.Clock,
        workdir: pathlib.Path,
    ):
        """Takes the configuration of the run, where metrics go, its clock and its folder."""
        self._config, self._writer, self._clock, self._workdir = config, writer, clock, workdir
        self._watch = collapse.Watch(config.collapse_warning, COLLAPSE_PATIENCE)
        self._waits = waits.Watch(config.data)

    def __call__(
        self, done: Pending, metrics: Mapping[str, np.ndarray], state: state_lib.TrainState
    ) -> None:
        """Writes the metrics of a step, warns of collapse, and raises if they are not finite.

        ``state`` is the newest state; no step after one that is not finite has changed it.
        """
        values = {name: float(value) for name, value in metrics.items()}
        if not np.isfinite(values["loss"] + values["gradient_norm"]):
            self._writer.write(done.step, values)
            raise self._not_finite(done, values, state)
        logged = done.step % self._config.log_every == 0 or done.step == self._config.steps
        if logged or validation_lib.LOSS in values:
            values |= self._clock.lap()
            self._writer.write(done.step, values)
            self._watch.see(done.step, values)
            self._waits.see(done.step, values)
            _log.info("%s", self._line(done.step, values))

    def _line(self, step: int, values: Mapping[str, float]) -> str:
        """Returns the progress line."""
        parts = [f"step {step}/{self._config.steps}", f"loss {values['loss']:.4f}"]
        if validation_lib.LOSS in values:
            parts.append(f"validation loss {values[validation_lib.LOSS]:.4f}")
        if "time/step" in values:
            parts.append(f"{values['clips_per_second']:.1f} clips/s")
            for part in clock_lib.PARTS:
                share = values[f"time/{part}"] / values["time/step"]
                if share >= 0.005:
                    parts.append(f"{part} {share:.0%}")
        if "utilisation" in values:
            parts.append(f"utilisation {values['utilisation']:.1%}")
        left = self._clock.seconds_left()
        if left is not None:
            parts.append(f"{clock_lib.show_seconds(left)} left")
        return "  ".join(parts)

    def _not_finite(
        self, done: Pending, values: Mapping[str, float], state: state_lib.TrainState
    ) -> UserError:
        """Saves what is needed to look into it; returns the error to raise."""
        ids = done.sample_ids
        if hosts.count() > 1:
            ids = multihost_utils.process_allgather(ids, tiled=True)
        report = {
            "step": done.step,
            "sample_ids": np.asarray(ids).tolist(),
            "metrics": {name: repr(value) for name, value in values.items()},
        }

        def begin() -> str:
            folder = self._workdir.absolute() / "nonfinite" / f"step-{done.step}"
            folder = checkpoint.unused(folder)
            folder.mkdir(parents=True)
            (folder / "report.json").write_text(json.dumps(report, indent=1))
            return str(folder)

        folder = pathlib.Path(hosts.by_first(begin))
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(folder / "state", vars(state))
        return UserError(
            f"step {done.step}: loss {values['loss']}, gradient norm {values['gradient_norm']}: "
            f"training cannot go on. {folder} holds the state that this step began with and the "
            "ids of its examples. Look at the loss before (metrics.jsonl, TensorBoard): if it "
            "rose, lower config.optimizer.learning_rate, lengthen config.optimizer.warmup_steps or "
            "set config.optimizer.clip_norm; if it did not, look at the examples, and try "
            "config.compute_dtype=float32."
        )
