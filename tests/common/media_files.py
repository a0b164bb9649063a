"""Makes small media files of known content: frame k is one flat grey, sound has clicks."""

from __future__ import annotations

import os
import pathlib
import struct
import wave
from collections.abc import Callable, Sequence
from fractions import Fraction

import av
import numpy as np

_STEP, _LOWEST, _CYCLE = 12, 20, 18  # grey levels of successive frames; far enough apart for codecs


def grey(number: int) -> int:
    """The level of frame `number`; repeats after `_CYCLE` frames."""
    return _LOWEST + _STEP * (number % _CYCLE)


def frame_number(image: np.ndarray) -> int:
    """The number (modulo the cycle) of the frame that a decoded picture shows."""
    return round((float(image.mean()) - _LOWEST) / _STEP)


def flat(number: int, width: int, height: int) -> np.ndarray:
    return np.full((height, width, 3), grey(number), np.uint8)


def clicks(seconds: float, rate: int, at: Sequence[float], channels: int = 1) -> np.ndarray:
    """Float32 (channels, N) sound, silent but for 2 ms bursts at the given times."""
    sound = np.zeros((channels, round(seconds * rate)), np.float32)
    for time in at:
        first = round(time * rate)
        sound[:, first : first + round(0.002 * rate)] = 0.8
    return sound


def tone(seconds: float, rate: int, channels: int = 1, level: float = 0.5) -> np.ndarray:
    time = np.arange(round(seconds * rate)) / rate
    wave_N = level * np.sin(2 * np.pi * 440 * time)
    return np.tile(wave_N.astype(np.float32), (channels, 1))


def write_video(
    path: str | os.PathLike,
    num_frames: int = 25,
    rate: float = 25,
    width: int = 48,
    height: int = 32,
    times: Sequence[float] | None = None,
    sound: np.ndarray | None = None,
    sound_rate: int = 16000,
    sound_start: float = 0.0,
    layout: str = "mono",
    codec: str = "mpeg4",
    sound_codec: str = "aac",
    picture: Callable[[int, int, int], np.ndarray] = flat,
    options: dict[str, str] | None = None,
) -> pathlib.Path:
    """Writes a file whose frame k is ``picture(k, width, height)``, shown at ``times[k]``."""
    if times is None:
        times = [number / rate for number in range(num_frames)]
    with av.open(os.fspath(path), "w", options=options or {}) as container:
        video = container.add_stream(codec, rate=Fraction(rate).limit_denominator(1001))
        video.width, video.height = width, height
        video.pix_fmt = "rgb8" if codec == "gif" else "yuv420p"
        if codec == "mpeg4":
            video.bit_rate = 4_000_000
        ticks = Fraction(1, 1000) if pathlib.Path(path).suffix == ".mkv" else Fraction(1, 60000)
        if codec == "gif":
            ticks = Fraction(1, 100)
        video.codec_context.time_base = ticks
        audio = None
        if sound is not None:
            audio = container.add_stream(sound_codec, rate=sound_rate, layout=layout)
        for number, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(picture(number, width, height), format="rgb24")
            frame = frame.reformat(format=video.pix_fmt)
            frame.pts, frame.time_base = round(time / ticks), ticks
            container.mux(video.encode(frame))
        if not times:
            container.start_encoding()  # a header without frames
        else:
            container.mux(video.encode(None))
        if audio is not None:
            _write_sound(container, audio, sound, sound_rate, sound_start, layout)
    return pathlib.Path(path)


def _write_sound(container, stream, sound, rate: int, start: float, layout: str) -> None:
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound), format="fltp", layout=layout)
    frame.sample_rate, frame.time_base = rate, Fraction(1, rate)
    frame.pts = round(start * rate)
    container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def write_wav(
    path: str | os.PathLike, sound: np.ndarray, rate: int, width: int = 2
) -> pathlib.Path:
    """Writes float (channels, N) sound as 8- or 16-bit PCM."""
    if width == 1:
        data = np.round(sound.T * 127 + 128).astype(np.uint8)
    else:
        data = np.round(sound.T * 32767).astype("<i2")
    with wave.open(os.fspath(path), "wb") as file:
        file.setnchannels(sound.shape[0])
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(data.tobytes())
    return pathlib.Path(path)


def set_rotation(path: str | os.PathLike, a: int, b: int, c: int, d: int) -> None:
    """Writes a display matrix into the header of an mp4, as phones do."""
    data = bytearray(pathlib.Path(path).read_bytes())
    header = data.index(b"tkhd") + 4
    matrix = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    data[header + 40 : header + 76] = matrix
    pathlib.Path(path).write_bytes(data)


def cut(source: str | os.PathLike, target: str | os.PathLike, share: float) -> pathlib.Path:
    """Copies the first part of a file."""
    data = pathlib.Path(source).read_bytes()
    pathlib.Path(target).write_bytes(data[: int(len(data) * share)])
    return pathlib.Path(target)
