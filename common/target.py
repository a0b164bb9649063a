"""What programs are made for: the platform at hand, unless another is described, and its share."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator

import jax

NONE = "none"  # described where a program will not run, and every part has its plainest form
ROWS, LANES = 8, 128  # of numbers in a register of a TPU

_described: contextvars.ContextVar[str | None] = contextvars.ContextVar("described", default=None)
_share: contextvars.ContextVar[int] = contextvars.ContextVar("share", default=0)


def platform() -> str:
    """Returns "cpu", "gpu" or "tpu", or `NONE`."""
    return _described.get() or jax.default_backend()


@contextlib.contextmanager
def described(name: str) -> Iterator[None]:
    """Makes `platform` return `name` within the block, for programs that run elsewhere."""
    token = _described.set(name)
    try:
        yield
    finally:
        _described.reset(token)


def share() -> int:
    """Returns how many examples a device computes at once; 0 where that is not known."""
    return _share.get()


@contextlib.contextmanager
def sharing(examples: int) -> Iterator[None]:
    """Makes `share` return a number within the block, in which a program is traced."""
    token = _share.set(examples)
    try:
        yield
    finally:
        _share.reset(token)
