"""A folder belongs to one process at a time."""

from __future__ import annotations

import subprocess
import sys

import pytest

from common import locks
from common.errors import UserError

HOLD = """
import sys, time
from common import locks
with locks.exclusive(sys.argv[1], "taken"):
    print("held", flush=True)
    time.sleep(600)
"""


def test_the_second_process_is_refused_until_the_first_is_dead(tmp_path):
    path = tmp_path / "run" / ".lock"
    first = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert first.stdout.readline() == "held\n"
        with (
            pytest.raises(UserError, match="somebody is here"),
            locks.exclusive(path, "somebody is here"),
        ):
            pass
    finally:
        first.kill()  # as kill -9: nothing is tidied up
        first.wait()
    with locks.exclusive(path, "somebody is here"):
        pass
    with locks.exclusive(path, "somebody is here"):
        pass
