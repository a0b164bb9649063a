"""From files to records: whole shards or none, and a killed run goes on where it was."""

import contextlib
import json
import os
import pathlib
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time

import media_files as files
import numpy as np
import pytest

from common.data import records, shards

ROOT = pathlib.Path(__file__).parents[2]


def command(source, output, *options):
    arguments = [f"--source={source}", f"--output={output}", "--workers=1", *options]
    return [sys.executable, "-m", "common.ingest", *arguments]


def ingest(source, output, *options, **process):
    return subprocess.run(
        command(source, output, *options), cwd=ROOT, capture_output=True, text=True, **process
    )


def read(folder):
    record_set = shards.RecordSet.open(folder)
    return [records.deserialize(record_set.read(n)) for n in range(len(record_set))]


def shard_bytes(folder):
    return {path.name: path.read_bytes() for path in sorted(pathlib.Path(folder).glob("*"))}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    for number in range(10):
        (folder / "ab"[number % 2]).mkdir(exist_ok=True)
        files.write_video(
            folder / "ab"[number % 2] / f"clip {number}.mp4",
            num_frames=5 + number,
            sound=files.tone(0.8, 16000, level=0.4),
        )
    (folder / "a" / "broken.mp4").write_text("no video at all")
    return folder


@pytest.fixture(scope="module")
def finished(source, tmp_path_factory):
    output = tmp_path_factory.mktemp("output")
    options = ("--labels_from=folder", "--clips_per_shard=4", "--audio_rate=16000")
    done = ingest(source, output, *options)
    assert done.returncode == 0, done.stderr
    return output, done, options


def test_a_folder_becomes_records_with_frames_sound_and_labels(finished):
    output, _, _ = finished
    clips = read(output / "train")
    assert [clip.id for clip in clips] == [f"a/clip {n}.mp4" for n in (0, 2, 4, 6, 8)] + [
        f"b/clip {n}.mp4" for n in (1, 3, 5, 7, 9)
    ]
    assert json.loads((output / "labels.json").read_text()) == {"a": 0, "b": 1}
    for clip in clips:
        number = int(clip.id.split()[1].split(".")[0])
        assert len(clip.frames_jpeg) == 5 + number and clip.frame_rate == 25
        assert clip.audio_rate == 16000
        assert len(clip.waveform) == round((5 + number) / 25 * 16000)
        assert clip.label_texts == [clip.id[0]] and clip.label_indices == ["ab".index(clip.id[0])]
        assert 0.2 < np.sqrt(np.mean(clip.waveform[:4000] ** 2)) < 0.35


def test_the_card_and_the_rejects_say_what_happened(finished):
    output, done, _ = finished
    card = json.loads((output / "dataset.json").read_text())["splits"]["train"]
    assert (card["clips"], card["rejected"], card["sound"]["missing"]) == (10, 1, 0)
    assert card["clips_by_label"] == {"a": 5, "b": 5} and card["sizes"] == {"32x48": 10}
    (reject,) = map(json.loads, (output / "rejects.jsonl").read_text().splitlines())
    assert reject["path"] == "a/broken.mp4" and "not a media file" in reject["reason"]
    assert (output / "contact_sheet.jpg").read_bytes().startswith(b"\xff\xd8")
    assert done.stdout.rstrip().endswith(f"Next: python -m common.inspect {output}")
    assert "11/11" in done.stderr


def test_a_finished_split_is_left_as_it_is(source, finished):
    output, _, options = finished
    before = shard_bytes(output / "train")
    times = [path.stat().st_mtime_ns for path in sorted((output / "train").iterdir())]
    again = ingest(source, output, *options)
    assert again.returncode == 0 and "already finished" in again.stdout
    refused = ingest(source, output, *options, "--short_side=64")
    assert refused.returncode == 2 and "--short_side: 256 there, 64 now" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert shard_bytes(output / "train") == before
    assert [p.stat().st_mtime_ns for p in sorted((output / "train").iterdir())] == times


def test_a_second_split_shares_and_extends_the_label_map(source, finished, tmp_path):
    output, _, _ = finished
    table = tmp_path / "test.jsonl"
    rows = [
        {"path": f"{source}/a/clip 0.mp4", "labels": ["aa", "b"]},
        {"path": f"{source}/b/clip 1.mp4", "labels": "A"},
    ]
    table.write_text("\n".join(map(json.dumps, rows)))
    assert ingest(table, output, "--split=test").returncode == 0
    labels = json.loads((output / "labels.json").read_text())
    assert labels == {"a": 0, "b": 1, "A": 2, "aa": 3}
    assert [clip.label_indices for clip in read(output / "test")] == [[3, 1], [2]]
    assert set(json.loads((output / "dataset.json").read_text())["splits"]) == {"train", "test"}


@pytest.mark.slow
def test_another_split_that_is_not_finished_stops_none(source, finished, tmp_path):
    output, _, options = finished
    shutil.copytree(output, tmp_path / "out")
    next((tmp_path / "out" / "train").glob("*.tfrecord")).unlink()
    done = ingest(source / "a", tmp_path / "out", "--split=late", *options)
    assert done.returncode == 0 and "contact_sheet.jpg" in done.stderr, done.stderr
    assert len(read(tmp_path / "out" / "late")) == 5


@pytest.mark.slow
@pytest.mark.parametrize(
    "options, message",
    [
        (["--require_sound", "--audio_rate=0"], "--require_sound does not go with"),
        (["--beam_options=--x=1"], "name the --runner"),
        (["--frame_rate=nan"], "--frame_rate=nan is not a number"),
    ],
)
def test_options_that_would_be_ignored_are_refused(source, tmp_path, options, message):
    done = ingest(source, tmp_path / "out", *options)
    assert done.returncode == 2 and message in done.stderr
    assert not (tmp_path / "out").exists()


def test_records_do_not_go_among_their_videos(source):
    done = ingest(source, f"{source}/")
    assert done.returncode == 2 and "give records a folder of their own" in done.stderr


def journal_lines(output):
    journals = sorted(pathlib.Path(output).glob(".ingest/train/[0-9]*.jsonl"))
    return [line for path in journals for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    "lines", [4, *(pytest.param(lines, marks=pytest.mark.slow) for lines in (1, 9, 11))]
)
def test_a_killed_run_goes_on_without_redoing_or_doubling(source, finished, tmp_path, lines):
    whole, _, options = finished
    process = subprocess.Popen(
        command(source, tmp_path, *options), cwd=ROOT, stderr=subprocess.DEVNULL
    )
    while len(journal_lines(tmp_path)) < lines and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = journal_lines(tmp_path)
    assert len(before) >= lines
    for shard in (tmp_path / "train").glob("*.tfrecord"):
        assert shard.read_bytes() == (whole / "train" / shard.name).read_bytes()

    again = ingest(source, tmp_path, *options)
    assert again.returncode == 0, again.stderr
    assert shard_bytes(tmp_path / "train") == shard_bytes(whole / "train")
    after = journal_lines(tmp_path)
    assert len(after) == 11
    kept = [line for line in before if line in after]
    assert len(kept) >= len(before) - 1  # at most a line that was being written is done again
    assert f"{11 - len(kept)}/{11 - len(kept)}" in again.stderr or len(kept) == 11


def test_a_full_disk_is_a_message_and_no_loss(source, finished, tmp_path):
    whole, _, options = finished
    limit = 3 * (whole / "train" / "train-00000-of-00003.tfrecord").stat().st_size // 4
    stopped = ingest(
        source,
        tmp_path,
        *options,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert stopped.returncode == 2 and "what is done stays done" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    assert ingest(source, tmp_path, *options).returncode == 0
    assert shard_bytes(tmp_path / "train") == shard_bytes(whole / "train")


def test_help_answers_at_once():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", "common.ingest", "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert "--jpeg_quality" in done.stdout and "--source" in done.stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Processor time: the machine may be busy with something else.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2


@pytest.mark.slow
def test_beam_makes_the_same_bytes(source, finished, tmp_path):
    pytest.importorskip("apache_beam", reason="needs the extra beam: pip install -e .[beam]")
    whole, _, options = finished
    done = ingest(source, tmp_path, *options, "--runner=DirectRunner")
    assert done.returncode == 0, done.stderr
    assert shard_bytes(tmp_path / "train") == shard_bytes(whole / "train")
    one, other = (json.loads((o / "dataset.json").read_text()) for o in (tmp_path, whole))
    assert one["splits"]["train"] == other["splits"]["train"]


@contextlib.contextmanager
def beam_service(module, folder, *options):
    """Runs a server of Beam's, which stands in an empty folder, until the block ends."""
    folder.mkdir(parents=True, exist_ok=True)
    # A pool of workers starts `python`, whichever is the first.
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": path}
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", f"apache_beam.runners.{module}", *options],
            cwd=folder, env=environment, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        yield process, folder / "log"
    finally:
        process.terminate()
        process.wait()


def wait(ready, process, log):
    while not ready():
        assert process.poll() is None, log.read_text()
        time.sleep(0.05)


def answers(port):
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.slow
def test_workers_of_a_beam_cluster_make_the_same_bytes(source, finished, tmp_path):
    """What Flink's and Spark's runners do: a job server, and workers that stand elsewhere."""
    pytest.importorskip("apache_beam", reason="needs the extra beam: pip install -e .[beam]")
    whole, _, options = finished
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        pool = free.getsockname()[1]
    server = tmp_path / "server"
    jobs = ("portability.local_job_service_main", server, "--port=0", "--port_file=port")
    workers = ("worker.worker_pool_main", tmp_path / "workers", f"--service_port={pool}")
    with beam_service(*jobs) as of_jobs, beam_service(*workers) as of_workers:
        wait(lambda: (server / "port").exists() and (server / "port").read_text(), *of_jobs)
        wait(lambda: answers(pool), *of_workers)
        beam_options = [
            f"--job_endpoint=127.0.0.1:{(server / 'port').read_text()}",
            "--environment_type=EXTERNAL",
            f"--environment_config=127.0.0.1:{pool}",
        ]
        output = os.path.relpath(tmp_path / "out", ROOT)
        done = ingest(
            source, output, *options, "--runner=PortableRunner",
            f"--beam_options={','.join(beam_options)}",
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert shard_bytes(tmp_path / "out" / "train") == shard_bytes(whole / "train")


@pytest.mark.slow
def test_what_ends_a_beam_pipeline_is_said_in_a_line_and_kept_whole(source, tmp_path):
    pytest.importorskip("apache_beam", reason="needs the extra beam: pip install -e .[beam]")
    nobody = "--job_endpoint=127.0.0.1:1,--job_server_timeout=1,--environment_type=LOOPBACK"
    failed = ingest(
        source, tmp_path, "--runner=PortableRunner", f"--beam_options={nobody},--paralelism=2"
    )
    assert failed.returncode == 2 and "Traceback" not in failed.stderr
    assert "--runner=PortableRunner failed: FutureTimeoutError" in failed.stderr
    assert "Apache Beam does not know --paralelism" in failed.stderr
    kept = tmp_path / ".ingest" / "train" / "error.txt"
    assert str(kept) in failed.stderr and "Traceback" in kept.read_text()
    done = ingest(source, tmp_path)
    assert done.returncode == 0 and len(read(tmp_path / "train")) == 10


@pytest.mark.slow
def test_without_beam_the_message_says_what_to_install(source, tmp_path):
    try:
        import apache_beam  # noqa: F401
    except ImportError:
        done = ingest(source, tmp_path, "--runner=DirectRunner")
        assert done.returncode == 2 and "pip install -e '.[beam]'" in done.stderr
    else:
        done = ingest(source, tmp_path, "--runner=NoSuchRunner")
        assert done.returncode == 2 and "NoSuchRunner" in done.stderr
