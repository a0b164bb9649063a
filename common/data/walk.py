"""Walks a folder of media: in order, through links to folders, and past what ingest wrote."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator

DATA_SET_MARK = ".ingest"  # folder inside every data set that ingest writes


def walk(
    root: str | os.PathLike, unread: list[str] | None = None
) -> Iterator[tuple[pathlib.Path, list[str]]]:
    """Yields every folder from `root` down with the names of its files, both sorted.

    Hidden files and folders are left out, and data sets: an output inside its source is no part of
    it. Links to folders are followed, but not back to a folder that they lie in.

    Args:
      root: the folder.
      unread: is given what could not be listed, in words.
    """
    yield from _walk(pathlib.Path(root), (), [] if unread is None else unread)


def _walk(
    folder: pathlib.Path, above: tuple[str, ...], unread: list[str]
) -> Iterator[tuple[pathlib.Path, list[str]]]:
    real = os.path.realpath(folder)
    if real in above:
        unread.append(f"link to a folder that it lies in: {folder}")
        return
    try:
        with os.scandir(folder) as entries:
            is_folder = {entry.name: entry.is_dir() for entry in entries}
    except OSError as error:
        unread.append(f"folder that cannot be read: {folder} ({error.strerror})")
        return
    if is_folder.get(DATA_SET_MARK):
        return
    names = sorted(name for name in is_folder if not name.startswith("."))
    yield folder, [name for name in names if not is_folder[name]]
    for name in names:
        if is_folder[name]:
            yield from _walk(folder / name, (*above, real), unread)
