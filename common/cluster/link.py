"""The end of a process that trains, of its line to its supervisor; see `common.cluster.supervisor`.

A process without a supervisor, which trains alone, has no line: then nothing here does anything.
"""

from __future__ import annotations

import os
import time

from common.cluster.channel import Channel
from common.cluster.job import Job
from common.cluster.roster import EXIT_LOST

_channel: Channel | None = None
_job: Job | None = None
_go: str | None = None
_stop: int | None = None


def open_(channel: Channel, job: Job) -> None:
    """Takes the line over."""
    global _channel, _job
    _channel, _job = channel, job


def listen() -> None:
    """Hears what the supervisor says; ends this process where the supervisor is gone."""
    global _go, _stop
    if _channel is None:
        return
    for message in _channel.receive():
        _go = message.get("go", _go)
        _stop = message.get("stop", _stop)
    if _channel.closed:
        os._exit(EXIT_LOST)


def stop() -> int | None:
    """Returns the number of the signal that the supervisor passed on, if there was one."""
    return _stop


def tell(at: str, since: float) -> None:
    """Says what this process is at, and for how many seconds."""
    if _channel is not None:
        _channel.send(at=at, since=since)


def last_words(words: str) -> None:
    """Says why this process is about to end."""
    if _channel is not None:
        _channel.send(words=words)


def wait_for_go() -> tuple[Job, str]:
    """Waits until all processes of the job have come.

    Returns:
        The job, and where JAX's coordination service is to be.
    """
    assert _channel is not None and _job is not None
    while _go is None:
        time.sleep(0.05)
        listen()
        if _stop is not None:
            os._exit(128 + _stop)
    return _job, _go
