"""Which clips of a video stand for it in an evaluation, by name.

A protocol is independent of the encoder: the encoder says how many frames of which size it takes
at which rate, the protocol how many clips are cut, where, and how they vary for training a probe.
"""

from __future__ import annotations

import dataclasses

from common.errors import UserError

# Frames are shown at 224 of 256 pixels, at whatever size the encoder takes (Recasens et al., 2021).
RESIZE_NUMERATOR, RESIZE_DENOMINATOR = 256, 224


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How a video becomes feature rows.

    Attributes:
        name: as given on the command line.
        about: one sentence for people.
        train_passes: random clips per training video, each with a random crop, flip, colour and
            grey; 0 takes the same clips as for testing.
        test_clips: clips evenly spread over the video, the first at its start, the last at its end;
            a single one lies in the middle.
        test_crops: square crops of each clip, from the top left corner to the bottom right along
            the diagonal, as published; a single one lies in the middle.
    """

    name: str
    about: str
    train_passes: int
    test_clips: int
    test_crops: int


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            name="released",
            about="BraVe's published linear evaluation: 10 random training clips per video, "
            "10 x 3 test clips",
            train_passes=10,
            test_clips=10,
            test_crops=3,
        ),
        Protocol(
            name="even",
            about="4 evenly spread centre clips per video, for training and testing alike",
            train_passes=0,
            test_clips=4,
            test_crops=1,
        ),
        Protocol(
            name="quick",
            about="one clip from the middle of each video, for training and testing alike",
            train_passes=0,
            test_clips=1,
            test_crops=1,
        ),
    )
}


def get(name: str) -> Protocol:
    """Returns the protocol of that name.

    Raises:
        UserError: there is none; names those there are.
    """
    if name not in PROTOCOLS:
        listed = "".join(f"\n  {p.name}: {p.about}" for p in PROTOCOLS.values())
        raise UserError(f"There is no protocol {name!r}. Choose one of:{listed}")
    return PROTOCOLS[name]
