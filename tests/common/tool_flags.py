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


def run_without(modules, tool, *arguments):
    """Runs a tool as `run_module` does; it fails, too, where it loads one of the modules."""
    program = (
        "import runpy, sys\n"
        f"sys.argv = {[tool, *map(str, arguments)]}\n"
        "try:\n"
        f"    runpy.run_module('{tool}', run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    assert not end.code, end.code\n"
        f"loaded = {set(modules)} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    command = [sys.executable, "-c", program]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def run_module(module, *arguments):
    """Runs ``python -m MODULE ARGUMENTS``; returns what came of it, as `subprocess.run` does."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
