"""How a process keeps its memory: freed arrays stay, what a compiler left scattered does not."""

import os
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="settings of the GNU C library"
)


def _run(program, **variables):
    """Runs a program as a user's process would, with no settings of the tests'."""
    kept = {name: value for name, value in os.environ.items() if "MALLOC" not in name}
    environment = {**kept, "GLIBC_TUNABLES": "", "NUMPY_MADVISE_HUGEPAGE": "0", **variables}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return [int(number) for number in done.stdout.split()]


FAULTS = """
import resource, threading
import numpy as np
from common import heap

heap.keep_freed()

def fill():
    np.ones(64 << 20, np.uint8)  # taken, written to and freed

for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    thread = threading.Thread(target=fill)
    thread.start()
    thread.join()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_memory_that_was_freed_is_not_asked_of_the_system_again_unless_the_user_wants_that():
    pages = 64 * 2**20 // os.sysconf("SC_PAGE_SIZE")
    nearly_all = 0.9 * pages  # A few may lie in memory that Python's start has left behind.
    first, second = _run(FAULTS)
    assert first >= nearly_all
    assert second < pages / 10
    # Threads get arenas of their own, which give large arrays back.
    first, second = _run(FAULTS, MALLOC_TRIM_THRESHOLD_="131072")
    assert second >= nearly_all


HOLES = """
import ctypes
import jax
from common import clock, heap

heap.keep_freed()
heap.tidy_after_compiling()
library = ctypes.CDLL(None)
library.malloc.restype = ctypes.c_void_p
library.free.argtypes = [ctypes.c_void_p]

def take(size):
    address = library.malloc(ctypes.c_size_t(size))
    ctypes.memset(ctypes.c_void_p(address), 1, size)
    return address

# As a compiler does: much of what it took is free again, between what it keeps.
large = take(2 << 20)
kept = take(2000)
scattered = []
for size in range(20_000, 60_000, 8):
    scattered.append(take(size))
    kept = take(2000)
for address in [large, *scattered]:
    library.free(address)

before = clock.host_memory()
jax.monitoring.record_event_duration_secs("/jax/core/compile/backend_compile_duration", 0.1)
print(clock.host_memory() - before)
jax.monitoring.record_event_duration_secs("/jax/core/compile/backend_compile_duration", 9.0)
print(clock.host_memory() - before)
print(int(take(1 << 20) == large))
print(sum(take(size) in scattered for size in range(20_000, 60_000, 80)))
"""


def test_holes_that_a_compiler_leaves_are_given_back_and_not_gone_through_again():
    held = sum(range(20_000, 60_000, 8))
    quick, long, large_is_reused, reused = _run(HOLES)
    assert abs(quick) < held / 10
    # A page at either end of a hole may hold something else.
    assert long < -0.7 * held
    assert large_is_reused
    assert reused < 5  # of 500


def test_what_the_user_set_up_is_left_alone():
    quick, long, _, reused = _run(HOLES, MALLOC_TOP_PAD_="131072")
    assert abs(quick) < 2**22
    assert abs(long) < 2**22
    assert reused > 100
