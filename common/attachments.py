"""Files that a trained model needs beside its weights, such as the vocabulary of its text tower.

``config.files`` lists the configuration keys that name them. A run keeps its own copies in the
folder ``files`` beside its configuration, and so does a bundle: the model goes on working when the
originals are gone.
"""

from __future__ import annotations

import filecmp
import os
import pathlib
import shutil
from typing import Any

from ml_collections import ConfigDict

from common import config as config_lib
from common.errors import UserError
from common.new_file import new_file

FOLDER = "files"


def keep(config: ConfigDict, folder: str | os.PathLike[str]) -> None:
    """Copies the files that ``config`` names into ``folder/files``; keys that are empty name none.

    Raises:
        UserError: a file is missing, or differs from the copy that is there.
    """
    for key, original in _named(config).items():
        copy = _copy_of(key, original, folder)
        if not os.path.isfile(original):
            if copy.exists():  # the run goes on from its own copy
                continue
            raise UserError(f"config.{key}: there is no file {original!r}.")
        if copy.exists():
            if not filecmp.cmp(original, copy, shallow=False):
                raise UserError(
                    f"config.{key}: {original} is not what the run in {folder} began with, which "
                    f"is kept as {copy}. Name that file, or use another --workdir."
                )
            continue
        copy.parent.mkdir(parents=True, exist_ok=True)
        with new_file(copy) as partial:
            shutil.copyfile(original, partial)


def found(config: ConfigDict, folder: str | os.PathLike[str]) -> ConfigDict:
    """Returns the configuration with its files named where ``folder`` keeps copies of them."""
    copies = _copies(config, folder)
    changed = config.copy_and_resolve_references()
    with changed.unlocked():
        changed.update_from_flattened_dict(
            {key: str(copy) for key, copy in copies.items() if copy.exists()}
        )
    return changed.lock()


def missing(config: ConfigDict, folder: str | os.PathLike[str]) -> list[pathlib.Path]:
    """Returns the copies that ``folder`` should have and has not."""
    return [copy for copy in _copies(config, folder).values() if not copy.is_file()]


def _named(config: ConfigDict) -> dict[str, Any]:
    """Returns the files by key; a configuration from before there were any has none."""
    flat = config_lib.flatten(config)
    return {key: flat[key] for key in flat.get("files", ()) if flat[key]}


def _copies(config: ConfigDict, folder: str | os.PathLike[str]) -> dict[str, pathlib.Path]:
    """Returns where ``folder`` keeps the files, by key."""
    return {key: _copy_of(key, original, folder) for key, original in _named(config).items()}


def _copy_of(key: str, original: str, folder: str | os.PathLike[str]) -> pathlib.Path:
    return pathlib.Path(folder) / FOLDER / (key + "".join(pathlib.Path(original).suffixes[-1:]))
