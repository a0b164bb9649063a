"""Records in a bucket: TensorFlow's own client of gs:// against a server on this machine."""

import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys

import noise_records
import numpy as np
import pytest

from benchmarks import bucket
from common.data import records, shards

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("openssl"), reason="needs the command openssl"),
]
ROOT = pathlib.Path(__file__).parents[3]
SHARD = "train-00000-of-00001.tfrecord"
FRAMES = (16, 16, 16, 3)  # 128 px, about 80 kB a clip


@pytest.fixture
def folder(tmp_path):
    train = tmp_path / "bucket" / "train"
    train.mkdir(parents=True)
    noise_records.write(
        train / SHARD,
        FRAMES,
        lambda number, generator: {
            "waveform": generator.uniform(-1, 1, 10240).astype(np.float32),
            "audio_rate": 16000,
        },
    )
    return tmp_path / "bucket"


def run(store, *command):
    ours = {
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests" / "common"))),
        "GCS_RETRY_CONFIG_INIT_DELAY_TIME_US": "1000",
    }
    return subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, timeout=300,
        env={**os.environ, **ours, **store.environment},
    )  # fmt: skip


BATCHES = """
import hashlib, json, sys
import tiny_brave
from brave.views import BraveViews
from common.data.pipeline import TrainData

config = tiny_brave.get_config(**{"data.train": sys.argv[1]})
batches = TrainData(config, BraveViews(config)).batches(5)
entries = [entry for _ in range(4) for entry in sorted(next(batches).items())]
batches.close()
print(json.dumps([[name, hashlib.sha256(a.tobytes()).hexdigest()] for name, a in entries]))
"""


def test_batches_from_a_bucket_are_those_from_the_disk_though_requests_fail(folder):
    shards.write_index(folder / "train" / SHARD)
    with bucket.serve(folder) as store:
        store.fail_every.value = 7
        far, near = (
            run(store, "-c", BATCHES, path) for path in ("gs://bucket/train", folder / "train")
        )
        assert near.returncode == 0, near.stderr
        assert far.returncode == 0, far.stderr
        assert store.requests.value > 40
    assert far.stdout == near.stdout and len(json.loads(near.stdout)) > 8


READ = """
import hashlib, sys
from common.data import shards

records = shards.RecordSet.open("gs://bucket/train")
print(hashlib.sha256(b"".join(map(records.read, map(int, sys.argv[1:])))).hexdigest())
"""


def test_a_record_asks_for_little_more_than_itself(folder):
    shard = folder / "train" / SHARD
    with open(shard, "ab") as file:  # 60 MB of what is not wanted
        big = shards.frame(records.serialize(records.Clip(id="b", frames_jpeg=[b"x" * 20_000_000])))
        file.write(big * 3)
    index = shards.write_index(shard)
    with bucket.serve(folder) as store:
        done = run(store, "-c", READ, "1", "3")
        assert done.returncode == 0, done.stderr
        local = shards.RecordSet.open(folder / "train")
        wanted = hashlib.sha256(local.read(1) + local.read(3)).hexdigest()
        assert done.stdout.strip() == wanted
        assert store.bytes.value < 4 << 20, "of 64 MB"
    assert index.lengths[1] > 50_000


def test_a_missing_index_is_made_once_and_kept_in_the_bucket(folder):
    with bucket.serve(folder) as store:
        done = run(store, "-c", READ, "0")
        assert done.returncode == 0, done.stderr
        assert (folder / "train" / f"{SHARD}.index").exists()
        looked = run(store, "-m", "common.inspect", "gs://bucket/train")
    assert looked.returncode == 0, looked.stderr
    assert "No problems found." in looked.stdout and "no index" not in looked.stdout


def test_what_is_not_there_is_named(folder):
    with bucket.serve(folder) as store:
        for path in ("gs://bucket/trein", "gs://no-such-bucket/train"):
            done = run(store, "-m", "common.inspect", path)
            assert done.returncode == 2 and path in done.stderr, done.stderr
            assert "Traceback" not in done.stderr
