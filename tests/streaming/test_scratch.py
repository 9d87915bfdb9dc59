"""What a run keeps: files that are whole or absent."""

import errno

import numpy as np
import pytest
import torch

from tritoncrf.streaming.scratch import Folder

CPU = torch.device("cpu")
TENSORS = [
    torch.tensor([[1.5, -2.0], [0.0, torch.inf]]), torch.arange(5, dtype=torch.int32), torch.empty(0, 3, dtype=torch.int64),
    torch.tensor(0.1, dtype=torch.float64), torch.arange(12.0).view(3, 4)[:, :2],
]  # fmt: skip


def test_tensors_come_back(tmp_path):
    folder = Folder(tmp_path / "made" / "here")
    assert not folder.has("one")
    folder.save("one", TENSORS)
    folder.save("nothing", [])
    assert folder.has("one")
    found = Folder(tmp_path / "made" / "here").load("one", CPU)
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(found, TENSORS, strict=True))
    assert folder.load("nothing", CPU) == []
    folder.remove("one")
    folder.remove("one")
    assert not folder.has("one")


def test_nothing_is_kept_nowhere():
    folder = Folder(None)
    folder.save("one", TENSORS)
    assert not folder.has("one")
    folder.remove("one")


def test_a_file_that_is_being_written_is_not_there(tmp_path, monkeypatch):
    """Nor is one whose writer was killed; the next one takes its place."""
    folder, save, seen = Folder(tmp_path), np.save, []

    def watched(stream, array):
        save(stream, array)
        seen.append(folder.has("one"))
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "save", watched)
    with pytest.raises(KeyboardInterrupt):
        folder.save("one", TENSORS)
    monkeypatch.undo()
    assert seen == [False] and not folder.has("one")
    folder.save("one", TENSORS[:1])
    assert [path.name for path in tmp_path.iterdir()] == ["one.npys"]


@pytest.mark.parametrize(
    "error, reason",
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (OSError("40 requested and 8 written"), "40 requested and 8 written"),
    ],
)
def test_a_disk_that_is_full(error, reason, tmp_path, monkeypatch):
    """NumPy does not name the file."""

    def full(stream, array):
        stream.write(b"some")
        raise error

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(OSError, match=f"one.npys: cannot be written \\({reason}\\)"):
        Folder(tmp_path).save("one", TENSORS)
    assert not [*tmp_path.iterdir()]
