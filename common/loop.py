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
import logging
import os
import pathlib
import signal
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import jax
import numpy as np

from common import attachments, checkpoint, hosts, locks, sharding, watchdog
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
from common.step_report import Pending, Report, in_one
from common.validation import missed

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
    validate = None
    if state is not None and missed(config.validation, history, start):
        watchdog.at("validating")
        validate = validation_lib.Validator(course.programs[-1], history)
        validate(start, state)
    if start >= config.steps or history.over:
        done = history.why() if history.over else f"all {config.steps} steps are done."
        _log.info("%s: %s", workdir, done)
        return state
    validate = validate or validation_lib.Validator(course.programs[-1], history)
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
        return _Run(course, state, batches, checkpoints, validate, workdir).to_its_end()
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


class _Run:
    """The loop itself; its order is documented at the top of this file."""

    def __init__(
        self,
        course: Course,
        state: state_lib.TrainState,
        batches: pipeline.DeviceBatches,
        checkpoints: checkpoint.Checkpoints,
        validate: validation_lib.Validator,
        workdir: pathlib.Path,
    ):
        """Takes what a run is made of, at the state from which it goes on."""
        self._course, self._state, self._batches = course, state, batches
        self._checkpoints, self._validate, self._workdir = checkpoints, validate, workdir
        self._config, self._history = course.config, validate.history
        start = int(state.step)
        self._number = start  # of the step under way
        self._pending: Pending | None = None  # the step before it, until its metrics are read
        self._alone = hosts.count() == 1
        self._signals = Signals(course.programs[0].batch_sharding)
        peak = clock_lib.peak_flops(jax.devices()[0].device_kind)
        self._clock = clock_lib.Clock(self._config.steps - start, peak)
        first = hosts.is_first()
        self._writer = metrics_lib.MetricsWriter(workdir, start) if first else metrics_lib.Nowhere()
        self._report = Report(self._config, self._writer, self._clock, workdir)

    def to_its_end(self) -> state_lib.TrainState:
        """Trains; returns the last state, or raises `Stopped`."""
        config = self._config
        with self._signals, self._writer:
            while True:
                self._number += 1
                self._dispatch(self._take())
                last = self._number == config.steps or self._signals.stop is not None
                every = self._number % config.checkpoint_every == 0
                if last or every or self._validate.due(self._number):
                    self._save(self._number)
                if last or self._history.over or (self._pending is None and self._asked()):
                    return self._end()

    def _take(self) -> dict[str, jax.Array]:
        """Returns the batch of this step; saves the step before where there is none."""
        try:
            with self._time("data"):
                batch = self._batches.take(self._asked)
        except UserError:  # the data are at fault; what was trained is kept
            if self._pending and self._alone:  # to save, all processes are needed
                self._save(self._number - 1)
            raise
        if batch is None:  # asked to stop while the data do not come
            if self._pending:
                self._save(self._number - 1)
            self._checkpoints.finish()
            raise Stopped(self._signals.stop, self._number - 1)
        return batch

    def _dispatch(self, batch: dict[str, jax.Array]) -> None:
        """Starts this step on the devices, waits for the one before and writes its metrics."""
        sample_ids = batch.pop(pipeline.SAMPLE_ID)
        before = self._number - 1  # steps done when this one begins
        program, step = self._course.program(before), self._course.compiled(before)
        with self._time("device"):
            signums_D = self._signals.on_devices()
            with jax.transfer_guard("disallow"):
                self._state, metrics = step(self._state, batch)
                packed = in_one(metrics, signums_D)
            values = self._read() if self._pending else None
        self._clock.tick(program.config.batch_size, program.flops)
        watchdog.step()
        if self._pending:
            self._report(self._pending, values, self._state)
        self._pending = Pending(self._number, sample_ids, sorted(metrics), packed)
        self._checkpoints.check()

    def _read(self) -> dict[str, np.ndarray]:
        """Waits for the pending step; returns its metrics, and hears what came with them."""
        values, signum = self._pending.read()
        self._signals.hear(signum)
        return values

    def _save(self, number: int) -> None:
        """Reads the metrics of the pending step, ``number``; validates where it is due; saves."""
        with self._time("device"):
            values, failure = self._read(), None
        with self._time("evaluate"):
            try:
                if self._signals.stop is None:  # else there is little time; restarts make up for it
                    values |= self._validate(number, self._state, self._asked)
            except UserError as error:  # its data are at fault; what was trained is kept
                if not self._alone:
                    raise
                failure = error
        self._report(self._pending, values, self._state)
        self._pending = None
        with self._time("save"):
            self._checkpoints.save(number, self._state, self._history.best)
        if failure:
            raise failure

    def _end(self) -> state_lib.TrainState:
        """Returns the state once it is saved; raises `Stopped` where the run was to go on."""
        watchdog.at("finishing the last save")
        self._checkpoints.finish()
        _log.info("%s", self._clock.summary())
        if self._history.over:
            _log.info("%s: %s", self._workdir, self._history.why())
        elif self._number < self._config.steps or missed(
            self._config.validation, self._history, self._number
        ):
            raise Stopped(self._signals.stop, self._number)
        return self._state

    def _asked(self) -> bool:
        """Whether to stop at once: of several processes, all must do the same, after a step."""
        return self._alone and self._signals.stop is not None

    @contextlib.contextmanager
    def _time(self, part: str) -> Iterator[None]:
        """Counts a part of the step, and says where this process is."""
        place = f"step {self._number} of {self._config.steps}, {clock_lib.PARTS[part]}"
        watchdog.at(place, quick=part in ("data", "device"))
        with self._clock.time(part):
            yield
