"""Which process this is, of how many."""

from __future__ import annotations

import jax


def index() -> int:
    """Returns this process's number, counted from 0."""
    return jax.process_index()


def count() -> int:
    """Returns how many processes take part in the run."""
    return jax.process_count()


def is_first() -> bool:
    """Returns whether this process is the one that writes what is written once."""
    return index() == 0
