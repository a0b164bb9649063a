"""Runs one process of a job that trains on several, and sees to it that it does not wait in vain.

`run` forks. The child trains; the parent, its supervisor, stays free of anything that can hang: it
tells the roster beside process 0 (`common.cluster.roster`) what the child does, ends the child when
another process is lost, and says why. So whatever happens to a process (an error, a kill, no
memory, a machine that is gone), the others end within `Limits`, name it, and exit with `EXIT_LOST`;
the same command continues the run.

SIGTERM and SIGINT are passed on to the child, which saves and ends; a second one ends it at once.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable

from ml_collections import ConfigDict

from common import config as config_lib
from common import watchdog
from common.cluster import job, link
from common.cluster.channel import Channel
from common.cluster.roster import EXIT_LOST, GRACE, TICK, Limits, Roster, ticks
from common.errors import UserError, told

_SAY = 1.0  # seconds between two reports
_SHOW = 2.0  # seconds that a child has to show what it is at before it is ended
_PATIENCE = 3 * GRACE  # seconds before an error is shown that a lost process may have caused


def run_here(config: ConfigDict, workdir: str, work: Callable[[], int]) -> int:
    """Trains in this process, or in a child of it where it is one of several; returns the status.

    Args:
        config: of the run; the same for all processes.
        workdir: of the run; the same for all processes.
        work: trains; returns its exit status.

    Raises:
        UserError: the processes of the job could not come together.
    """
    settings = config.hosts
    place = job.find()
    if place is None:
        watchdog.start(settings.stacks_after)
        return work()
    version = importlib.metadata.version("jax")
    terms = f"--workdir={workdir}\njax {version}\n{config_lib.to_json(config)}"
    limits = Limits(settings.join_timeout, settings.heartbeat_timeout, settings.stall_timeout)

    def work_together() -> int:
        watchdog.start(settings.stacks_after)
        from common import hosts

        hosts.join()
        status = work()
        hosts.leave()
        return status

    return run(place, terms, limits, work_together)


def run(place: job.Job, terms: str, limits: Limits, work: Callable[[], int]) -> int:
    """Runs ``work`` as a process of a job; returns the exit status.

    To be called before threads begin and JAX or TensorFlow are imported, as it forks.

    Args:
        place: of this process.
        terms: what must be the same for all processes, as lines of text.
        limits: how long is waited for what.
        work: what the process does, joined to the others by JAX; returns its exit status. It runs
            in the child, which ends with it.

    Raises:
        UserError: the processes could not come together.
    """
    ours, theirs = socket.socketpair()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        ours.close()
        _be_child(place, theirs, work)
    theirs.close()
    supervisor = _Supervisor(place, child, Channel(ours))
    try:
        return supervisor.supervise(terms, limits)
    finally:
        supervisor.end_child()


def _be_child(place: job.Job, connection: socket.socket, work: Callable[[], int]) -> None:
    """Does the work and ends this process; whatever happens, nothing after `run` is run twice."""
    status = 1
    try:
        # Signals of the terminal go to the supervisor alone, which passes them on.
        os.setsid()
        link.open_(Channel(connection), place)
        status = work()
    except BaseException as error:
        # Where another process was lost, what fails here is no news: the supervisor ends us first.
        time.sleep(_PATIENCE)
        if (message := told(error)) is not None:
            print(f"error: {message}", file=sys.stderr)
            status = 2
        else:
            traceback.print_exc()
        link.last_words(f"ended with an error: {error}")
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


class _Supervisor:
    def __init__(self, place: job.Job, child: int, channel: Channel):
        self._job, self._child, self._channel = place, child, channel
        self._roster: Channel | None = None
        self._status: int | None = None  # of the child, once it has ended
        self._signal: int | None = None  # the first one received
        self._at, self._heard, self._since = "starting", 0.0, 0.0
        self._words = ""
        self._begun = False  # whether all processes have come

    def supervise(self, terms: str, limits: Limits) -> int:
        """Sees the job through to its end; returns the exit status."""
        with _caught((signal.SIGTERM, signal.SIGINT), self._note):
            if self._job.index == 0:
                roster = Roster(self._job.address, self._job.count, terms, limits)
                roster.start()
            self._roster = self._connect(limits.join)
            if self._roster is None:
                return EXIT_LOST if self._signal is None else 128 + self._signal
            hello = {"index": self._job.index, "count": self._job.count, "terms": terms}
            self._roster.send(host=socket.gethostname(), pid=self._child, **hello)
            status = self._watch(limits)
            if self._job.index == 0:
                self._roster.close()
                roster.join()  # the others hear the end from it
            return status

    def end_child(self) -> None:
        """Ends the child where it still runs."""
        if self._status is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._child, signal.SIGKILL)
            self._status = os.waitstatus_to_exitcode(os.waitpid(self._child, 0)[1])

    def _note(self, signum: int, frame: object) -> None:
        if self._signal is None:
            self._signal = signum
            self._channel.send(stop=signum)
        else:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._child, signal.SIGKILL)

    def _connect(self, patience: float) -> Channel | None:
        """Returns the connection to the roster; None where a signal came first, or nothing."""
        last = time.monotonic() + patience
        while self._signal is None:
            try:
                return Channel(socket.create_connection(self._job.address, timeout=5.0))
            except OSError as error:
                if time.monotonic() > last:
                    print(
                        f"error: process {self._job.index} of {self._job.count} "
                        f"({self._job.found_by}) could not reach process 0 at "
                        f"{self._job.coordinator} within {patience:.0f} s: {error}. Was it "
                        "started, and is that address right?",
                        file=sys.stderr,
                    )
                    return None
                time.sleep(TICK)
        return None

    def _watch(self, limits: Limits) -> int:
        """Passes on what child and roster say, until the roster says that it is over."""
        said, heard_roster = -_SAY, 0.0
        for clock in ticks():
            self._hear_child(clock)
            if self._status is not None and not self._begun:
                return self._status  # stopped before there was anything to stop
            if clock - said >= _SAY:
                self._roster.send(at=self._at, since=max(self._since, clock - self._heard))
                said = clock
            for message in self._roster.receive():
                heard_roster = clock
                if (status := self._obey(message)) is not None:
                    return status
            self._roster.flush()
            if self._roster.closed or clock - heard_roster > limits.silence:
                break
        why = f"process 0, which others meet at {self._job.coordinator}, is gone."
        return self._lost(why, stacks=False, status=EXIT_LOST)

    def _hear_child(self, clock: float) -> None:
        for message in self._channel.receive():
            self._heard = clock
            self._at = message.get("at", self._at)
            self._since = message.get("since", self._since)
            self._words = message.get("words", self._words)
        if self._status is None:
            pid, wait_status = os.waitpid(self._child, os.WNOHANG)
            if pid:
                self._end(os.waitstatus_to_exitcode(wait_status))

    def _end(self, code: int) -> None:
        """Tells the roster how the child ended."""
        if code < 0:
            memory = ", as happens where memory runs out" if code == -signal.SIGKILL else ""
            self._words = (
                f"was ended by {signal.Signals(-code).name}{memory}. It was last at: {self._at}."
            )
        elif not self._words:
            self._words = f"ended with exit status {code}."
        self._status = code if code >= 0 else 128 - code
        failed = code not in (0, 128 + signal.SIGTERM, 128 + signal.SIGINT)
        self._roster.send(code=code, failed=failed, words=self._words)

    def _obey(self, message: dict) -> int | None:
        """Does what the roster says; returns the exit status where that is the end."""
        if "go" in message:
            self._begun = True
            self._channel.send(go=message["go"])
        elif "refused" in message:
            raise UserError(f"{self._job.coordinator} refused this process: {message['refused']}")
        elif "done" in message:
            return self._status
        elif "verdict" in message:
            if message["own"]:
                self._say(f"it {self._words}")
                return self._status
            return self._lost(message["verdict"], message["stacks"], message["status"])
        return None

    def _lost(self, why: str, stacks: bool, status: int) -> int:
        """Ends the child because of what happened elsewhere; returns the exit status."""
        if self._status is None:
            if stacks:
                os.kill(self._child, signal.SIGUSR1)  # see `common.watchdog`
                time.sleep(_SHOW)
            self.end_child()
        self._say(why)
        return status

    def _say(self, why: str) -> None:
        print(
            f"error: process {self._job.index} of {self._job.count} stops: {why}", file=sys.stderr
        )


@contextlib.contextmanager
def _caught(signums: tuple[int, ...], handler: Callable[[int, object], None]):
    before = {signum: signal.signal(signum, handler) for signum in signums}
    try:
        yield
    finally:
        for signum, old in before.items():
            signal.signal(signum, old)
