"""Plans the videos of a playground and writes them as mp4: h264 pictures and AAC sound."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from fractions import Fraction

import av
import cv2
import numpy as np

from common.data.playground_motion import ACTIONS, POOLS, Scene, draw_scene
from common.data.playground_scene import render
from common.data.playground_sound import finish, synthesize
from common.data.playground_text import Caption, caption, narrate

SPLITS = ("train", "test", "long_train", "long_test")
_SHORT_SECONDS = (2.4, 3.2)
_LONG_SECONDS = (16.0, 39.0)
_EVENT_SECONDS = 3.4  # of an event in a long video, on average
_PLAN, _WORDS, _SOUND = range(3)  # separate streams of random numbers of one video


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a whole playground has in common; with split and number it fixes every byte."""

    seed: int = 0
    size: int = 128  # pixels, width and height; even
    frame_rate: str = "12.5"  # frames per second, a number or a fraction
    audio_rate: int = 16_000  # Hz
    clutter: float = 1.0  # 0 to 1: how much of what one sees and hears is beside the point

    @property
    def samples_per_frame(self) -> int:
        """Samples of sound during one frame; a whole number, so that the two never drift."""
        return int(self.audio_rate / Fraction(self.frame_rate))


@dataclasses.dataclass(frozen=True)
class Video:
    """One video before it is drawn: its scenes one after the other, and what is said."""

    scenes: tuple[Scene, ...]
    num_frames: tuple[int, ...]  # of each scene
    starts: tuple[float, ...]  # of each scene, in seconds
    captions: tuple[Caption, ...]
    ambience: int
    duration: float  # seconds


def plan(settings: Settings, split: str, number: int) -> Video:
    """Decides everything about video ``number`` of a split, a pure function of its arguments."""
    rng = _stream(settings, split, number, _PLAN)
    words = _stream(settings, split, number, _WORDS)
    pool = POOLS[split.removeprefix("long_")]
    rate = Fraction(settings.frame_rate)
    if split.startswith("long_"):
        total = rng.uniform(*_LONG_SECONDS)
        share_E = rng.uniform(0.8, 1.25, round(total / _EVENT_SECONDS))
        num_frames = [round(seconds * rate) for seconds in total * share_E / share_E.sum()]
        actions = rng.choice(ACTIONS, len(num_frames))
    else:
        num_frames = [round(rng.uniform(*_SHORT_SECONDS) * rate)]
        # Every block of len(ACTIONS) clips holds each action once.
        block, place = divmod(number, len(ACTIONS))
        order = np.random.default_rng([settings.seed, SPLITS.index(split), block])
        actions = [ACTIONS[order.permutation(len(ACTIONS))[place]]]
    scenes = [
        draw_scene(rng, str(action), pool, float(frames / rate), settings.clutter)
        for action, frames in zip(actions, num_frames, strict=True)
    ]
    # A long video stays in one place.
    background = {name: getattr(scenes[0], name) for name in ("background", "background_colours")}
    scenes = [dataclasses.replace(scene, **background) for scene in scenes]
    starts = [float(sum(num_frames[:count]) / rate) for count in range(len(scenes))]
    duration = float(sum(num_frames) / rate)
    if split.startswith("long_"):
        captions = narrate(list(zip(starts, scenes, strict=True)), duration, words)
    else:
        captions = [Caption(caption(scenes[0], words), 0.0, duration, "clean")]
    return Video(
        scenes=tuple(scenes),
        num_frames=tuple(num_frames),
        starts=tuple(starts),
        captions=tuple(captions),
        ambience=pool.draw(rng),
        duration=duration,
    )


def row(settings: Settings, split: str, number: int) -> dict:
    """Returns the line of a video in its split's table; paths are relative to the table."""
    video = plan(settings, split, number)
    events = [
        {
            "action": scene.action,
            "object": scene.look.kind,
            "material": scene.material,
            "start": round(start + scene.span()[0], 3),
            "end": round(start + scene.span()[1], 3),
            "impact": None if scene.impact() is None else round(start + scene.impact(), 3),
        }
        for start, scene in zip(video.starts, video.scenes, strict=True)
    ]

    def distinct(name: str) -> list[str]:
        return list(dict.fromkeys(event[name] for event in events))

    return {
        "id": f"{split}-{number:06d}",
        "path": path(split, number),
        "labels": distinct("action"),
        "object": distinct("object"),
        "material": distinct("material"),
        "captions": [
            {"text": line.text, "start": line.start, "end": line.end, "timing": line.timing}
            for line in video.captions
        ],
        "duration": video.duration,
        "events": events,
    }


def path(split: str, number: int) -> str:
    """Returns where a video lies, relative to the playground's folder."""
    return f"{split}/{number:06d}.mp4"


def draw(settings: Settings, split: str, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws one video: uint8 frames (T, size, size, 3) RGB and int16 mono PCM (N,)."""
    video = plan(settings, split, number)
    rng = _stream(settings, split, number, _SOUND)
    rate = float(Fraction(settings.frame_rate))
    pictures, sounds = [], []
    for scene, frames in zip(video.scenes, video.num_frames, strict=True):
        pictures.append(render(scene, frames, rate, settings.size))
        samples = frames * settings.samples_per_frame
        sounds.append(synthesize(scene, samples, settings.audio_rate, rng))
    dry_N = np.concatenate(sounds)
    pcm_N = finish(dry_N, video.ambience, settings.audio_rate, rng, settings.clutter)
    return np.concatenate(pictures), pcm_N


def write(folder: str, settings: Settings, split: str, number: int) -> None:
    """Draws one video and writes it below ``folder``; the file appears only when it is whole."""
    cv2.setNumThreads(0)  # the processes are the parallelism
    target = pathlib.Path(folder) / path(split, number)
    partial = target.with_suffix(".part")
    video_THWC, pcm_N = draw(settings, split, number)
    encode(partial, video_THWC, pcm_N, Fraction(settings.frame_rate), settings.audio_rate)
    os.replace(partial, target)


def encode(
    file: os.PathLike, video_THWC: np.ndarray, pcm_N: np.ndarray, frame_rate, audio_rate: int
) -> None:
    """Writes uint8 RGB frames and int16 mono PCM as mp4 (h264, AAC), whatever the file's name."""
    with av.open(os.fspath(file), "w", format="mp4") as container:
        pictures = container.add_stream("libx264", rate=frame_rate)
        pictures.height, pictures.width = video_THWC.shape[1:3]
        pictures.pix_fmt = "yuv420p"
        pictures.thread_count = 1
        # The same pictures in every run: x264's macroblock tree now and then decides otherwise on
        # the very same frames, even in one thread (seen in 7 of 141 encodings, 0 of 237 without).
        parameters = "mbtree=0"
        pictures.options = {"preset": "veryfast", "crf": "20", "x264-params": parameters}
        sound = container.add_stream("aac", rate=audio_rate, layout="mono")
        sound.bit_rate = 64_000
        sound.options = {"aac_coder": "fast"}
        for picture in video_THWC:
            planes = cv2.cvtColor(picture, cv2.COLOR_RGB2YUV_I420)
            frame = av.VideoFrame.from_ndarray(planes, format="yuv420p")
            container.mux(pictures.encode(frame))
        container.mux(pictures.encode())
        samples_1N = (pcm_N.astype(np.float32) / 32768.0)[None]
        chunk = av.AudioFrame.from_ndarray(samples_1N, format="fltp", layout="mono")
        chunk.sample_rate = audio_rate
        chunk.pts, chunk.time_base = (
            0,
            Fraction(1, audio_rate),
        )  # or AAC's padding is heard as delay
        container.mux(sound.encode(chunk))
        container.mux(sound.encode())


def _stream(settings: Settings, split: str, number: int, purpose: int) -> np.random.Generator:
    return np.random.default_rng([settings.seed, SPLITS.index(split), number, purpose])
