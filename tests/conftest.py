"""What holds for all tests, and for the programs that they start."""

from __future__ import annotations

import os

# Most of the time of a test goes into compiling a network that then runs for milliseconds. XLA's
# own passes are the same at any level; this one spares LLVM half of its work.
_QUICK = "--xla_backend_optimization_level=1"
if "xla_backend_optimization_level" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_QUICK}".strip()
