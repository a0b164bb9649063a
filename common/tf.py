"""The one door to TensorFlow: ``from common.tf import tf``.

TensorFlow reads, decodes and batches here; it never computes on an accelerator. Left alone it would
reserve the whole memory of every GPU before JAX sees it, so the devices are hidden first.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # it greets with pages of CPU features

import tensorflow as tf  # noqa: E402

for _kind in ("GPU", "TPU"):
    tf.config.set_visible_devices([], _kind)

_ALIGNMENT = 64  # bytes


def empty_for_tf(shape: Sequence[int], dtype: Any) -> np.ndarray:
    """Returns an array to be filled, which TensorFlow takes from a ``numpy_function`` uncopied.

    It takes only what begins at a multiple of 64 bytes, which numpy's own arrays rarely do.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    room = np.empty(size + _ALIGNMENT, np.uint8)
    begin = -room.ctypes.data % _ALIGNMENT
    return room[begin : begin + size].view(dtype).reshape(shape)


__all__ = ["empty_for_tf", "tf"]
