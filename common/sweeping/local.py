"""Runs of a sweep on this machine, some at a time, each in a process of its own."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType

from common.errors import UserError
from common.sweeping.definition import Overrides, Sweep, flags_of
from common.sweeping.results import OUTCOME, write_outcome

LOG = "log.txt"  # in the folder of a run: what it said, of every time it was started
_POLL = 0.2  # seconds
_GPUS = "CUDA_VISIBLE_DEVICES"


class Interrupted(Exception):
    """The sweep was asked to stop, and its runs have."""

    def __init__(self, signum: int):
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum


@dataclasses.dataclass(frozen=True)
class Slot:
    """What one run at a time may use.

    Attributes:
        cores: numbers of CPU cores; None: all.
        environment: variables to set.
    """

    cores: frozenset[int] | None
    environment: Mapping[str, str]


def slots(parallel: int, gpus: int) -> list[Slot]:
    """Divides the machine.

    Args:
        parallel: runs at a time; they share the cores out among them.
        gpus: >0: so many GPUs, of those that the environment allows, each of which has one run at
            a time; replaces ``parallel``.

    Raises:
        UserError: it allows fewer.
    """
    number = gpus or parallel
    shares: list[frozenset[int] | None] = [None] * number
    if number > 1 and hasattr(os, "sched_getaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        if number <= len(cores):
            shares = [frozenset(cores[n * len(cores) // number : (n + 1) * len(cores) // number])
                      for n in range(number)]  # fmt: skip
    devices = os.environ.get(_GPUS, ",".join(map(str, range(gpus))))
    numbers = [name for name in devices.split(",") if name]
    if len(numbers) < gpus:
        raise UserError(f"--gpus={gpus}, but {_GPUS}={devices} leaves fewer.")
    return [Slot(share, {_GPUS: numbers[n]} if gpus else {}) for n, share in enumerate(shares)]


@dataclasses.dataclass
class _Running:
    name: str
    process: subprocess.Popen
    began: float
    slot: Slot


def run(
    sweep: Sweep,
    waiting: Sequence[tuple[str, Overrides]],
    workdir: pathlib.Path,
    places: Sequence[Slot],
    ended: Callable[[str, int, float], None],
) -> None:
    """Trains what waits, as many at a time as there are places. One that fails stops no other.

    Args:
        sweep: what is swept.
        waiting: name and overrides of each run, in order.
        workdir: of the sweep; each run has the folder of its name there.
        places: see `slots`.
        ended: is told the name, the exit status and the seconds of each run that ended.

    Raises:
        Interrupted: SIGTERM or SIGINT arrived. Every run was told, saved its state, and goes on
            when the sweep is started again. A second signal ends them at once.
    """
    queue, free, running = list(waiting), list(places), []
    with _noticing_signals() as arrived, _stopped_in_the_end(running, arrived):
        while queue or running:
            if arrived:
                raise Interrupted(arrived[0])
            while queue and free:
                name, overrides = queue.pop(0)
                slot = free.pop(0)
                process = _start(sweep, overrides, workdir / name, slot)
                running.append(_Running(name, process, time.monotonic(), slot))
            time.sleep(_POLL)
            for one in [one for one in running if one.process.poll() is not None]:
                running.remove(one)
                free.append(one.slot)
                seconds = time.monotonic() - one.began
                write_outcome(workdir / one.name, one.process.returncode, seconds)
                ended(one.name, one.process.returncode, seconds)


def command(sweep: Sweep, overrides: Overrides, folder: pathlib.Path) -> list[str]:
    """What trains one run, and what a user would type for it."""
    train = [sys.executable, "-m", "common.train", f"--config={sweep.config}"]
    return [*train, f"--workdir={folder}", *flags_of(overrides)]


def _start(sweep: Sweep, overrides: Overrides, folder: pathlib.Path, slot: Slot):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / OUTCOME).unlink(missing_ok=True)  # of the time before
    with open(folder / LOG, "a") as log:
        process = subprocess.Popen(
            command(sweep, overrides, folder),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **slot.environment},
            start_new_session=True,  # Ctrl-C reaches the sweep alone, which tells its runs once
        )
    if slot.cores:
        with contextlib.suppress(ProcessLookupError):  # it has ended already
            os.sched_setaffinity(process.pid, slot.cores)  # its threads, begun later, inherit it
    return process


@contextlib.contextmanager
def _stopped_in_the_end(running: Sequence[_Running], arrived: Sequence[int]) -> Iterator[None]:
    """Leaves no run behind, whatever happened: tells those that go on to stop, and waits."""
    try:
        yield
    finally:
        before = len(arrived)
        for one in running:
            one.process.send_signal(signal.SIGTERM)
        while any(one.process.poll() is None for one in running):
            if len(arrived) > max(before, 1):
                for one in running:
                    one.process.kill()
            time.sleep(_POLL)


@contextlib.contextmanager
def _noticing_signals() -> Iterator[list[int]]:
    """Yields the signals that arrived, instead of what they would have done."""
    arrived: list[int] = []

    def note(signum: int, _: FrameType | None) -> None:
        arrived.append(signum)

    before = {signum: signal.signal(signum, note) for signum in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield arrived
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def last_words(folder: pathlib.Path) -> str:
    """The last line that says what went wrong in a run, or its last line."""
    try:
        lines = (folder / LOG).read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return ""
    lines = [line.strip() for line in lines if line.strip()]
    return next((x for x in reversed(lines) if x.startswith("error:")), lines[-1] if lines else "")
