"""What holds for all tests, and for the programs that they start."""

from __future__ import annotations

import collections
import contextlib
import ctypes
import functools
import gc
import os
import sys

import pytest

from common import launch

# Most of the time of a test goes into compiling a network that then runs for milliseconds. XLA's
# own passes are the same at any level; this one spares LLVM half of its work.
_QUICK = "--xla_backend_optimization_level=1"
if "xla_backend_optimization_level" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_QUICK}".strip()

launch.quieten_tpu_compiler()


def pytest_collection_modifyitems(items):
    """Begins with the files of many slow tests, or the last worker would end long after others."""
    slow = collections.Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@pytest.fixture(autouse=True, scope="module")
def _nothing_outlives_its_file(request):
    """Workers that keep every program and model of a thousand tests grow to several gigabytes."""
    yield
    for kept in vars(request.module).values():
        if isinstance(kept, functools._lru_cache_wrapper):
            kept.cache_clear()
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()
    gc.collect()
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):  # glibc keeps what is freed, others do not
            ctypes.CDLL(None).malloc_trim(0)
