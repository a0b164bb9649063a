"""Promises of reading files: one that is kept open is the caller's own, and closed in the end."""

import gc
import os
import weakref

import pytest

from common.data import files
from common.errors import UserError


def is_open(descriptor):
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def test_a_file_is_closed_at_the_end_of_with_or_of_its_last_use(tmp_path):
    (tmp_path / "a").write_bytes(b"0123456789")
    with files.File(tmp_path / "a") as file:
        assert file.size == 10 and file.read(3, 4) == b"3456" and file.read(8, 9) == b"89"
    assert not is_open(file._file)
    file = files.File(tmp_path / "a")
    descriptor = file._file
    del file
    gc.collect()
    assert not is_open(descriptor)


def test_a_file_is_kept_open_for_each_reader_and_not_for_ever(tmp_path):
    (tmp_path / "a").write_bytes(b"old")
    one = files.kept_open(str(tmp_path / "a"), -1)
    (tmp_path / "new").write_bytes(b"new")
    os.replace(tmp_path / "new", tmp_path / "a")
    assert files.kept_open(str(tmp_path / "a"), -1) is one and one.read(0, 3) == b"old"
    assert files.kept_open(str(tmp_path / "a"), -2).read(0, 3) == b"new"

    one = weakref.ref(one)
    for reader in range(-3, -3 - files.kept_open.cache_info().maxsize, -1):
        files.kept_open(str(tmp_path / "a"), reader)
    gc.collect()
    assert one() is None
    files.kept_open.cache_clear()


def test_a_file_that_is_not_there_is_an_error_and_is_looked_for_again(tmp_path):
    path = str(tmp_path / "a")
    with pytest.raises(UserError, match="cannot be read"):
        files.kept_open(path, -1)
    (tmp_path / "a").write_bytes(b"now")
    assert files.kept_open(path, -1).read(0, 3) == b"now"
