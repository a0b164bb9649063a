"""Which clips of a video stand for it in an evaluation, by name.

A protocol is independent of the encoder: the encoder says how many frames of which size it takes
at which rate, the protocol how many clips are cut, where, and how they vary for training a probe.
docs/evaluation-linear.md and docs/evaluation-retrieval.md say exactly what each published one
computes.
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
SEGMENTS = "segments"  # Frozen: one frame from each equal part of the whole video


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
            a single one lies in the middle with `SPREAD`, and at the start otherwise. Encoders
            whose clips are whole videos (`VideoInput.segments`) get clips whose frames lie
            elsewhere in the same parts of the video; a single one has the middle ones.
        test_crops: with `SPREAD`, square crops of each clip, from the top left corner to the bottom
            right along the diagonal, as published; a single one lies in the middle.
        rule: `SPREAD`, `LOOPED`, `CONSECUTIVE` or `SEGMENTS`; see
            `common.evaluation.clips.video_clips`. Sounds are cut by the first whatever it is.
        frame_rate: frames per second at which `stride` counts.
        stride: frames between two sampled ones; 0 takes the encoder's stride and rate.
        C: of the SVM; 0 is the probe's default.
        standardise: whether the SVM sees standardised features.
        window_stride: with `SEGMENTS`, frames from one window to the next, as many as fit into a
            part of the video, instead of `test_clips`; 0 is no sliding window.
        published_bound: whether the windows end early, as those of Frozen's published code do.
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
    window_stride: int = 0
    published_bound: bool = False

    def sampling(self, inputs: VideoInput) -> VideoInput:
        """Returns what the encoder takes, at the rate and stride of the protocol if it has some."""
        if not self.stride:
            return inputs
        return dataclasses.replace(inputs, frame_rate=self.frame_rate, stride=self.stride)

    def check(self, inputs: VideoInput) -> None:
        """Raises `UserError` where the clips of the protocol are not those the encoder takes."""
        if self.rule == SEGMENTS and not inputs.segments:
            raise UserError(
                f"The protocol {self.name!r} takes frames from all parts of a video, but the "
                f"encoder takes {inputs.num_frames} neighbouring ones. Take --protocol=even or "
                "quick, or a model of a method whose clips are whole videos, such as frozen."
            )
        if self.rule in (LOOPED, CONSECUTIVE) and inputs.segments:
            raise UserError(
                f"The protocol {self.name!r} cuts windows of neighbouring frames, but the frames "
                "of the encoder are spread over the whole video. Take --protocol=even, quick or "
                "frozen."
            )

    def check_random(self, inputs: VideoInput) -> None:
        """Raises `UserError` where the random clips of the protocol are not for the encoder."""
        self.check(inputs)
        if inputs.segments or inputs.resize:
            raise UserError(
                f"The protocol {self.name!r} trains on random stretches and crops, which are not "
                "defined for an encoder that takes frames spread over a video or squares of a "
                "fixed size. Take --protocol=even, quick or frozen."
            )


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
        Protocol(
            name="frozen",
            about="Frozen in Time's published evaluation: one clip per video, the middle frame of "
            "each of its equal parts, for training and testing alike",
            train_passes=0,
            test_clips=1,
            test_crops=1,
            rule=SEGMENTS,
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


def sliding(stride: int, published_bound: bool = False) -> Protocol:
    """Returns "frozen" with its sliding window; see `common.evaluation.segments.sliding_frames`.

    Args:
        stride: frames from one window to the next, at least 1.
        published_bound: stops where the published code does.
    """
    bound = ", ending early as published" if published_bound else ""
    return dataclasses.replace(
        PROTOCOLS["frozen"],
        about="Frozen in Time's sliding window: the mean of clips whose frames lie 0, "
        f"{stride}, {2 * stride}, ... frames after the start of each equal part of the "
        f"video{bound}",
        window_stride=stride,
        published_bound=published_bound,
    )
