"""Promises of the pipeline: the same batches in every run, and nothing else in their place."""

import io
import logging
import threading

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from common.data import files, records, shards, stream
from common.data.pipeline import SAMPLE_ID, TrainData
from common.errors import UserError
from configs import base

NUM_RECORDS = 20
SIZE = 16


class ToyViews:
    """Four frames from a random start, a random window, and a little sound."""

    modalities = frozenset({"frames", "audio"})

    def spec(self):
        import jax

        return {
            "video": jax.ShapeDtypeStruct((4, SIZE, SIZE, 3), np.uint8),
            "audio": jax.ShapeDtypeStruct((500,), np.int16),
        }

    def example(self, record, seed):
        from common.data import decode, sampling

        stored = decode.count(record["frames"])
        available = sampling.frames_at_rate(stored, record["frame_rate"], 25.0)
        starts = sampling.count_starts(available, 4, 1)
        start = sampling.random_start(seed, starts)
        indices = sampling.clip_indices(start, 4, 1, stored, record["frame_rate"], 25.0)
        frames = decode.take(record["frames"], indices)
        window = decode.random_window(decode.frame_shape(frames[0]), seed + [0, 1])
        return {
            "video": decode.decode_clip(frames, window, SIZE),
            "audio": sampling.synced_waveform(
                record["waveform"], record["audio_rate"], start, available, 25.0, 500, 1000
            ),
        }


def make_clip(number):
    """Every clip has a level of its own in pixels and sound, so that mix-ups show."""
    frames = []
    for t in range(8):
        image = np.full((40, 52, 3), 10 * number + t, np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=95)
        frames.append(buffer.getvalue())
    waveform = np.full(320, (number + 1) / 100, np.float32)
    return records.Clip(f"clip{number}", "", frames, 25.0, waveform, 1000)


@pytest.fixture(scope="module")
def payloads():
    return [records.serialize(make_clip(number)) for number in range(NUM_RECORDS)]


@pytest.fixture
def folder(tmp_path, payloads):
    write(tmp_path, payloads)
    return tmp_path


def write(folder, payloads):
    for shard in range(2):
        path = folder / f"a-0000{shard}-of-00002.tfrecord"
        path.write_bytes(b"".join(map(shards.frame, payloads[shard::2])))
        shards.write_index(path)


def forget_parts(folder):
    """Leaves the shards as if another program had written them."""
    for path in folder.glob("*.index"):
        path.unlink()


def damage(folder, shard, numbers):
    """Changes a byte of the context, which every way of reading reads."""
    path = folder / f"a-0000{shard}-of-00002.tfrecord"
    index = shards.load_index(path)
    data = bytearray(path.read_bytes())
    for number in numbers:
        data[index.offsets[number] + 30] ^= 1
    path.write_bytes(data)


def make_config(folder, **data) -> ConfigDict:
    config = base.get_config()
    config.batch_size = 6
    config.seed = 3
    config.data.train = str(folder)
    config.data.threads = 2
    config.data.update(data)
    return config


def take(data, start, number):
    batches = data.batches(start)
    return [next(batches) for _ in range(number)]


def assert_equal(ones, others):
    for one, other in zip(ones, others, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            assert one[name].dtype == other[name].dtype
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def test_batches_have_the_shapes_that_the_views_promise(folder):
    views = ToyViews()
    batch = take(TrainData(make_config(folder), views), 0, 1)[0]
    for name, entry in views.spec().items():
        assert batch[name].shape == (6, *entry.shape) and batch[name].dtype == entry.dtype
    assert batch[SAMPLE_ID].shape == (6, 2)


def test_every_example_is_of_the_record_its_id_names(folder):
    for batch in take(TrainData(make_config(folder), ToyViews()), 0, 10):
        # Records of the first shard are the even clips, of the second the odd ones.
        record_B = batch[SAMPLE_ID][:, 1]
        clip_B = 2 * (record_B % 10) + record_B // 10
        sound_B = np.round((clip_B + 1) / 100 * 32767)
        np.testing.assert_array_equal(batch["audio"][:, 0], sound_B)
        level_B = batch["video"].astype(float).mean((1, 2, 3, 4))
        assert np.abs(level_B - 10 * clip_B - 3.5).max() < 4


@pytest.mark.parametrize("start", [1, 7])
def test_reading_from_any_step_gives_what_an_uninterrupted_run_gives(folder, start):
    config = make_config(folder)
    whole = take(TrainData(config, ToyViews()), 0, 10)
    assert_equal(whole[start:], take(TrainData(config, ToyViews()), start, 10 - start))


def test_a_store_far_away_is_read_many_examples_at_a_time(folder, monkeypatch):
    """Each of them waits for the others to begin, so that it hangs where they do not."""
    expected = take(TrainData(make_config(folder), ToyViews()), 0, 8)
    together = threading.Barrier(12, timeout=20)
    waiting, read = iter(range(24)), files.File.read

    def later(self, offset, length):
        if next(waiting, None) is not None:
            together.wait()
        return read(self, offset, length)

    reader = TrainData(make_config(f"file://{folder}"), ToyViews())
    monkeypatch.setattr(files.File, "read", later)
    assert_equal(take(reader, 0, 8), expected)


def test_reads_at_a_time_are_as_configured_or_as_far_as_files_are(folder):
    assert TrainData(make_config(folder), ToyViews())._reads() == 2
    assert TrainData(make_config(folder, reads=5), ToyViews())._reads() == 5
    assert TrainData(make_config(f"file://{folder}"), ToyViews())._reads() == 64


def test_reading_parts_gives_the_same_bits_as_reading_whole_records(folder):
    reader = TrainData(make_config(folder), ToyViews())
    assert reader._sources[0].in_parts
    in_parts = take(reader, 0, 6)
    forget_parts(folder)
    reader = TrainData(make_config(folder), ToyViews())
    assert not reader._sources[0].in_parts
    assert_equal(in_parts, take(reader, 0, 6))


def test_the_number_of_threads_changes_nothing(folder):
    one = take(TrainData(make_config(folder, threads=1), ToyViews()), 0, 4)
    assert_equal(one, take(TrainData(make_config(folder, threads=7), ToyViews()), 0, 4))


def test_how_many_examples_are_handed_over_at_once_changes_nothing(folder, monkeypatch):
    damage(folder, 1, [4])
    whole = take(TrainData(make_config(folder), ToyViews()), 0, 10)
    monkeypatch.setattr(stream, "_BYTES", 0)
    reader = TrainData(make_config(folder), ToyViews())
    assert_equal(whole, take(reader, 0, 10))
    assert reader.bad.count == 3


@pytest.mark.parametrize("in_parts", [True, False])
def test_a_folder_may_be_named_in_any_script(tmp_path, payloads, in_parts):
    folder = tmp_path / "Vidéos 動画"
    folder.mkdir()
    write(folder, payloads)
    if not in_parts:
        forget_parts(folder)
    reader = TrainData(make_config(folder), ToyViews())
    take(reader, 0, 1)
    assert reader.bad.count == 0


@pytest.mark.parametrize("source", ["records", "fake"])
def test_the_rows_of_all_processes_make_up_the_batch(folder, source):
    config = make_config(folder if source == "records" else "fake")
    whole = take(TrainData(config, ToyViews()), 2, 2)
    for rows in (np.arange(0, 6, 2), np.array([1]), np.array([3, 5])):
        part = take(TrainData(config, ToyViews(), rows), 2, 2)
        cut = [{name: values[rows] for name, values in batch.items()} for batch in whole]
        assert_equal(part, cut)


@pytest.mark.slow
@pytest.mark.parametrize("in_parts", [True, False])
def test_a_damaged_record_is_left_out_counted_and_named(folder, in_parts, caplog):
    if not in_parts:
        forget_parts(folder)
    config = make_config(folder)
    whole = take(TrainData(config, ToyViews()), 0, 10)
    damage(folder, 1, [4])

    reader = TrainData(config, ToyViews())
    with caplog.at_level(logging.WARNING):
        spoilt = take(reader, 0, 10)
    hits = 0
    for one, other in zip(whole, spoilt, strict=True):
        hit_B = one[SAMPLE_ID][:, 1] == 14
        hits += hit_B.sum()
        assert (other[SAMPLE_ID][:, 1] != 14).all()
        for name in one:
            np.testing.assert_array_equal(one[name][~hit_B], other[name][~hit_B])
        np.testing.assert_array_equal(one[SAMPLE_ID][:, 1] == other[SAMPLE_ID][:, 1], ~hit_B)
        clip_B = 2 * (other[SAMPLE_ID][:, 1] % 10) + other[SAMPLE_ID][:, 1] // 10
        np.testing.assert_array_equal(other["audio"][:, 0], np.round((clip_B + 1) / 100 * 32767))
    assert reader.bad.count == hits == 3 and reader.bad.seen == 60
    assert reader.bad.share == pytest.approx(3 / 60)
    (line,) = [r.message for r in caplog.records if "left out" in r.message]
    assert "a-00001-of-00002.tfrecord, record 4: the checksum of the record" in line
    assert_equal(spoilt[5:], take(TrainData(config, ToyViews()), 5, 5))


def test_a_frame_that_does_not_decode_leaves_its_clip_out_by_name(tmp_path, payloads, caplog):
    clip = make_clip(7)
    clip.frames_jpeg = [frame[:150] for frame in clip.frames_jpeg]
    write(tmp_path, payloads[:7] + [records.serialize(clip)] + payloads[8:])
    reader = TrainData(make_config(tmp_path), ToyViews())
    with caplog.at_level(logging.WARNING):
        take(reader, 0, 10)
    (bad,) = reader.bad.clips.values()
    assert (bad.shard, bad.number, bad.id) == ("a-00001-of-00002.tfrecord", 3, "clip7")
    assert "JPEG" in bad.why and "clip7" in caplog.text


@pytest.mark.parametrize("part", ["frames", "audio"])
def test_a_clip_without_what_the_views_need_is_left_out(tmp_path, payloads, part):
    clip = make_clip(7)
    if part == "frames":
        clip.frames_jpeg = []
    else:
        clip.waveform = None
    write(tmp_path, payloads[:7] + [records.serialize(clip)] + payloads[8:])
    reader = TrainData(make_config(tmp_path), ToyViews())
    take(reader, 0, 10)
    assert [bad.id for bad in reader.bad.clips.values()] == ["clip7"]


def test_too_many_bad_clips_stop_the_run(folder):
    damage(folder, 1, [1, 2, 3])
    with pytest.raises(UserError, match=r"more than config.data.max_bad_share=0.01 allows"):
        take(TrainData(make_config(folder), ToyViews()), 0, 100)
    with pytest.raises(UserError, match=r"1 of \d+ clips could not be read"):
        take(TrainData(make_config(folder, max_bad_share=0.0), ToyViews()), 0, 10)


def test_a_draw_without_any_readable_record_names_them_all(folder):
    for shard in range(2):
        damage(folder, shard, range(10))
    with pytest.raises(UserError) as error:
        take(TrainData(make_config(folder), ToyViews()), 0, 1)
    assert str(error.value).count(": the checksum of the record") == 4


def test_mixtures_read_every_source_by_its_weight(tmp_path, payloads):
    for name, part in (("a", payloads[:10]), ("b", payloads[10:])):
        (tmp_path / name).mkdir()
        write(tmp_path / name, part)
    config = make_config(f"{tmp_path}/a@0.75,{tmp_path}/b@0.25")
    config.batch_size = 40
    ids = np.concatenate([b[SAMPLE_ID] for b in take(TrainData(config, ToyViews()), 0, 25)])
    assert list(np.bincount(ids[:, 0])) == [750, 250]


def test_the_fake_source_has_the_same_shapes_and_needs_no_files():
    views = ToyViews()
    one, other = take(TrainData(make_config("fake"), views), 5, 2)
    for name, entry in views.spec().items():
        assert one[name].shape == (6, *entry.shape) and one[name].dtype == entry.dtype
        assert one[name] is other[name]
        assert len(np.unique(one[name])) > 100
