"""Stops a run after a step on SIGTERM and SIGINT: in all its processes after the same one.

A process that receives a signal says so together with the metrics of the step that it dispatches
next. The greatest number that any has sent comes back with those metrics to all, at the same step.
A run of a single process need not ask anybody.
"""

from __future__ import annotations

import logging
import signal
import threading
import types
from typing import Any

import jax
import numpy as np

from common import hosts
from common.cluster import link

_log = logging.getLogger("common.loop")


class Signals:
    """Notes the first SIGTERM or SIGINT; the second does what it would have done anyway.

    A context manager.

    Attributes:
        stop: the signal after whose step the run stops, the same in all processes; None: none yet.
    """

    def __init__(self, sharding: jax.sharding.Sharding):
        """Takes how something is split over all devices along its only axis."""
        self.stop: int | None = None
        self._received: int | None = None
        self._sharding = sharding
        self._nothing = self._put(0)
        self._before: dict[int, Any] = {}

    def on_devices(self) -> jax.Array:
        """Returns what this process has received as a part of (devices,), 0 for nothing."""
        signum = self._received or link.stop()
        return self._put(signum) if signum else self._nothing

    def hear(self, signum: int) -> None:
        """Takes what came back from the devices: what any process has received."""
        if signum and self.stop is None:
            self.stop = signum

    def _put(self, signum: int) -> jax.Array:
        local = np.full(len(self._sharding.addressable_devices), signum, np.int32)
        return jax.make_array_from_process_local_data(self._sharding, local)

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():  # Python allows no other
            for signum in (signal.SIGTERM, signal.SIGINT):
                self._before[signum] = signal.signal(signum, self._note)
        return self

    def _note(self, signum: int, frame: types.FrameType | None) -> None:
        self._received = signum
        if hosts.count() == 1:
            self.stop = signum
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
