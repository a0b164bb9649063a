"""What one stored clip holds: its keys, its Python side and its tensors.

A record is a ``tf.train.SequenceExample`` with the keys of MediaSequence and DMVR
(https://github.com/google-deepmind/dmvr), so shards written for DMVR, BraVe or Scenic are read as
they are, and those libraries read ours. Keys of our own add what theirs lack: a stable id, the
source path, the rates, and when each caption is said.

TensorFlow is needed by `parse` and `parse_context` alone and is imported there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from common.data import sequence_example

if TYPE_CHECKING:
    import tensorflow as tf

# Feature lists.
IMAGE = "image/encoded"  # one Feature per frame, each with exactly one JPEG
FLOW = "FORWARD_FLOW/image/encoded"  # as IMAGE; see common/data/flow.py for the scale
WAVEFORM = "WAVEFORM/feature/floats"  # one Feature with the whole mono waveform in [-1, 1]
# Context.
LABEL_INDEX = "clip/label/index"
LABEL_TEXT = "clip/label/text"
CAPTION = "caption/string"
CAPTION_START = "caption/start/timestamp"  # microseconds from the start of the clip
CAPTION_END = "caption/end/timestamp"
ID = "clip/data_id"
PATH = "clip/data_path"
CLIP_START = "clip/start/timestamp"  # microseconds from the start of the source file
CLIP_END = "clip/end/timestamp"
FRAME_RATE = "image/frame_rate"
AUDIO_RATE = "WAVEFORM/feature/sample_rate"
NUM_SAMPLES = "WAVEFORM/feature/num_samples"

MODALITIES = frozenset({"frames", "flow", "audio", "labels", "captions"})

_MICROSECONDS = 1_000_000
_CAPTION_TIMES = (CAPTION_START, CAPTION_END)
_UNKNOWN = np.iinfo(np.int64).min  # a caption time that is not known


@dataclasses.dataclass
class Clip:
    """One clip in plain Python: what ingest writes and inspection reads.

    Attributes:
      id: stable name, unique in the data set; empty in records of other writers.
      path: the file it was made from.
      frames_jpeg: JPEG bytes per frame; empty for sound alone.
      frame_rate: frames per second, or None where the record does not say (single images).
      waveform: float32 (N,) mono in [-1, 1] that starts with the first frame, or None.
      audio_rate: Hz, or None where the record does not say.
      flow_jpeg: JPEG bytes per flow frame; may be empty.
      label_indices: indices into the data set's ``labels.json``.
      label_texts: names of the labels, in the same order.
      captions: (text, start, end) in seconds from the start of the clip; NaN where not known.
      start_s: place of the clip in the source file, seconds.
      end_s: end of the clip in the source file, seconds, or None where the record does not say.
    """

    id: str = ""
    path: str = ""
    frames_jpeg: Sequence[bytes] = dataclasses.field(default_factory=list)
    frame_rate: float | None = None
    waveform: np.ndarray | None = None
    audio_rate: int | None = None
    flow_jpeg: list[bytes] = dataclasses.field(default_factory=list)
    label_indices: list[int] = dataclasses.field(default_factory=list)
    label_texts: list[str] = dataclasses.field(default_factory=list)
    captions: list[tuple[str, float, float]] = dataclasses.field(default_factory=list)
    start_s: float = 0.0
    end_s: float | None = None


def serialize(clip: Clip) -> bytes:
    """Returns the clip as one serialized SequenceExample; equal clips give equal bytes."""
    context: dict[str, Any] = {ID: [clip.id.encode()], PATH: [clip.path.encode(errors="replace")]}
    lists: dict[str, Any] = {}
    context[CLIP_START] = _timestamps([clip.start_s])
    if clip.end_s is not None:
        context[CLIP_END] = _timestamps([clip.end_s])
    if clip.frames_jpeg:
        lists[IMAGE] = [[frame] for frame in clip.frames_jpeg]
    if clip.flow_jpeg:
        lists[FLOW] = [[frame] for frame in clip.flow_jpeg]
    if clip.frame_rate is not None:
        context[FRAME_RATE] = np.array([clip.frame_rate], np.float32)
    if clip.waveform is not None:
        lists[WAVEFORM] = [np.asarray(clip.waveform, np.float32)]
        context[NUM_SAMPLES] = np.array([len(clip.waveform)])
        if clip.audio_rate is not None:
            context[AUDIO_RATE] = np.array([clip.audio_rate], np.float32)
    if clip.label_indices:
        context[LABEL_INDEX] = np.array(clip.label_indices, np.int64)
    if clip.label_texts:
        context[LABEL_TEXT] = [text.encode() for text in clip.label_texts]
    if clip.captions:
        context[CAPTION] = [text.encode() for text, _, _ in clip.captions]
        times = np.array([(start, end) for _, start, end in clip.captions], np.float64)
        if not np.isnan(times).all():
            context[CAPTION_START], context[CAPTION_END] = map(_timestamps, times.T)
    return sequence_example.encode(context, lists)


def deserialize(serialized: bytes) -> Clip:
    """Returns the clip of a record, of ours or of another writer of the same keys.

    Raises:
      ValueError: not a SequenceExample, or frames that are not one JPEG per Feature.
    """
    context, lists = sequence_example.decode(serialized)
    waveform = lists[WAVEFORM][0] if lists.get(WAVEFORM) else None
    if waveform is not None and not isinstance(waveform, np.ndarray):
        raise ValueError(f"{WAVEFORM} holds bytes, expected floats")
    captions = _strings(context, CAPTION)
    starts, ends = (_seconds(context.get(key), len(captions)) for key in _CAPTION_TIMES)
    audio_rate = _first(context, AUDIO_RATE)
    end = _first(context, CLIP_END)
    return Clip(
        id=_text(context, ID),
        path=_text(context, PATH),
        frames_jpeg=_images(lists, IMAGE),
        frame_rate=_first(context, FRAME_RATE),
        waveform=waveform,
        audio_rate=None if audio_rate is None else round(audio_rate),
        flow_jpeg=_images(lists, FLOW),
        label_indices=[int(index) for index in context.get(LABEL_INDEX, [])],
        label_texts=_strings(context, LABEL_TEXT),
        captions=list(zip(captions, starts, ends, strict=True)),
        start_s=(_first(context, CLIP_START) or 0.0) / _MICROSECONDS,
        end_s=None if end is None else end / _MICROSECONDS,
    )


def parse(
    serialized: tf.Tensor,
    modalities: Collection[str],
    default_frame_rate: float,
    default_audio_rate: int,
) -> Mapping[str, tf.Tensor]:
    """Parses one record inside a TensorFlow graph, reading only what is asked for.

    Args:
      serialized: () string.
      modalities: a subset of `MODALITIES`; a record that lacks one of frames, flow or audio is an
        error, labels and captions may be absent.
      default_frame_rate: frames per second of records that do not say.
      default_audio_rate: Hz of records that do not say.

    Returns:
      "id" () string (empty in records of other writers), "frame_rate" () float32; by modality
      "frames" and "flow" (T,) string of JPEGs; "waveform" (N,) float32 and "audio_rate" () float32;
      "labels" (L,) int64 and "label_texts" (L,) string; "captions" (K,) string and
      "caption_starts", "caption_ends" (K,) float32 seconds, NaN where the record does not say.

    Raises:
      tf.errors.InvalidArgumentError: in the graph, for a record that is malformed or lacks a
        modality.
    """
    from common.tf import tf

    context_spec = _context_spec(modalities, default_frame_rate, default_audio_rate)
    list_spec = {}
    # What is missing is an error of its own in `_entries`, in plain words.
    frames = tf.io.FixedLenSequenceFeature((), tf.string, allow_missing=True)
    if "frames" in modalities:
        list_spec[IMAGE] = frames
    if "flow" in modalities:
        list_spec[FLOW] = frames
    if "audio" in modalities:
        list_spec[WAVEFORM] = tf.io.RaggedFeature(tf.float32)
    context, lists = tf.io.parse_single_sequence_example(serialized, context_spec, list_spec)
    return _entries(context, lists)


def parse_context(
    context: tf.Tensor,
    modalities: Collection[str],
    default_frame_rate: float,
    default_audio_rate: int,
) -> Mapping[str, tf.Tensor]:
    """Parses a record without its feature lists: what `parse` returns but frames, flow and sound.

    Such bytes are a ``tf.train.Example``, which is parsed in a fraction of the time.

    Args:
      context: () string, the first field of a record.
      modalities: as `parse`; of frames, flow and audio only the rates are in the context.
      default_frame_rate: as `parse`.
      default_audio_rate: as `parse`.

    Raises:
      tf.errors.InvalidArgumentError: in the graph, for a record that is malformed.
    """
    from common.tf import tf

    spec = _context_spec(modalities, default_frame_rate, default_audio_rate)
    return _entries(tf.io.parse_single_example(context, spec), {})


def _context_spec(
    modalities: Collection[str], default_frame_rate: float, default_audio_rate: int
) -> dict[str, Any]:
    from common.tf import tf

    unknown = set(modalities) - MODALITIES
    if unknown:
        raise ValueError(f"unknown modalities {sorted(unknown)}; known: {sorted(MODALITIES)}")
    spec = {
        ID: tf.io.FixedLenFeature((), tf.string, ""),
        FRAME_RATE: tf.io.FixedLenFeature((), tf.float32, default_frame_rate),
    }
    if "audio" in modalities:
        spec[AUDIO_RATE] = tf.io.FixedLenFeature((), tf.float32, float(default_audio_rate))
    if "labels" in modalities:
        spec[LABEL_INDEX] = tf.io.RaggedFeature(tf.int64)
        spec[LABEL_TEXT] = tf.io.RaggedFeature(tf.string)
    if "captions" in modalities:
        spec[CAPTION] = tf.io.RaggedFeature(tf.string)
        for key in _CAPTION_TIMES:
            spec[key] = tf.io.RaggedFeature(tf.int64)
    return spec


def _entries(context: Mapping[str, tf.Tensor], lists: Mapping[str, Any]) -> dict[str, tf.Tensor]:
    from common.tf import tf

    record = {"id": context[ID], "frame_rate": context[FRAME_RATE]}
    for name, key in (("frames", IMAGE), ("flow", FLOW)):
        if key in lists:
            with tf.control_dependencies([_assert_some(lists[key], key)]):
                record[name] = tf.identity(lists[key])
    if WAVEFORM in lists:
        values = lists[WAVEFORM].values  # one row holds it all; see WAVEFORM
        with tf.control_dependencies([_assert_some(values, WAVEFORM)]):
            record["waveform"] = tf.identity(values)
    if AUDIO_RATE in context:
        record["audio_rate"] = context[AUDIO_RATE]
    if LABEL_INDEX in context:
        record["labels"], record["label_texts"] = context[LABEL_INDEX], context[LABEL_TEXT]
    if CAPTION in context:
        record["captions"] = context[CAPTION]
        number = tf.size(context[CAPTION])
        for name, key in zip(("caption_starts", "caption_ends"), _CAPTION_TIMES, strict=True):
            times = context[key]
            seconds = tf.cast(tf.cast(times, tf.float64) / _MICROSECONDS, tf.float32)
            seconds = tf.where(times == _UNKNOWN, float("nan"), seconds)
            missing = tf.fill([tf.maximum(number - tf.size(times), 0)], float("nan"))
            record[name] = tf.concat([seconds, missing], 0)[:number]
    return record


def _assert_some(values: tf.Tensor, key: str) -> tf.Operation:
    from common.tf import tf

    return tf.debugging.assert_positive(tf.size(values), f"the record has no {key}.")


def _timestamps(seconds: Iterable[float]) -> np.ndarray:
    return np.array(
        [_UNKNOWN if np.isnan(s) else round(s * _MICROSECONDS) for s in seconds], np.int64
    )


def _seconds(timestamps: np.ndarray | None, number: int) -> list[float]:
    values = [] if timestamps is None else [int(t) for t in timestamps][:number]
    seconds = [float("nan") if t == _UNKNOWN else t / _MICROSECONDS for t in values]
    return seconds + [float("nan")] * (number - len(seconds))


def _images(lists: Mapping[str, list], key: str) -> list[bytes]:
    features = lists.get(key, [])
    for number, values in enumerate(features):
        if not isinstance(values, list) or len(values) != 1:
            raise ValueError(
                f"{key}: Feature {number} holds {len(values)} values, expected one JPEG per Feature"
            )
    return [values[0] for values in features]


def _strings(context: Mapping[str, Any], key: str) -> list[str]:
    return [bytes(value).decode(errors="replace") for value in context.get(key, [])]


def _text(context: Mapping[str, Any], key: str) -> str:
    return next(iter(_strings(context, key)), "")


def _first(context: Mapping[str, Any], key: str) -> float | None:
    values = context.get(key, [])
    return float(values[0]) if len(values) else None
