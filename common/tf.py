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

if os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1") == "1":  # which JAX sets when it is imported
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"  # it greets with pages of CPU features
# These are for products and convolutions, of which there are none here; left on, they are announced
# at every start, whatever the level.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
# Of an object in a bucket (gs://) it reads 64 MiB wherever it is asked for a byte. Of records a few
# hundred kB are read here and there: a MiB at a time, and the byte before it, where it looks first.
os.environ.setdefault("GCS_READAHEAD_BUFFER_SIZE_BYTES", str((1 << 20) + 1))

import tensorflow as tf  # noqa: E402

for _kind in ("GPU", "TPU"):
    tf.config.set_visible_devices([], _kind)

_ALIGNMENT = 64  # bytes
_WORTH_IT = 1 << 16  # bytes, below which a copy costs less than to avoid it


def empty_for_tf(shape: Sequence[int], dtype: Any) -> np.ndarray:
    """Returns an array to be filled, which TensorFlow takes from a ``numpy_function`` uncopied.

    It takes only what begins at a multiple of 64 bytes, which numpy's own arrays rarely do. Small
    arrays are left to be copied.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if size < _WORTH_IT:
        return np.empty(shape, dtype)
    room = np.empty(size + _ALIGNMENT, np.uint8)
    begin = -room.ctypes.data % _ALIGNMENT
    return room[begin : begin + size].view(dtype).reshape(shape)


__all__ = ["empty_for_tf", "tf"]
