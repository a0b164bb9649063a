"""Runs a function over many items in processes, in order, and survives what kills a process.

A damaged video can crash a decoder outright. ``concurrent.futures`` then gives up the whole pool
without saying which item it was; here the item gets the blame, a new process takes over, and the
rest goes on.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

_T = TypeVar("_T")
_AHEAD = 4  # items per process that may be finished before the first one is: bounds the memory


def run_ordered(
    function: Callable[[_T], Any],
    items: Iterable[_T],
    num_workers: int,
    on_death: Callable[[_T, str], Any],
    timeout_s: float,
) -> Iterator[Any]:
    """Yields ``function(item)`` for every item, in their order.

    Args:
      function: picklable; runs in fresh ("spawn") processes that import nothing but its needs.
      items: picklable; taken as processes become free.
      num_workers: processes.
      on_death: gives the result of an item whose process died or took too long, and why.
      timeout_s: seconds after which an item is given up.
    """
    context = multiprocessing.get_context("spawn")
    waiting, todo = {}, enumerate(items)
    workers = [_Worker(context, function) for _ in range(num_workers)]
    wanted, exhausted = 0, False
    try:
        while True:
            for worker in workers:
                if worker.number is None and not exhausted:
                    in_flight = sum(other.number is not None for other in workers)
                    if len(waiting) + in_flight >= _AHEAD * num_workers:
                        break
                    number, item = next(todo, (None, None))
                    exhausted = number is None
                    if not exhausted:
                        worker.give(number, item)
            while wanted in waiting:
                yield waiting.pop(wanted)
                wanted += 1
            busy = [worker for worker in workers if worker.number is not None]
            if not busy and exhausted and not waiting:
                return
            if busy:
                for worker in _ready(busy, timeout_s):
                    number, result = worker.take(on_death, timeout_s)
                    waiting[number] = result
    finally:
        for worker in workers:
            worker.stop()


def _ready(busy: list[_Worker], timeout_s: float) -> list[_Worker]:
    """Waits until one of the workers has an answer, has died, or is overdue."""
    soonest = min(worker.started for worker in busy) + timeout_s
    connections = {worker.connection: worker for worker in busy}
    wait = max(0.0, soonest - time.monotonic())
    ready = multiprocessing.connection.wait(list(connections), wait)
    overdue = [worker for worker in busy if time.monotonic() - worker.started >= timeout_s]
    return [connections[connection] for connection in ready] or overdue


class _Worker:
    """One process and the item it is working on."""

    def __init__(self, context: Any, function: Callable):
        self._context, self._function = context, function
        self.number: int | None = None
        self.started = 0.0
        self._start()

    def _start(self) -> None:
        self.connection, theirs = self._context.Pipe()
        self._process = self._context.Process(
            target=_serve, args=(self._function, theirs), daemon=True
        )
        self._process.start()
        theirs.close()  # so that the end of the process is the end of the connection

    def give(self, number: int, item: Any) -> None:
        self.number, self._item, self.started = number, item, time.monotonic()
        try:
            self.connection.send(item)
        except OSError:  # it died while idle; what is wrong shows when the answer is taken
            self.stop()
            self._start()
            self.connection.send(item)

    def take(self, on_death: Callable, timeout_s: float) -> tuple[int, Any]:
        number, self.number = self.number, None
        if not self.connection.poll():
            self.stop()
            self._start()
            return number, on_death(self._item, f"took longer than {timeout_s:g} s")
        try:
            return number, self.connection.recv()
        except (EOFError, OSError):
            self._process.join(10)
            why = _cause(self._process.exitcode)
            self.stop()
            self._start()
            return number, on_death(self._item, why)

    def stop(self) -> None:
        self.connection.close()
        self._process.kill()
        self._process.join()


def _cause(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        name = signal.Signals(-exit_code).name
        if name == "SIGKILL":
            return "the decoding process was killed (SIGKILL), most often for want of memory"
        return f"the decoder crashed ({name})"
    return f"the decoding process ended by itself (exit code {exit_code})"


def _serve(function: Callable, connection: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    while True:
        try:
            item = connection.recv()
        except (EOFError, OSError):  # the parent is gone
            return
        connection.send(function(item))
