"""Random clips for training a probe, as published: another stretch and window in every pass.

Those of BraVe: github.com/google-deepmind/brave; those of MMV:
github.com/google-deepmind/deepmind-research, mmv.
"""

from __future__ import annotations

import numpy as np

from common.data import records
from common.evaluation import clips, reading
from common.evaluation.features import BadClip
from common.evaluation.protocols import LOOPED, Protocol
from common.method import AudioInput, VideoInput


def cutter(
    inputs: VideoInput | AudioInput, protocol: Protocol, seed: int, rates: reading.DefaultRates
) -> reading.Cut:
    """Returns a function that cuts the random clips of a stored clip.

    What is drawn depends on the seed, the number of the video and the pass alone.

    Args:
        inputs: what the encoder takes.
        protocol: how many, and by which rule.
        seed: of the draws.
        rates: of records that do not say.

    Raises:
        UserError: such clips are not defined for the encoder.
    """
    passes = protocol.train_passes
    if isinstance(inputs, AudioInput):
        return _audio_cutter(inputs, passes, seed, rates)
    protocol.check_random(inputs)
    if protocol.rule == LOOPED:
        return _looped_cutter(protocol.sampling(inputs), passes, seed, rates)
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


def _looped_cutter(
    inputs: VideoInput, passes: int, seed: int, rates: reading.DefaultRates
) -> reading.Cut:
    """MMV's: a random start, a random crop of the resized frames, mirrored or not.

    A video that is shorter than a clip is read round and round from any of its frames.
    """
    span = (inputs.num_frames - 1) * inputs.stride
    offset_T = inputs.stride * np.arange(inputs.num_frames)

    def cut(clip: records.Clip, number: int) -> np.ndarray:
        num_stored, stored_rate = len(clip.frames_jpeg), clip.frame_rate or rates.frame_rate
        if not num_stored:
            raise BadClip("it has no frames")
        rng = np.random.default_rng([seed, number])
        length = clips.frames_at_rate(num_stored, stored_rate, inputs.frame_rate)
        begin_P = rng.integers(length - span if length > span else length, size=passes)
        at_PT = (begin_P[:, None] + offset_T) % length
        stored_PT = clips.stored_frames(at_PT, num_stored, stored_rate, inputs.frame_rate)
        frame = clips.encoded_frames(clip.frames_jpeg)
        try:
            images = {
                index: clips.resize_short_side(frame(index), inputs.size)
                for index in np.unique(stored_PT).tolist()
            }
        except ValueError as error:
            raise BadClip(str(error)) from error
        height, width, _ = next(iter(images.values())).shape
        top_P = rng.integers(height - inputs.size + 1, size=passes)
        left_P = rng.integers(width - inputs.size + 1, size=passes)
        mirror_P = rng.integers(2, size=passes)
        drawn = []
        for stored_T, top, left, mirror in zip(stored_PT, top_P, left_P, mirror_P, strict=True):
            clip_THWC = np.stack([images[index] for index in stored_T.tolist()])
            crop_TSSC = clip_THWC[:, top : top + inputs.size, left : left + inputs.size]
            drawn.append(crop_TSSC[:, :, ::-1] if mirror else crop_TSSC)
        return np.stack(drawn)

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
