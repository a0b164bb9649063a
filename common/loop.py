"""The training loop. Every method, every device count, every run goes through `train`.

A run is a function of its configuration and data: the batch of step s, the augmentation of each of
its examples and the initial parameters derive from (``config.seed``, s), nothing is carried along
except the `TrainState`. So a run that is stopped anywhere continues with identical bits, wherever
XLA itself is deterministic: always on CPU and TPU; on NVIDIA GPUs with
``XLA_FLAGS=--xla_gpu_deterministic_ops=true`` (slower). Another number of devices sums in another
order, so there the results agree within rounding.

Inside the loop the order is fixed:

1. take the batch of step s (it was put onto the devices while earlier steps ran);
2. dispatch step s;
3. read the metrics of step s - 1: the only place where the host waits for the devices;
4. write them, and stop if they are not finite;
5. where it is due, validate and save (the metrics of step s are then read first, so that no state
   is saved whose loss has not been seen). What is validated is always saved; `common.validation`
   says when validations end the run. One that failed, or was given up, is the first thing that a
   restart does.

Signals: SIGTERM and SIGINT (Ctrl-C) let the step under way end, save and raise `Stopped`, which the
entry point turns into exit status 128 + signal number: a run that has not reached its last step
never reports success. Nothing is validated then, and of a single process no data are waited for:
what ends a process after a signal gives it seconds. The second signal ends the process at once.

Several processes do the same things in the same order. The first one alone writes and decides where
that cannot follow from the state (`common.hosts`). A signal that reaches any of them travels with
the metrics of the step, so that all hear of it after the same step and stop after the next.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import pathlib
import signal
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from common import attachments, checkpoint, collapse, hosts, locks, sharding, waits, watchdog
from common import clock as clock_lib
from common import config as config_lib
from common import curriculum as curriculum_lib
from common import metrics as metrics_lib
from common import state as state_lib
from common import validation as validation_lib
from common.data import pipeline
from common.errors import UserError
from common.method import Method
from common.program import Course, Program, build
from common.signals import Signals
from common.step import Metrics

COLLAPSE_PATIENCE = 500  # steps between two warnings

_log = logging.getLogger(__name__)


class Data(Protocol):
    """Where batches come from; see `common.data.pipeline.TrainData`."""

    def batches(self, start_step: int) -> Iterator[dict[str, np.ndarray]]:
        """Yields this process's part of the batch of ``start_step`` and of all steps after it."""
        ...


class Stopped(Exception):
    """The run was asked to stop and did, with its state saved."""

    def __init__(self, signum: int, step: int):
        super().__init__(f"stopped by {signal.Signals(signum).name} after step {step}")
        self.signum = signum


@dataclasses.dataclass
class _Pending:
    """A step that was dispatched and whose metrics have not been read."""

    step: int  # as counted after it: 1 for the first
    sample_ids: np.ndarray
    names: list[str]  # of the metrics
    values: jax.Array  # on the devices; see `_in_one`

    def read(self) -> tuple[dict[str, np.ndarray], int]:
        """Waits for the step; returns its metrics, and the signal that came by then, or 0."""
        *values, signum = jax.device_get(self.values)
        return dict(zip(self.names, values, strict=True)), int(signum)


@jax.jit
def _in_one(metrics: Metrics, signums_D: jax.Array) -> jax.Array:
    """Puts all metrics, sorted by name, into one array: reading each by itself takes longer.

    The last entry is the greatest number of a signal that any process has received, or 0.
    """
    values = [metrics[name] for name in sorted(metrics)]
    return jnp.stack([value.astype(jnp.float32) for value in [*values, signums_D.max()]])


@dataclasses.dataclass(frozen=True)
class Part:
    """What a step is trained with; a run has several where it has a curriculum."""

    config: Any
    method: Method
    data: Data


def train(
    method: Method, config: Any, workdir: str | os.PathLike[str], data: Data
) -> state_lib.TrainState:
    """Trains from where ``workdir`` stands to its end; returns the last state.

    The end is step ``config.steps``, or a validation after which ``config.validation.patience`` is
    used up.

    Raises:
        UserError: the configuration cannot be, does not belong to the workdir, a save failed, or
            the loss is no longer finite.
        Stopped: SIGTERM or SIGINT arrived; the state is saved.
    """
    return train_parts([Part(config, method, data)], config, workdir)


def train_parts(
    parts: Sequence[Part], config: Any, workdir: str | os.PathLike[str]
) -> state_lib.TrainState:
    """Trains a run of several parts; see `train`, which it is for one.

    Args:
        parts: one for each of ``Curriculum(config).configs``, in their order.
        config: of the whole run.
        workdir: folder of the run.
    """
    workdir = pathlib.Path(workdir)
    course = Course(config, [build(part.method, part.config) for part in parts])
    with contextlib.ExitStack() as stack:
        if hosts.is_first():
            taken = f"Another process trains in {workdir}; wait for it, stop it or name another."
            stack.enter_context(locks.exclusive(workdir / ".lock", taken))
        return _train(course, workdir, [part.data for part in parts])


def _train(course: Course, workdir: pathlib.Path, data: Sequence[Data]) -> state_lib.TrainState:
    """Starts or continues the run in a folder that is this process's own."""
    config = course.config
    watchdog.at("opening the folder of the run")
    _claim(config, workdir)
    checkpoints = checkpoint.Checkpoints(workdir, config)
    program = course.programs[0]
    watchdog.at("restoring")
    state = checkpoints.restore(program.like)
    start = 0 if state is None else int(state.step)
    history = validation_lib.History(workdir, config.validation.patience, start)
    missed = validation_lib.is_due(config.validation, start) and not history.has(start)
    if state is not None and missed:  # its data could not be read, or a signal came first
        watchdog.at("validating")
        validation_lib.Validator(course.programs[-1], history)(start, state)
    if start >= config.steps or history.over:
        done = history.why() if history.over else f"all {config.steps} steps are done."
        _log.info("%s: %s", workdir, done)
        return state
    validate = validation_lib.Validator(course.programs[-1], history)
    batches = pipeline.device_batches(
        curriculum_lib.batches(course.curriculum, data, start),
        program.batch_sharding,
        config.data.prefetch,
    )
    try:
        _describe(program, workdir, start)
        watchdog.at("starting")
        if state is None:
            state = program.start()
        watchdog.at("compiling")
        course.compiled(start)  # while the first batches are being read
        hosts.meet("before the first step")
        return _run(course, state, batches, checkpoints, validate, workdir)
    finally:
        batches.close()
        watchdog.at("finishing the last save")
        checkpoints.finish()


def _claim(config: Any, workdir: pathlib.Path) -> None:
    """Makes the folder that of this run.

    Raises:
        UserError: it is another's, or not the same one for all processes.
    """

    def claim() -> None:
        trained = [workdir / checkpoint.FOLDER, workdir / metrics_lib.FILE_NAME]
        config_lib.claim(config, workdir, begun=any(path.exists() for path in trained))
        attachments.keep(config, workdir)

    hosts.by_first(claim)
    if not (workdir / config_lib.FILE_NAME).exists():
        raise UserError(
            f"process {hosts.index()} does not see what process 0 wrote into {workdir}: the folder "
            "of a run must be the same one for all processes, such as a network file system."
        )


def _describe(program: Program, workdir: pathlib.Path, start: int) -> None:
    """Says what is about to run, and where."""
    if hosts.is_first():
        table = sharding.table(program.like.params, program.specs)
        (workdir / "parameters.txt").write_text(table + "\n")
        _log.info("parameters:\n%s", table)
    _log.info("mesh: %s of %s", dict(program.mesh.shape), jax.devices()[0].device_kind)
    _log.info(
        "%s: %s at step %d of %d", workdir, "continuing" if start else "starting",
        start, program.config.steps,
    )  # fmt: skip


def _run(
    course: Course,
    state: state_lib.TrainState,
    batches: pipeline.DeviceBatches,
    checkpoints: checkpoint.Checkpoints,
    validate: validation_lib.Validator,
    workdir: pathlib.Path,
) -> state_lib.TrainState:
    """The loop itself; its order is documented at the top of this file."""
    config, history = course.config, validate.history
    start = int(state.step)
    peak = clock_lib.peak_flops(jax.devices()[0].device_kind)
    clock = clock_lib.Clock(config.steps - start, peak)
    alone = hosts.count() == 1
    pending: _Pending | None = None
    writer = (
        metrics_lib.MetricsWriter(workdir, start) if hosts.is_first() else metrics_lib.Nowhere()
    )
    with Signals(course.programs[0].batch_sharding) as signals, writer:
        report = _Report(config, writer, clock, workdir)

        @contextlib.contextmanager
        def time(part: str) -> Iterator[None]:
            place = f"step {number} of {config.steps}, {clock_lib.PARTS[part]}"
            watchdog.at(place, quick=part in ("data", "device"))
            with clock.time(part):
                yield

        def read() -> dict[str, np.ndarray]:
            values, signum = pending.read()
            signals.hear(signum)
            return values

        def asked() -> bool:  # of several processes all must do the same
            return alone and signals.stop is not None

        def save(number: int) -> None:
            with time("device"):
                values, failure = read(), None
            with time("evaluate"):
                try:
                    if signals.stop is None:  # else there is little time; a restart makes up for it
                        values |= validate(number, state, asked)
                except UserError as error:  # its data are at fault; what was trained is kept
                    if not alone:
                        raise
                    failure = error
            report(pending, values, state)
            with time("save"):
                checkpoints.save(number, state, history.best)
            if failure:
                raise failure

        for number in range(start + 1, config.steps + 1):
            try:
                with time("data"):
                    batch = batches.take(asked)
            except UserError:  # the data are at fault; what was trained is kept
                if pending and alone:  # to save, all processes are needed
                    save(number - 1)
                raise
            if batch is None:  # asked to stop while the data do not come
                if pending:
                    save(number - 1)
                checkpoints.finish()
                raise Stopped(signals.stop, number - 1)
            sample_ids = batch.pop(pipeline.SAMPLE_ID)
            program, step = course.program(number - 1), course.compiled(number - 1)
            with time("device"):
                signums_D = signals.on_devices()
                with jax.transfer_guard("disallow"):
                    state, metrics = step(state, batch)
                    packed = _in_one(metrics, signums_D)
                values = read() if pending else None
            clock.tick(program.config.batch_size, program.flops)
            watchdog.step()
            if pending:
                report(pending, values, state)
            pending = _Pending(number, sample_ids, sorted(metrics), packed)
            checkpoints.check()
            last = number == config.steps or signals.stop is not None
            if last or number % config.checkpoint_every == 0 or validate.due(number):
                save(number)
                pending = None
            if last or history.over or (pending is None and asked()):
                watchdog.at("finishing the last save")
                checkpoints.finish()
                _log.info("%s", clock.summary())
                if history.over:
                    _log.info("%s: %s", workdir, history.why())
                elif number < config.steps or (validate.due(number) and not history.has(number)):
                    raise Stopped(signals.stop, number)
                return state
    raise AssertionError("a run ends at its last step")


class _Report:
    """What happens to the metrics of a step once they are read."""

    def __init__(
        self,
        config: Any,
        writer: metrics_lib.MetricsWriter,
        clock: clock_lib.Clock,
        workdir: pathlib.Path,
    ):
        self._config, self._writer, self._clock, self._workdir = config, writer, clock, workdir
        self._watch = collapse.Watch(config.collapse_warning, COLLAPSE_PATIENCE)
        self._waits = waits.Watch(config.data)

    def __call__(
        self, done: _Pending, metrics: Mapping[str, np.ndarray], state: state_lib.TrainState
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
        self, done: _Pending, values: Mapping[str, float], state: state_lib.TrainState
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
