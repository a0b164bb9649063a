"""From one stored clip to what an encoder takes: the same way for records and for bundles."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from common.data import files, parts, records
from common.errors import UserError
from common.evaluation import clips
from common.evaluation.features import BadClip, Example
from common.evaluation.protocols import Protocol
from common.method import AudioInput, VideoInput

if TYPE_CHECKING:
    from common.data.shards import RecordSet
    from common.data.sources import Source

Cut = Callable[[records.Clip, int], np.ndarray]
"""Cuts the clips of a stored clip, given its number in its source; raises `BadClip`."""


@dataclasses.dataclass(frozen=True)
class DefaultRates:
    """Rates of records that do not say theirs, as those of other writers."""

    frame_rate: float = 25.0  # frames/s
    audio_rate: int = 48000  # Hz


class SourceReader:
    """Reads the videos of a source, one at a time, from any thread (a `features.Read`).

    Of records on local disks that are indexed by their parts, only the frames that a cut looks at
    are read: a long video costs no more than the clips that are cut from it.
    """

    def __init__(self, source: Source, modality: str, cut: Cut, rates: DefaultRates):
        """Makes the reader.

        Args:
            source: an opened record set.
            modality: "frames" or "audio".
            cut: makes the clips.
            rates: of records that do not say.

        Raises:
            UserError: the source has nothing of that modality, or no labels.
        """
        for wanted in (modality, "labels"):
            if wanted not in source.modalities:
                raise UserError(
                    f"{source.name} has no {wanted}; it has {sorted(source.modalities)}."
                )
        self._source, self._cut, self._rates = source, cut, rates
        self._modalities = frozenset({modality, "labels"})
        local = not any(files.is_remote(path) for path in source.records.paths)
        self._by_frame = modality == "frames" and source.in_parts and local

    def __len__(self) -> int:
        return len(self._source.records)

    def __call__(self, number: int) -> Example:
        """Returns the clips of a video; raises `BadClip` with the name of its record."""
        from common.data.shards import BadRecord

        try:
            clip = self._clip(number)
            name = clip.id or self._source.records.name(number)
            return Example(name, labels(clip), self._cut(clip, number))
        except BadRecord as error:  # says where it is
            raise BadClip(str(error)) from error
        except (BadClip, ValueError) as error:
            raise BadClip(f"{self._source.records.name(number)}: {error}") from error

    def _clip(self, number: int) -> records.Clip:
        record_set = self._source.records
        if self._by_frame:
            part_P4 = record_set.parts(number)
            kind_P = part_P4[:, 0]
            (context,) = record_set.read_parts(number, part_P4[kind_P == parts.CONTEXT])
            frames = _FramesOnDisk(record_set, number, part_P4[kind_P == parts.FRAME])
            return dataclasses.replace(records.deserialize(context), frames_jpeg=frames)
        serialized = record_set.read(number)
        if self._source.parse is records.parse:  # then there is a way without TensorFlow
            return records.deserialize(serialized)
        return self._parsed(serialized)

    def _parsed(self, serialized: bytes) -> records.Clip:
        from common.tf import tf

        rates = self._rates
        try:
            parsed = self._source.parse(
                tf.constant(serialized), self._modalities, rates.frame_rate, rates.audio_rate
            )
        except tf.errors.OpError as error:
            raise BadClip(error.message) from error
        values = {name: value.numpy() for name, value in parsed.items()}
        return records.Clip(
            id=values["id"].decode(errors="replace"),
            frames_jpeg=list(values.get("frames", ())),
            frame_rate=float(values["frame_rate"]),
            waveform=values.get("waveform"),
            audio_rate=round(float(values["audio_rate"])) if "audio_rate" in values else None,
            label_indices=[int(index) for index in values["labels"]],
            label_texts=[text.decode(errors="replace") for text in values["label_texts"]],
        )


class _FramesOnDisk(Sequence[bytes]):
    """The encoded frames of a record, each of them read when it is looked at."""

    def __init__(self, record_set: RecordSet, number: int, part_F4: np.ndarray):
        self._record_set, self._number, self._part_F4 = record_set, number, part_F4

    def __len__(self) -> int:
        return len(self._part_F4)

    def __getitem__(self, index: Any) -> Any:
        part_14 = self._part_F4[operator.index(index)][None]
        return self._record_set.read_parts(self._number, part_14)[0]


def cut(
    clip: records.Clip,
    inputs: VideoInput | AudioInput,
    protocol: Protocol,
    rates: DefaultRates = DefaultRates(),  # noqa: B008 - frozen
) -> np.ndarray:
    """Cuts a stored clip as a protocol says.

    Args:
        clip: the record.
        inputs: what the encoder takes.
        protocol: which clips are cut.
        rates: of records that do not say.

    Returns:
        uint8 (clips, T, S, S, 3) for a video encoder, int16 (clips, N) for an audio encoder.

    Raises:
        BadClip: the record lacks frames or sound, or a frame cannot be decoded.
    """
    if isinstance(inputs, AudioInput):
        return clips.audio_clips(sound(clip, inputs, rates), inputs, protocol)
    if not clip.frames_jpeg:
        raise BadClip("it has no frames")
    frame_rate = clip.frame_rate or rates.frame_rate
    frame = clips.encoded_frames(clip.frames_jpeg)
    try:
        return clips.video_clips(frame, len(clip.frames_jpeg), frame_rate, inputs, protocol)
    except ValueError as error:
        raise BadClip(str(error)) from error


def labels(clip: records.Clip) -> tuple[str, ...]:
    """Returns the names of a clip's labels, or their numbers where it has no names."""
    if len(clip.label_texts) >= len(clip.label_indices):
        return tuple(dict.fromkeys(clip.label_texts))
    return tuple(dict.fromkeys(str(index) for index in clip.label_indices))


def sound(clip: records.Clip, inputs: AudioInput, rates: DefaultRates) -> np.ndarray:
    """Returns a clip's sound as int16 (N,) at the encoder's rate; raises `BadClip` without one."""
    if clip.waveform is None or not len(clip.waveform):
        raise BadClip("it has no sound")
    if not np.isfinite(clip.waveform).all():
        raise BadClip("its sound holds values that are not numbers")
    return clips.to_int16(clip.waveform, clip.audio_rate or rates.audio_rate, inputs.sample_rate)
