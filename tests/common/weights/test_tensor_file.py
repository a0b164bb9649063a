"""Named tensors out of the containers in which weights are published."""

import re

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from common.errors import UserError
from common.weights import tensor_file, torch_file

TENSORS = {
    "whole": np.arange(6, dtype=np.float32).reshape(2, 3),
    "double": np.array([np.pi]),
    "half": np.array([0.1, -2], np.float16),
    "brain": np.array([1.5, 3.14], ml_dtypes.bfloat16),
    "ids": np.arange(3),
}


def check(found):
    """16-bit floats are widened without loss, everything else is as it was."""
    assert found.keys() == TENSORS.keys()
    for key, value in TENSORS.items():
        wide = np.float32 if value.dtype.itemsize == 2 else value.dtype
        assert found[key].dtype == wide, key
        np.testing.assert_array_equal(found[key], value.astype(wide))


def test_safetensors_are_read(tmp_path):
    safetensors.numpy.save_file(TENSORS, tmp_path / "model.safetensors", {"format": "pt"})
    check(tensor_file.load(tmp_path / "model.safetensors"))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "a.pth", "a.PT", "a.pth.tar"])
@pytest.mark.parametrize("nested", [False, True])
def test_files_of_pytorch_are_read(tmp_path, name, nested):
    contents = {"state_dict": TENSORS, "epoch": 3} if nested else TENSORS | {"epoch": 3}
    torch_file.save(tmp_path / name, contents)
    check(tensor_file.load(tmp_path / name))


def test_no_code_in_a_file_is_executed(tmp_path):
    import pickle

    class Touch:
        def __reduce__(self):
            return (open, (str(tmp_path / "mark"), "w"))

    (tmp_path / "a.bin").write_bytes(pickle.dumps({"weight": Touch()}))
    with pytest.raises(UserError):
        tensor_file.load(tmp_path / "a.bin")
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.safetensors", None, "there is no such file"),
        ("a.bin", None, "there is no such file"),
        ("a.safetensors", b"\xff" * 40, "not a readable safetensors file"),
        ("a.safetensors", b"", "not a readable safetensors file"),
        ("a.pth", b"text", "not a readable PyTorch checkpoint"),
        ("a.h5", b"text", "are named .safetensors, .bin, .pth, .pt, .pth.tar"),
        ("a.npz", b"text", "are named .safetensors, .bin, .pth, .pt, .pth.tar"),
    ],
)
def test_what_cannot_be_read_is_said_by_name(tmp_path, name, data, message):
    path = tmp_path / name
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        tensor_file.load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("contents", [{"epoch": 3}, {"state_dict": {}}, [TENSORS["whole"]]])
def test_a_file_without_named_tensors_is_refused(tmp_path, contents):
    if isinstance(contents, list):
        contents = {"state_dict": contents}
    torch_file.save(tmp_path / "a.pth", contents)
    with pytest.raises(UserError, match="holds no tensors by name"):
        tensor_file.load(tmp_path / "a.pth")


def test_a_damaged_file_of_safetensors_is_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    safetensors.numpy.save_file(TENSORS, path)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(UserError, match="not a readable safetensors file"):
        tensor_file.load(path)
