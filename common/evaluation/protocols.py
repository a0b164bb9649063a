"""Which clips of a video stand for it in an evaluation, by name.

A protocol is independent of the encoder: the encoder says how many frames of which size it takes
at which rate, the protocol how many clips are cut, where, and how they vary for training a probe.
docs/evaluation-linear.md says exactly what each published one computes.
"""

from __future__ import annotations

import dataclasses

from common.errors import UserError
from common.method import VideoInput

# Frames are shown at 224 of 256 pixels, at whatever size the encoder takes (Recasens et al., 2021).
RESIZE_NUMERATOR, RESIZE_DENOMINATOR = 256, 224

SPREAD = "spread"  # BraVe: from the first to the last place, short videos repeated first
LOOPED = "looped"  # MMV: short videos are read round and round from their first frame
CONSECUTIVE = "consecutive"  # MIL-NCE: the stored frames one after the other, black after the last


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How a video becomes feature rows.

    Attributes:
        name: as given on the command line.
        about: one sentence for people.
        train_passes: random clips per training video; 0 takes the same clips as for testing. With
            `SPREAD` each has a random crop, flip, colour and grey, with `LOOPED` a random crop of
            the encoder's size and flip; `CONSECUTIVE` has none.
        test_clips: clips evenly spread over the video, the first at its start, the last at its end;
            a single one lies in the middle with `SPREAD`, and at the start otherwise.
        test_crops: with `SPREAD`, square crops of each clip, from the top left corner to the bottom
            right along the diagonal, as published; a single one lies in the middle.
        rule: `SPREAD`, `LOOPED` or `CONSECUTIVE`; see `common.evaluation.clips.video_clips`. Sounds
            are cut by the first whatever it is.
        frame_rate: frames per second at which `stride` counts.
        stride: frames between two sampled ones; 0 takes the encoder's stride and rate.
        C: of the SVM; 0 is the probe's default.
        standardise: whether the SVM sees standardised features.
    """

    name: str
    about: str
    train_passes: int
    test_clips: int
    test_crops: int
    rule: str = SPREAD
    frame_rate: float = 0.0
    stride: int = 0
    C: float = 0.0
    standardise: bool = True

    def sampling(self, inputs: VideoInput) -> VideoInput:
        """Returns what the encoder takes, at the rate and stride of the protocol if it has some."""
        if not self.stride:
            return inputs
        return dataclasses.replace(inputs, frame_rate=self.frame_rate, stride=self.stride)


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
        Protocol(
            name="hmdb51",
            about="MIL-NCE's published linear evaluation on HMDB-51: 10 windows of consecutive "
            "frames per video, for training and testing alike; features as they are",
            train_passes=0,
            test_clips=10,
            test_crops=1,
            rule=CONSECUTIVE,
            C=100.0,
            standardise=False,
        ),
        Protocol(
            name="ucf101",
            about="MMV's published linear evaluation on UCF-101: 10 random training clips per "
            "video, 10 test windows, every second frame of 25 per second",
            train_passes=10,
            test_clips=10,
            test_crops=1,
            rule=LOOPED,
            frame_rate=25.0,
            stride=2,
            C=1e-3,
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
