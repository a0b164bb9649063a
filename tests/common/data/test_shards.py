"""Promises of record shards: what is read is what was written, or an error that names it."""

import os

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.data import files, shards
from common.data.shards import BadRecord, RecordSet
from common.errors import UserError


@pytest.fixture
def payloads():
    random = np.random.default_rng(0)
    return [random.bytes(int(n)) for n in (300, 1, 0, 5000, 77, 1200)]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def write(path, payloads):
    path.write_bytes(b"".join(shards.frame(payload) for payload in payloads))
    return path


def read_all(records):
    """Returns payloads, with the error's text where a record cannot be read."""
    found = []
    for number in range(len(records)):
        try:
            found.append(records.read(number))
        except BadRecord as error:
            found.append(str(error))
    return found


def test_records_come_back_as_written(tmp_path, payloads):
    write(tmp_path / "a-00000-of-00002.tfrecord", payloads[:4])
    write(tmp_path / "a-00001-of-00002.tfrecord", payloads[4:])
    records = RecordSet.open(tmp_path)
    assert read_all(records) == payloads
    assert records.name(4) == "a-00001-of-00002.tfrecord:0"


def test_tensorflow_reads_what_we_frame(tmp_path, payloads):
    from common.tf import tf

    path = write(tmp_path / "a.tfrecord", payloads)
    found = [record.numpy() for record in tf.data.TFRecordDataset(str(path))]
    assert found == payloads


def test_we_read_what_tensorflow_writes(tmp_path, payloads):
    from common.tf import tf

    with tf.io.TFRecordWriter(str(tmp_path / "hmdb51-00000-of-00001")) as writer:
        for payload in payloads:
            writer.write(payload)
    assert read_all(RecordSet.open(tmp_path)) == payloads


def test_the_index_is_written_once_beside_the_shard(tmp_path, payloads):
    path = write(tmp_path / "a.tfrecord", payloads)
    RecordSet.open(tmp_path)
    index = tmp_path / "a.tfrecord.index"
    before = index.stat().st_mtime_ns
    assert len(RecordSet.open(path)) == len(payloads)
    assert index.stat().st_mtime_ns == before
    assert sorted(os.listdir(tmp_path)) == ["a.tfrecord", "a.tfrecord.index"]


def test_where_the_folder_cannot_be_written_the_index_is_cached(tmp_path, payloads, monkeypatch):
    path = write(tmp_path / "a.tfrecord", payloads)
    written = []
    real = files.write_whole

    def refuse_beside(place, data):
        if place.startswith(str(path)):
            raise PermissionError(place)
        written.append(place)
        real(place, data)

    monkeypatch.setattr(files, "write_whole", refuse_beside)
    for _ in range(2):
        assert read_all(RecordSet.open(path)) == payloads
    assert len(written) == 1 and written[0].startswith(str(tmp_path / "cache" / "zoetrope"))


def test_a_stale_index_is_noticed(tmp_path, payloads):
    path = write(tmp_path / "a.tfrecord", payloads)
    shards.write_index(path)
    write(path, payloads + [b"one more"])
    assert read_all(RecordSet.open(path))[-1] == b"one more"


def test_an_index_of_another_file_of_the_same_size_gives_errors_not_other_bytes(tmp_path, payloads):
    path = write(tmp_path / "a.tfrecord", payloads)
    shards.write_index(path)
    write(path, payloads[::-1])
    found = read_all(RecordSet.open(path))
    assert all(isinstance(entry, str) for entry in found if entry not in payloads)
    assert any("delete" in str(entry) or "damaged" in str(entry) for entry in found)


def test_a_damaged_index_is_renewed(tmp_path, payloads):
    path = write(tmp_path / "a.tfrecord", payloads)
    shards.write_index(path)
    index = tmp_path / "a.tfrecord.index"
    whole = index.read_bytes()
    for broken in (b"", whole[:20], whole[:-3], whole[:-1] + b"\x07"):
        index.write_bytes(broken)
        assert read_all(RecordSet.open(path)) == payloads
        assert index.read_bytes() == whole


@pytest.mark.parametrize("with_index", [True, False])
@settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_flipped_byte_spoils_one_record_and_no_other(tmp_path, payloads, with_index, data):
    """Whatever the byte: all other records read as written and the hit one is an error."""
    path = write(tmp_path / "a.tfrecord", payloads)
    index = shards.write_index(path)
    whole = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(whole) - 1))
    whole[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(whole)
    if not with_index:
        os.unlink(tmp_path / "a.tfrecord.index")
    found = read_all(RecordSet.open(path))
    hit = int(np.searchsorted(index.offsets, at, side="right")) - 1
    assert isinstance(found[hit], str) and f"a.tfrecord, record {hit}: " in found[hit]
    intact = [payload for number, payload in enumerate(payloads) if number != hit]
    if with_index:
        assert found[:hit] + found[hit + 1 :] == intact
    else:  # an empty record after a damaged header cannot be found again, all others are
        readable = [entry for entry in found if isinstance(entry, bytes) and entry]
        assert readable == [payload for payload in intact if payload]


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_truncated_shard_gives_its_whole_records_and_names_the_broken_one(
    tmp_path, payloads, data
):
    path = write(tmp_path / "a.tfrecord", payloads)
    index = shards.write_index(path)
    whole = path.read_bytes()
    length = data.draw(st.integers(1, len(whole) - 1))
    path.write_bytes(whole[:length])
    found = read_all(RecordSet.open(path))
    complete = int(np.searchsorted(index.offsets, length, side="right")) - 1
    assert found[:complete] == payloads[:complete]
    if length == index.offsets[complete]:
        assert len(found) == complete
    else:
        assert len(found) == complete + 1 and "truncated" in found[complete]


def test_scanning_with_verification_names_every_damaged_record(tmp_path, payloads):
    path = write(tmp_path / "a.tfrecord", payloads)
    index = shards.write_index(path)
    whole = bytearray(path.read_bytes())
    for number in (0, 3):
        whole[index.offsets[number] + 15] ^= 255
    path.write_bytes(whole)
    assert shards.scan(path)[1] == []
    assert [problem.number for problem in shards.scan(path, verify=True)[1]] == [0, 3]


def test_a_missing_shard_of_a_numbered_set_is_an_error_in_a_folder_not_in_a_glob(
    tmp_path, payloads
):
    write(tmp_path / "a-00001-of-00003.tfrecord", payloads)
    with pytest.raises(UserError, match="2 of the 3 shards of 'a' are missing, first number 00000"):
        RecordSet.open(tmp_path)
    assert len(RecordSet.open(tmp_path / "a-*.tfrecord")) == len(payloads)


@pytest.mark.parametrize("name", ["videos [2024]", "what?", "a*b"])
def test_a_folder_whose_name_looks_like_a_pattern_is_a_folder(tmp_path, payloads, name):
    (tmp_path / name).mkdir()
    write(tmp_path / name / "a.tfrecord", payloads)
    assert len(RecordSet.open(tmp_path / name)) == len(payloads)


def test_an_address_that_cannot_be_read_is_an_error_that_names_it():
    with pytest.raises(UserError, match="nowhere://bucket/x cannot be read"):
        RecordSet.open("nowhere://bucket/x")


def test_places_without_shards_are_errors_that_help(tmp_path, payloads):
    (tmp_path / "train").mkdir()
    with pytest.raises(UserError, match=r"Did you mean one of its folders \['train'\]"):
        RecordSet.open(tmp_path)
    with pytest.raises(UserError, match="No record shards"):
        RecordSet.open(tmp_path / "nowhere")
    with pytest.raises(UserError, match="No record shards"):
        RecordSet.open(tmp_path / "*.tfrecord")
    write(tmp_path / "train" / "a.tfrecord", [])
    with pytest.raises(UserError, match="hold no records"):
        RecordSet.open(tmp_path / "train")


def test_a_compressed_shard_is_refused_by_name(tmp_path, payloads):
    import gzip

    path = tmp_path / "a.tfrecord"
    path.write_bytes(gzip.compress(shards.frame(payloads[0])))
    with pytest.raises(UserError, match="gzip-compressed"):
        RecordSet.open(path)


def test_remote_paths_are_read_through_tensorflow(tmp_path, payloads):
    write(tmp_path / "a-00000-of-00001.tfrecord", payloads)
    records = RecordSet.open(f"file://{tmp_path}")
    assert read_all(records) == payloads
    assert records.paths[0].startswith("file://")
    assert read_all(RecordSet.open(f"file://{tmp_path}/*.tfrecord")) == payloads
