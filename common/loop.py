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
    pending: Pending | None = None
    writer = (
        metrics_lib.MetricsWriter(workdir, start) if hosts.is_first() else metrics_lib.Nowhere()
    )
    with Signals(course.programs[0].batch_sharding) as signals, writer:
        report = Report(config, writer, clock, workdir)

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
                    packed = in_one(metrics, signums_D)
                values = read() if pending else None
            clock.tick(program.config.batch_size, program.flops)
            watchdog.step()
            if pending:
                report(pending, values, state)
            pending = Pending(number, sample_ids, sorted(metrics), packed)
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
                elif number < config.steps or missed(config.validation, history, number):
                    raise Stopped(signals.stop, number)
                return state
    raise AssertionError("a run ends at its last step")
