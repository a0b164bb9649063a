"""Inspection finds what is known to go wrong with records, and changes nothing."""

import importlib
import os
import pathlib
import subprocess
import sys

import cv2
import numpy as np
import pytest

from common import inspect as inspect_lib
from common import methods
from common.data import check, records, sequence_example, shards
from common.errors import UserError
from common.method import TextInput

ROOT = pathlib.Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "brave"


def jpeg(seed=0, size=(24, 32), kind=".jpg"):
    image = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    return cv2.imencode(kind, image)[1].tobytes()


def clip(seed=0, **changes):
    rng = np.random.default_rng(seed)
    known = {
        "id": f"clip {seed}",
        "frames_jpeg": [jpeg(seed), jpeg(seed + 1000)],
        "frame_rate": 25.0,
        "waveform": rng.uniform(-0.5, 0.5, 1280).astype(np.float32),
        "audio_rate": 16000,
    }
    return records.Clip(**known | changes)


def write(folder, entries, name="x.tfrecord", index=True):
    folder.mkdir(exist_ok=True)
    payloads = [e if isinstance(e, bytes) else records.serialize(e) for e in entries]
    (folder / name).write_bytes(b"".join(map(shards.frame, payloads)))
    if index:
        shards.write_index(folder / name)
    return str(folder)


def problems(folder, labels=None):
    return dict(check.check_folder(folder, labels or {}, 0).problems)


def packed_frames():
    return sequence_example.encode({}, {records.IMAGE: [[jpeg(0), jpeg(1)]]})


def raw_waveform(*features):
    return sequence_example.encode({}, {records.IMAGE: [[jpeg()]], records.WAVEFORM: features})


def integers_as_floats():
    samples = np.random.default_rng(0).normal(0, 2**27, 4000).astype("<i4")
    return raw_waveform(samples.view("<f4"))


FAULTY = {
    "2 values in one Feature, expected one JPEG": packed_frames(),
    "integers stored as if they were floats": integers_as_floats(),
    "unscaled": raw_waveform(np.array([0, 3000, -20000], np.float32)),
    "divide by full scale": raw_waveform(np.array([0, 2.5, -2.0], np.float32)),
    "2 Features, expected one": raw_waveform(np.zeros(4, np.float32), np.zeros(4, np.float32)),
    "no samples": raw_waveform(np.zeros(0, np.float32)),
    "not floats": raw_waveform([b"wav"]),
    "neither image/encoded nor WAVEFORM": sequence_example.encode({"clip/a": [b"x"]}, {}),
    "PNG, expected JPEG": clip(frames_jpeg=[jpeg(kind=".png")]),
    "not a picture": clip(frames_jpeg=[b"hello"]),
    "cannot be decoded": clip(frames_jpeg=[b"\xff\xd8\xff\xe0junk"]),
    "holds numbers": sequence_example.encode({}, {records.IMAGE: [np.arange(3)]}),
    "frames of different sizes": clip(frames_jpeg=[jpeg(), jpeg(size=(8, 8))]),
    "not a tf.train.SequenceExample": b"\xff\xff\xff",
    "label id out of range": clip(label_indices=[7]),
    "one label id with several names": clip(label_indices=[1], label_texts=["zebra"]),
    "as many label names": clip(label_indices=[1], label_texts=["b", "a"]),
    "holds text, expected int64": sequence_example.encode(
        {records.LABEL_INDEX: [b"3"]}, {records.IMAGE: [[jpeg()]]}
    ),
    "a caption outside its clip": clip(captions=[("late", 5.0, 6.0)]),
    "the sound is much longer": clip(waveform=np.full(16000, 0.1, np.float32)),
    "fewer flow frames": clip(frames_jpeg=[jpeg()] * 3, flow_jpeg=[jpeg()]),
}


@pytest.mark.parametrize("fault", FAULTY)
def test_each_known_fault_is_named_with_its_place(tmp_path, fault):
    found = problems(write(tmp_path, [clip(1), FAULTY[fault], clip(2)]), {"a": 0, "b": 1})
    ((kind, places),) = found.items()
    assert fault in kind and places[0].startswith("x.tfrecord:1"), found


def test_sound_records_have_no_problems(tmp_path):
    assert problems(write(tmp_path, [clip(seed) for seed in range(5)])) == {}


def test_a_published_record_has_no_problems():
    findings = check.check_folder(str(GOLDEN / "sample.tfrecord"), {}, 0)
    assert not findings.problems and findings.num_records == 2
    assert any("no frame rate" in remark for remark in findings.remarks)


@pytest.mark.parametrize("position", [3, 9, 40, -2])
def test_a_flipped_byte_is_found(tmp_path, position):
    folder = write(tmp_path, [clip(1), clip(2)])
    path = tmp_path / "x.tfrecord"
    data = bytearray(path.read_bytes())
    data[position] ^= 4
    path.write_bytes(data)
    assert any("checksum" in problem for problem in problems(folder))


def test_a_stale_index_is_found_and_a_missing_one_noted(tmp_path):
    folder = write(tmp_path, [clip(1)])
    write(tmp_path, [clip(1), clip(2)], index=False)
    assert any("index" in problem for problem in problems(folder))
    os.unlink(tmp_path / "x.tfrecord.index")
    findings = check.check_folder(folder, {}, 0)
    assert not findings.problems and any("no index" in remark for remark in findings.remarks)


def test_doubled_ids_are_problems_and_doubled_contents_are_noted(tmp_path):
    found = check.check_folder(write(tmp_path, [clip(1), clip(1), clip(1, id="other")]), {}, 0)
    assert found.problems["one id twice"] == ["x.tfrecord:1 and x.tfrecord:0 (clip 1)"]
    assert len(found.remarks["the same content twice"]) == 2


def test_silence_is_noted(tmp_path):
    folder = write(tmp_path, [clip(waveform=np.zeros(1280, np.float32))])
    assert check.check_folder(folder, {}, 0).remarks["silence"] == ["x.tfrecord:0"]


def test_missing_shards_and_unfinished_ones_are_named(tmp_path):
    folder = write(tmp_path, [clip(1)], name="train-00000-of-00003.tfrecord")
    (tmp_path / ".train-00001-of-00003.tfrecord.partial").touch()
    found = problems(folder)
    assert any("shards are missing" in problem for problem in found)
    assert any("unfinished" in problem for problem in found)


def test_an_interrupted_ingest_without_a_whole_shard_is_a_problem_and_no_mistake(tmp_path):
    (tmp_path / ".train-00000-of-00003.tfrecord.partial").touch()
    assert list(problems(str(tmp_path))) == ["unfinished shard (repeat the ingest command)"]


@pytest.mark.parametrize("kept", [0, 1])
def test_a_shard_that_lost_whole_records_is_found_even_after_it_was_read(tmp_path, kept):
    name = "train-00000-of-00001.tfrecord"
    folder = write(tmp_path / "train", [clip(1), clip(2)], name)
    journal = tmp_path / ".ingest" / "train" / "00000.jsonl"
    journal.parent.mkdir(parents=True)
    journal.write_text('{"id": "1"}\n{"id": "x", "reason": "broken"}\n{"id": "2"}\n')
    assert not problems(folder)
    write(tmp_path / "train", [clip(1)][:kept], name)
    shards.RecordSet(shards.find_shards(folder))  # renews the index
    ((problem, places),) = problems(folder).items()
    assert "records were lost" in problem and places == [f"{name} ({kept}, written were 2)"]


def test_looking_changes_nothing(tmp_path):
    folder = write(tmp_path, [clip(1)], index=False)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    problems(folder)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_splits_of_a_data_set_are_found(tmp_path):
    for split in ("train", "test"):
        write(tmp_path / split, [clip(1)])
    (tmp_path / "notes").mkdir()
    assert list(check.record_folders(tmp_path)) == ["test", "train"]
    with pytest.raises(UserError, match="no record shards"):
        check.record_folders(tmp_path / "notes") and check.check_folder(
            str(tmp_path / "notes"), {}, 0
        )


def inspect(*arguments):
    command = [sys.executable, "-m", "common.inspect", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_the_command_prints_a_table_and_its_status_tells(tmp_path):
    good = inspect(write(tmp_path / "good", [clip(1), clip(2)]))
    assert good.returncode == 0 and "No problems found" in good.stdout
    assert "24x32 (2)" in good.stdout and "25 (2)" in good.stdout and "16000 (2)" in good.stdout
    bad = inspect(write(tmp_path / "bad", [clip(1), FAULTY["holds numbers"]]))
    assert bad.returncode == 1 and "PROBLEM: 1 x image/encoded holds numbers" in bad.stdout
    nothing = inspect(tmp_path / "nothing")
    assert nothing.returncode == 2 and "Traceback" not in nothing.stderr


@pytest.mark.slow
def test_it_says_whether_the_records_can_feed_a_config(tmp_path):
    def long(seed, **changes):
        frames = [jpeg(seed + number, (64, 64)) for number in range(40)]
        sound = np.random.default_rng(seed).uniform(-0.5, 0.5, 25600).astype(np.float32)
        return clip(seed, **{"frames_jpeg": frames, "waveform": sound} | changes)

    config = "--config=configs/brave_demo.py:smoke"
    folder = write(tmp_path / "good", [long(seed) for seed in range(8)])
    good = inspect(folder, config)
    assert good.returncode == 0 and "clips/s here" in good.stdout, good.stdout + good.stderr
    at = inspect(write(tmp_path / "me@lab", [long(1)]), config)
    assert at.returncode == 0 and "clips/s here" in at.stdout, at.stdout + at.stderr
    mute = [long(seed, waveform=None, audio_rate=None) for seed in range(2)]
    bad = inspect(write(tmp_path / "mute", mute), config)
    assert bad.returncode == 1
    assert "2 of the tried records cannot feed brave: the record has no WAVEFORM" in bad.stdout


@pytest.mark.parametrize("name", ["brave_v_a", "mil_nce_howto100m", "frozen_msrvtt"])
def test_clips_too_short_for_an_encoder_are_counted_whatever_else_a_model_reads(name, capsys):
    method = methods.create(importlib.import_module(f"configs.{name}").get_config("smoke"))
    findings = check.Findings()
    findings.clips.extend({"seconds": seconds} for seconds in (0.01, 1e6))
    inspect_lib.note_lengths(method, findings)
    noted = [line for line in capsys.readouterr().out.splitlines() if "1 of 2 clips" in line]
    wanted = [e for e in method.encoders.values() if not isinstance(e.inputs, TextInput)]
    assert len(noted) == (0 if name.startswith("frozen") else len(wanted))
