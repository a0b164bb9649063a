"""How arrays lie in the memory of a TPU, where its compiler would choose worse."""

from __future__ import annotations

from collections.abc import Sequence

import jax
from jax.experimental.layout import Layout, with_layout_constraint


def lying(x: jax.Array, major_to_minor: Sequence[int]) -> jax.Array:
    """Returns x, told that its axes lie in memory in that order; the last two fill registers.

    With an axis of one element it is left to the compiler. Told, that forgets how the batch is
    split over chips, and gathers it on all of them.
    """
    if 1 in x.shape:
        return x
    return with_layout_constraint(x, Layout(tuple(major_to_minor)))
