"""The methods by name: one import line each, nothing else."""

from __future__ import annotations

from typing import Any

from common.errors import UserError
from common.method import Method


def create(config: Any) -> Method:
    """Returns the method that ``config.method`` names, built from ``config``.

    Raises:
        UserError: no method has that name.
    """
    # Imports are local so that a command which needs one method does not load the others.
    from brave.method import Brave
    from frozen.method import Frozen
    from mil_nce.method import MilNce

    methods = {"brave": Brave, "frozen": Frozen, "mil_nce": MilNce}
    if config.method not in methods:
        raise UserError(f"config.method is {config.method!r}; it must be one of {sorted(methods)}.")
    return methods[config.method](config)
