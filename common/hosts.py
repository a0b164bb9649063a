"""The processes of a run: which one this is, and what they do together.

Everything else is in the arrays: a global batch, a global state. What is left are files, which the
first process writes, and decisions, which it takes for all.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from common import launch, watchdog
from common.cluster import link
from common.cluster.roster import is_local
from common.errors import UserError

_JAX_PATIENCE = 3600  # seconds; the supervisors, who say who is missing, are to be the first


def join() -> None:
    """Makes this process one of its job, for JAX; before anything asks for devices."""
    watchdog.at("waiting for the other processes")
    job, coordinator = link.wait_for_go()
    host, port = coordinator.rsplit(":", 1)
    # Signals are ours: all stop after the same step, see `common.loop`.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(
        coordinator_address=coordinator,
        num_processes=job.count,
        process_id=job.index,
        local_device_ids=None if job.device is None else [job.device],
        cluster_detection_method="deactivate",
        coordinator_bind_address=coordinator if is_local(host) else f"[::]:{port}",
        initialization_timeout=_JAX_PATIENCE,
        heartbeat_timeout_seconds=_JAX_PATIENCE,
        shutdown_timeout_seconds=_JAX_PATIENCE,
    )
    if job.index:
        launch.speak_as(job.index)


def leave() -> None:
    """Ends this process's part in its job, once all have come to their end."""
    meet("the end")
    jax.distributed.shutdown()


def index() -> int:
    """Returns this process's number, counted from 0."""
    return jax.process_index()


def count() -> int:
    """Returns how many processes take part in the run."""
    return jax.process_count()


def is_first() -> bool:
    """Returns whether this process is the one that writes what is written once."""
    return index() == 0


def meet(where: str) -> None:
    """Waits until all processes have come here."""
    if count() > 1:
        watchdog.at(f"waiting for the others: {where}")
        multihost_utils.sync_global_devices(where)


def by_first(work: Callable[[], Any]) -> Any:
    """Lets the first process do something; returns its result, which JSON can hold, in all.

    Raises:
        UserError: the work raised it; all processes do then.
    """
    if count() == 1:
        return work()
    said: dict[str, Any] = {}
    if is_first():
        try:
            said = {"result": work()}
        except UserError as error:
            said = {"error": str(error)}
    said = _from_first(said)
    if "error" in said:
        raise UserError(said["error"])
    return said["result"]


def _from_first(message: Any) -> Any:
    """Returns what the first process has to say."""
    text = np.frombuffer(json.dumps(message).encode(), np.uint8)
    size = multihost_utils.broadcast_one_to_all(np.int32(len(text)))
    padded = np.resize(text, int(size)) if is_first() else np.zeros(int(size), np.uint8)
    return json.loads(bytes(multihost_utils.broadcast_one_to_all(padded)))
