"""Commands in a row: what stops the whole lets the one that runs save."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from common import stages
from common.errors import UserError

ROOT = pathlib.Path(__file__).parents[2]
WORK = """
import pathlib, signal, sys, time

def save(number, _):
    time.sleep(0.7)  # longer than subprocess.run would wait
    pathlib.Path("saved").write_text(str(number))
    sys.exit(128 + number)

for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, save)
pathlib.Path("begun").touch()
time.sleep(60)
"""
WHOLE = """
from common import launch, stages
launch.run(lambda _: stages.Stages(total=2).run("Working", "work"), lambda: None)
"""


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_what_stops_the_whole_lets_the_stage_save(tmp_path, signum):
    (tmp_path / "work.py").write_text(WORK)
    whole = subprocess.Popen(
        [sys.executable, "-c", WHOLE], cwd=tmp_path, start_new_session=True,
        env={**os.environ, "PYTHONPATH": f"{ROOT}"}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not (tmp_path / "begun").exists():
        assert whole.poll() is None
        time.sleep(0.02)
    # A terminal sends Ctrl-C to all, `kill` ends one.
    (os.killpg if signum == signal.SIGINT else os.kill)(whole.pid, signum)
    _, said = whole.communicate(timeout=30)
    assert (tmp_path / "saved").read_text() == str(int(signum))
    assert whole.returncode == 128 + signum and "Traceback" not in said


def test_where_a_demo_cannot_lie_is_said_before_any_work():
    assert stages.begin("runs/my demo", "configs/brave_demo.py:smoke").name == "my demo"
    for output in ("a,b", "me@home"):
        with pytest.raises(UserError, match="has a meaning where data are named"):
            stages.begin(output, "configs/brave_demo.py")
    with pytest.raises(UserError, match="configs/nothing.py: there is no such file"):
        stages.begin("runs/demo", "configs/nothing.py")
