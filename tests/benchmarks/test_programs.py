"""The benchmarks of the loop run and print what RESULTS.md quotes, whatever the times are."""

import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


def printed(program, *arguments):
    command = [sys.executable, f"benchmarks/{program}.py", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_resume_prints_both_starts():
    text = printed("resume", "--config_file=configs/mil_nce_demo.py:smoke")
    for name in ("first start to first step", "restart to first new step"):
        assert float(re.search(rf"{name}: ([\d.]+) s", text)[1]) > 0


@pytest.mark.slow
def test_step_prints_the_overhead_of_the_loop():
    text = printed("step", "--overhead", "--repeats=30", "--config=configs/brave_demo.py:smoke")
    bare, inside = re.search(r"bare ([\d.]+) ms/step, in the loop ([\d.]+) ms/step", text).groups()
    assert float(bare) > 49 and float(inside) > 49
