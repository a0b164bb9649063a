"""Which dtype networks compute in."""

from __future__ import annotations

import jax.numpy as jnp

from common import target


def compute_dtype(name: str) -> jnp.dtype:
    """Returns the dtype that ``config.compute_dtype`` stands for.

    "auto" is bfloat16 on accelerators, whose matrix units are made for it, and float32 on CPUs,
    which are slower in bfloat16. Parameters, norms and losses are float32 in any case.
    """
    if name == "auto":
        name = "float32" if target.platform() == "cpu" else "bfloat16"
    return jnp.dtype(name)
