"""The command answers on a machine with nothing but a CPU, reads no data and says what is wrong."""

import json

import pytest
from tool_flags import run_module, run_without

CONFIG = "--config=configs/brave_v_a.py:smoke"


@pytest.mark.slow
def test_a_run_is_forecast_without_its_data_and_without_tensorflow(tmp_path):
    arguments = ["--topology=h100:2", "--price=2.5", f"--json={tmp_path}/x/y.json"]
    nowhere = "--config.data.train=/nowhere"
    done = run_without(["tensorflow"], "common.plan", CONFIG, *arguments, nowhere)
    assert done.returncode == 0, done.stderr
    assert "2 chips, NVIDIA H100" in done.stdout
    assert "at 2.5 a chip-hour" in done.stdout
    tree = json.loads((tmp_path / "x" / "y.json").read_text())
    assert tree["config"] == "configs/brave_v_a.py:smoke" and tree["cost"] > 0


@pytest.mark.slow
def test_a_file_that_cannot_be_written_is_told_before_anything_is_compiled(tmp_path):
    done = run_module("common.plan", CONFIG, "--topology=h100:2", f"--json={tmp_path}")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and str(tmp_path) in done.stderr


@pytest.mark.slow
def test_a_mistake_is_one_line_and_status_2():
    done = run_module("common.plan", CONFIG, "--topology=v5e:3")
    assert done.returncode == 2
    assert done.stderr.startswith("error: --topology=v5e:3: chips of v5e are wired as v5e:AxB")
    assert "Traceback" not in done.stderr
