"""Records are what DMVR and BraVe read and write, with and without TensorFlow."""

import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.data import parts, records, sequence_example, shards

GOLDEN = pathlib.Path(__file__).parents[2] / "golden" / "brave"

seconds = st.one_of(st.just(float("nan")), st.integers(-(10**9), 10**10).map(lambda us: us / 1e6))
clips = st.builds(
    records.Clip,
    id=st.text(max_size=8),
    path=st.text(st.characters(codec="utf-8"), max_size=8),
    frames_jpeg=st.lists(st.binary(max_size=20), max_size=4),
    frame_rate=st.none() | st.floats(1, 100, width=32),
    waveform=st.none() | st.lists(st.floats(-1, 1, width=32)).map(lambda v: np.array(v, "f4")),
    audio_rate=st.none() | st.integers(1, 192000),
    flow_jpeg=st.lists(st.binary(max_size=20), max_size=4),
    label_indices=st.lists(st.integers(0, 2**40), max_size=3),
    label_texts=st.lists(st.text(max_size=5), max_size=3),
    captions=st.lists(st.tuples(st.text(max_size=9), seconds, seconds), max_size=3),
    start_s=st.integers(0, 10**10).map(lambda us: us / 1e6),
    end_s=st.none() | st.integers(0, 10**10).map(lambda us: us / 1e6),
)


@settings(max_examples=60, deadline=None)
@given(clips)
def test_what_is_written_is_read_back(clip):
    again = records.deserialize(records.serialize(clip))
    np.testing.assert_equal(again.waveform, clip.waveform)
    if clip.waveform is None:
        clip.audio_rate = None  # a rate of nothing is not kept
    clip.waveform = again.waveform = None
    np.testing.assert_equal(vars(again), vars(clip))


@settings(max_examples=60, deadline=None)
@given(clips)
def test_tensorflow_reads_the_same_message_and_writes_the_same_bytes(clip):
    from common.tf import tf

    data = records.serialize(clip)
    theirs = tf.train.SequenceExample.FromString(data)
    assert theirs.SerializeToString(deterministic=True) == data
    frames = theirs.feature_lists.feature_list[records.IMAGE].feature
    assert [list(frame.bytes_list.value) for frame in frames] == [[f] for f in clip.frames_jpeg]


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_strangers_bytes_are_refused_with_a_message_or_read(data):
    try:
        records.deserialize(data)
    except ValueError as error:
        assert str(error)


def test_unpacked_floats_of_other_writers_are_read():
    # FloatList.value as three separate fixed32 fields instead of one packed block.
    value = np.array([0.5, -1.0, 0.25], "<f4")
    floats = b"".join(b"\x0d" + one.tobytes() for one in value)
    feature = b"\x12" + bytes([len(floats)]) + floats
    inner = b"\x0a" + bytes([len(feature)]) + feature
    key = records.WAVEFORM.encode()
    entry = b"\x0a" + bytes([len(key)]) + key + b"\x12" + bytes([len(inner)]) + inner
    lists = b"\x0a" + bytes([len(entry)]) + entry
    clip = records.deserialize(b"\x12" + bytes([len(lists)]) + lists)
    np.testing.assert_array_equal(clip.waveform, value)


def test_the_published_reader_and_ours_agree_on_a_published_record(tmp_path):
    golden = np.load(GOLDEN / "record_file.npz")
    shard = shutil.copy(GOLDEN / "sample.tfrecord", tmp_path)  # an index is written beside it
    record_set = shards.RecordSet([str(shard)])
    from common.tf import tf

    for number in range(2):
        data = record_set.read(number)
        clip = records.deserialize(data)
        wanted = records.MODALITIES - {"flow"}
        parsed = records.parse(tf.constant(data), wanted, 25.0, 48000)
        assert len(clip.frames_jpeg) == len(parsed["frames"]) == golden["num_frames"][number]
        assert len(clip.waveform) == golden["audio_length"][number]
        np.testing.assert_allclose(clip.waveform[[0, -1]], golden["audio_first_last"][number])
        np.testing.assert_array_equal(parsed["waveform"], clip.waveform)
        assert clip.label_indices == list(golden["labels"][number]) == list(parsed["labels"])
        assert parsed["frame_rate"] == 25.0 and parsed["audio_rate"] == 48000
        assert parsed["id"] == b"" and len(parsed["captions"]) == 0
        decoded = tf.io.decode_jpeg(parsed["frames"][0], channels=3).numpy().astype(int)
        if number == 0:
            assert np.abs(decoded - golden["decoded_first"]).max() <= 3


def test_our_own_keys_reach_the_graph():
    from common.tf import tf

    clip = records.Clip(
        id="a/ü 1.mp4",
        frames_jpeg=[b"x"],
        frame_rate=12.5,
        waveform=np.zeros(3, "f4"),
        audio_rate=16000,
        label_indices=[7],
        label_texts=["run"],
        captions=[("one", 0.5, 2.25), ("two", float("nan"), float("nan"))],
    )
    data = tf.constant(records.serialize(clip))
    parsed = records.parse(data, records.MODALITIES - {"flow"}, 25.0, 48000)
    assert parsed["id"].numpy().decode() == clip.id
    assert parsed["frame_rate"] == 12.5 and parsed["audio_rate"] == 16000
    assert parsed["label_texts"].numpy().tolist() == [b"run"]
    np.testing.assert_array_equal(parsed["caption_starts"], np.array([0.5, np.nan], "f4"))
    np.testing.assert_array_equal(parsed["caption_ends"], np.array([2.25, np.nan], "f4"))


@pytest.mark.parametrize("known", [False, True])
def test_the_context_alone_says_what_the_whole_record_says(known):
    from common.tf import tf

    clip = records.Clip(frames_jpeg=[b"x"], waveform=np.zeros(3, "f4"))
    if known:
        clip.id, clip.frame_rate, clip.audio_rate = "a", 12.5, 16000
        clip.label_indices, clip.label_texts = [7, 8], ["run", "walk"]
        clip.captions = [("one", 0.5, 2.25), ("two", float("nan"), float("nan"))]
    data = records.serialize(clip)
    kind_P, start_P, length_P, _ = parts.find(data).T
    (context,) = np.flatnonzero(kind_P == parts.CONTEXT)
    alone = data[start_P[context] :][: length_P[context]]
    wanted = records.MODALITIES - {"flow"}
    whole = records.parse(tf.constant(data), wanted, 25.0, 48000)
    found = records.parse_context(tf.constant(alone), wanted, 25.0, 48000)
    assert found.keys() == whole.keys() - {"frames", "waveform"}
    for name, value in found.items():
        assert value.dtype == whole[name].dtype and value.shape == whole[name].shape
        np.testing.assert_array_equal(value, whole[name])


@pytest.mark.parametrize(
    "data, modalities, message",
    [
        (b"not a record", {"frames"}, "Invalid protocol message"),
        (sequence_example.encode({}, {}), {"frames"}, "image/encoded"),
        (sequence_example.encode({}, {}), {"audio"}, "has no WAVEFORM"),
        (sequence_example.encode({}, {records.IMAGE: [[b"1", b"2"]]}), {"frames"}, "expected"),
    ],
)
def test_a_record_that_lacks_what_is_asked_for_is_an_error(data, modalities, message):
    from common.tf import tf

    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        records.parse(tf.constant(data), modalities, 25.0, 48000)


def test_ingest_and_its_workers_import_neither_tensorflow_nor_jax():
    modules = "records, sequence_example, convert, workers, writer, card, check, tables, flow"
    code = f"from common.data import {modules}\nimport common.ingest, common.inspect, sys\n"
    code += "print(sorted({'tensorflow', 'jax'} & set(sys.modules)))"
    root = pathlib.Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
