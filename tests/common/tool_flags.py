"""Runs command line tools, in this process or in one of their own."""

import contextlib
import pathlib
import subprocess
import sys

from absl import flags

ROOT = pathlib.Path(__file__).parents[2]


@contextlib.contextmanager
def tool_flags(tool, *arguments):
    """The tool's flags with these values; gone afterwards."""
    before = set(flags.FLAGS)
    tool.define_flags()
    try:
        flags.FLAGS([tool.__name__, *map(str, arguments)])
        yield
    finally:
        for name in set(flags.FLAGS) - before:
            delattr(flags.FLAGS, name)


def run_module(module, *arguments):
    """Runs ``python -m MODULE ARGUMENTS``; returns what came of it, as `subprocess.run` does."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
