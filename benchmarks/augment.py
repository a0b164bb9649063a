"""What does augmentation cost? CPU seconds per clip, ours against the published float32 way.

    python benchmarks/augment.py [--clips=16]

The same clips in memory go through blur, flip, colour and grey (narrow clips, 16 frames at 224 px),
the same and a random convolution (broad clips, 64 frames at 112 px), and sound (10.24 s at 48 kHz)
becomes log-mel spectrograms: once by `common.data.device_augment` and `common.data.log_mel`, jitted
for the CPU, once by TensorFlow as published (Recasens et al., 2021). Training runs ours on the
accelerator, where the host pays nothing and a batch may hold every kernel size at once, so all
kernels cost as much as the largest; this says what that costs where there is no accelerator. CPU
time is that of the whole process, all threads; other programs on the machine do not count.
"""

from __future__ import annotations

import os
import platform
import resource
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from absl import flags

from common import launch

_CASES = {  # what: shape of one example
    "narrow clip, 16 x 224 px": (16, 224, 224, 3),
    "broad clip, 64 x 112 px": (64, 112, 112, 3),
    "sound, 10.24 s at 48 kHz": (491_520,),
}
_BATCH = 4


def define_flags() -> None:
    """Defines the command line."""
    flags.DEFINE_integer("clips", 16, "examples measured per way", lower_bound=_BATCH)


def main(_: list[str]) -> None:
    """Prints one line for each kind of example."""
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # which the published way has
    machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    print(f"machine: {machine}\ncommand: {' '.join(['python', *sys.argv])}")
    print(f"{'CPU ms per example':28}{'ours':>10}{'published':>12}{'ratio':>8}")
    for name, shape in _CASES.items():
        random, batch = np.random.default_rng(0), (_BATCH, *shape)
        if len(shape) == 1:
            inputs = random.integers(-9000, 9000, batch).astype(np.int16)
        else:
            inputs = random.integers(0, 256, batch, dtype=np.uint8)
        ours = _measure(_ours(inputs))
        published = _measure(_published(inputs))
        print(f"{name:28}{1000 * ours:10.1f}{1000 * published:12.1f}{published / ours:7.1f}x")


def _measure(run: Callable[[], Any]) -> float:
    """CPU seconds per example of a function that does one batch, compilation left out."""
    run()
    start, batches = _cpu_seconds(), -(-flags.FLAGS.clips // _BATCH)
    for _ in range(batches):
        run()
    return (_cpu_seconds() - start) / (batches * _BATCH)


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _ours(inputs: np.ndarray) -> Callable[[], Any]:
    import jax

    from common.data.device_augment import augment_clips
    from common.data.log_mel import LogMel

    cpu = jax.devices("cpu")[0]
    if inputs.ndim == 2:
        log_mel, waveform_BN = jax.jit(LogMel(48_000)), jax.device_put(inputs, cpu)
        return lambda: jax.block_until_ready(log_mel(waveform_BN))
    convolve = inputs.shape[1] == 64
    augment = jax.jit(lambda video, keys: augment_clips(video, keys, random_convolution=convolve))
    keys_B = jax.random.split(jax.random.key(0), _BATCH)
    video_BTHWC, keys_B = jax.device_put((inputs, keys_B), cpu)
    return lambda: jax.block_until_ready(augment(video_BTHWC, keys_B))


def _published(inputs: np.ndarray) -> Callable[[], Any]:
    """One example after the other, as tf.data's map does it."""
    from common.tf import tf

    convolve = inputs.ndim > 2 and inputs.shape[1] == 64

    @tf.function
    def one(example):
        if inputs.ndim == 2:
            return _published_log_mel(tf.cast(example, tf.float32) / 32767.0)
        return _published_clip(tf.cast(example, tf.float32) / 255.0, convolve)

    examples = [tf.constant(example) for example in inputs]
    return lambda: [one(example).numpy() for example in examples]


def _published_clip(video_THWC: Any, convolve: bool) -> Any:
    from common.tf import tf

    def chance(probability):
        return tf.random.uniform(()) < probability

    radius, sigma = video_THWC.shape[2] // 10 // 2, tf.random.uniform((), 0.1, 2.0)
    offset = tf.range(-radius, radius + 1, dtype=tf.float32)
    weights = tf.exp(-(offset**2) / (2 * sigma**2))
    weights = tf.tile((weights / tf.reduce_sum(weights))[:, None, None], [1, 3, 1])
    video = video_THWC
    for kernel in (weights[None], weights[:, None]):
        video = tf.nn.depthwise_conv2d(video, kernel[..., :1], [1, 1, 1, 1], "SAME")
    video = tf.cond(chance(0.5), lambda: tf.reverse(video, [2]), lambda: video)
    video = tf.cond(chance(0.8), lambda: _published_colour(video), lambda: video)
    grey = tf.image.rgb_to_grayscale
    video = tf.cond(chance(0.2), lambda: tf.repeat(grey(video), 3, axis=-1), lambda: video)
    if convolve:
        side = 2 * tf.random.uniform((), 0, 6, tf.int32) + 1
        deviation = tf.sqrt(2 / (3 * tf.cast(side, tf.float32) ** 2))
        kernel = tf.random.normal(tf.stack([side, side, 3, 3])) * deviation
        video = tf.nn.conv2d(video, kernel, 1, "SAME")
    return video


def _published_colour(video_THWC: Any) -> Any:
    from common.tf import tf

    video = tf.image.random_brightness(video_THWC, 32 / 255)
    video = tf.image.random_saturation(video, 0.6, 1.4)
    video = tf.image.random_contrast(video, 0.6, 1.4)
    return tf.clip_by_value(tf.image.random_hue(video, 0.2), 0.0, 1.0)


def _published_log_mel(waveform_N: Any) -> Any:
    from common.tf import tf

    spectrum = tf.abs(tf.signal.stft(waveform_N, 320, 160, 320, pad_end=True))
    mel = tf.signal.linear_to_mel_weight_matrix(80, 161, 48_000, 80.0, 7600.0)
    return tf.math.log(1 + 10_000 * tf.matmul(spectrum, mel))


if __name__ == "__main__":
    launch.run(main, define_flags)
