"""Promises of reading in parts: the same bytes as the whole record gives, or an error."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.data import parts, records, sequence_example, shards
from common.data.shards import BadRecord, RecordSet
from common.errors import UserError


def make_clip(number):
    random = np.random.default_rng(number)
    frames = [random.bytes(int(n)) for n in random.integers(0, 400, 5 + number)]
    flow = [random.bytes(int(n)) for n in random.integers(1, 40, number)]
    sound = random.standard_normal(100 * number).astype(np.float32) if number else None
    return records.Clip(f"clip{number}", "x.mp4", frames, 25.0, sound, 16_000, flow, [3], ["run"])


CLIPS = [make_clip(number) for number in range(4)]


@pytest.fixture
def shard(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "a.tfrecord"
    path.write_bytes(b"".join(shards.frame(records.serialize(clip)) for clip in CLIPS))
    shards.write_index(path)
    return path


def read(record_set, number, kind):
    table = record_set.parts(number)
    return record_set.read_parts(number, table[table[:, 0] == kind])


def test_every_part_is_what_was_written(shard):
    record_set = RecordSet.open(shard)
    assert record_set.has_parts
    for number, clip in enumerate(CLIPS):
        assert read(record_set, number, parts.FRAME) == clip.frames_jpeg
        assert read(record_set, number, parts.FLOW) == clip.flow_jpeg
        (context,) = read(record_set, number, parts.CONTEXT)
        found = records.deserialize(context)
        assert (found.id, found.frame_rate, found.label_texts) == (clip.id, 25.0, ["run"])
        sound = read(record_set, number, parts.SOUND)
        expected = [] if clip.waveform is None else [clip.waveform.tobytes()]
        assert sound == expected


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_flipped_byte_is_an_error_or_was_not_read(shard, data):
    path = data.draw(st.sampled_from([shard, shard.with_name("a.tfrecord.index")]))
    whole = path.read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    changed = bytearray(whole)
    changed[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(changed)
    errors = 0
    try:
        record_set = RecordSet.open(shard)
        for number, clip in enumerate(CLIPS):
            if not record_set.has_parts:  # the index was damaged, and has been made again
                assert record_set.read(number) == records.serialize(clip)
                continue
            try:
                assert read(record_set, number, parts.FRAME) == clip.frames_jpeg
                assert read(record_set, number, parts.FLOW) == clip.flow_jpeg
                read(record_set, number, parts.CONTEXT), read(record_set, number, parts.SOUND)
            except BadRecord as error:
                assert f"record {number}: " in str(error)
                errors += 1
    finally:
        path.write_bytes(whole)
        shards.write_index(shard)
    assert errors <= 1


def test_a_shard_that_changed_after_its_index_gives_errors_not_other_bytes(shard):
    data = b"".join(shards.frame(records.serialize(clip)) for clip in CLIPS[::-1])
    shard.write_bytes(data)
    record_set = RecordSet.open(shard)
    for number in range(len(CLIPS)):
        with pytest.raises(BadRecord, match="changed since its index was written"):
            read(record_set, number, parts.CONTEXT)


def test_records_of_another_layout_are_read_whole(shard):
    odd = sequence_example.encode({}, {records.IMAGE: [[b"one", b"two"]]})
    shard.write_bytes(shards.frame(records.serialize(CLIPS[0])) + shards.frame(odd))
    shards.write_index(shard)
    record_set = RecordSet.open(shard)
    assert not record_set.has_parts and record_set.read(1) == odd


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_bytes_that_are_no_record_have_no_parts_or_harmless_ones(data):
    table = parts.find(data)
    if table is not None:
        assert (table[:, 1] + table[:, 2] <= len(data)).all()


def test_remote_shards_are_read_in_parts_too(shard):
    record_set = RecordSet.open(f"file://{shard}")
    assert record_set.has_parts
    assert read(record_set, 2, parts.FRAME) == CLIPS[2].frames_jpeg


def test_a_shard_that_vanishes_is_an_error_of_its_records(shard):
    record_set = RecordSet.open(shard)
    table = record_set.parts(0)
    shard.unlink()
    with pytest.raises(BadRecord, match="cannot be read"):
        record_set.read_parts(0, table)
    with pytest.raises(UserError):
        RecordSet.open(shard)
