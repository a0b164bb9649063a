"""The platform that programs are made for: the one at hand, unless another is described."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator

import jax

_described: contextvars.ContextVar[str | None] = contextvars.ContextVar("described", default=None)


def platform() -> str:
    """Returns "cpu", "gpu" or "tpu"."""
    return _described.get() or jax.default_backend()


@contextlib.contextmanager
def described(name: str) -> Iterator[None]:
    """Makes `platform` return `name` within the block, for programs that run elsewhere."""
    token = _described.set(name)
    try:
        yield
    finally:
        _described.reset(token)
