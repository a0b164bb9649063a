"""Where the processes of a job meet, and where it is noticed that one of them is missing.

The roster is a thread beside process 0. Supervisors (`common.cluster.supervisor`) connect to it and
say once a second what their process does. It says "go" when all have come, "done" when all have
ended, and a verdict, which ends every process, when

- not all came in time, or those that came are not of one job;
- one ended while others go on, or is gone without a word: its connection closed, or fell silent;
- none has got any further for too long: the verdict tells what each of them is at.

A connection says only what it is told; nothing that is received is run.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import math
import signal
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

from common.cluster.channel import Channel
from common.errors import UserError

TICK = 0.25  # seconds between two looks
EXIT_LOST = 75  # EX_TEMPFAIL: another process is lost; to be started again
GRACE = 1.0  # seconds in which others may have failed before the one that is noticed first
_LEAVE = 10.0  # seconds in which all may leave once it is over


def ticks() -> Iterator[float]:
    """Yields after every `TICK` the seconds since the beginning.

    They stand still while this machine sleeps: nobody is late for that.
    """
    clock, last = 0.0, time.monotonic()
    while True:
        time.sleep(TICK)
        now = time.monotonic()
        clock, last = clock + min(now - last, 4 * TICK), now
        yield clock


@dataclasses.dataclass(frozen=True)
class Limits:
    """How long is waited for what, in seconds."""

    join: float  # for all processes to come
    silence: float  # without a word from a machine
    stall: float  # without any progress of a process, and for the last to end after the first


@dataclasses.dataclass
class _Member:
    channel: Channel
    index: int
    host: str
    pid: int
    heard: float
    at: str = "starting"
    since: float = 0.0
    ended: dict[str, Any] | None = None  # how its process ended; see `Supervisor._end`
    ended_at: float = 0.0

    def __str__(self) -> str:
        return f"process {self.index} on {self.host}"


class Roster(threading.Thread):
    """Waits for all processes of a job, then watches over them; see the top of this file."""

    def __init__(self, address: tuple[str, int], count: int, terms: str, limits: Limits):
        """Opens the meeting place.

        Args:
            address: host and port that others reach it at.
            count: processes of the job.
            terms: what all must agree on, in words; see `supervisor.run`.
            limits: how long is waited.

        Raises:
            UserError: the port is taken.
        """
        super().__init__(name="roster", daemon=True)
        self._count, self._terms, self._limits = count, terms, limits
        self._host = address[0]
        self._address = f"{address[0]}:{address[1]}"
        self._members: dict[int, _Member] = {}
        self._strangers: list[Channel] = []
        self._begun = self._over = False
        self._verdict: dict[str, Any] = {}  # that those who come late hear as well
        self._listener = _listen(address)

    def run(self) -> None:
        """Watches until the job is over and all have left."""
        end = math.inf
        for clock in ticks():
            self._accept()
            self._hear(clock)
            if self._over:
                end = min(end, clock + _LEAVE)
            elif self._begun:
                self._judge(clock)
            else:
                self._gather(clock)
            for member in self._members.values():
                member.channel.send(here=True)
            if clock > end or (self._over and self._all_left()):
                break
        self._listener.close()

    def _all_left(self) -> bool:
        """Whether nobody is left who has to hear how it ended; process 0 comes late, if at all."""
        return 0 in self._members and all(m.channel.closed for m in self._members.values())

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                self._strangers.append(Channel(self._listener.accept()[0]))

    def _hear(self, clock: float) -> None:
        strangers, self._strangers = self._strangers, []
        for channel in strangers:
            if messages := channel.receive():
                self._welcome(channel, messages[0], clock)
            elif not channel.closed:
                self._strangers.append(channel)
        for member in self._members.values():
            for message in member.channel.receive():
                member.heard = clock
                member.at = message.get("at", member.at)
                member.since = message.get("since", member.since)
                if "code" in message:
                    member.ended, member.ended_at = message, clock

    def _welcome(self, channel: Channel, hello: dict[str, Any], clock: float) -> None:
        """Takes one in who says who it is, or tells it why not."""
        try:
            member = _Member(channel, int(hello["index"]), hello["host"], hello["pid"], clock)
            count, terms = int(hello["count"]), str(hello["terms"])
        except (KeyError, TypeError, ValueError):
            channel.close()
            return
        other = self._members.get(member.index)
        if other or not 0 <= member.index < self._count:
            taken = f"{other} (pid {other.pid}) already is" if other else f"of {self._count}"
            channel.send(refused=f"this is process {member.index}, but {taken}.")
            return
        self._members[member.index] = member
        if self._verdict:
            channel.send(**self._verdict)
        elif count != self._count:
            self._end(f"{member} counts {count} processes, process 0 {self._count}.")
        elif terms != self._terms:
            self._end(
                f"{member} and process 0 are not the same run: {_difference(terms, self._terms)}."
            )

    def _gather(self, clock: float) -> None:
        gone = [member for member in self._members.values() if member.channel.closed]
        if gone:
            ended = gone[0].ended
            how = ended["words"] if ended and ended["failed"] else "left before all had come."
            self._end(f"{gone[0]} {how}")
        elif len(self._members) == self._count:
            self._begun = True
            for member in self._members.values():
                member.heard = clock
            coordinator = f"{self._host}:{_free_port(self._host)}"
            for member in self._members.values():
                member.channel.send(go=coordinator)
        elif clock > self._limits.join:
            missing = [n for n in range(self._count) if n not in self._members]
            came = ", ".join(map(str, self._members.values()))
            self._end(
                f"{_numbers(missing)} of {self._count} did not come to {self._address} within "
                f"{self._limits.join:.0f} s; {came} did. Were they started, with the same command, "
                "and can they reach that address?"
            )

    def _judge(self, clock: float) -> None:
        """Looks whether all is well, or over."""
        members = list(self._members.values())
        running = [member for member in members if not member.ended]
        if self._failed(members, running, clock):
            return None
        if not running:
            self._over = True
            for member in members:
                member.channel.send(done=True)
            return None
        for member in running:
            if member.channel.closed:
                return self._end(f"{member} is gone. It was last at: {member.at}.")
            if clock - member.heard > self._limits.silence:
                return self._end(
                    f"{member} has not been heard of for {self._limits.silence:.0f} s. It was last "
                    f"at: {member.at}."
                )
        first = min((member.ended_at for member in members if member.ended), default=clock)
        if max(clock - first, *(member.since for member in running)) > self._limits.stall:
            others = "" if first == clock else f" since others ended {clock - first:.0f} s ago"
            self._end(
                f"nothing has gone on for config.hosts.stall_timeout={self._limits.stall:.0f} s"
                f"{others}: {_listing(running)}.",
                stacks=True,
            )
        return None

    def _failed(self, members: list[_Member], running: list[_Member], clock: float) -> bool:
        """Ends the job where a process failed, once it is clear which was the first.

        Those that a lost process takes with it fail soon after it. JAX ends processes by SIGABRT
        when another one is lost, so who ended so is the first only where nobody ended otherwise.
        """
        failed = [member for member in members if member.ended and member.ended["failed"]]
        if not failed:
            return False
        first = min(failed, key=lambda m: (m.ended["code"] == -signal.SIGABRT, m.ended_at))
        if running and clock - first.ended_at <= GRACE:
            return True
        if {member.ended["words"] for member in failed} == {first.ended["words"]} and not running:
            return False  # all have said the same themselves
        self._end(f"{first} {first.ended['words']}", culprit=first)
        return True

    def _end(self, verdict: str, stacks: bool = False, culprit: _Member | None = None) -> None:
        """Ends the job for all.

        Args:
            verdict: why.
            stacks: whether they first show what they are at.
            culprit: the process whose end it is.
        """
        self._over = True
        # What a process found wrong itself will be wrong again; what befell it may not.
        code = culprit.ended["code"] if culprit else -1
        status = code if code > 0 else EXIT_LOST
        self._verdict = {"verdict": verdict, "stacks": stacks, "status": status, "own": False}
        for member in self._members.values():
            member.channel.send(**{**self._verdict, "own": member is culprit})


def _listing(members: list[_Member]) -> str:
    """Says what each is at; those at the same thing together."""
    by_place = collections.defaultdict(list)
    for member in members:
        by_place[member.at].append(member)
    said = []
    for place, there in sorted(by_place.items(), key=lambda item: len(item[1])):
        who = str(there[0]) if len(there) == 1 else _numbers([m.index for m in there])
        said.append(f"{who}: {place}, for {max(m.since for m in there):.0f} s")
    return "; ".join(said)


def _numbers(indices: list[int]) -> str:
    """Returns "process 3" or "processes 0-2, 5"."""
    runs: list[list[int]] = []
    for index in sorted(indices):
        if runs and index == runs[-1][-1] + 1:
            runs[-1].append(index)
        else:
            runs.append([index])
    text = ", ".join(str(r[0]) if len(r) == 1 else f"{r[0]}-{r[-1]}" for r in runs)
    return f"process{'es' if len(indices) > 1 else ''} {text}"


def _difference(theirs: str, ours: str) -> str:
    """Returns the first line that differs."""
    for one, other in zip(theirs.splitlines(), ours.splitlines(), strict=False):
        if one != other:
            return f"{one.strip()!r} there, {other.strip()!r} here"
    return "one of them says more than the other"


def _listen(address: tuple[str, int]) -> socket.socket:
    try:
        listener = _server(*address)
    except OSError as error:
        port = address[1]
        raise UserError(
            f"Process 0 cannot listen at port {port} for the others ({error.strerror}); is an "
            "earlier run still there? Name another one with --coordinator=HOST:PORT."
        ) from error
    listener.setblocking(False)
    return listener


def _server(host: str, port: int) -> socket.socket:
    """Listens where the name of this machine may lead: at all of its addresses, of both kinds."""
    if is_local(host):
        return socket.create_server((host, port), backlog=1024)
    if socket.has_dualstack_ipv6():
        with contextlib.suppress(OSError):  # where the system has it switched off
            family = socket.AF_INET6
            return socket.create_server(
                ("", port), family=family, backlog=1024, dualstack_ipv6=True
            )
    return socket.create_server(("", port), backlog=1024)


def is_local(host: str) -> bool:
    """Returns whether only this machine can be meant."""
    return host == "localhost" or host.startswith("127.")


def _free_port(host: str) -> int:
    with _server(host, 0) as server:
        return server.getsockname()[1]
