"""Runs of the toy method by several real processes, which talk over the loopback interface."""

from __future__ import annotations

import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import toy_method

from common import launch

STEPS = 12


def start(workdir, count, *changes, only=None, cache=None) -> list[subprocess.Popen[str]]:
    """Starts the processes of a job.

    Args:
        workdir: of the run.
        count: processes.
        changes: KEY=VALUE, as `toy_method.main` takes them.
        only: changes of single processes, by their number.
        cache: folder of what is compiled, to be shared.
    """
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
    processes = []
    for index in range(count):
        command = [sys.executable, toy_method.__file__, str(workdir), f"steps={STEPS}"]
        command += ["checkpoint_every=2", 'validation.data="fake"', "validation.every=3"]
        command += [*changes, *(only or {}).get(index, ())]
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
            "JAX_NUM_PROCESSES": str(count),
            "JAX_PROCESS_ID": str(index),
            "PYTHONPATH": str(pathlib.Path(launch.__file__).parents[1]),
            **({"XDG_CACHE_HOME": str(cache)} if cache else {}),
        }
        processes.append(
            subprocess.Popen(
                command,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    return processes


def ends(processes, within=240.0) -> tuple[list[int], list[str]]:
    """Returns exit statuses and outputs; a process that does not end is an error."""
    last = time.monotonic() + within
    try:
        said = [p.communicate(timeout=max(1.0, last - time.monotonic()))[0] for p in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], said


def wait_for(path, lines, processes) -> None:
    """Waits until a file of metrics has so many lines."""
    while not path.exists() or path.read_text().count("\n") < lines:
        assert all(process.poll() is None for process in processes), ends(processes)
        time.sleep(0.02)


def child_of(process) -> int | None:
    """Returns the process that a supervisor watches over, once it does."""
    children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return int(children[0]) if children else None


def freeze(pid) -> None:
    """Stops a process where it is."""
    os.kill(pid, signal.SIGSTOP)
