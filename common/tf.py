"""The one door to TensorFlow: ``from common.tf import tf``.

TensorFlow reads, decodes and batches here; it never computes on an accelerator. Left alone it would
reserve the whole memory of every GPU before JAX sees it, so the devices are hidden first.
"""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # it greets with pages of CPU features

import tensorflow as tf  # noqa: E402

for _kind in ("GPU", "TPU"):
    tf.config.set_visible_devices([], _kind)

__all__ = ["tf"]
