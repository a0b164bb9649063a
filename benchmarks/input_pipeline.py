"""How much does the input pipeline cost? Clips per second and CPU seconds per clip.

    python benchmarks/input_pipeline.py [--clips=24 --examples=96 --threads=0]

From records of 10 s (256x340 JPEG frames at 25 frames/s, 48 kHz sound) it makes the published
BraVe examples, V<->A (16 frames at 224 px, 10.24 s of sound) and V<->V (and 64 frames at 112 px),
and compares the CPU time with

a. the bare JPEG decode: one thread cuts the same number of windows, of the same sizes, out of the
   same JPEG files held in memory, and does nothing else;
b. the way of the published code: tf.data with the clip decoded to float32 and blurred, flipped,
   coloured and convolved in TensorFlow on the host, sound turned into log-mel spectrograms
   (Recasens et al., 2021, https://github.com/google-deepmind/brave).

CPU time is that of the whole process, all threads; other programs on the machine do not count.
"""

from __future__ import annotations

import io
import os
import pathlib
import platform
import resource
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np
from absl import flags

from common import launch

_FRAMES, _HEIGHT, _WIDTH, _FRAME_RATE, _SAMPLE_RATE = 250, 256, 340, 25, 48_000
_JPEG_QUALITY = 95
_BATCH = 8


def define_flags() -> None:
    """Defines the command line."""
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    flags.DEFINE_string("cache", str(cache / "zoetrope" / "benchmark"), "where the records are")
    flags.DEFINE_integer("clips", 24, "records; 11 MB each", lower_bound=8)
    flags.DEFINE_integer("examples", 96, "examples measured per way", lower_bound=8)
    flags.DEFINE_integer("threads", 0, "of the pipeline; 0 means one per core")


def main(_: list[str]) -> None:
    """Prints one table for each kind of example."""
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # which the published way has
    folder = make_records(pathlib.Path(flags.FLAGS.cache), flags.FLAGS.clips)
    print(f"machine: {machine()}\ncommand: {' '.join(['python', *sys.argv])}")
    for config_name in ("brave_v_a", "brave_v_v"):
        _compare(config_name, folder)


def _compare(config_name: str, folder: pathlib.Path) -> None:
    from brave.views import BraveViews
    from common.data.pipeline import TrainData

    config = config_of(config_name, folder)
    views = BraveViews(config)
    frames = sum(s.shape[0] for s in views.spec().values() if len(s.shape) == 4)
    examples = flags.FLAGS.examples
    bare = measure(_bare_decode(folder, views), examples)
    ours = measure(_examples(TrainData(config, views).batches(0)), examples)
    published = measure(_published(folder, "audio" in views.spec()), examples)
    print(f"\n{config_name}: {frames} frames per clip")
    print(f"{'':24}{'clips/s':>10}{'CPU ms/clip':>14}{'frames/CPU s':>14}")
    for name, (wall, cpu) in (("bare decode", bare), ("ours", ours), ("published", published)):
        print(f"{name:24}{1 / wall:10.1f}{1000 * cpu:14.2f}{frames / cpu:14.0f}")
    print(f"ours is {bare[1] / ours[1]:.0%} of the bare decode per CPU second (aim: 85%)")
    print(f"ours is {published[1] / ours[1]:.1f}x the published way per CPU second (aim: 3x)")


def config_of(name: str, folder: pathlib.Path):
    """Returns a published config that reads the records of this benchmark."""
    import importlib

    config = importlib.import_module(f"configs.{name}").get_config()
    config.batch_size = _BATCH
    config.data.train = str(folder)
    config.data.threads = flags.FLAGS.threads
    return config


def _examples(batches: Iterator[dict[str, np.ndarray]]) -> Iterator[None]:
    for _ in batches:
        yield from [None] * _BATCH


def measure(examples: Iterator[None], number: int) -> tuple[float, float]:
    """Returns wall and CPU seconds per example, once everything is warm."""
    for _ in range(2 * _BATCH):
        next(examples)
    wall, cpu = time.perf_counter(), _cpu_seconds()
    for _ in range(number):
        next(examples)
    return (time.perf_counter() - wall) / number, (_cpu_seconds() - cpu) / number


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _bare_decode(folder: pathlib.Path, views) -> Iterator[None]:
    """Cuts the windows of an example out of JPEG files in memory, one after the other."""
    from common.data import decode, records
    from common.data.shards import RecordSet
    from common.tf import tf

    store = RecordSet.open(folder)
    clips = [records.deserialize(store.read(n)).frames_jpeg for n in range(min(8, len(store)))]
    lengths = [s.shape[0] for s in views.spec().values() if len(s.shape) == 4]
    window_of = tf.function(decode.random_window)
    shape = tf.constant([_HEIGHT, _WIDTH])
    random = np.random.default_rng(0)
    work = []
    for _ in range(4 * _BATCH):
        for length in lengths:
            clip = clips[random.integers(len(clips))]
            window = window_of(shape, random.integers(0, 2**31 - 1, 2, np.int32))
            start = random.integers(len(clip) - length)
            work.append((tf.constant(clip[start : start + length]), window))
    looped = {length: _decode_loop(length) for length in lengths}
    while True:
        for first in range(0, len(work), len(lengths)):
            for jpegs, window in work[first : first + len(lengths)]:
                looped[jpegs.shape[0]](jpegs, window)
            yield


def _decode_loop(length: int) -> Callable:
    from common.tf import tf

    @tf.function
    def decode_all(jpegs, window):
        # Returning every image keeps the optimiser from leaving any of them out.
        return [tf.io.decode_and_crop_jpeg(jpegs[i], window, channels=3) for i in range(length)]

    return decode_all


def _published(folder: pathlib.Path, audio: bool) -> Iterator[None]:
    """The examples as the published code makes them, all of it on the host in float32."""
    from common.data import records
    from common.tf import tf

    modalities = {"frames", "audio"} if audio else {"frames"}
    options = tf.data.Options()
    options.threading.private_threadpool_size = flags.FLAGS.threads or os.cpu_count()

    def example(serialized: tf.Tensor) -> dict[str, tf.Tensor]:
        record = records.parse(serialized, modalities, _FRAME_RATE, _SAMPLE_RATE)
        start = tf.random.uniform((), 0, _FRAMES - 30, tf.int32)
        narrow_T = record["frames"][start : start + 31 : 2]
        views = {"narrow": _published_clip(narrow_T, 16, 224, convolve=False)}
        if audio:
            views["audio"] = _published_sound(record["waveform"], start)
        else:
            broad_T = tf.tile(record["frames"], [3])[start : start + 253 : 4]
            views["video"] = _published_clip(broad_T, 64, 112, convolve=True)
        return views

    dataset = (
        tf.data.Dataset.list_files(str(folder / "*.tfrecord"))
        .interleave(tf.data.TFRecordDataset, cycle_length=8, block_length=8)
        .repeat()
        .map(example, num_parallel_calls=tf.data.AUTOTUNE)
        .batch(_BATCH)
        .prefetch(tf.data.AUTOTUNE)
        .with_options(options)
    )
    return _examples(dataset.as_numpy_iterator())


def _published_clip(jpegs_T, length: int, size: int, convolve: bool):
    from common.tf import tf

    shape = tf.io.extract_jpeg_shape(jpegs_T[0])
    begin, extent, _ = tf.image.sample_distorted_bounding_box(
        shape,
        tf.constant([[[0.0, 0.0, 1.0, 1.0]]]),
        min_object_covered=0.3,
        aspect_ratio_range=(0.5, 2.0),
        area_range=(0.3, 1.0),
        max_attempts=20,
    )
    window = tf.concat([begin[:2], extent[:2]], 0)
    video = tf.map_fn(
        lambda jpeg: tf.io.decode_and_crop_jpeg(jpeg, window, channels=3), jpegs_T, tf.uint8
    )
    video = tf.ensure_shape(tf.image.resize(video, (size, size)), (length, size, size, 3)) / 255
    video = _published_blur(video, size // 10)
    video = tf.cond(_chance(0.5), lambda: tf.reverse(video, [2]), lambda: video)
    video = tf.cond(_chance(0.8), lambda: _published_colour(video), lambda: video)
    video = tf.cond(
        _chance(0.2),
        lambda: tf.repeat(tf.image.rgb_to_grayscale(video), 3, axis=-1),
        lambda: video,
    )
    if not convolve:
        return video
    side = 2 * tf.random.uniform((), 0, 6, tf.int32) + 1
    deviation = tf.sqrt(2 / (3 * tf.cast(side, tf.float32) ** 2))
    kernel = tf.random.normal(tf.stack([side, side, 3, 3])) * deviation
    return tf.nn.conv2d(video, kernel, 1, "SAME")


def _published_blur(video, width: int):
    from common.tf import tf

    radius = width // 2
    sigma = tf.random.uniform((), 0.1, 2.0)
    x = tf.cast(tf.range(-radius, radius + 1), tf.float32)
    weights = tf.exp(-(x**2) / (2 * sigma**2))
    weights = tf.tile((weights / tf.reduce_sum(weights))[:, None, None], [1, 3, 1])
    for kernel in (weights[None], weights[:, None]):
        video = tf.nn.depthwise_conv2d(video, kernel, [1, 1, 1, 1], "SAME")
    return video


def _published_colour(video):
    from common.tf import tf

    video = tf.image.random_brightness(video, 32 / 255)
    video = tf.image.random_saturation(video, 0.6, 1.4)
    video = tf.image.random_contrast(video, 0.6, 1.4)
    return tf.clip_by_value(tf.image.random_hue(video, 0.2), 0.0, 1.0)


def _published_sound(waveform, start):
    from common.tf import tf

    length = 491_520
    first = tf.cast(start, tf.int32) * (_SAMPLE_RATE // _FRAME_RATE)
    waveform = tf.tile(waveform, [3])[first : first + length]
    spectrum = tf.abs(tf.signal.stft(waveform, 320, 160, 320, pad_end=True))
    mel = tf.signal.linear_to_mel_weight_matrix(80, 161, _SAMPLE_RATE, 80.0, 7600.0)
    return tf.math.log(1 + 10_000 * tf.matmul(spectrum, mel))


def _chance(probability: float):
    from common.tf import tf

    return tf.random.uniform(()) < probability


def make_records(cache: pathlib.Path, number: int) -> pathlib.Path:
    """Returns a folder of records, made if it is not there: textures that move, and noise."""
    from common.data import records, shards

    folder = cache / f"{number}-clips-of-36-kB-frames"
    if folder.exists():
        return folder
    print(f"making {number} clips in {folder}")
    unfinished = cache / f"{number}-clips-{os.getpid()}"
    unfinished.mkdir(parents=True)
    for shard in range(4):
        path = unfinished / f"clips-{shard:05d}-of-00004.tfrecord"
        with path.open("wb") as file:
            for clip in range(shard, number, 4):
                random = np.random.default_rng(clip)
                jpegs = [_jpeg(frame) for frame in _moving_texture(random)]
                sound = random.standard_normal(_FRAMES * _SAMPLE_RATE // _FRAME_RATE) * 0.1
                record = records.Clip(
                    str(clip), "", jpegs, _FRAME_RATE, sound.astype(np.float32), _SAMPLE_RATE
                )
                file.write(shards.frame(records.serialize(record)))
        shards.write_index(path)
    unfinished.rename(folder)
    return folder


def _moving_texture(random: np.random.Generator) -> Iterator[np.ndarray]:
    """Panned noise with a falling spectrum, so that JPEGs are as large as those of camera clips.

    About 36 kB; three real clips gave 24 to 41 kB for the same area at this quality.
    """
    side = 512
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side)[None])
    frequency[0, 0] = 1
    noise = np.fft.fft2(random.standard_normal((3, side, side)))
    texture = np.fft.ifft2(noise / frequency**1.5).real
    texture[1:] = 0.8 * texture[:1] + 0.3 * texture[1:]  # colours of a picture go together
    texture = 128 + 45 * (texture - texture.mean()) / texture.std()
    speed = random.uniform(-1, 1, 2)
    for t in range(_FRAMES):
        shift = np.round(speed * t).astype(int)
        view = np.roll(texture, shift, (1, 2))[:, :_HEIGHT, :_WIDTH]
        view = view + random.normal(0, 1, view.shape)
        yield np.clip(view, 0, 255).astype(np.uint8).transpose(1, 2, 0)


def _jpeg(image: np.ndarray) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return buffer.getvalue()


def machine() -> str:
    """Returns what processor this is, and how many of it."""
    model = platform.processor() or platform.machine()
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0].partition(":")[2].strip() if names else model
    return f"{model}, {os.cpu_count()} cores"


if __name__ == "__main__":
    launch.run(main, define_flags)
