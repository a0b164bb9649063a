"""Notices when a process does not get any further, and shows what it is at.

`at` says what begins; a thread that does nothing else looks once a second for how long that goes
on. Where a step takes far too long it writes the stacks of all threads to stderr, so that a run
that hangs says where. In a run on several processes it also tells the supervisor, which ends the
process where nothing goes on for ``config.hosts.stall_timeout`` (`common.cluster.roster`).

Seconds are those in which this process could run: one that was stopped, or whose machine slept, is
not late for that.
"""

from __future__ import annotations

import collections
import faulthandler
import logging
import signal
import statistics
import sys
import threading
import time

from common.cluster import link

FACTOR = 20  # times the usual step: far too long

_log = logging.getLogger(__name__)

_place = ("starting", False)
_changes = 0  # how often the place changed, by which the thread knows
_steps: collections.deque[float] = collections.deque(maxlen=50)  # seconds of the last ones
_last_step: float | None = None
_thread: threading.Thread | None = None


def at(place: str, quick: bool = False) -> None:
    """Says what begins now.

    Args:
        place: in words, for people.
        quick: whether it takes no longer than a step, where all is well.
    """
    global _place, _changes
    _place, _changes = (place, quick), _changes + 1


def step() -> None:
    """Says that a step is done; the time between two is what is usual."""
    global _last_step
    now = time.monotonic()
    if _last_step is not None:
        _steps.append(now - _last_step)
    _last_step = now


def start(stacks_after: float) -> None:
    """Begins to watch, once for a process.

    Args:
        stacks_after: seconds that are never too long for a step, however short others are.
    """
    global _thread
    faulthandler.register(signal.SIGUSR1, sys.stderr)  # by which a supervisor asks
    if _thread is None:
        _thread = threading.Thread(
            target=_watch, args=(stacks_after,), name="watchdog", daemon=True
        )
        _thread.start()


def _watch(stacks_after: float, tick: float = 1.0) -> None:
    seen, since, shown = -1, 0.0, False
    while True:
        time.sleep(tick)
        place, quick = _place
        if _changes != seen:
            seen, since, shown = _changes, 0.0, False
        else:
            since += tick
        link.tell(place, since)
        link.listen()
        if quick and not shown and since > max(stacks_after, FACTOR * _usual()):
            shown = True
            _show(place, since)


def _usual() -> float:
    return statistics.median(_steps) if _steps else 0.0


def _show(place: str, since: float) -> None:
    _log.warning(
        "no end for %.0f s: %s (a step takes %.1f s). What all threads are at:",
        since, place, _usual(),
    )  # fmt: skip
    faulthandler.dump_traceback(sys.stderr, all_threads=True)
