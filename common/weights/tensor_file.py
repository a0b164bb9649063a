"""Files of named tensors, as Hugging Face and PyTorch write them; no code in them is executed."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from common.errors import UserError
from common.weights import torch_file

_SAFE = ".safetensors"
_TORCH = (".bin", ".pth", ".pt", ".pth.tar")
_HALF = (np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))


def load(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Returns the tensors of a file by name; those of 16-bit floats in float32.

    Args:
        path: a ``.safetensors``, or a ``.bin``, ``.pth``, ``.pt`` or ``.pth.tar`` of PyTorch that
            holds tensors by name at the top or under "state_dict".

    Raises:
        UserError: there is no such file, it is damaged or of another kind, or holds no tensors.
    """
    name = pathlib.Path(path).name.lower()
    if name.endswith(_SAFE):
        found = _safe(path)
    elif name.endswith(_TORCH):
        found = _torch(torch_file.load(path))
    else:
        raise UserError(
            f"{path}: weights are read from files that are named {', '.join((_SAFE, *_TORCH))}; "
            "save those of this one as one of them."
        )
    if not found:
        raise UserError(
            f"{path} holds no tensors by name, neither at the top nor under 'state_dict'."
        )
    return {key: _widened(value) for key, value in found.items()}


def _safe(path: str | os.PathLike) -> dict[str, np.ndarray]:
    if not os.path.isfile(path):
        raise UserError(f"{path}: there is no such file.")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
    except Exception as error:  # the library raises what it likes for damaged input
        raise UserError(f"{path}: not a readable safetensors file ({error}).") from error


def _torch(contents: Any) -> dict[str, np.ndarray]:
    if isinstance(contents, Mapping):
        contents = contents.get("state_dict", contents)
    items = contents.items() if isinstance(contents, Mapping) else ()
    return {k: v for k, v in items if isinstance(k, str) and isinstance(v, np.ndarray)}


def _widened(value: np.ndarray) -> np.ndarray:
    return value.astype(np.float32) if value.dtype in _HALF else value
