"""Pickled arrays: read whatever wrote them, and nothing that a file says runs."""

import io
import os
import pickle
import subprocess
import sys
from collections import OrderedDict

import numpy as np
import pytest
import torch

from tritoncrf.datasets.pickles import read_npy, unpickled
from tritoncrf.files import FileError

RNG = np.random.default_rng(0)
TENSORS = {
    "float": torch.rand(3, 4),
    "half": torch.rand(3, 4).half(),
    "bfloat16": torch.rand(3, 4).bfloat16(),
    "integers": torch.tensor([3, 14]),
    "one": torch.tensor(3),
    "empty": torch.zeros(0, 5, 6),
    "gradient": torch.rand(3, 4, requires_grad=True),
    "strided": torch.rand(6, 8)[::2, 1::3].T,
}
ARRAYS = [
    RNG.random((2, 3, 4)), RNG.random((3, 4)).astype(np.float16), np.arange(3), np.asfortranarray(RNG.random((3, 4))),
    np.float32(3), np.int64(3), np.array(2.0), np.arange(3, dtype=">i4"), np.array(["a", "bc"]), np.zeros((0, 4, 5)),
]  # fmt: skip


@pytest.mark.parametrize("protocol", [3, 4])
@pytest.mark.parametrize("name", TENSORS)
def test_tensors_are_arrays(name, protocol):
    tensor = TENSORS[name]
    found = unpickled(io.BytesIO(pickle.dumps(tensor, protocol)))
    assert isinstance(found, np.ndarray)
    expected = tensor.detach().float().numpy() if tensor.dtype == torch.bfloat16 else tensor.detach().numpy()
    np.testing.assert_array_equal(found, expected, strict=True)


@pytest.mark.parametrize("protocol", [3, 4])
def test_arrays_and_numbers(protocol):
    for array in ARRAYS:
        found = unpickled(io.BytesIO(pickle.dumps(array, protocol)))
        np.testing.assert_array_equal(found, array)
        assert found.shape == array.shape and found.dtype == array.dtype.newbyteorder("=")


@pytest.mark.parametrize("module", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
def test_files_of_older_and_of_newer_numpy(module):
    content = pickle.dumps({"cam": np.arange(6.0).reshape(2, 3), 3: np.float32(4)}, 3)
    content = content.replace(np.zeros(1).__reduce__()[0].__module__.encode(), module)
    assert module in content
    found = unpickled(io.BytesIO(content))
    np.testing.assert_array_equal(found["cam"], np.arange(6.0).reshape(2, 3))
    assert found[3] == 4


class Hostile:
    """Pickled, it calls a function when it is read."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def save_pickled(path, content):
    np.save(path, np.array(content, dtype=object), allow_pickle=True)


@pytest.mark.parametrize("place", ["whole", "array", "key", "storage"])
def test_what_a_file_wants_to_run_does_not(tmp_path, place):
    """Wherever it stands; in the storage of a tensor it is a pickle in a pickle."""
    mark, path = tmp_path / "ran", tmp_path / "a.npy"
    hostile = Hostile(os.mkdir, str(mark))
    if place == "storage":
        inner = io.BytesIO()
        torch.save(hostile, inner, _use_new_zipfile_serialization=False)
        hostile = Hostile(torch.storage._load_from_bytes, inner.getvalue())
    whole = (
        [hostile] if place == "whole" else {"keys": np.array([1]), ("high_res" if place != "key" else hostile): hostile}
    )
    save_pickled(path, whole)
    with pytest.raises(FileError, match=r"a\.npy: expected an array, unreadable: "):
        read_npy(path, lambda arrays: arrays, allow_pickle=True)
    assert not mark.exists()
    np.load(path, allow_pickle=True)  # as everybody does
    assert mark.exists()


@pytest.mark.parametrize(
    "name",
    ["os system", "builtins eval", "builtins getattr", "numpy load", "numpy ndarray.tofile", "torch load",
     "torch._utils _rebuild_tensor", "collections OrderedDict.fromkeys", "functools partial", "pickle loads"],
)  # fmt: skip
def test_nothing_else_is_found(name):
    module, _, function = name.partition(" ")
    for content in f"c{module}\n{function}\n.".encode(), f"V{module}\nV{function}\n".encode() + b"\x93.":
        with pytest.raises(pickle.UnpicklingError, match=f"do not use {module}.{function}"):
            unpickled(io.BytesIO(b"\x80\x04" + content))


def test_a_file_changes_no_function():
    """Pickle sets attributes of what it finds; of what is found here it cannot."""
    for state in b"}V__code__\nI1\ns", b"}V__defaults__\nI1\ns":
        for name in b"torch._utils\n_rebuild_tensor_v2", b"torch.storage\n_load_from_bytes", b"numpy\nndarray":
            with pytest.raises((AttributeError, TypeError)):
                unpickled(io.BytesIO(b"c" + name + b"\n(N" + state + b"tb."))
    assert torch._utils._rebuild_tensor_v2.__defaults__ == (None,)


def test_what_np_save_writes(tmp_path):
    path = tmp_path / "a.npy"
    array = RNG.random((2, 3, 4))
    np.save(path, array)
    for allowed in False, True:
        np.testing.assert_array_equal(read_npy(path, lambda arrays: arrays, allowed), array, strict=True)
    np.save(path, {"keys": torch.tensor([3, 14]), "cam": torch.rand(2, 5, 6), "high_res": array})
    found = read_npy(path, lambda arrays: arrays, True)
    assert list(found) == ["keys", "cam", "high_res"] and found["keys"].tolist() == [3, 14]
    np.save(path, {3: array[0], np.int64(14): array[1]})
    assert list(read_npy(path, lambda arrays: arrays, True)) == ["3", "14"]
    np.save(path, OrderedDict(a=array))
    assert list(read_npy(path, lambda arrays: arrays, True)) == ["a"]


@pytest.mark.parametrize("content", [[1, 2], {"a": "text"}.keys, "text", [{"a": 1}], None])
def test_what_holds_no_arrays(tmp_path, content):
    save_pickled(tmp_path / "a.npy", content)
    with pytest.raises(FileError, match=r"a\.npy: expected an array"):
        read_npy(tmp_path / "a.npy", lambda arrays: arrays, True)


def test_a_pickled_object_is_refused_unless_it_is_allowed(tmp_path):
    save_pickled(tmp_path / "a.npy", {"cam": np.zeros(3)})
    with pytest.raises(FileError, match=r"a\.npy: expected numbers, got a pickled object; --allow-pickle reads"):
        read_npy(tmp_path / "a.npy", lambda arrays: arrays)


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY\x01\x00", b"\x80\x04}.", b"\x93NUMPY\x09\x00\x10\x00"])
def test_broken_files(tmp_path, content):
    (tmp_path / "a.npy").write_bytes(content)
    for allowed in False, True:
        with pytest.raises(FileError, match=r"a\.npy: expected an array, unreadable"):
            read_npy(tmp_path / "a.npy", lambda arrays: arrays, allowed)


def test_a_pickle_that_is_cut_off(tmp_path):
    save_pickled(tmp_path / "a.npy", {"cam": RNG.random(50)})
    content = (tmp_path / "a.npy").read_bytes()
    for length in range(130, len(content), 37):
        (tmp_path / "a.npy").write_bytes(content[:length])
        with pytest.raises(FileError, match=r"a\.npy: expected an array"):
            read_npy(tmp_path / "a.npy", lambda arrays: arrays, True)


def test_tensors_are_read_without_a_warning():
    """In a process of its own, where torch has not warned yet."""
    code = """
import io, pickle, torch
from tritoncrf.datasets.pickles import unpickled
print(unpickled(io.BytesIO(pickle.dumps({"keys": torch.tensor([3, 14])}))))
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert done.stdout == "{'keys': array([ 3, 14])}\n" and not done.stderr
