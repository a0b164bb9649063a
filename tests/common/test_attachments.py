"""A trained model keeps the files it needs."""

from __future__ import annotations

import pathlib

import pytest
from ml_collections import ConfigDict

from common import attachments
from common.errors import UserError


@pytest.fixture
def original(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("ball\nbox\n")
    return path


def config_with(path):
    values = {"files": ("model.words",), "model": {"words": str(path), "other": 1}}
    return ConfigDict(values).lock()


def test_a_copy_serves_when_the_original_is_gone(tmp_path, original):
    config = config_with(original)
    attachments.keep(config, tmp_path / "run")
    original.unlink()
    attachments.keep(config, tmp_path / "run")  # a run that goes on
    found = attachments.found(config, tmp_path / "run")
    assert pathlib.Path(found.model.words).read_text() == "ball\nbox\n"
    assert found.model.other == 1
    assert config.model.words == str(original)


def test_a_run_does_not_go_on_with_another_file(tmp_path, original):
    config = config_with(original)
    attachments.keep(config, tmp_path / "run")
    original.write_text("something else\n")
    with pytest.raises(UserError, match="config.model.words: .* is not what the run in"):
        attachments.keep(config, tmp_path / "run")
    assert (tmp_path / "run/files/model.words.txt").read_text() == "ball\nbox\n"


def test_a_file_that_is_missing_is_named(tmp_path):
    with pytest.raises(UserError, match="config.model.words: there is no file"):
        attachments.keep(config_with(tmp_path / "none.txt"), tmp_path / "run")


def test_without_copies_and_without_files_the_config_stays(tmp_path, original):
    for config in (config_with(original), config_with(""), ConfigDict({"model": {}}).lock()):
        attachments.found(config, tmp_path)
        assert attachments.found(config, tmp_path).to_dict() == config.to_dict()
    attachments.keep(config_with(""), tmp_path / "run")
    assert not (tmp_path / "run").exists()
