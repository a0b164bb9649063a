"""Decodes a stretch of a media file: frames on a regular grid of times, and sound that fits them.

Time is presentation time throughout. Frames are those a player shows at the grid times, so variable
frame rates come out right; the sound is placed by its own time stamps against the first frame and
has exactly the length of the frames, so nothing drifts. PyAV (ffmpeg's libraries) decodes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
from collections.abc import Iterator

import av
import numpy as np

DEFAULT_MAX_RATE = 25.0  # frames/s that published video representation learning stores at most
_SEEK_MARGIN = 2.0  # seconds ahead of the wanted start, so that decoders have settled by then
_GAP = 0.04  # seconds by which sound may leave its time stamps before it is placed anew
_SHORTFALL = 0.05  # share of the declared duration that may be missing at the end...
_SHORTFALL_MIN = 0.5  # ...or seconds, whichever is more
_MAX_BAD_PACKETS = 0.01  # share of packets that may fail to decode

# Before version 19, PyAV fails at metadata in other encodings than UTF-8 unless told otherwise.
_LENIENT = {"metadata_errors": "ignore"} if int(av.__version__.split(".")[0]) < 19 else {}

av.logging.set_level(av.logging.PANIC)  # failures are reported by file, with their reason


class Unreadable(Exception):
    """A file that gives no usable clip; the message says why."""


@dataclasses.dataclass(frozen=True)
class Span:
    """The stretch of a file that was decoded, in seconds on the file's own clock."""

    begin: float
    frame_rate: float
    num_frames: int

    @property
    def seconds(self) -> float:
        """Duration of the stretch: every frame is shown for one period."""
        return self.num_frames / self.frame_rate


@contextlib.contextmanager
def open_media(path: str | os.PathLike) -> Iterator[av.container.InputContainer]:
    """Opens a local file for decoding.

    Metadata in an unknown encoding is ignored (old AVI files have it), and a playlist that calls
    itself .mp4 cannot make the decoder fetch anything over the network.

    Raises:
        Unreadable: missing, empty, or not a media file.
    """
    if not os.path.exists(path):
        raise Unreadable("there is no such file")
    if os.path.getsize(path) == 0:
        raise Unreadable("the file is empty (0 bytes)")
    with open(path, "rb") as file:  # a file object: PyAV takes names in UTF-8 only
        try:
            container = av.open(file, options={"protocol_whitelist": "file"}, **_LENIENT)
        except (av.FFmpegError, ValueError) as error:
            raise Unreadable(f"not a media file that can be read ({_reason(error)})") from error
        with container:
            yield container


def video_stream(container: av.container.InputContainer) -> av.VideoStream | None:
    """Returns the stream of moving pictures; cover art of sound files is none."""
    for stream in container.streams.video:
        if not stream.disposition & av.stream.Disposition.attached_pic:
            return stream
    return None


class FrameReader:
    """Iterates over the frames of a stretch of video at a regular rate.

    Yields ``(image_HWC, repeats)``: uint8 BGR pictures, upright, and for how many consecutive grid
    times each is the one shown. When exhausted, `span` says what was read.
    """

    def __init__(
        self,
        container: av.container.InputContainer,
        frame_rate: float,
        short_side: int,
        start_s: float | None,
        end_s: float | None,
        max_seconds: float,
    ):
        """Prepares reading.

        Args:
            container: an open file that has a `video_stream`.
            frame_rate: frames per second; 0 takes the file's own, at most `DEFAULT_MAX_RATE`.
            short_side: pixels to which the short side is reduced; small pictures stay as they are.
            start_s: seconds after the start of the file, or None for its first frame.
            end_s: seconds after the start of the file, or None for its end.
            max_seconds: longest stretch that is accepted.
        """
        self._container = container
        self._stream = video_stream(container)
        self._stream.thread_type = "NONE"  # one process per core decodes already
        self._source_rate = _source_rate(self._stream)
        self._rate = frame_rate or min(self._source_rate, DEFAULT_MAX_RATE)
        self._short_side = short_side
        zero = origin(container)
        self._begin = None if start_s is None else zero + start_s
        self._end = None if end_s is None else zero + end_s
        self._max_seconds = max_seconds
        self.span: Span | None = None

    def __iter__(self) -> Iterator[tuple[np.ndarray, int]]:
        """Yields pictures and repeats.

        Raises:
            Unreadable: no frames, damaged or cut off, or longer than `max_seconds`.
        """
        # A time stamp may lie a little after its grid time, as containers round them; half a frame
        # period tells that apart from a frame that belongs to the next grid time.
        nominal = float(self._stream.guessed_rate or self._source_rate)
        tolerance = 0.5 / max(nominal, self._rate)
        decoder = _Decoder(self._container, self._stream, self._begin, tolerance)
        shown, shown_until, done, begin = None, 0.0, 0, 0.0
        limit = math.inf
        for time, frame in decoder:
            if shown is None:
                late = self._begin is None or time > self._begin + tolerance
                begin = time if late else self._begin
                if self._end is not None:
                    limit = max(1, round((self._end - begin) * self._rate))
            else:
                due = min(math.ceil((time - tolerance - begin) * self._rate), limit)
                if due > done:
                    yield self._picture(shown), due - done
                    done = due
            if done >= limit:
                break
            if time - begin > self._max_seconds:
                raise Unreadable(
                    f"lasts more than --max_seconds={self._max_seconds:g}; cut it into clips with "
                    "start and end in a table"
                )
            shown, shown_until = frame, time + self._duration(frame)
        if shown is None:
            raise Unreadable(decoder.complaint() or "the video has no frames")
        if self._begin is not None and shown_until <= self._begin:
            raise Unreadable(
                f"the clip starts at {self._begin - origin(self._container):g} s but the video "
                f"ends at {shown_until - origin(self._container):.3f} s"
            )
        if done < limit:
            decoder.check_end(shown_until, self._end)
            total = min(max(round((shown_until - begin) * self._rate), done, 1), limit)
            if total > done:
                yield self._picture(shown), total - done
                done = total
        decoder.check_packets()
        self.span = Span(begin, self._rate, done)

    def _duration(self, frame: av.VideoFrame) -> float:
        ticks = getattr(frame, "duration", 0)
        return float(ticks * frame.time_base) if ticks else 1 / self._source_rate

    def _picture(self, frame: av.VideoFrame) -> np.ndarray:
        # Pixels need not be square; the picture is stored as it is meant to look.
        aspect = self._stream.sample_aspect_ratio
        aspect = float(aspect) if aspect and 0.1 < aspect < 10 else 1.0
        width, height = reduced_size(frame.width * aspect, frame.height, self._short_side)
        resized = frame.reformat(
            width, height, "bgr24", src_colorspace=frame.colorspace, interpolation="BICUBIC"
        )
        return _upright(resized.to_ndarray(), frame)


def read_sound(
    container: av.container.InputContainer,
    sample_rate: int,
    begin: float | None,
    end: float | None,
    num_samples: int | None,
    max_seconds: float,
) -> np.ndarray | None:
    """Decodes the sound of a stretch as float32 (N,) mono in [-1, 1].

    Args:
        container: a freshly opened file.
        sample_rate: Hz to resample to.
        begin: seconds on the file's clock of the first sample, or None for the sound's own start.
        end: seconds on the file's clock, or None for the end; unused when `num_samples` is given.
        num_samples: exact length; silence where the file has no sound. None takes what there is.
        max_seconds: longest stretch that is accepted.

    Returns:
        The waveform, or None where the file has no sound track.

    Raises:
        Unreadable: there is a track but it cannot be decoded.
    """
    if not container.streams.audio:
        return None
    stream = container.streams.audio[0]
    decoder = _Decoder(container, stream, begin, 0.0)
    runs = _resampled_runs(decoder, sample_rate, end, begin, num_samples, max_seconds)
    if not runs:
        raise Unreadable(decoder.complaint() or "the sound track has no samples")
    decoder.check_packets()
    if begin is None:
        begin = runs[0][0]
    if num_samples is None:
        last, samples = runs[-1]
        decoder.check_end(last + len(samples) / sample_rate, end)
        until = last + len(samples) / sample_rate
        until = until if end is None else min(until, end)
        num_samples = max(0, round((until - begin) * sample_rate))
    waveform = np.zeros(num_samples, np.float32)
    for time, samples in runs:
        offset = round((time - begin) * sample_rate)
        first, last = max(offset, 0), min(offset + len(samples), num_samples)
        if last > first:
            waveform[first:last] = samples[first - offset : last - offset]
    return waveform


def _resampled_runs(
    decoder: _Decoder,
    sample_rate: int,
    end: float | None,
    begin: float | None,
    num_samples: int | None,
    max_seconds: float,
) -> list[tuple[float, np.ndarray]]:
    """Returns stretches of sound without gaps, each with the time of its first sample."""
    if begin is not None and num_samples is not None:
        end = begin + num_samples / sample_rate
    runs: list[tuple[float, list[np.ndarray]]] = []
    resampler, expected = None, 0.0
    for time, frame in decoder:
        if begin is None:
            begin = time
        if not frame.samples or time < begin - _SEEK_MARGIN:
            continue
        if end is not None and time >= end:
            break
        if time - begin > max_seconds:
            raise Unreadable(
                f"lasts more than --max_seconds={max_seconds:g}; cut it into clips with start and "
                "end in a table"
            )
        if resampler is None or abs(time - expected) > _GAP:
            _flush(resampler, runs)
            # Asked for integers, ffmpeg weighs the channels so that their mix never exceeds full
            # scale; asked for floats it does not, and loud stereo would be cut off 3 dB too hot.
            resampler = av.AudioResampler(format="s32", layout="mono", rate=sample_rate)
            runs.append((time, []))
            expected = time
        expected += frame.samples / frame.sample_rate
        frame.pts = None  # the run's own time counts; the resampler must not fill or drop
        runs[-1][1].extend(map(_to_float, resampler.resample(frame)))
    _flush(resampler, runs)
    whole = [(time, np.concatenate(parts)) for time, parts in runs if parts]
    return [(time, samples) for time, samples in whole if len(samples)]


def _flush(resampler: av.AudioResampler | None, runs: list) -> None:
    if resampler is not None:
        runs[-1][1].extend(map(_to_float, resampler.resample(None)))


def _to_float(part: av.AudioFrame) -> np.ndarray:
    return part.to_ndarray()[0].astype(np.float32) * np.float32(2.0**-31)


class _Decoder:
    """Iterates over (time, frame) of one stream; counts and survives damaged packets."""

    def __init__(self, container, stream, begin: float | None, tolerance: float):
        self._container, self._stream = container, stream
        self._begin, self._tolerance = begin, tolerance
        self._reset()

    def _reset(self) -> None:
        self._packets = self._bad = 0
        self._error: str | None = None

    def __iter__(self) -> Iterator[tuple[float, av.VideoFrame | av.AudioFrame]]:
        seeks = self._begin is not None and self._begin > origin(self._container) + _SEEK_MARGIN
        if seeks:
            target = int((self._begin - _SEEK_MARGIN) * av.time_base)
            with contextlib.suppress(av.FFmpegError):
                self._container.seek(target, backward=True)
            frames = self._frames()
            first = next(frames, None)
            if first is not None and first[0] <= self._begin + self._tolerance:
                yield first
                yield from frames
                return
            # Some containers seek past the target, or to the end; read from the start instead.
            self._container.seek(int(origin(self._container) * av.time_base), backward=True)
            self._reset()
        yield from self._frames()

    def _frames(self) -> Iterator[tuple[float, av.VideoFrame | av.AudioFrame]]:
        previous, step = None, 0.0
        for packet in self._demux():
            try:
                frames = packet.decode()
            except (av.FFmpegError, ValueError) as error:
                self._bad += 1
                self._error = _reason(error)
                continue
            for frame in frames:
                if getattr(frame, "is_corrupt", False):
                    self._bad += 1
                    self._error = "damaged pictures"
                time = frame.time
                if time is None:
                    time = 0.0 if previous is None else previous + step
                if isinstance(frame, av.AudioFrame):
                    step = frame.samples / frame.sample_rate
                else:
                    step = 1 / _source_rate(self._stream)
                previous = time
                yield time, frame

    def _demux(self) -> Iterator[av.Packet]:
        try:
            for packet in self._container.demux(self._stream):
                self._packets += bool(packet.size)
                yield packet
        except (av.FFmpegError, ValueError) as error:  # what was read so far is judged by its end
            self._error = _reason(error)

    def complaint(self) -> str:
        return f"cannot be decoded ({self._error})" if self._error else ""

    def check_packets(self) -> None:
        if self._bad > _MAX_BAD_PACKETS * self._packets:
            raise Unreadable(
                f"{self._bad} of {self._packets} packets cannot be decoded ({self._error})"
            )

    def check_end(self, reached: float, wanted: float | None) -> None:
        """Refuses a file that ends well before the end its header declares."""
        if not self._stream.duration:
            return
        start = self._stream.start_time or 0
        base = self._stream.time_base
        declared = float((start + self._stream.duration) * base)
        seconds = float(self._stream.duration * base)
        declared = declared if wanted is None else min(declared, wanted)
        if declared - reached > max(_SHORTFALL_MIN, _SHORTFALL * seconds):
            raise Unreadable(
                f"ends {declared - reached:.2f} s before the end its header declares "
                f"({declared:.2f} s): truncated or damaged"
            )


def reduced_size(width: float, height: float, short_side: int) -> tuple[int, int]:
    """Returns (width, height) with the short side at most `short_side`; never enlarges."""
    scale = min(1.0, short_side / min(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def _upright(image_HWC: np.ndarray, frame: av.VideoFrame) -> np.ndarray:
    """Applies the display matrix of phones and cameras: turns by quarters, and mirrors."""
    side_data = frame.side_data.get("DISPLAYMATRIX")
    if side_data is None:
        return image_HWC
    # A pixel (p, q) is shown at (a p + c q, b p + d q); see ffmpeg's libavutil/display.h.
    a, b, _, c, d = np.frombuffer(bytes(side_data), "<i4")[:5]
    if abs(int(b)) > abs(int(a)):
        image_HWC = image_HWC.transpose(1, 0, 2)
        a, d = c, b
    image_HWC = image_HWC[:, ::-1] if a < 0 else image_HWC
    image_HWC = image_HWC[::-1] if d < 0 else image_HWC
    return np.ascontiguousarray(image_HWC)


def _source_rate(stream: av.VideoStream) -> float:
    rate = stream.average_rate or stream.guessed_rate
    return float(rate) if rate and 0.01 < rate < 1000 else DEFAULT_MAX_RATE


def origin(container: av.container.InputContainer) -> float:
    """Returns the moment that players call zero, in seconds on the file's own clock."""
    return (container.start_time or 0) / av.time_base


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
