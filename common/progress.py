"""Progress bars with time left: live on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
from typing import Any

import tqdm

_SECONDS_IN_LOGS = 15.0


def bar(iterable: Any = None, **settings: Any) -> tqdm.tqdm:
    """Returns tqdm's bar over an iterable or a total; a file is not filled with its redrawing."""
    interval = 0.1 if sys.stderr.isatty() else _SECONDS_IN_LOGS
    return tqdm.tqdm(iterable, mininterval=interval, maxinterval=interval, **settings)
