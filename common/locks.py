"""One process at a time in a folder."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import pathlib
from collections.abc import Iterator

from common.errors import UserError


@contextlib.contextmanager
def exclusive(path: str | os.PathLike[str], taken: str) -> Iterator[None]:
    """Holds a file locked; the lock ends with the process, however it ends.

    Where the file system knows no locks, nothing is held.

    Args:
        path: of the file, which is made and stays.
        taken: what to say where another process holds it.

    Raises:
        UserError: another process holds it.
        OSError: the file cannot be made.
    """
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise UserError(taken) from None
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
        yield
