"""Files, local or on any file system that TensorFlow knows (``gs://...``).

Local paths go without TensorFlow: importing it costs seconds that small tools do not have.
"""

from __future__ import annotations

import functools
import glob
import os
import pathlib
import sys
import tempfile
import weakref
from typing import Any

from common.errors import UserError

_KEPT_OPEN = 256  # files; systems allow a process 1,024 unless told otherwise


class File:
    """One open file that is read at given offsets; it is closed when nothing refers to it.

    Raises:
        UserError: it cannot be opened.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = os.fspath(path)
        self.remote = is_remote(self.path)
        try:
            if self.remote:
                self._file: Any = gfile(self.path).GFile(self.path, "rb")
                self._close = weakref.finalize(self, self._file.close)
            else:
                self._file = os.open(self.path, os.O_RDONLY)
                self._close = weakref.finalize(self, os.close, self._file)
        except errors() as error:
            raise UserError(f"{self.path} cannot be read: {error}") from error

    @functools.cached_property
    def size(self) -> int:
        """Bytes of the file; of one far away that is a request by itself, made when it is asked."""
        return size(self.path) if self.remote else os.fstat(self._file).st_size

    def read(self, offset: int, length: int) -> bytes:
        """Returns the bytes there; fewer where the file ends.

        Raises:
            UserError: a file far away cannot be read.
        """
        if not self.remote:
            return os.pread(self._file, length, offset)
        try:  # of what is not there TensorFlow says so only now
            self._file.seek(offset)
            return self._file.read(length)
        except errors() as error:
            raise UserError(f"{self.path} cannot be read: {error}") from error

    def __enter__(self) -> File:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()


@functools.lru_cache(maxsize=_KEPT_OPEN)
def kept_open(path: str, reader: int) -> File:
    """Returns an open local file, the same one for the same reader while it is asked for often.

    Threads may share it. It is closed once the cache and everybody else has let go of it.

    Raises:
        UserError: it cannot be opened.
    """
    return File(path)


def write_whole(path: str, data: bytes) -> None:
    """Writes a file so that it is there either whole or not at all.

    A process that is killed meanwhile leaves what `left_by_killed` finds.
    """
    if is_remote(path):
        with gfile(path).GFile(path, "wb") as file:  # object stores show a file only when whole
            file.write(data)
        return
    folder, name = os.path.split(path)
    # Several processes may write the same file, each its own one first.
    handle, temporary = tempfile.mkstemp(".tmp", f".{name}.", folder or ".")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def left_by_killed(path: str | os.PathLike) -> list[pathlib.Path]:
    """Returns what `write_whole` of this local file has begun and not finished."""
    path = pathlib.Path(path)
    return sorted(path.parent.glob(f".{glob.escape(path.name)}.*.tmp"))


def is_remote(path: str) -> bool:
    """Returns whether TensorFlow is needed to read this path."""
    return "://" in path


def size(path: str | os.PathLike) -> int:
    """Returns the bytes of a file.

    Raises:
        UserError: it cannot be read.
    """
    path = os.fspath(path)
    try:
        if is_remote(path):
            return gfile(path).stat(path).length
        return pathlib.Path(path).stat().st_size
    except errors() as error:
        raise UserError(f"{path} cannot be read: {error}") from error


class _LocalFiles:
    """The calls of `tf.io.gfile` that local paths need."""

    isdir = staticmethod(os.path.isdir)
    exists = staticmethod(os.path.exists)
    listdir = staticmethod(os.listdir)

    @staticmethod
    def glob(pattern: str) -> list[str]:
        return glob.glob(pattern, recursive=True)


def gfile(path: str) -> Any:
    """Returns ``tf.io.gfile``, or its like for local paths."""
    if not is_remote(path):
        return _LocalFiles
    from common.tf import tf

    return tf.io.gfile


def errors() -> tuple[type[BaseException], ...]:
    """Errors of files: TensorFlow's own kind only when a remote path has already loaded it."""
    if "tensorflow" in sys.modules:
        return (OSError, sys.modules["tensorflow"].errors.OpError)
    return (OSError,)
