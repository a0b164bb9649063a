"""Runs command line tools in this process."""

import contextlib

from absl import flags


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
