"""Which methods have a published file layout, and where it is read and written.

The counterpart of ``common/methods.py`` for files of other people's making: one line per method,
and nothing of a layout is known outside the method's own package.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from flax import nnx

from common.errors import UserError


class Layout(Protocol):
    """A module that reads and writes one layout."""

    def load(
        self, path: str | os.PathLike[str], model: nnx.Module, encoders: Sequence[str] = ()
    ) -> Any:
        """Fills `model`, or only some of its encoders, from a file; raises `UserError`.

        No code in the file is run.
        """
        ...

    def save(self, path: str | os.PathLike[str], model: nnx.Module, config: Any) -> None:
        """Writes `model`, built from ``config.model``, to a new file; raises `UserError`."""
        ...

    def initialise(
        self, path: str | os.PathLike[str], model: nnx.Module, config: Any
    ) -> Sequence[str]:
        """Fills what a file has of `model`, built from ``config.model``, to begin training there.

        Of variables that hold a `jax.ShapeDtypeStruct`, those that stay so are left as training
        begins with them. All or nothing: `UserError` where the file does not fit. No code in it is
        run. Returns what was filled and what was left, in sentences for the log.
        """
        ...


def check_said(config: Any, taken: Mapping[str, Any]) -> None:
    """Refuses a setting that a layout has no field for, unless it is what its readers take it for.

    Args:
        config: ``config.model``.
        taken: what whoever reads a file takes, by key.

    Raises:
        UserError: a setting is another one.
    """
    for key, value in taken.items():
        ours = operator.attrgetter(key)(config)
        if ours != value:
            raise UserError(
                f"The published layout cannot say that config.model.{key} is {ours!r}, and whoever "
                f"read it would take {value!r}. Export a bundle, which does say so."
            )


def layout_of(config: Any) -> Layout:
    """Returns the published layout of the method that ``config.method`` names.

    Raises:
        UserError: it has none.
    """
    from brave import checkpoint_layout as brave
    from frozen import checkpoint_layout as frozen
    from mil_nce import checkpoint_layout as mil_nce

    layouts = {"brave": brave, "frozen": frozen, "mil_nce": mil_nce}
    if config.method not in layouts:
        raise UserError(
            f"Method {config.method!r} has no published layout; these have one: {sorted(layouts)}."
        )
    return layouts[config.method]
