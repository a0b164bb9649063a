"""How every command line tool begins: stray arguments are mistakes, freed memory is kept."""

import os
import platform
import subprocess
import sys

import pytest

TOOL = """
from common import launch

def main(argv):
    print("arguments:", *argv[1:])

launch.run(main, lambda: None, takes_arguments={})
"""


def _run(takes_arguments, *arguments):
    program = [sys.executable, "-c", TOOL.format(takes_arguments), *arguments]
    return subprocess.run(program, capture_output=True, text=True, check=False)


def test_an_argument_that_is_no_flag_is_refused_unless_the_tool_takes_some():
    done = _run(False, "stray", "other")
    assert done.returncode == 2
    assert done.stderr == "error: Unexpected argument 'stray': every setting is a --flag=value.\n"
    assert done.stdout == ""
    done = _run(True, "one", "two")
    assert (done.returncode, done.stdout) == (0, "arguments: one two\n")


@pytest.mark.parametrize(
    ("tool", "flags"),
    [
        ("train", ["--workdir=x", "--config=configs/brave_demo.py"]),
        ("retrieve", ["--test=x"]),
        ("vocabulary", ["--output=x"]),
        ("data.playground", ["--output=x"]),
    ],
)
def test_a_stray_argument_is_named_before_a_tool_does_anything(tool, flags):
    command = [sys.executable, "-m", f"common.{tool}", *flags, "stray"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Unexpected argument 'stray'" in done.stderr
    assert "Traceback" not in done.stderr


FAULTS = """
import resource, threading
import numpy as np
from common import launch

launch.keep_memory()

def fill():
    np.ones(64 << 20, np.uint8)  # taken, written to and freed

for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    thread = threading.Thread(target=fill)
    thread.start()
    thread.join()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="settings of the GNU C library")
def test_memory_that_was_freed_is_not_asked_of_the_system_again_unless_the_user_wants_that():
    pages = 64 * 2**20 // os.sysconf("SC_PAGE_SIZE")
    nearly_all = 0.9 * pages  # A few may lie in memory that Python's start has left behind.

    def faults(**variables):
        kept = {name: value for name, value in os.environ.items() if "MALLOC" not in name}
        environment = {**kept, "GLIBC_TUNABLES": "", "NUMPY_MADVISE_HUGEPAGE": "0", **variables}
        done = subprocess.run(
            [sys.executable, "-c", FAULTS], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return [int(count) for count in done.stdout.split()]

    first, second = faults()
    assert first >= nearly_all
    assert second < pages / 10
    # Threads get arenas of their own, which give large arrays back.
    first, second = faults(MALLOC_TRIM_THRESHOLD_="131072")
    assert second >= nearly_all
