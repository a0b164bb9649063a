"""Random clips for training a probe, as published: another stretch and window in every pass."""

from __future__ import annotations

import numpy as np

from common.data import records
from common.evaluation import reading
from common.evaluation.features import BadClip
from common.method import AudioInput, VideoInput


def cutter(
    inputs: VideoInput | AudioInput, passes: int, seed: int, rates: reading.DefaultRates
) -> reading.Cut:
    """Returns a function that cuts `passes` random clips of a stored clip.

    What is drawn depends on the seed, the number of the video and the pass alone.

    Args:
        inputs: what the encoder takes.
        passes: clips per video.
        seed: of the draws.
        rates: of records that do not say.
    """
    if isinstance(inputs, AudioInput):
        return _audio_cutter(inputs, passes, seed, rates)
    return _video_cutter(inputs, passes, seed, rates)


def _audio_cutter(
    inputs: AudioInput, passes: int, seed: int, rates: reading.DefaultRates
) -> reading.Cut:
    def cut(clip: records.Clip, number: int) -> np.ndarray:
        sound_N = reading.sound(clip, inputs, rates)
        needed = inputs.num_samples
        places = max(len(sound_N), needed) - needed + 1 if len(sound_N) >= needed else len(sound_N)
        begin_P = np.random.default_rng([seed, number]).integers(places, size=passes)
        return sound_N[(begin_P[:, None] + np.arange(needed)) % len(sound_N)]

    return cut


def _video_cutter(
    inputs: VideoInput, passes: int, seed: int, rates: reading.DefaultRates
) -> reading.Cut:
    from common.data import decode, sampling
    from common.tf import tf

    frames, stride, rate = inputs.num_frames, inputs.stride, inputs.frame_rate

    @tf.function(
        input_signature=[
            tf.TensorSpec((None,), tf.string),
            tf.TensorSpec((), tf.float32),
            tf.TensorSpec((2,), tf.int32),
        ]
    )
    def one(encoded: tf.Tensor, stored_rate: tf.Tensor, seed_2: tf.Tensor) -> tf.Tensor:
        num_stored = tf.size(encoded)
        start_seed, window_seed = tf.unstack(tf.random.split(seed_2, 2))
        available = sampling.frames_at_rate(num_stored, stored_rate, rate)
        start = sampling.random_start(start_seed, sampling.count_starts(available, frames, stride))
        indices_T = sampling.clip_indices(start, frames, stride, num_stored, stored_rate, rate)
        taken = decode.take(encoded, indices_T)
        window = decode.random_window(decode.frame_shape(taken[0]), window_seed)
        return decode.decode_clip(taken, window, inputs.size)

    def cut(clip: records.Clip, number: int) -> np.ndarray:
        if not clip.frames_jpeg:
            raise BadClip("it has no frames")
        encoded = tf.constant(list(clip.frames_jpeg))
        stored_rate = tf.constant(clip.frame_rate or rates.frame_rate, tf.float32)
        try:
            drawn = [
                one(encoded, stored_rate, tf.constant([seed, number * passes + i], tf.int32))
                for i in range(passes)
            ]
        except tf.errors.OpError as error:
            raise BadClip(error.message) from error
        return np.stack([clip_TSSC.numpy() for clip_TSSC in drawn])

    return cut
