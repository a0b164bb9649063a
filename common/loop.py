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
5. save, where it is due (the metrics of step s are then read first, so that no state is saved whose
   loss has not been seen).

Signals: SIGTERM and SIGINT (Ctrl-C) let the step under way end, save and raise `Stopped`, which the
entry point turns into exit status 128 + signal number: a run that has not reached its last step
never reports success. The second signal ends the process at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import pathlib
import signal
import threading
import time
import types
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from common import attachments, checkpoint, collapse, hosts, locks, optimizers, sharding
from common import clock as clock_lib
from common import config as config_lib
from common import metrics as metrics_lib
from common import state as state_lib
from common import step as step_lib
from common.data import pipeline
from common.errors import UserError
from common.method import Method

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
    values: jax.Array  # on the devices, in the order of the names

    def read(self) -> dict[str, np.ndarray]:
        """Waits for the step and returns its metrics."""
        return dict(zip(self.names, jax.device_get(self.values), strict=True))


@jax.jit
def _in_one(metrics: step_lib.Metrics) -> jax.Array:
    """Puts all metrics, sorted by name, into one array: reading each by itself takes longer."""
    return jnp.stack([metrics[name].astype(jnp.float32) for name in sorted(metrics)])


def train(
    method: Method, config: Any, workdir: str | os.PathLike[str], data: Data
) -> state_lib.TrainState:
    """Trains from where ``workdir`` stands to step ``config.steps``; returns the last state.

    Raises:
        UserError: the configuration cannot be, does not belong to the workdir, a save failed, or
            the loss is no longer finite.
        Stopped: SIGTERM or SIGINT arrived; the state is saved.
    """
    workdir = pathlib.Path(workdir)
    program = build(method, config)
    with contextlib.ExitStack() as stack:
        if hosts.is_first():
            taken = f"Another process trains in {workdir}; wait for it, stop it or name another."
            stack.enter_context(locks.exclusive(workdir / ".lock", taken))
        return _train(program, workdir, data)


def _train(program: Program, workdir: pathlib.Path, data: Data) -> state_lib.TrainState:
    """Starts or continues the run in a folder that is this process's own."""
    config = program.config
    config_lib.claim(config, workdir)
    attachments.keep(config, workdir)
    checkpoints = checkpoint.Checkpoints(workdir, config)
    state = checkpoints.restore(program.like)
    start = 0 if state is None else int(state.step)
    if start >= config.steps:
        _log.info("%s: all %d steps are done.", workdir, config.steps)
        return state
    batches = pipeline.device_batches(
        data.batches(start), program.batch_sharding, config.data.prefetch
    )
    try:
        _describe(program, workdir, start)
        step = program.compile()  # while the first batches are being read
        if state is None:
            state = program.init()
        return _run(program, step, state, batches, checkpoints, workdir)
    finally:
        batches.close()
        checkpoints.finish()


@dataclasses.dataclass(frozen=True)
class Program:
    """What a configuration compiles to, before any memory is used."""

    config: Any
    mesh: jax.sharding.Mesh
    like: state_lib.TrainState  # shapes, dtypes and shardings of the state
    specs: dict[str, jax.sharding.PartitionSpec]  # of the parameters
    batch_like: dict[str, jax.ShapeDtypeStruct]
    batch_sharding: jax.sharding.NamedSharding
    init: Any  # () -> TrainState on the devices
    step: Any  # the jitted step

    def compile(self) -> jax.stages.Compiled:
        """Compiles the step for the shapes of this configuration."""
        start = time.perf_counter()
        compiled = self.step.lower(self.like, self.batch_like).compile()
        flops, memory = step_flops(compiled, self.config), compiled.memory_analysis()
        _log.info(
            "compiled in %.0f s; per step and device %s, %s of memory",
            time.perf_counter() - start,
            f"{flops:.3g} FLOPs" if flops else "an unknown number of FLOPs",
            f"{step_memory(memory) / 2**20:,.0f} MiB" if memory else "an unknown amount",
        )
        return compiled


def build(method: Method, config: Any) -> Program:
    """Returns the program of a method under a configuration.

    Raises:
        UserError: mesh, sharding rules or optimizer cannot be as configured.
    """
    mesh = sharding.make_mesh(config)
    graphdef, shapes = state_lib.abstract(method.build)
    specs = sharding.parameter_specs(shapes, mesh, config.mesh.rules)
    optimizer, schedule = optimizers.create(config.optimizer, config.steps, shapes)

    def create() -> state_lib.TrainState:
        return state_lib.create(method.build, optimizer, config.seed, config.ema_decay > 0)

    like = jax.eval_shape(create)
    state_shardings = sharding.state_shardings(like, mesh, specs)
    batch_sharding = sharding.batch_sharding(mesh)
    like = jax.tree.map(_with_sharding, like, state_shardings)
    batch_like = {
        name: jax.ShapeDtypeStruct(
            (config.batch_size, *spec.shape), spec.dtype, sharding=batch_sharding
        )
        for name, spec in method.views.spec().items()
    }
    step = jax.jit(
        step_lib.make_train_step(method, graphdef, optimizer, schedule, config),
        donate_argnums=0,
        out_shardings=(state_shardings, sharding.replicated(mesh)),
    )
    # On CPU, LLVM takes four times longer to optimise this than to compile it; and it runs once.
    hurry = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    init = jax.jit(create, out_shardings=state_shardings, compiler_options=hurry)
    return Program(config, mesh, like, specs, batch_like, batch_sharding, init, step)


def _with_sharding(leaf: jax.ShapeDtypeStruct, where: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)


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
    program: Program,
    step: jax.stages.Compiled,
    state: state_lib.TrainState,
    batches: Iterator[dict[str, Any]],
    checkpoints: checkpoint.Checkpoints,
    workdir: pathlib.Path,
) -> state_lib.TrainState:
    """The loop itself; its order is documented at the top of this file."""
    config = program.config
    start = int(state.step)
    clock = clock_lib.Clock(
        config.steps - start, config.batch_size, step_flops(step, config),
        clock_lib.peak_flops(jax.devices()[0].device_kind),
    )  # fmt: skip
    pending: _Pending | None = None
    with _Signals() as signals, metrics_lib.MetricsWriter(workdir, start) as writer:
        report = _Report(config, writer, clock, workdir)

        def save(number: int) -> None:
            if pending:
                with clock.time("device"):
                    values = pending.read()
                report(pending, values, state)
            with clock.time("save"):
                checkpoints.save(number, state)

        for number in range(start + 1, config.steps + 1):
            try:
                with clock.time("data"):
                    batch = next(batches)
            except UserError:  # the data are at fault; what was trained is kept
                if number > start + 1:
                    save(number - 1)
                raise
            sample_ids = batch.pop(pipeline.SAMPLE_ID)
            with clock.time("device"):
                with jax.transfer_guard("disallow"):
                    state, metrics = step(state, batch)
                    packed = _in_one(metrics)
                values = pending.read() if pending else None
            clock.tick()
            if pending:
                report(pending, values, state)
            pending = _Pending(number, sample_ids, sorted(metrics), packed)
            checkpoints.check()
            last = number == config.steps or signals.received is not None
            if last or number % config.checkpoint_every == 0:
                save(number)
                pending = None
            if last:
                checkpoints.finish()
                if signals.received is not None and number < config.steps:
                    raise Stopped(signals.received, number)
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
        if done.step % self._config.log_every == 0 or done.step == self._config.steps:
            values |= self._clock.lap()
            self._writer.write(done.step, values)
            self._watch.see(done.step, values)
            _log.info("%s", self._line(done.step, values))

    def _line(self, step: int, values: Mapping[str, float]) -> str:
        """Returns the progress line."""
        parts = [f"step {step}/{self._config.steps}", f"loss {values['loss']:.4f}"]
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
        folder = self._workdir.absolute() / "nonfinite" / f"step-{done.step}"
        folder = checkpoint.unused(folder)
        folder.mkdir(parents=True)
        report = {
            "step": done.step,
            "sample_ids": np.asarray(done.sample_ids).tolist(),
            "metrics": {name: repr(value) for name, value in values.items()},
        }
        (folder / "report.json").write_text(json.dumps(report, indent=1))
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


def step_flops(compiled: jax.stages.Compiled, config: Any) -> float | None:
    """Returns the FLOPs of one step on one device as XLA counts them; None where it does not.

    What rematerialisation computes twice counts twice.
    """
    cost = compiled.cost_analysis()
    if not cost or "flops" not in cost:
        return None
    # XLA counts the body of a loop once. Beside the networks the optimizer is nothing, so that it
    # is multiplied as well does not show.
    return cost["flops"] * config.microbatches


def step_memory(memory: Any) -> int:
    """Returns the bytes that a step needs on one device, by XLA's plan."""
    return (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
    )


class _Signals:
    """Notes the first SIGTERM or SIGINT; the second does what it would have done anyway."""

    def __init__(self):
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Signals:
        if threading.current_thread() is threading.main_thread():  # Python allows no other
            for signum in (signal.SIGTERM, signal.SIGINT):
                self._before[signum] = signal.signal(signum, self._note)
        return self

    def _note(self, signum: int, frame: types.FrameType | None) -> None:
        self.received = signum
        self._restore()
        _log.warning(
            "%s: saving after this step; send it again to end at once.", signal.Signals(signum).name
        )

    def _restore(self) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        self._before = {}

    def __exit__(self, *error: object) -> None:
        self._restore()
