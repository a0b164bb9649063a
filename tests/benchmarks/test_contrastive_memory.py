"""The benchmark of the contrastive objective prints both tables that RESULTS.md quotes."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.slow
def test_both_forms_are_planned_and_timed_on_one_device_and_on_four():
    sizes = ["--largest=2048", "--timed=1024", "--dimensions=16", "--block=256", "--repeats=1"]
    command = [sys.executable, "-m", "benchmarks.contrastive_memory", *sizes]
    planned = []
    for devices in (1, 4):
        flag = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flag}
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        memory, times = done.stdout.split("ms per gradient")
        rows = re.findall(r"^ +([\d,]+) +[\d,]+ +([\d,]+) +([\d,]+) +([\d.]+)x$", memory, re.M)
        assert [row[0] for row in rows] == ["1,024", "2,048"]
        planned.append([int(cell.replace(",", "")) for row in rows for cell in row[1:3]])
        (row,) = re.findall(r"^ +1,024 +([\d.]+) +([\d.]+) +([\d.]+)$", times, re.M)
        assert all(float(cell) > 0 for cell in row)
    assert all(one > four for one, four in zip(*planned, strict=True))
