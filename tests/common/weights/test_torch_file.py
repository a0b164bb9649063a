"""PyTorch's files are read and written without PyTorch, and nothing in them is executed."""

from __future__ import annotations

import collections
import io
import os
import pickle
import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest

from common.errors import UserError
from common.weights import torch_file

CONTENTS = {
    "epoch": 3,
    "state_dict": {
        "fc.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
        "fc.bias": np.array([1.5, -2.0], ml_dtypes.bfloat16),
        "counter": np.array(7),
        "nothing": np.zeros((0, 4), np.float16),
    },
    "optimizer": {"state": {0: {"step": 5}}, "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.999)}]},
}


class _Name:
    """Pickles as a global that need not exist."""

    def __init__(self, module, name):
        self.module, self.name = module, name


class _Call:
    """Pickles as a call of a global."""

    def __init__(self, name, *args, state=None):
        self.name, self.args, self.state = name, args, state


class _Stored:
    """Pickles as a persistent id."""

    def __init__(self, *reference):
        self.reference = reference


class _Pickler(pickle._Pickler):
    def save(self, obj, save_persistent_id=True):
        if isinstance(obj, _Name):
            self.write(pickle.GLOBAL + f"{obj.module}\n{obj.name}\n".encode())
        elif isinstance(obj, _Call):
            self.save(obj.name)
            self.save(obj.args)
            self.write(pickle.REDUCE)
            if obj.state is not None:
                self.save(obj.state)
                self.write(pickle.BUILD)
        elif isinstance(obj, _Stored):
            self.save(obj.reference)
            self.write(pickle.BINPERSID)
        else:
            super().save(obj, save_persistent_id)


def pickled(value):
    file = io.BytesIO()
    _Pickler(file, protocol=2).dump(value)
    return file.getvalue()


def storage(count, key="0", kind="FloatStorage", *view):
    return _Stored("storage", _Name("torch", kind), key, "cpu", count, *view)


def tensor(stored, offset, shape, strides, state=None):
    return _Call(
        _Name("torch._utils", "_rebuild_tensor_v2"),
        *(stored, offset, shape, strides, False, collections.OrderedDict()),
        state=state,
    )


def write_zip(path, value, storages=None):
    storages = {"0": np.arange(6, dtype=np.float32).tobytes()} if storages is None else storages
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled(value))
        for key, content in storages.items():
            archive.writestr(f"archive/data/{key}", content)
    return path


def write_legacy(path, value, storages):
    parts = [pickled(0x1950A86A20F9469CFC6C), pickled(1001), pickled({"little_endian": True})]
    parts += [pickled(value), pickled(list(storages))]
    for array in storages.values():
        parts += [struct.pack("<q", array.size), array.tobytes()]
    path.write_bytes(b"".join(parts))
    return path


def assert_same(a, b):
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, np.ndarray):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    else:
        assert a == b


def test_what_is_written_is_read_again(tmp_path):
    torch_file.save(tmp_path / "a.pth", CONTENTS)
    assert_same(torch_file.load(tmp_path / "a.pth"), CONTENTS)
    assert os.listdir(tmp_path) == ["a.pth"]


def test_a_file_that_is_there_is_not_overwritten(tmp_path):
    torch_file.save(tmp_path / "a.pth", {"x": 1})
    with pytest.raises(UserError, match="exists already"):
        torch_file.save(tmp_path / "a.pth", {"x": 2})
    assert torch_file.load(tmp_path / "a.pth") == {"x": 1}


def test_tensors_share_storages_and_have_strides(tmp_path):
    value = {
        "whole": tensor(storage(6), 0, (2, 3), (3, 1)),
        "turned": tensor(storage(6), 0, (3, 2), (1, 3)),
        "part": tensor(storage(6), 4, (2,), (1,)),
    }
    found = torch_file.load(write_zip(tmp_path / "a.pth", value))
    whole = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert_same(found, {"whole": whole, "turned": whole.T.copy(), "part": whole.ravel()[4:]})


def test_files_from_before_the_archives_are_read(tmp_path):
    arrays = {"94": np.arange(6, dtype=np.float32), "7": np.array([1, 2], np.int64)}
    value = _Call(  # as a module's state_dict is written
        _Name("collections", "OrderedDict"),
        [
            ["a", tensor(storage(6, "94", "FloatStorage", None), 0, (2, 3), (3, 1))],
            ["b", tensor(storage(2, "7", "LongStorage", None), 1, (), ())],
        ],
        state={"_metadata": collections.OrderedDict(version=1)},
    )
    found = torch_file.load(write_legacy(tmp_path / "a.pth", value, arrays))
    assert_same(found, {"a": arrays["94"].reshape(2, 3), "b": np.array(2)})


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (_Call(_Name("os", "system"), "touch pwned"), "asks for os.system"),
        (_Call(_Name("torch", "load"), "x"), "asks for torch.load"),
        (tensor(storage(6), 0, (7,), (1,)), "beyond its storage"),
        (tensor(storage(6), 5, (2,), (1,)), "beyond its storage"),
        (tensor(storage(6), 5, (2,), (-1,)), "beyond its storage"),
        (tensor(storage(600), 0, (600,), (1,)), "has 24 bytes"),
        (tensor(storage(6), 0, (6,), (1,), state={"offset": 99}), "a change of a tensor"),
        (tensor(storage(6, "3"), 0, (6,), (1,)), "not a readable"),
        (tensor("storage", 0, (6,), (1,)), "without a storage"),
        (tensor(storage(6), 0, (2**29, 2), (0, 1)), "many times as large as its storage"),
        (_Call(_Name("__builtin__", "bytearray"), 2**31 - 1), "a length that only the file says"),
        ({"a": [_Name("torch", "FloatStorage")]}, None),
    ],
)
def test_a_hostile_or_damaged_file_executes_nothing_and_reads_nothing_else(
    tmp_path, monkeypatch, value, why
):
    monkeypatch.chdir(tmp_path)
    path = write_zip(tmp_path / "a.pth", value)
    if why is None:  # a name by itself is a word
        assert torch_file.load(path) == {"a": ["FloatStorage"]}
        return
    with pytest.raises(UserError, match=why) as raised:
        torch_file.load(path)
    assert str(path) in str(raised.value)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("kept", [0, 1, 40, 0.5, 0.99])
def test_a_truncated_file_is_named(tmp_path, kept):
    torch_file.save(tmp_path / "a.pth", CONTENTS)
    whole = (tmp_path / "a.pth").read_bytes()
    cut = whole[: int(kept * len(whole)) if isinstance(kept, float) else kept]
    (tmp_path / "b.pth").write_bytes(cut)
    with pytest.raises(UserError, match=r"b\.pth: not a readable PyTorch checkpoint") as raised:
        torch_file.load(tmp_path / "b.pth")
    assert len(cut) < 4 or "it is cut short; fetch it again" in str(raised.value)


def test_a_compressed_archive_is_not_unpacked(tmp_path):
    write_zip(tmp_path / "a.pth", {"x": tensor(storage(6), 0, (6,), (1,))})
    with (
        zipfile.ZipFile(tmp_path / "a.pth") as stored,
        zipfile.ZipFile(tmp_path / "b.pth", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in stored.namelist():
            packed.writestr(name, stored.read(name))
    with pytest.raises(UserError, match="compressed archive"):
        torch_file.load(tmp_path / "b.pth")


def test_a_name_by_which_it_would_not_be_known_is_refused(tmp_path):
    for name in ("a.safetensors", "a.pkl", "a"):
        with pytest.raises(UserError, match="let it be one of .pth, .pt, .bin, .tar"):
            torch_file.save(tmp_path / name, CONTENTS)
    assert not os.listdir(tmp_path)


def test_nothing_stays_of_a_file_that_could_not_be_written(tmp_path):
    with pytest.raises(ValueError, match="no tensors of type uint16"):
        torch_file.save(tmp_path / "a.pth", {"x": np.zeros(2, np.uint16)})
    assert not os.listdir(tmp_path)


def test_a_file_that_is_missing_is_named(tmp_path):
    with pytest.raises(UserError, match="there is no such file"):
        torch_file.load(tmp_path / "a.pth")


def test_an_array_that_torch_cannot_hold_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no tensors of type <U3"):
        torch_file.save(tmp_path / "a.pth", {"a": np.array(["abc"])})
    assert not (tmp_path / "a.pth").exists()
