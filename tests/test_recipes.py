"""The recipes of `launch/` run what they say, as far as a machine without a cluster can tell."""

from __future__ import annotations

import os
import pathlib
import subprocess

import pytest
import yaml
from absl import flags

from common import config as config_lib
from common.cluster import job

ROOT = pathlib.Path(__file__).parents[1]
LAUNCH = ROOT / "launch"


def stub(folder, name, body):
    """Puts a program on the path that notes how it is called."""
    path = folder / name
    path.write_text(
        f'#!/bin/bash\nprintf "%q " {name} "$@" >> {folder}/calls\necho >> {folder}/calls\n{body}\n'
    )
    path.chmod(0o755)


def run(folder, recipe, *arguments, **environment):
    done = subprocess.run(
        ["bash", str(LAUNCH / recipe), *arguments],
        env={**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", **environment},
        capture_output=True,
        text=True,
    )
    calls = folder / "calls"
    return done, calls.read_text().splitlines() if calls.exists() else []


@pytest.mark.parametrize(
    ("status", "restarts", "again"),
    [(0, "0", False), (2, "0", False), (75, "0", True), (143, "3", True), (143, "5", False)]
    + [(139, "0", True), (130, "0", False)],
)
def test_a_slurm_job_queues_again_where_it_can_go_on(tmp_path, status, restarts, again):
    stub(tmp_path, "srun", f"exit {status}")
    stub(tmp_path, "scontrol", "exit 0")
    known = {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": restarts, "MAX_RESTARTS": "5"}
    done, calls = run(tmp_path, "slurm.sh", "--workdir=/a b", **known, PYTHON="python3")
    assert done.returncode == status
    assert calls[0].strip() == "srun --kill-on-bad-exit=0 python3 -m common.train --workdir=/a\\ b"
    assert (calls[1:] == ["scontrol requeue 7 "]) == again and len(calls) == 1 + again


def test_a_tpu_vm_is_told_on_all_hosts_and_again_where_a_process_is_lost(tmp_path):
    stub(tmp_path, "gcloud", f"[ $(wc -l < {tmp_path}/calls) = 3 ] && exit 0; exit 75")
    known = {"TPU": "slice", "ZONE": "here"}
    done, calls = run(tmp_path, "tpu_vm.sh", "train", "--workdir=/a b", **known)
    assert done.returncode == 0 and len(calls) == 3 and len(set(calls)) == 1
    assert "ssh slice --zone=here --worker=all" in calls[0]
    said = subprocess.run(
        ["bash", "-c", f"printf '%s\\n' {calls[0]}"], capture_output=True, text=True
    )
    assert said.stdout.splitlines()[-1].endswith("python -m common.train --workdir=/a\\ b ")


@pytest.mark.parametrize(
    "status, starts", [(0, 1), (1, 1), (2, 1), (75, 4), (137, 4), (139, 4), (130, 1), (143, 1)]
)
def test_a_tpu_vm_starts_again_after_what_is_no_mistake(tmp_path, status, starts):
    stub(tmp_path, "gcloud", f"exit {status}")
    known = {"TPU": "slice", "ZONE": "here", "MAX_RESTARTS": "3"}
    done, calls = run(tmp_path, "tpu_vm.sh", "train", **known)
    assert len(calls) == starts
    assert done.returncode == (75 if starts > 1 else status)


def test_a_tpu_vm_gets_this_checkout(tmp_path):
    stub(tmp_path, "gcloud", f'[ "$4" = scp ] && tar -tzf "$5" > {tmp_path}/copied; exit 0')
    done, calls = run(tmp_path, "tpu_vm.sh", "install", TPU="slice", ZONE="here")
    assert done.returncode == 0, done.stderr
    assert "scp" in calls[0] and "install" in calls[1]
    assert {"setup.py", "common/train.py"} <= set((tmp_path / "copied").read_text().split())


def test_a_tpu_vm_without_a_name_is_asked_for_it(tmp_path):
    done, _ = run(tmp_path, "tpu_vm.sh", "train")
    assert done.returncode and "TPU" in done.stderr


def test_the_job_set_trains_with_flags_and_variables_that_there_are():
    text = (LAUNCH / "gke_jobset.yaml").read_text()
    (workers,) = yaml.safe_load(text)["spec"]["replicatedJobs"]
    spec = workers["template"]["spec"]
    container = spec["template"]["spec"]["containers"][0]
    chips = container["resources"]["limits"]["google.com/tpu"]
    assert spec["parallelism"] == spec["completions"] == 16 * 16 / chips
    module, *arguments = container["args"]
    assert module == "common.train"
    values = flags.FlagValues()
    config_lib.define_flag(values, ["train", *arguments])
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    values(["train", *arguments])
    config = config_lib.load(values)
    assert config.batch_size % (spec["parallelism"] * chips) == 0
    # What is commented out for GPUs is what processes look for, at the port that is opened.
    named = {
        "JAX_COORDINATOR_ADDRESS": "zoetrope-workers-0-0.zoetrope:8476",
        "JAX_NUM_PROCESSES": "64",
    }
    for name, value in named.items():
        assert f"name: {name}" in text and value in text
    place = job.find(flags.FlagValues(), {**named, "JOB_COMPLETION_INDEX": "5"})
    assert (place.index, place.count) == (5, 64)
    assert container["ports"][0]["containerPort"] == place.address[1]


def test_the_image_installs_what_there_is():
    text = (LAUNCH / "Dockerfile").read_text()
    extras = text.split("ARG EXTRAS=")[1].split()[0]
    setup = (ROOT / "setup.py").read_text()
    assert f'"{extras}": [' in setup
    assert all((ROOT / name).exists() for name in ("setup.py", "README.md"))
