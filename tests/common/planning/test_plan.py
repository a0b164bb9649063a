"""The command answers on a machine with nothing but a CPU, reads no data and says what is wrong."""

import json
import subprocess
import sys

import pytest
from tool_flags import ROOT, run_module

CONFIG = "--config=configs/brave_v_a.py:smoke"


@pytest.mark.slow
def test_a_run_is_forecast_without_its_data_and_without_tensorflow(tmp_path):
    arguments = ["plan", CONFIG, "--topology=h100:2", "--price=2.5", f"--json={tmp_path}/x/y.json"]
    program = (
        "import runpy, sys\n"
        f"sys.argv = {[*arguments, '--config.data.train=/nowhere']}\n"
        "try:\n"
        "    runpy.run_module('common.plan', run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    assert not end.code, end.code\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "2 chips, NVIDIA H100" in done.stdout
    assert "at 2.5 a chip-hour" in done.stdout
    tree = json.loads((tmp_path / "x" / "y.json").read_text())
    assert tree["config"] == "configs/brave_v_a.py:smoke" and tree["cost"] > 0


@pytest.mark.slow
def test_a_mistake_is_one_line_and_status_2():
    done = run_module("common.plan", CONFIG, "--topology=v5e:3")
    assert done.returncode == 2
    assert done.stderr.startswith("error: --topology=v5e:3: chips of v5e are wired as v5e:AxB")
    assert "Traceback" not in done.stderr
