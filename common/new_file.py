"""Files that appear whole, under a name that nobody has."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from common.errors import UserError


@contextlib.contextmanager
def new_file(path: str | os.PathLike[str]) -> Iterator[str]:
    """Gives a name beside ``path`` to write to; the file moves to ``path`` when the block ends.

    Nothing stays of a block that fails.

    Raises:
        UserError: the file exists.
    """
    if os.path.exists(path):
        raise UserError(f"{path} exists already; nothing was written. Remove it or name another.")
    partial = f"{os.fspath(path)}.partial-{os.getpid()}"
    try:
        yield partial
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(partial)
        raise
