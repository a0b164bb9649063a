"""Which process of which job this is: from flags, or from what the launcher says.

Looked at in this order; the first that speaks of more than one process counts:

1. ``--coordinator``, ``--processes`` and ``--process``, or the variables JAX_COORDINATOR_ADDRESS,
   JAX_NUM_PROCESSES and JAX_PROCESS_ID, mixed as one likes;
2. a step of SLURM (``srun``);
3. Open MPI (``mpirun``);
4. the workers of a TPU slice or of several: from their environment on GKE, from the metadata server
   on TPU VMs, which is asked only where there are TPUs.

What of the first is given stands in for what a launcher does not say: Open MPI names no host, and
pods of an indexed Kubernetes job know their own number alone (JOB_COMPLETION_INDEX).
"""

from __future__ import annotations

import dataclasses
import glob
import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping

from absl import flags

from common.errors import UserError

PORT = 8476  # where none is given and the launcher gives no number to make one of

flags.disclaim_key_flags()  # they show in the --help of the tool that calls `define_flags`

_METADATA = "http://{}/computeMetadata/v1/instance/attributes/{}"
_SECONDS = 5.0  # that the metadata server may take


@dataclasses.dataclass(frozen=True)
class Job:
    """A process's place among those that train together."""

    index: int  # of this process, from 0
    count: int  # of processes
    coordinator: str  # HOST:PORT at which process 0 is reached by all
    found_by: str  # what said so, for people
    device: int | None = None  # the only one of this machine that is used; None: all that are seen

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of the coordinator."""
        host, _, port = self.coordinator.rpartition(":")
        return host.strip("[]"), int(port)


def define_flags() -> None:
    """Defines the flags by which a process can be told its place."""
    flags.DEFINE_string(
        "coordinator", None, "HOST:PORT of process 0, where several processes train one model"
    )
    flags.DEFINE_integer("processes", None, "how many processes train together", lower_bound=1)
    flags.DEFINE_integer("process", None, "number of this process, from 0", lower_bound=0)


def find(
    values: flags.FlagValues = flags.FLAGS, environment: Mapping[str, str] = os.environ
) -> Job | None:
    """Returns this process's place in its job; None where it trains alone.

    Raises:
        UserError: what is given contradicts itself or is not enough.
    """
    given = _given(values, environment)
    if given.get("count") == 1:
        return None
    for source in (_slurm, _open_mpi, _tpu):
        said = source(environment)
        if said and said["count"] > 1:
            return _checked({**said, **given})
    if not given:
        return None
    if "index" not in given and "JOB_COMPLETION_INDEX" in environment:
        given["index"] = _number("JOB_COMPLETION_INDEX", environment)
    return _checked({"found_by": "flags", **given})


def _given(values: flags.FlagValues, environment: Mapping[str, str]) -> dict:
    """Returns what flags and JAX's own variables say."""
    names = {
        "coordinator": ("coordinator", "JAX_COORDINATOR_ADDRESS", str),
        "count": ("processes", "JAX_NUM_PROCESSES", int),
        "index": ("process", "JAX_PROCESS_ID", int),
    }
    given = {}
    for name, (flag, variable, kind) in names.items():
        value = values[flag].value if flag in values else None
        if value is None and environment.get(variable):
            value = _number(variable, environment) if kind is int else environment[variable]
        if value is not None:
            given[name] = value
    return given


def _number(variable: str, environment: Mapping[str, str]) -> int:
    try:
        return int(environment[variable])
    except ValueError:
        raise UserError(f"{variable}={environment[variable]}: must be a number.") from None


def _checked(said: dict) -> Job:
    """Returns the job that is said.

    Raises:
        UserError: something is missing or cannot be.
    """
    flag = {"coordinator": "--coordinator=HOST:PORT", "count": "--processes", "index": "--process"}
    if missing := [flag[name] for name in flag if name not in said]:
        verb = "is" if len(missing) == 1 else "are"
        raise UserError(
            f"Several processes are to train together ({said['found_by']}), but "
            f"{' and '.join(missing)} {verb} not given, and nothing in the environment says it."
        )
    if not 0 <= said["index"] < said["count"]:
        raise UserError(
            f"This is process {said['index']} of {said['count']}: processes count from 0 to "
            f"{said['count'] - 1}."
        )
    if not re.fullmatch(r".+:\d+", said["coordinator"]):
        said["coordinator"] += f":{PORT}"
    place = Job(**said)
    if not 0 < place.address[1] < 65536:
        raise UserError(f"{place.coordinator}: ports are numbers from 1 to 65535.")
    return place


def _slurm(environment: Mapping[str, str]) -> dict | None:
    """Reads a step's environment (slurm.schedmd.com/srun.html, output environment variables).

    SLURM_NTASKS is no use: it is set in batch scripts and shells, which are one process.
    """
    needed = ("SLURM_STEP_NUM_TASKS", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_JOB_ID")
    if not all(variable in environment for variable in needed):
        return None
    count, nodes, index, job = (environment[variable] for variable in needed)
    # As first in "a,b", "n[03-17,20]" and "rack1n[1,5]".
    first = re.match(r"([^,\[]+)(?:\[([^,\-\]]+))?", nodes)
    assert first, nodes
    port = 61440 + int(job) % 4096  # above what systems hand out, and another one for each job
    said = {
        "index": int(index),
        "count": int(count),
        "coordinator": f"{first[1]}{first[2] or ''}:{port}",
        "found_by": f"SLURM job {job}",
    }
    # srun binds devices to tasks where it was asked to; else tasks of one machine share them out.
    bound = {"SLURM_GPUS_PER_TASK", "SLURM_TRES_PER_TASK"} & set(environment)
    alone = environment.get("SLURM_STEP_TASKS_PER_NODE", "1").partition("(")[0] == "1"
    if not bound and not alone:
        said["device"] = int(environment["SLURM_LOCALID"])
    return said


def _open_mpi(environment: Mapping[str, str]) -> dict | None:
    """Reads what mpirun of Open MPI sets for each process (docs.open-mpi.org, environment).

    It does not say where process 0 is, except where all are on one machine.
    """
    if "OMPI_COMM_WORLD_SIZE" not in environment:
        return None
    count, index = (int(environment[f"OMPI_COMM_WORLD_{name}"]) for name in ("SIZE", "RANK"))
    said = {"index": index, "count": count, "found_by": "Open MPI"}
    here = int(environment.get("OMPI_COMM_WORLD_LOCAL_SIZE", 1))
    if here == count:
        job = re.sub(r"\D", "", environment.get("PMIX_NAMESPACE", ""))
        said["coordinator"] = f"localhost:{61440 + int(job or 0) % 4096}"
    if here > 1:
        said["device"] = int(environment["OMPI_COMM_WORLD_LOCAL_RANK"])
    return said


def _tpu(environment: Mapping[str, str]) -> dict | None:
    """Reads where a worker of TPU slices is: on GKE its environment, on a TPU VM its metadata."""
    hosts = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES")
    if hosts:
        workers, worker = hosts.split(","), int(environment.get("TPU_WORKER_ID", 0))
        slices = environment
    elif glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*"):
        ask = _metadata_of(environment)
        if not (endpoints := ask("worker-network-endpoints")):
            return None
        # A list of host names, or of name:id:address.
        workers = [entry.rpartition(":")[2] for entry in endpoints.split(",")]
        worker = int(ask("agent-worker-number") or 0)
        slices = dict(re.findall(r"^\s*(\w+): '?([^'\n]*)", ask("tpu-env"), re.MULTILINE))
    else:
        return None
    number = int(slices.get("MEGASCALE_SLICE_ID") or 0)
    first = slices.get("MEGASCALE_COORDINATOR_ADDRESS") or workers[0]
    return {
        "index": number * len(workers) + worker,
        "count": int(slices.get("MEGASCALE_NUM_SLICES") or 1) * len(workers),
        "coordinator": f"{first.partition(':')[0]}:{PORT}",
        "found_by": "TPU metadata",
    }


def _metadata_of(environment: Mapping[str, str]) -> Callable[[str], str]:
    """Returns what asks the metadata server of a TPU VM for an attribute; "" where it has none."""
    server = environment.get("GCE_METADATA_IP", "metadata.google.internal")

    def ask(attribute: str) -> str:
        request = urllib.request.Request(
            _METADATA.format(server, attribute), headers={"Metadata-Flavor": "Google"}
        )
        try:
            with urllib.request.urlopen(request, timeout=_SECONDS) as answer:
                return answer.read().decode()
        except (urllib.error.URLError, OSError):
            return ""

    return ask
