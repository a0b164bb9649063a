import dataclasses
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from common.data import parts, records, shards
from common.data.sources import Source
from common.errors import UserError
from common.evaluation import baselines, embedding, features, protocols, random_clips, reading
from common.method import AudioInput, Encoder, VideoInput

VIDEO = VideoInput(num_frames=3, frame_rate=25.0, stride=2, size=28)
AUDIO = AudioInput(num_samples=40, sample_rate=8000)
RATES = reading.DefaultRates()


def _random(passes, rule=protocols.SPREAD):
    return protocols.Protocol("test", "", passes, 1, 1, rule)


def make_clip(name, seed=0, frames=12, samples=100, labels=("red",)):
    rng = np.random.default_rng(seed)
    jpegs = []
    for _ in range(frames):
        small = Image.fromarray(rng.integers(0, 256, (8, 10, 3), np.uint8))
        file = io.BytesIO()
        small.resize((60, 48)).save(file, "JPEG", quality=95)
        jpegs.append(file.getvalue())
    waveform = None if samples is None else rng.uniform(-1, 1, samples).astype(np.float32)
    return records.Clip(
        id=name,
        frames_jpeg=jpegs,
        frame_rate=25.0,
        waveform=waveform,
        audio_rate=8000,
        label_texts=list(labels),
        label_indices=list(range(len(labels))),
    )


def make_source(folder, clips, damage=()):
    folder.mkdir()
    data = bytearray()
    for number, clip in enumerate(clips):
        frame = bytearray(shards.frame(records.serialize(clip)))
        if number in damage:
            frame[len(frame) // 2] ^= 1
        data += frame
    path = folder / "clips-00000-of-00001.tfrecord"
    path.write_bytes(bytes(data))
    return Source(str(folder), 1.0, shards.RecordSet.open(folder), records.parse)


def test_a_record_becomes_the_clips_of_the_protocol_with_its_name_and_labels(tmp_path):
    clip = make_clip("a", labels=("red", "round"))
    source = make_source(tmp_path / "data", [clip])
    protocol = protocols.get("even")
    cut = lambda clip, _: reading.cut(clip, VIDEO, protocol)  # noqa: E731
    example = reading.SourceReader(source, "frames", cut, RATES)(0)
    assert example.id == "a"
    assert example.labels == ("red", "round")
    assert example.inputs.shape == (4, 3, 28, 28, 3)
    assert example.inputs.dtype == np.uint8
    sound = reading.cut(clip, AUDIO, protocol)
    assert sound.shape == (4, 40)
    np.testing.assert_array_equal(sound[0], np.rint(clip.waveform[:40] * np.float32(32767)))


def test_clips_read_through_tensorflow_are_the_same(tmp_path):
    source = make_source(tmp_path / "data", [make_clip("a")])

    def parse(*arguments):  # any other parser goes through its tensors
        return records.parse(*arguments)

    other = dataclasses.replace(source, parse=parse)
    for modality, inputs in (("frames", VIDEO), ("audio", AUDIO)):
        cut = lambda clip, _, i=inputs: reading.cut(clip, i, protocols.get("quick"))  # noqa: E731
        ours = reading.SourceReader(source, modality, cut, RATES)(0)
        theirs = reading.SourceReader(other, modality, cut, RATES)(0)
        assert (ours.id, ours.labels) == (theirs.id, theirs.labels)
        np.testing.assert_array_equal(ours.inputs, theirs.inputs)


def test_only_the_frames_that_are_looked_at_are_read(tmp_path):
    whole = make_source(tmp_path / "data", [make_clip("a"), make_clip("b", seed=1)])
    cut = lambda clip, _: reading.cut(clip, VIDEO, protocols.get("quick"))  # noqa: E731
    expected = reading.SourceReader(whole, "frames", cut, RATES)(1)
    path = tmp_path / "data" / "clips-00000-of-00001.tfrecord"
    shards.write_index(path)
    indexed = Source(whole.name, 1.0, shards.RecordSet.open(whole.name), records.parse)
    assert indexed.in_parts
    indexed.records.read = None  # whole records are not read
    part_P4 = indexed.records.parts(1)
    frame_F4 = part_P4[part_P4[:, 0] == parts.FRAME]
    _, offset, _ = indexed.records.locate(1)
    data = bytearray(path.read_bytes())

    def damage(frame):
        data[offset + 12 + frame_F4[frame, 1]] ^= 1  # after the length and its checksum
        path.write_bytes(bytes(data))

    damage(0)  # the clip is frames 3, 5 and 7 of 12
    found = reading.SourceReader(indexed, "frames", cut, RATES)(1)
    assert (found.id, found.labels) == (expected.id, expected.labels)
    np.testing.assert_array_equal(found.inputs, expected.inputs)
    damage(5)
    with pytest.raises(features.BadClip, match="record 1: the checksum of a part"):
        reading.SourceReader(indexed, "frames", cut, RATES)(1)


def test_frames_decode_to_what_tensorflow_decodes_when_asked_to_be_accurate():
    from common.evaluation import clips
    from common.tf import tf

    for frame in make_clip("a", frames=3).frames_jpeg:
        theirs = tf.io.decode_jpeg(frame, dct_method="INTEGER_ACCURATE").numpy()
        np.testing.assert_array_equal(clips.decode_image(frame), theirs)


@pytest.mark.parametrize(
    ("changes", "inputs", "message"),
    [
        ({"frames_jpeg": []}, VIDEO, "no frames"),
        ({"frames_jpeg": [b"not a frame"]}, VIDEO, "cannot be decoded"),
        ({"waveform": None}, AUDIO, "no sound"),
        ({"waveform": np.full(50, np.nan, np.float32)}, AUDIO, "not numbers"),
    ],
)
@pytest.mark.parametrize("random", [False, True])
def test_what_a_record_lacks_is_said_and_never_made_up(tmp_path, changes, inputs, message, random):
    if random and message == "cannot be decoded":
        message = "clips-00000-of-00001.tfrecord:0"  # TensorFlow words it
    source = make_source(tmp_path / "data", [dataclasses.replace(make_clip("a"), **changes)])
    if random:
        cut = random_clips.cutter(inputs, _random(2), 0, RATES)
    else:
        cut = lambda clip, _: reading.cut(clip, inputs, protocols.get("quick"))  # noqa: E731
    with pytest.raises(features.BadClip, match=message):
        reading.SourceReader(source, "frames", cut, RATES)(0)


def test_a_source_without_sound_is_refused_before_anything_is_read(tmp_path):
    source = make_source(tmp_path / "data", [make_clip("a")])
    silent = dataclasses.replace(source, modalities=frozenset({"frames", "labels"}))
    with pytest.raises(UserError, match="has no audio"):
        reading.SourceReader(silent, "audio", lambda *_: np.zeros(1), RATES)


def test_a_damaged_record_is_named_by_its_shard(tmp_path):
    source = make_source(tmp_path / "data", [make_clip("a"), make_clip("b")], damage=[1])
    reader = reading.SourceReader(source, "frames", lambda *_: np.zeros(1), RATES)
    reader(0)
    with pytest.raises(features.BadClip, match="clips-00000-of-00001.tfrecord, record 1"):
        reader(1)


@pytest.mark.parametrize("inputs", [VIDEO, AUDIO])
def test_random_clips_depend_on_seed_video_and_pass_alone(inputs):
    clip = make_clip("a")
    cut = random_clips.cutter(inputs, _random(3), 7, RATES)
    first = cut(clip, 5)
    assert first.shape[0] == 3
    assert first.dtype == (np.uint8 if inputs is VIDEO else np.int16)
    np.testing.assert_array_equal(first, random_clips.cutter(inputs, _random(3), 7, RATES)(clip, 5))
    assert (first[0] != first[1]).any()
    assert (first != cut(clip, 6)).any()
    assert (first != random_clips.cutter(inputs, _random(3), 8, RATES)(clip, 5)).any()


def test_random_windows_of_sound_reach_every_place_and_nothing_else():
    clip = make_clip("a", samples=44)
    windows = random_clips.cutter(AUDIO, _random(200), 0, RATES)(clip, 0)
    pcm = reading.sound(clip, AUDIO, RATES)
    possible = {pcm[i : i + 40].tobytes() for i in range(5)}
    assert {window.tobytes() for window in windows} == possible


def test_sound_of_another_rate_is_resampled():
    time = np.arange(16000) / 16000
    clip = records.Clip(
        waveform=np.sin(2 * np.pi * 440 * time).astype(np.float32), audio_rate=16000
    )
    pcm = reading.sound(clip, AUDIO, RATES)
    assert len(pcm) == 8000
    expected = 32767 * np.sin(2 * np.pi * 440 * np.arange(8000) / 8000)
    assert np.abs(pcm[100:-100] - expected[100:-100]).max() < 300


class _Scale(nnx.Module):
    def __init__(self):
        self.factor = nnx.Param(jnp.array(2.0))


def _mean_encoder(inputs):
    return Encoder(
        inputs,
        1,
        lambda model, x: (model.factor[...] * x.astype(jnp.float32)).mean(axis=(1, 2, 3, 4))[
            :, None
        ],
    )


def test_an_embedder_gives_every_clip_the_same_features_whatever_its_batch():
    clips = np.random.default_rng(0).integers(0, 256, (5, 2, 4, 4, 3), np.uint8)
    encoder = _mean_encoder(VIDEO)
    together = embedding.Embedder(encoder, _Scale(), 5).all(clips)
    in_twos = embedding.Embedder(encoder, _Scale(), 2).all(clips)
    np.testing.assert_allclose(together[:, 0], 2 * clips.mean(axis=(1, 2, 3, 4)), rtol=1e-5)
    np.testing.assert_allclose(in_twos, together, rtol=1e-6)


def test_training_augmentation_depends_on_video_and_clip_and_keeps_the_range_of_pixels():
    clips = np.random.default_rng(0).integers(0, 256, (1, 2, 6, 6, 3), np.uint8).repeat(64, axis=0)
    ids = np.stack([np.arange(64) // 2, np.arange(64) % 2], axis=1)
    augment = jax.jit(embedding.training_augmentation(seed=1))
    augmented = np.asarray(augment(clips, ids))
    assert augmented.min() >= 0
    assert 200 < augmented.max() <= 255.001
    np.testing.assert_allclose(augmented[10:20], augment(clips[10:20], ids[10:20]), rtol=1e-4)
    assert len({clip.tobytes() for clip in augmented}) > 50
    flipped_only = [a for a in augmented if np.abs(a - clips[0][:, :, ::-1]).max() < 0.01]
    assert flipped_only  # colour and grey are left out often enough for pure flips to occur


def test_raw_pixels_are_area_means():
    clips = np.random.default_rng(0).integers(0, 256, (2, 16, 32, 32, 3), np.uint8)
    encoder = baselines.raw_encoder(VideoInput(16, 25.0, 1, 32))
    rows = np.asarray(encoder.embed(None, jnp.asarray(clips)))
    assert rows.shape == (2, encoder.dim) == (2, 8 * 16 * 16 * 3)
    assert rows.mean() == pytest.approx(clips.mean() / 255, abs=1e-3)
    still = np.full((1, 16, 32, 32, 3), 51, np.uint8)
    np.testing.assert_allclose(encoder.embed(None, jnp.asarray(still)), 0.2, rtol=1e-5)


def test_raw_sound_tells_pitches_apart():
    inputs = AudioInput(8000, 8000)
    encoder = baselines.raw_encoder(inputs)
    time = np.arange(8000) / 8000
    tones = np.stack([10_000 * np.sin(2 * np.pi * f * time) for f in (500, 2000)]).astype(np.int16)
    rows = np.asarray(encoder.embed(None, jnp.asarray(tones))).reshape(2, 8, 64)
    assert rows.shape[1] * rows.shape[2] == encoder.dim
    bands = rows.mean(axis=1).argmax(axis=1)
    assert bands.tolist() == [pytest.approx(500 / 4000 * 64, abs=1), pytest.approx(32, abs=1)]


def test_noise_knows_nothing_but_has_the_same_videos():
    videos = (features.Video("a", ("x",), 0, 2),)
    real = features.Features(np.ones((2, 3), np.float32), videos, ())
    noise = baselines.noise_like(real, seed=0)
    assert noise.videos == videos
    assert len(noise.rows_RD) == 2
    assert noise.rows_RD.std() == pytest.approx(1, abs=0.2)
