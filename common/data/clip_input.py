"""What a video network is given of a clip: its frames, or what changes between them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from common.errors import UserError

if TYPE_CHECKING:
    import jax

INPUTS = ("rgb", "difference")


def check(key: str, kind: str, frames: Mapping[str, int]) -> None:
    """Checks the setting of a network's input.

    Args:
        key: where it stands below ``config.model``, such as "video".
        kind: its value.
        frames: numbers of frames that the network is given, by their keys below ``config.model``.

    Raises:
        UserError: there is no such input, or there are too few frames to have differences.
    """
    if kind not in INPUTS:
        raise UserError(
            f"config.model.{key}.input is {kind!r}; it must be one of {', '.join(INPUTS)}."
        )
    for name, count in frames.items():
        if kind == "difference" and count < 2:
            raise UserError(
                f"config.model.{name} is {count}; with config.model.{key}.input='difference' "
                "it must be at least 2."
            )


def of(video_BTHWC: jax.Array, kind: str) -> jax.Array:
    """Returns what a network takes of float clips: the frames, or their differences."""
    from common.data.device_augment import frame_differences

    return frame_differences(video_BTHWC) if kind == "difference" else video_BTHWC
