"""A process finds its place from flags or from what launchers set, as their manuals say they do."""

from __future__ import annotations

import http.server
import threading

import pytest
from absl import flags

from common.cluster import job
from common.cluster.job import Job
from common.errors import UserError

SLURM = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_NODELIST": "gpu[07-10,12]",
    "SLURM_STEP_TASKS_PER_NODE": "2(x4)",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "3",
    "PMIX_NAMESPACE": "prterun-host-815@1",
}


def found(environment, *argv):
    values = flags.FlagValues()
    flags.DEFINE_string("coordinator", None, "", flag_values=values)
    flags.DEFINE_integer("processes", None, "", flag_values=values)
    flags.DEFINE_integer("process", None, "", flag_values=values)
    values(["program", *argv])
    return job.find(values, environment)


def test_a_process_that_nobody_speaks_to_trains_alone():
    assert found({}) is None


def test_flags_say_it_all():
    place = found({}, "--coordinator=node1:1234", "--processes=3", "--process=2")
    assert place == Job(2, 3, "node1:1234", "flags") and place.address == ("node1", 1234)
    assert found({}, "--coordinator=node1", "--processes=3", "--process=2").address[1] == job.PORT
    assert found(SLURM, "--processes=1") is None


def test_an_indexed_job_of_kubernetes_numbers_its_pods():
    environment = {"JAX_COORDINATOR_ADDRESS": "run-0.run:8476", "JAX_NUM_PROCESSES": "4"}
    assert found({**environment, "JOB_COMPLETION_INDEX": "3"}).index == 3


@pytest.mark.parametrize(
    ("environment", "argv", "message"),
    [
        ({}, ["--processes=2"], "--coordinator=HOST:PORT and --process are not given"),
        ({"JAX_PROCESS_ID": "0"}, ["--coordinator=a:1"], "--processes is not given"),
        ({"JAX_NUM_PROCESSES": "two"}, [], "JAX_NUM_PROCESSES=two: must be a number"),
        (
            {"JAX_NUM_PROCESSES": "2", "JOB_COMPLETION_INDEX": "x"},
            ["--coordinator=a:1"],
            "JOB_COMPLETION_INDEX=x: must be a number",
        ),
        ({}, ["--coordinator=a:99999", "--processes=2", "--process=0"], "from 1 to 65535"),
        ({}, ["--coordinator=a:1", "--processes=2", "--process=2"], "count from 0 to 1"),
        ({**OPEN_MPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}, [], "--coordinator=HOST:PORT is not"),
    ],
)
def test_what_is_not_enough_is_said(environment, argv, message):
    with pytest.raises(UserError, match=message):
        found(environment, *argv)


def test_a_step_of_slurm():
    place = found(SLURM)
    assert place == Job(5, 8, f"gpu07:{61440 + 4711 % 4096}", "SLURM job 4711", device=1)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("n1", "n1"), ("n1,n2", "n1"), ("n[3,5]", "n3"), ("rack1-n[001-016,020],x", "rack1-n001")],
)
def test_the_first_machine_of_a_step_is_where_processes_meet(nodes, first):
    assert found({**SLURM, "SLURM_STEP_NODELIST": nodes}).address[0] == first


def test_devices_are_shared_out_only_where_slurm_has_not_done_it():
    assert found({**SLURM, "SLURM_GPUS_PER_TASK": "1"}).device is None
    assert found({**SLURM, "SLURM_STEP_TASKS_PER_NODE": "1(x8)"}).device is None


def test_scripts_and_shells_of_slurm_are_one_process():
    """There SLURM_NTASKS may be anything, and the step, if there is one, has a single task."""
    batch = {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_NODELIST": "a"}
    assert found(batch) is None
    assert found({**SLURM, "SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "8"}) is None


def test_open_mpi():
    place = found(OPEN_MPI)
    assert (place.index, place.count, place.device) == (3, 4, 3)
    assert place.coordinator == f"localhost:{61440 + 8151 % 4096}"
    away = {**OPEN_MPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "0"}
    place = found({**away, "JAX_COORDINATOR_ADDRESS": "node1:99"})
    assert (place.index, place.count, place.coordinator, place.device) == (3, 4, "node1:99", None)


def test_workers_of_tpu_slices_on_gke():
    environment = {"TPU_WORKER_HOSTNAMES": "t-0.t,t-1.t,t-2.t", "TPU_WORKER_ID": "1"}
    assert found(environment) == Job(1, 3, f"t-0.t:{job.PORT}", "TPU metadata")
    second_slice = {
        "MEGASCALE_NUM_SLICES": "2",
        "MEGASCALE_SLICE_ID": "1",
        "MEGASCALE_COORDINATOR_ADDRESS": "s0-t-0.t:8080",
    }
    assert found({**environment, **second_slice}) == Job(
        4, 6, f"s0-t-0.t:{job.PORT}", "TPU metadata"
    )
    assert found({"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}) is None


def test_workers_of_a_tpu_vm_ask_its_metadata_server(monkeypatch):
    attributes = {
        "worker-network-endpoints": "w:8470:10.0.0.2,w:8470:10.0.0.3",
        "agent-worker-number": "1",
        "tpu-env": "ACCELERATOR_TYPE: 'v5litepod-8'\nMEGASCALE_NUM_SLICES: ''\n",
    }

    class Server(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            name = self.path.rpartition("/")[2]
            self.send_response(200 if name in attributes else 404)
            self.end_headers()
            self.wfile.write(attributes.get(name, "").encode())

        def log_message(self, *_):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(job.glob, "glob", lambda pattern: ["/dev/accel0"] * ("accel" in pattern))
    here = {"GCE_METADATA_IP": f"127.0.0.1:{server.server_port}"}
    try:
        assert found(here) == Job(1, 2, f"10.0.0.2:{job.PORT}", "TPU metadata")
        attributes.clear()
        assert found(here) is None
    finally:
        server.shutdown()
        server.server_close()
