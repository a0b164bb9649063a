"""Validation while training: the loss on clips held out, the best checkpoint, and when to stop.

A validation is a function of the weights alone. Records, views and augmentation are drawn from a
seed that all runs share, and the networks run in evaluation mode, with the moving average of the
parameters where the run keeps one. With a curriculum it uses the configuration of the last part,
from the first step on, so that all validations of a run compare.

``WORKDIR/validation.jsonl`` holds a line for each. Which checkpoint is the best and whether the run
has ended follow from these lines alone, so a run that continues decides as if never stopped.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import json
import logging
import math
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from common import checkpoint, hosts, sharding
from common.accumulation import Metrics, cut, join
from common.data import files, pipeline, sources
from common.errors import UserError
from common.method import Batch, Embeddings, Method
from common.program import Program
from common.state import TrainState, Tree, merge
from common.step import example_keys

FILE_NAME = "validation.jsonl"
LOSS = "validation/loss"  # as it is logged

_SEED = 0

_log = logging.getLogger(__name__)


class History:
    """The validations of one run, oldest first, as its folder holds them."""

    def __init__(self, workdir: str | os.PathLike[str], patience: int, step: int):
        """Continues after ``step``: those of later steps are about to be done again.

        Raises:
            UserError: the file cannot be read.
        """
        self._path, self._patience = pathlib.Path(workdir) / FILE_NAME, patience
        found = _read(self._path)
        self._rows = [row for row in found if row["step"] <= step]
        if len(self._rows) < len(found):
            self._write()

    @property
    def best(self) -> int | None:
        """The step with the least loss, of equal ones the first; None where there is none."""
        return _best(self._rows)

    @property
    def over(self) -> bool:
        """Whether so many validations in a row did not improve the loss that the run has ended."""
        return 0 < self._patience <= self._in_vain()

    def has(self, step: int) -> bool:
        """Whether the state after so many steps was validated."""
        return any(row["step"] == step for row in self._rows)

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        """Takes the metrics of one validation, "loss" among them; they are on disk afterwards."""
        numbers = {name: v if math.isfinite(v) else None for name, v in metrics.items()}
        self._rows.append({"step": step, **numbers})
        self._write()

    def why(self) -> str:
        """Says why the run is over."""
        if self.best is None:
            said = f"none of {len(self._rows)} validations had a finite loss"
        else:
            loss = next(row["loss"] for row in self._rows if row["step"] == self.best)
            said = (
                f"the validation loss was least at step {self.best} ({loss:.4f}), and the "
                f"{self._in_vain()} validations after it did not improve it"
            )
        return (
            f"ended at step {self._rows[-1]['step']}: {said} (config.validation.patience="
            f"{self._patience}; a greater one continues). --step=best takes the best checkpoint."
        )

    def _in_vain(self) -> int:
        """How many validations there were since the best one."""
        best = self.best
        return sum(best is None or row["step"] > best for row in self._rows)

    def _write(self) -> None:
        if hosts.is_first():
            text = "".join(json.dumps(row) + "\n" for row in self._rows)
            files.write_whole(os.fspath(self._path), text.encode())


def best_step(workdir: str | os.PathLike[str]) -> int:
    """Returns the step of a run's best checkpoint: the one whose validation loss is the least.

    Raises:
        UserError: nothing was validated there.
    """
    saved = checkpoint.steps(pathlib.Path(workdir) / checkpoint.FOLDER)
    rows = _read(pathlib.Path(workdir) / FILE_NAME)
    # A step is validated before it is saved: the last one may not have been.
    best = _best([row for row in rows if saved and row["step"] <= saved[-1]])
    if best is None:
        raise UserError(
            f"{workdir} has no best checkpoint: nothing was validated in that run. Name a step, or "
            "train with config.validation.data."
        )
    return best


def best_metrics(workdir: str | os.PathLike[str]) -> Mapping[str, Any]:
    """Returns the line of the validation with the least loss; empty where there is none.

    Raises:
        UserError: the file cannot be read.
    """
    rows = _read(pathlib.Path(workdir) / FILE_NAME)
    best = _best(rows)
    return next((row for row in rows if row["step"] == best), {})


def _read(path: pathlib.Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    try:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        return sorted(rows, key=lambda row: (row["step"], row["loss"] is None))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} cannot be read ({error!r}): each line must be an object with step and loss. "
            "Take out the line that is not."
        ) from error


def _best(rows: list[dict[str, Any]]) -> int | None:
    losses = [(row["loss"], row["step"]) for row in rows if row["loss"] is not None]
    return min(losses)[1] if losses else None


def is_due(settings: Any, step: int) -> bool:
    """Whether ``config.validation`` asks for a validation after ``step`` steps."""
    return bool(settings.data) and step % settings.every == 0


def missed(settings: Any, history: History, step: int) -> bool:
    """Whether a validation that was due after ``step`` steps failed, or was given up."""
    return is_due(settings, step) and not history.has(step)


class Validator:
    """Validates the states of a run; where ``config.validation.data`` is empty, never."""

    def __init__(self, program: Program, history: History):
        """Opens the data.

        Args:
            program: whose configuration and method are used.
            history: takes the results.

        Raises:
            UserError: the data cannot be opened, or are fewer clips than asked for or than a batch.
        """
        self.history = history
        self._program, self._settings = program, program.config.validation
        if not self._settings.data:
            if self._settings.patience:
                _log.warning(
                    "config.validation.patience=%d does nothing without config.validation.data.",
                    self._settings.patience,
                )
            return
        config = program.config.copy_and_resolve_references()
        with config.unlocked():
            config.data.train, config.seed = self._settings.data, _SEED
        with self._named():
            mixed = len(sources.split_mixture(self._settings.data)) > 1
            if mixed and not self._settings.examples:
                raise UserError(
                    "a mixture has no end; say in config.validation.examples how many clips are "
                    "taken."
                )
            views = program.method.views
            rows = sharding.local_rows(program.mesh, config.batch_size)
            self._data = pipeline.TrainData(config, views, rows)
            self._num_batches = _num_batches(config, self._data.num_records)
        self._step = jax.jit(
            make_validation_step(program.method, config),
            out_shardings=sharding.replicated(program.mesh),
        )

    def due(self, step: int) -> bool:
        """Whether the state after ``step`` steps is validated."""
        return is_due(self._settings, step)

    def __call__(
        self, step: int, state: TrainState, give_up: Callable[[], bool] = lambda: False
    ) -> dict[str, float]:
        """Validates the state after a step, if that is due.

        Args:
            step: of the state.
            state: what is validated.
            give_up: asked before every batch; then the validation is as if it had not begun.

        Returns:
            The metrics as ``validation/NAME``; none where it is not due, was given up, or where the
            state had a loss that was not finite.

        Raises:
            UserError: the data cannot be read.
        """
        if not self.due(step) or not jax.device_get(state.finite):
            return {}
        params = state.params if state.ema is None else state.ema
        sums: dict[str, float] = collections.defaultdict(float)
        with self._named(), self._batches() as batches:
            for number, batch in enumerate(batches):
                if give_up():
                    return {}
                del batch[pipeline.SAMPLE_ID]
                found = self._step(params, state.model_state, batch, np.int32(number))
                for name, value in jax.device_get(found).items():
                    sums[name] += float(value)
        means = {name: total / self._num_batches for name, total in sums.items()}
        self.history.add(step, means)
        return {f"validation/{name}": value for name, value in means.items()}

    def _batches(self) -> pipeline.DeviceBatches:
        def taken() -> Iterator[dict[str, np.ndarray]]:
            with contextlib.closing(self._data.batches(0)) as batches:
                yield from itertools.islice(batches, self._num_batches)

        return pipeline.device_batches(
            taken(), self._program.batch_sharding, self._program.config.data.prefetch
        )

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """Makes errors say which key brought the data."""
        try:
            yield
        except UserError as error:
            raise UserError(f"config.validation.data={self._settings.data}: {error}") from error


def _num_batches(config: Any, num_records: int) -> int:
    """Returns how many whole batches a validation has; made-up data have no end.

    Raises:
        UserError: there are fewer clips than asked for, or than a batch has.
    """
    wanted = config.validation.examples or num_records or config.batch_size
    if num_records and wanted > num_records:
        raise UserError(
            f"it holds {num_records} clips, fewer than config.validation.examples={wanted}; lower "
            "that, or set it to 0 for all there are."
        )
    if wanted < config.batch_size:
        raise UserError(
            f"{wanted} clips to validate on are fewer than a batch of {config.batch_size}, and "
            "only whole batches are. Name more data, or raise config.validation.examples."
        )
    return wanted // config.batch_size


def make_validation_step(
    method: Method, config: Any
) -> Callable[[Tree, Tree, Batch, jax.Array], Metrics]:
    """Returns what measures the objective on one batch in evaluation mode, to be jitted.

    It maps parameters, other variables, a raw batch and the number of the batch, an int32 scalar,
    to the metrics, "loss" among them. Microbatches are as in training: each has an objective of its
    own, or with ``config.accumulation="cached"`` all have one.
    """
    model = nnx.eval_shape(lambda: method.build(nnx.Rngs(0)))
    model.eval()
    graphdef, parts = nnx.graphdef(model), config.microbatches

    def measure(embeddings: Embeddings) -> Metrics:
        loss, metrics = method.objective(embeddings)
        return {**metrics, "loss": loss}

    def validation_step(
        params: Tree, model_state: Tree, batch: Batch, number: jax.Array
    ) -> Metrics:
        def embed(inputs: tuple[Batch, jax.Array]) -> Embeddings:
            model = merge(graphdef, params, model_state)
            return method.embed(model, method.augment(*inputs))

        keys_B = example_keys(_SEED, number, config.batch_size)
        if parts == 1:
            return measure(embed((batch, keys_B)))
        embedded = jax.lax.map(embed, cut((batch, keys_B), parts))
        if config.accumulation == "cached":
            return measure(join(embedded))
        return {name: value_M.mean() for name, value_M in jax.lax.map(measure, embedded).items()}

    return validation_step
