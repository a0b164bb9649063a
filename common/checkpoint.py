"""Saves and restores training states: atomic, asynchronous, checked.

Orbax writes a checkpoint beside its place and renames it when it is whole. Before the rename we add
the digest of every file, so that a file that is later cut short, lost or altered is noticed. A
damaged checkpoint is never used and never deleted: it is set aside, with a warning that names it,
and the newest whole one is restored.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import google_crc32c
import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from common import config as config_lib
from common import hosts
from common.errors import UserError
from common.state import TrainState

FOLDER = "checkpoints"
DAMAGED_FOLDER = "damaged_checkpoints"

_DIGESTS = "digests.json"
# What Orbax itself writes after that; the state does not depend on it.
_LATER = frozenset({_DIGESTS, "_CHECKPOINT_METADATA", "commit_success.txt"})
_CHUNK = 1 << 22

_log = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of one run, in ``WORKDIR/checkpoints/STEP``."""

    def __init__(self, workdir: str | os.PathLike[str], config: Any):
        """Opens the folder; ``config`` says how many to keep and is saved with each of them."""
        self._workdir = pathlib.Path(workdir).absolute()
        self._folder = self._workdir / FOLDER
        self._config = config
        self._saving: int | None = None  # a step whose save has not been seen to succeed
        self._best: int | None = None  # a step that is kept, however old
        self._manager: ocp.CheckpointManager | None = None

    def restore(self, like: TrainState) -> TrainState | None:
        """Returns the newest whole state, laid out as ``like`` says; None where there is none.

        Args:
            like: shapes, dtypes and shardings (`jax.ShapeDtypeStruct`) of the state.

        Raises:
            UserError: a checkpoint is whole but belongs to another configuration or model.
        """
        step = hosts.by_first(self._newest_whole)
        if step is None:
            return None
        target = self._folder / str(step) / "state"
        try:
            with ocp.StandardCheckpointer() as checkpointer:
                return TrainState(**checkpointer.restore(target, vars(like)))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"The checkpoint {target.parent} is whole but does not fit the model; was the "
                f"code changed since? Use another --workdir. Orbax says: {error}"
            ) from error

    def _newest_whole(self) -> int | None:
        """Returns the newest step whose files are as written; sets aside those that are not."""
        for step in reversed(steps(self._folder)):
            problem = damage(self._folder / str(step))
            if problem is None:
                self._tell_changes(step)
                return step
            self._set_aside(step, problem)
        return None

    def save(self, step: int, state: TrainState, best: int | None = None) -> None:
        """Begins to save; returns as soon as the state has left the device.

        Args:
            step: of the state.
            state: what is saved.
            best: a step whose checkpoint is kept, however old it is.

        Raises:
            UserError: this save or the one before it failed.
        """
        try:
            if self._manager is None:
                self._manager = self._open()
            self._manager.wait_until_finished()
            self._saving, self._best = step, best
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(vars(state)),
                    config=ocp.args.JsonSave(json.loads(config_lib.to_json(self._config))),
                ),
                force=True,
            )
        except Exception as error:
            self._manager = None
            raise self._failed(error) from error

    def check(self) -> None:
        """Raises `UserError` as soon as a save in the background is known to have failed."""
        if self._manager is None:
            return
        try:
            self._manager.check_for_errors()
        except Exception as error:
            self._manager = None
            raise self._failed(error) from error

    def finish(self) -> None:
        """Waits until what was saved is on disk.

        Raises:
            UserError: the save failed.
        """
        manager, self._manager = self._manager, None
        if manager is None:
            return
        try:
            manager.wait_until_finished()
            manager.check_for_errors()
            manager.close()
        except Exception as error:
            raise self._failed(error) from error

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Tells Orbax, before it deletes old checkpoints, which of these is the best."""
        return [entry.step == self._best for entry in checkpoints]

    def _open(self) -> ocp.CheckpointManager:
        kept = [policies.LatestN(self._config.keep_checkpoints)]
        if self._config.keep_every:
            kept.append(policies.EveryNSteps(self._config.keep_every))
        return ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy([self, *kept]),
                cleanup_tmp_directories=True,  # what a killed process had not finished
                # Called when all files are written and before the rename that makes them count.
                async_options=ocp.AsyncOptions(post_finalization_callback=self._write_digests),
            ),
        )

    def _write_digests(self) -> None:
        """Records the digest of every file of the checkpoint that is being finished."""
        if hosts.is_first():
            for folder in self._folder.glob(f"{self._saving}.orbax-checkpoint-tmp*"):
                digests = {name: _digest(folder / name) for name in _files(folder)}
                (folder / _DIGESTS).write_text(json.dumps(digests, indent=1, sort_keys=True))

    def _failed(self, error: Exception) -> UserError:
        newest = reversed(steps(self._folder))
        whole = next((step for step in newest if not damage(self._folder / str(step))), None)
        kept = f"step {whole} is the newest whole one" if whole else "there is no other yet"
        return UserError(
            f"Saving the checkpoint of step {self._saving} into {self._folder} failed: {error}\n"
            f"Earlier checkpoints are untouched ({kept}). Is the disk full? Make room and start "
            "the same command again: it continues from there."
        )

    def _tell_changes(self, step: int) -> None:
        saved = (self._folder / str(step) / "config" / "metadata").read_text()
        changes = config_lib.differences(config_lib.from_json(saved), self._config)
        if changes:  # config.json was edited since, as its check advises where it is meant
            _log.warning(
                "the checkpoint %s was saved under another configuration:\n%s",
                self._folder / str(step), config_lib.listed(changes),
            )  # fmt: skip

    def _set_aside(self, step: int, problem: str) -> None:
        source = self._folder / str(step)
        target = unused(self._workdir / DAMAGED_FOLDER / str(step))
        _log.warning(
            "The checkpoint %s is damaged (%s). It is not used; it is kept as %s. Going back to "
            "the newest whole one.", source, problem, target,
        )  # fmt: skip
        target.parent.mkdir(exist_ok=True)
        source.rename(target)


def unused(path: pathlib.Path) -> pathlib.Path:
    """Returns ``path``, or ``path-2``, ``path-3``, ... if there is something already."""
    others = (path.with_name(f"{path.name}-{number}") for number in itertools.count(2))
    return next(place for place in itertools.chain([path], others) if not place.exists())


def steps(folder: pathlib.Path) -> list[int]:
    """Returns the steps of which ``folder`` holds a finished checkpoint, ascending."""
    if not folder.is_dir():
        return []
    return sorted(int(entry.name) for entry in folder.iterdir() if entry.name.isdecimal())


def damage(checkpoint: pathlib.Path) -> str | None:
    """Returns what is wrong with the files of one checkpoint, or None if they are as written."""
    try:
        expected = json.loads((checkpoint / _DIGESTS).read_text())
    except (FileNotFoundError, ValueError):
        return f"{_DIGESTS} is missing or unreadable"
    present = set(_files(checkpoint))
    for name, digest in expected.items():
        if name not in present:
            return f"{name} is missing"
        try:
            found = _digest(checkpoint / name)
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
        if found != digest:
            return f"{name} is not what was written"
    return None


def read(workdir: str | os.PathLike[str], step: int | None = None) -> tuple[int, dict[str, Any]]:
    """Returns the step and the state of a run as host arrays, for evaluation and export.

    The state is a dictionary with the fields of `TrainState`. Nothing on disk is changed.

    Args:
        workdir: folder of the run.
        step: which checkpoint; None takes the newest whole one.

    Raises:
        UserError: there is no such checkpoint, or it is damaged.
    """
    folder = pathlib.Path(workdir).absolute() / FOLDER
    found = steps(folder)
    if step is not None and step not in found:
        raise UserError(f"{folder} holds no checkpoint of step {step}; it holds {found}.")
    problems = []
    for candidate in [step] if step is not None else reversed(found):
        problem = damage(folder / str(candidate))
        if problem is None:
            return candidate, _read_arrays(folder / str(candidate) / "state")
        problems.append(f"step {candidate}: {problem}")
        _log.warning("The checkpoint %s is damaged (%s).", folder / str(candidate), problem)
    what = "; ".join(problems) or "it is empty"
    raise UserError(f"{folder} holds no whole checkpoint: {what}.")


def _read_arrays(path: pathlib.Path) -> dict[str, Any]:
    """Returns what a checkpoint holds as host arrays, on whatever devices it was written."""

    def like(leaf: Any) -> np.ndarray:
        return np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape)  # takes no memory

    with ocp.StandardCheckpointer() as checkpointer:
        saved = checkpointer.metadata(path).item_metadata.tree
        return checkpointer.restore(path, jax.tree.map(like, saved))


def _files(folder: pathlib.Path) -> Iterator[str]:
    """Yields the relative path of every file that a digest covers."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in _LATER:
            yield name


def _digest(path: pathlib.Path) -> str:
    """Returns size and CRC-32C of a file, which it reads in pieces."""
    checksum = google_crc32c.Checksum()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            checksum.update(chunk)
    return f"{path.stat().st_size}-{checksum.hexdigest().decode()}"
