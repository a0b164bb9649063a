"""The per-file function of ingest: one item becomes one serialized record, or a reason why not.

It is pure and needs neither TensorFlow nor JAX, so a process pool and an Apache Beam pipeline run
the very same code.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageOps

from common.data import flow, media, records, tables, tar_source

SILENCE_DBFS = -80.0  # quieter than this counts as silent: below 16-bit noise with any gain

# Chroma at half resolution, as in the videos themselves and in the shards the published writer made
# (ffmpeg, yuvj420p); full chroma costs a third more bytes and decoding time for no visible gain.
_FRAME_SAMPLING = cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420
_FLOW_SAMPLING = cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444  # its channels are numbers, not colours
_NO_SOUND = "has no sound, which --require_sound asks for"


@dataclasses.dataclass(frozen=True)
class Settings:
    """How clips are made; part of the identity of a data set.

    Attributes:
      frame_rate: frames per second; 0 takes each file's own, at most 25.
      short_side: pixels of the stored short side, at most.
      jpeg_quality: 1 to 100.
      audio_rate: Hz of the stored sound; 0 stores none.
      flow: "none", "dis" or "tvl1".
      max_seconds: longest clip that is accepted; a clip is held in memory whole.
      require_sound: reject clips whose file has no sound.
    """

    frame_rate: float = 0.0
    short_side: int = 256
    jpeg_quality: int = 95
    audio_rate: int = 48000
    flow: str = "none"
    max_seconds: float = 600.0
    require_sound: bool = False


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of an item: a record with its facts, or a reason."""

    record: bytes | None
    facts: dict[str, Any]
    reason: str = ""


def convert(item: tables.Item, label_indices: tuple[int, ...], settings: Settings) -> Outcome:
    """Makes the record of one item; whatever is wrong with the file becomes a reason."""
    if item.problem:
        return Outcome(None, {}, item.problem)
    try:
        with tar_source.on_disk(item) as on_disk:
            clip, notes = _make_clip(on_disk, settings)
        clip.label_indices, clip.label_texts = list(label_indices), list(item.labels)
        clip.captions, dropped = _captions_within(item, clip)
        if dropped:
            notes["captions_outside"] = dropped
        record = records.serialize(clip)
        return Outcome(record, facts(clip) | {"bytes": len(record)} | notes)
    except media.Unreadable as error:
        return Outcome(None, {}, str(error))
    except MemoryError:
        return Outcome(None, {}, "needs more memory than there is")
    except Exception as error:  # noqa: BLE001 - strangers' files fail in ways nobody has listed
        return Outcome(None, {}, f"{type(error).__name__}: {error}")


def facts(clip: records.Clip) -> dict[str, Any]:
    """Returns what the dataset card tells of a clip: counts, duration, rates, sound level."""
    known: dict[str, Any] = {
        "frames": len(clip.frames_jpeg),
        "captions": len(clip.captions),
        "labels": clip.label_texts or [str(index) for index in clip.label_indices],
    }
    if clip.frame_rate:
        known |= {"frame_rate": clip.frame_rate, "seconds": len(clip.frames_jpeg) / clip.frame_rate}
    if clip.frames_jpeg:
        known["size"] = jpeg_size(clip.frames_jpeg[0])
    if clip.waveform is not None:
        known |= {"samples": len(clip.waveform), "rms_dbfs": rms_dbfs(clip.waveform)}
        if clip.audio_rate:
            known["audio_rate"] = clip.audio_rate
            known.setdefault("seconds", len(clip.waveform) / clip.audio_rate)
    return known


def jpeg_size(jpeg: bytes) -> list[int] | None:
    """Returns [height, width] from the header of a JPEG, or None when it is none."""
    position = 2
    while jpeg[:2] == b"\xff\xd8" and position + 9 <= len(jpeg) and jpeg[position] == 0xFF:
        marker = jpeg[position + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height = int.from_bytes(jpeg[position + 5 : position + 7], "big")
            return [height, int.from_bytes(jpeg[position + 7 : position + 9], "big")]
        position += 2 + int.from_bytes(jpeg[position + 2 : position + 4], "big")
    return None


def rms_dbfs(waveform_N: np.ndarray) -> float | None:
    """Returns the sound level in dB relative to full scale; None for digital silence."""
    with np.errstate(all="ignore"):  # strangers' records hold infinities and worse
        power = float(np.mean(np.square(waveform_N, dtype=np.float64))) if len(waveform_N) else 0.0
    return round(10 * math.log10(power), 2) if power > 0 else None


def _make_clip(item: tables.Item, settings: Settings) -> tuple[records.Clip, dict[str, Any]]:
    clip = records.Clip(id=item.id, path=item.name, start_s=item.start_s or 0.0)
    if _is_image(item.path):
        if settings.require_sound:
            raise media.Unreadable(_NO_SOUND)
        sink = _FrameSink(settings)
        sink.add(_read_image(item.path, settings.short_side), 1)
        clip.frames_jpeg, clip.flow_jpeg = sink.frames_jpeg, sink.flow_jpeg
        return clip, {}
    return clip, _read_streams(clip, item, settings)


def _read_streams(clip: records.Clip, item: tables.Item, settings: Settings) -> dict[str, Any]:
    """Fills the clip with frames and sound; returns notes for the card."""
    notes: dict[str, Any] = {}
    with media.open_media(item.path) as container:
        has_video = media.video_stream(container) is not None
        has_sound = bool(container.streams.audio)
        origin = media.origin(container)
        if not has_video and not has_sound:
            raise media.Unreadable("has neither video nor sound")
        if not has_sound and settings.require_sound:
            raise media.Unreadable(_NO_SOUND)
        span = _read_frames(clip, container, item, settings) if has_video else None
    if has_sound and settings.audio_rate:
        # Opened anew: demuxing both at once would hold the sound of the whole file in memory.
        with media.open_media(item.path) as container:
            try:
                clip.waveform = _read_sound(container, origin, span, item, settings)
                clip.audio_rate = settings.audio_rate
            except media.Unreadable as error:
                if span is None or settings.require_sound:
                    raise
                notes["sound_failure"] = str(error)
    if span is None and clip.waveform is None:
        raise media.Unreadable("has sound alone, and --audio_rate=0 stores none")
    if span is not None:
        clip.end_s = span.begin - origin + span.seconds
    else:
        clip.end_s = clip.start_s + len(clip.waveform) / settings.audio_rate
    return notes


def _read_frames(clip, container, item: tables.Item, settings: Settings) -> media.Span:
    reader = media.FrameReader(
        container,
        settings.frame_rate,
        settings.short_side,
        item.start_s,
        item.end_s,
        settings.max_seconds,
    )
    sink = _FrameSink(settings)
    for image_HWC, repeats in reader:
        sink.add(image_HWC, repeats)
    clip.frames_jpeg, clip.flow_jpeg = sink.frames_jpeg, sink.flow_jpeg
    clip.frame_rate = reader.span.frame_rate
    clip.start_s = reader.span.begin - media.origin(container)
    return reader.span


def _read_sound(container, origin: float, span, item, settings: Settings) -> np.ndarray:
    rate = settings.audio_rate
    if span is not None:
        num_samples = round(span.seconds * rate)
        return media.read_sound(container, rate, span.begin, None, num_samples, span.seconds)
    begin = None if item.start_s is None else origin + item.start_s
    end = None if item.end_s is None else origin + item.end_s
    waveform = media.read_sound(container, rate, begin, end, None, settings.max_seconds)
    if not len(waveform):
        raise media.Unreadable("the sound ends before the clip starts")
    return waveform


class _FrameSink:
    """Compresses frames as they come, so that a clip never lies in memory as raw pictures."""

    def __init__(self, settings: Settings):
        self.frames_jpeg: list[bytes] = []
        self.flow_jpeg: list[bytes] = []
        self._quality = settings.jpeg_quality
        self._estimate = None if settings.flow == "none" else flow.estimator(settings.flow)
        self._before: np.ndarray | None = None
        self._still = b""

    def add(self, image_HWC: np.ndarray, repeats: int) -> None:
        """Takes an upright BGR picture that is shown at `repeats` consecutive times.

        Flow frame t is the motion from frame t to t + 1; the last one repeats the one before, so
        that there are as many as frames and one index serves both.
        """
        self.frames_jpeg += [self._jpeg(image_HWC, _FRAME_SAMPLING)] * repeats
        if self._estimate is None:
            return
        grey_HW = cv2.cvtColor(image_HWC, cv2.COLOR_BGR2GRAY)
        if self._before is None:
            self._still = self._flow_jpeg(np.zeros((*grey_HW.shape, 2), np.float32))
            latest = self._still
        else:
            latest = self.flow_jpeg[-1] = self._flow_jpeg(self._estimate(self._before, grey_HW))
        self.flow_jpeg += [latest] if repeats == 1 else [self._still] * repeats
        self._before = grey_HW

    def _flow_jpeg(self, motion_HWC: np.ndarray) -> bytes:
        return self._jpeg(flow.to_image(motion_HWC), _FLOW_SAMPLING)

    def _jpeg(self, image_HWC: np.ndarray, sampling: int) -> bytes:
        options = [cv2.IMWRITE_JPEG_QUALITY, self._quality]
        options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, sampling]
        encoded, jpeg = cv2.imencode(".jpg", image_HWC, options)
        if not encoded:
            raise media.Unreadable(f"a picture of size {image_HWC.shape} cannot be compressed")
        return jpeg.tobytes()


def _is_image(path: str) -> bool:
    """Says whether a file is a still: by its ending or, where it has none, by what is in it."""
    if suffix := pathlib.Path(path).suffix.lower():
        return suffix in tables.IMAGE_SUFFIXES
    try:
        with Image.open(path):
            return True
    except OSError:
        return False


def _read_image(path: str, short_side: int) -> np.ndarray:
    """Returns a still as an upright uint8 BGR picture with the short side reduced."""
    try:
        with Image.open(path) as image:
            image = _in_eight_bits(ImageOps.exif_transpose(image), image.format).convert("RGB")
            size = media.reduced_size(*image.size, short_side)
            if size != image.size:
                image = image.resize(size, Image.Resampling.BICUBIC)
            return np.ascontiguousarray(np.asarray(image)[..., ::-1])
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise media.Unreadable(f"not a picture that can be read ({error})") from error


def _in_eight_bits(image: Image.Image, kind: str | None) -> Image.Image:
    """Returns a picture of at most 8 bits a channel; Pillow's own conversions cut off the rest."""
    if image.mode.startswith("I;16") or (image.mode == "I" and kind == "PNG"):  # 16 bits, too
        grey_HW = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((grey_HW + 128) // 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise media.Unreadable(f"which number of mode {image.mode} is white? Save 8 or 16 bits")
    return image


def _captions_within(item: tables.Item, clip: records.Clip) -> tuple[list, int]:
    """Returns the captions on the clip's clock, and how many lie outside the clip.

    Times are kept as they are where a caption is only partly inside.
    """
    kept, length = [], math.inf if clip.end_s is None else clip.end_s - clip.start_s
    for text, start, end in item.captions:
        start, end = start - clip.start_s, end - clip.start_s
        if start >= length or end <= 0:
            continue
        kept.append((text, start, end))
    return kept, len(item.captions) - len(kept)
