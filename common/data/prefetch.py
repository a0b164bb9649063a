"""Moves batches onto the devices while the step before is still running."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Generator, Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import jax

_POLL = 0.5  # seconds
SAMPLE_ID = "sample_id"  # int64 (B, 2): number of the source and of the record within it


class DeviceBatches:
    """Moves batches onto the devices ahead of their use, from a thread of its own.

    Iterate over it, and close it (or use it in ``with``) to end the thread. What fails in the
    thread is raised by ``next``.
    """

    def __init__(
        self,
        batches: Generator[Mapping[str, np.ndarray]],
        sharding: jax.sharding.Sharding,
        ahead: int,
    ):
        """Starts to take from `batches`.

        Args:
            batches: this process's parts, as `TrainData.batches` yields them; closed with this.
            sharding: of the global batch; it splits the first axis of every entry.
            ahead: batches kept ready on the devices.
        """
        self._batches, self._sharding = batches, sharding
        self._ready: queue.Queue = queue.Queue(ahead)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="batches", daemon=True)
        self._thread.start()

    def __iter__(self) -> DeviceBatches:
        return self

    def __next__(self) -> dict[str, jax.Array | np.ndarray]:
        """Returns the next batch: everything on the devices but `SAMPLE_ID`, which stays here."""
        return self.take(lambda: False)

    def take(self, give_up: Callable[[], bool]) -> dict[str, jax.Array | np.ndarray] | None:
        """Returns the next batch, or None if `give_up` says so while it is not ready."""
        if self._closed.is_set():
            raise StopIteration
        while True:
            try:
                item = self._ready.get(timeout=_POLL)
            except queue.Empty:
                if give_up():
                    return None
                continue
            if isinstance(item, BaseException):
                self.close()
                raise item
            return item

    def close(self) -> None:
        """Ends the thread and the reading; what was prepared is dropped."""
        self._closed.set()
        while self._thread.is_alive():
            with contextlib.suppress(queue.Empty):  # it may wait for room
                self._ready.get_nowait()
            self._thread.join(0.01)
        # Not left to the end of the program: tf.data, still reading then, would never let go.
        self._batches.close()

    def __enter__(self) -> DeviceBatches:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> None:
        import jax

        try:
            for batch in self._batches:
                arrays = {
                    name: jax.make_array_from_process_local_data(self._sharding, array)
                    for name, array in batch.items()
                    if name != SAMPLE_ID
                }
                self._ready.put(arrays | {SAMPLE_ID: batch[SAMPLE_ID]})
                if self._closed.is_set():
                    return
            self._ready.put(StopIteration())
        except BaseException as error:
            self._ready.put(error)
