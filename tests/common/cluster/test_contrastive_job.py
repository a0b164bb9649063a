"""Promise: contrastive sums over the batch are the same where it lies on two processes.

Run as a program it is one of them: ``python test_contrastive_job.py FILE`` writes what it finds.
"""

from __future__ import annotations

import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[3]


def measure(batch):
    """Returns sums and gradients of a contrastive objective of two arrays (B, D) and (B, K, D)."""
    import jax

    from common import contrastive

    def total(x_BD, y_BKD):
        found = contrastive.negatives(x_BD, y_BKD, block=3)
        return (found.rows_B + 0.5 * found.columns_B).mean()

    value, pulls = jax.jit(jax.value_and_grad(total, argnums=(0, 1)))(*batch)
    return value, *pulls


def arrays():
    generator = np.random.default_rng(0)
    return [generator.standard_normal(shape).astype(np.float32) for shape in [(10, 4), (10, 3, 4)]]


def main(path):
    from common.cluster import job, supervisor
    from common.cluster.roster import Limits

    def work():
        import jax
        from jax.experimental import multihost_utils
        from toy_method import get_config

        from common import hosts, sharding

        hosts.join()
        mesh = sharding.make_mesh(get_config(batch_size=10))
        rows = sharding.local_rows(mesh, 10)
        batch = [
            jax.make_array_from_process_local_data(sharding.batch_sharding(mesh), array[rows])
            for array in arrays()
        ]
        found = [multihost_utils.process_allgather(x, tiled=True) for x in measure(batch)]
        if hosts.is_first():
            np.savez(path, *found)
        hosts.leave()
        return 0

    return supervisor.run(job.find(), "", Limits(60.0, 30.0, 60.0), work)


@pytest.mark.slow
def test_two_processes_find_what_one_does(tmp_path):
    with socket.create_server(("localhost", 0)) as server:
        place = f"localhost:{server.getsockname()[1]}"
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(tmp_path / "found.npz")],
            env={
                **os.environ,
                "JAX_PLATFORMS": "cpu",
                "JAX_COORDINATOR_ADDRESS": place,
                "JAX_NUM_PROCESSES": "2",
                "JAX_PROCESS_ID": str(index),
                "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests' / 'common'}",
            },
        )
        for index in range(2)
    ]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    found = np.load(tmp_path / "found.npz")
    for name, expected in zip(found, measure(arrays()), strict=True):
        np.testing.assert_allclose(found[name], expected, rtol=1e-5, atol=1e-6)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
