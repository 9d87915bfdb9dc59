"""What a run gives: whole or absent, never an input, and gone on with where it was interrupted."""

import errno

import numpy as np
import pytest
import torch

from tritoncrf.files import FileError
from tritoncrf.locks import locked
from tritoncrf.streaming import outputs
from tritoncrf.streaming.outputs import Form, digest, opened
from tritoncrf.streaming.sources import Npy

FORM = Form((4, 6), 3, np.dtype(np.float32))
Q = np.random.default_rng(0).random((3, 4, 6)).astype(np.float32)
ROWS = [(slice(row, row + 1), slice(0, 6)) for row in range(4)]


def run(out, labels=None, name="run", rows=range(4), fails=None, inputs=None, scratch=None, form=FORM, q=Q):
    """Blocks of a row each; the blocks that were written, by number."""
    written = []
    with opened(out, labels, form, inputs or {}, name, scratch) as results:
        for row in rows:
            if row in results.done:
                continue
            if row == fails:
                raise KeyboardInterrupt
            results.write(row, ROWS[row], q[..., ROWS[row][0], :])
            written.append(row)
    return written


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def test_files_are_whole_at_the_end(tmp_path):
    assert run(tmp_path / "q.npy", tmp_path / "l.npy") == [0, 1, 2, 3]
    assert files(tmp_path) == ["l.npy", "q.npy"]
    assert np.array_equal(np.load(tmp_path / "q.npy"), Q)
    labels = np.load(tmp_path / "l.npy")
    assert labels.dtype == np.uint8 and np.array_equal(labels, Q.argmax(0))


def test_one_object(tmp_path):
    run(str(tmp_path / "q.npy"), tmp_path / "l.npy", form=Form((4, 6), None, np.dtype(np.float32)), q=Q[0])
    assert np.array_equal(np.load(tmp_path / "q.npy"), Q[0])
    assert np.array_equal(np.load(tmp_path / "l.npy"), Q[0] > 0.5)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_arrays_are_filled_in_their_dtype(dtype):
    out, labels = np.full(Q.shape, np.nan, dtype), torch.full((4, 6), -1)
    run(out, labels)
    assert np.array_equal(out, Q.astype(dtype)) and np.array_equal(labels, Q.argmax(0))


def test_an_interrupted_run_goes_on(tmp_path):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    for folder in None, scratch:
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "q.npy", fails=2, scratch=folder)
        assert "q.npy" not in files(tmp_path)
        assert len(files(scratch)) == (folder is not None)
        assert run(tmp_path / "q.npy", scratch=folder) == [2, 3]
        assert files(tmp_path) == ["q.npy", "scratch"] and files(scratch) == []
        assert np.array_equal(np.load(tmp_path / "q.npy"), Q)
        (tmp_path / "q.npy").unlink()


@pytest.mark.parametrize("cut", ["1", ""])
def test_a_line_cut_short_counts_for_nothing(cut, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "q.npy", fails=1)
    [journal] = tmp_path.glob("*.journal")
    journal.write_text(journal.read_text() + cut)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "q.npy", fails=2)
    assert run(tmp_path / "q.npy") == [2, 3]


def test_another_run_starts_anew(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "q.npy", fails=2)
    assert run(tmp_path / "q.npy", name="another") == [0, 1, 2, 3]
    assert files(tmp_path) == ["q.npy"]


def test_a_missing_file_starts_anew(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "q.npy", fails=2)
    [part] = tmp_path.glob("*.part")
    part.unlink()
    assert run(tmp_path / "q.npy") == [0, 1, 2, 3]


def test_other_outputs_are_another_run(tmp_path):
    q, labels, scratch = tmp_path / "q.npy", tmp_path / "l.npy", tmp_path / "scratch"
    scratch.mkdir()
    for other in {"labels": labels}, {"scratch": scratch}, {"labels": np.zeros((4, 6), int)}:
        with pytest.raises(KeyboardInterrupt):
            run(q, **other, fails=1)
        with pytest.raises(KeyboardInterrupt):
            run(q, fails=3)
        assert run(q, **other) == [0, 1, 2, 3]
        assert np.array_equal(np.load(q), Q)
    with pytest.raises(KeyboardInterrupt):
        run(q, labels, fails=1)
    with pytest.raises(KeyboardInterrupt):
        run(q, fails=3)
    run(q, labels)
    assert np.array_equal(np.load(labels), Q.argmax(0))


@pytest.mark.parametrize("arrays", [False, True])
def test_bad_input_leaves_nothing(arrays, tmp_path):
    labels = np.zeros((4, 6), int) if arrays else tmp_path / "l.npy"
    error = KeyboardInterrupt if arrays else ValueError
    with pytest.raises(error), opened(tmp_path / "q.npy", labels, FORM, {}, "run", None) as results:
        results.write(0, ROWS[0], Q[:, :1])
        raise error
    assert files(tmp_path) == []


def test_what_was_there_stays_until_the_end(tmp_path):
    (tmp_path / "q.npy").write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "q.npy", fails=2)
    assert (tmp_path / "q.npy").read_bytes() == b"old"


def test_a_full_disk_names_the_file_and_keeps_what_is_finished(tmp_path, monkeypatch):
    put = Npy.__setitem__

    def full(self, window, values):
        if window[1].start == 2:
            raise OSError(errno.ENOSPC, "No space left on device", str(self.path))
        put(self, window, values)

    with monkeypatch.context() as patched:
        patched.setattr(Npy, "__setitem__", full)
        with pytest.raises(OSError, match=r"No space left on device: '.*/q\.npy'"):
            run(tmp_path / "q.npy")
    assert run(tmp_path / "q.npy") == [2, 3]


def test_two_processes_do_not_write_one_file(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "q.npy", fails=2)
    [journal] = tmp_path.glob("*.journal")
    with locked(journal), pytest.raises(FileError, match="expected a file for this run alone"):
        run(tmp_path / "q.npy")
    assert run(tmp_path / "q.npy") == [2, 3]


@pytest.mark.parametrize(
    "out, labels, error, message",
    [
        ("q.tif", None, ValueError, r"^out: expected an array, or a path that ends in \.npy, got .*q\.tif"),
        ("none/q.npy", None, FileError, "none: expected a folder that exists, for out"),
        (3, None, TypeError, "^out: expected an array, or the path of an .npy, got 3"),
        (np.zeros((3, 4, 5), np.float32), None, ValueError, r"^out: expected shape \[3, 4, 6\], got \[3, 4, 5\]"),
        (np.zeros((3, 4, 6), int), None, TypeError, "^out: expected floats, got dtype int64"),
        (None, np.zeros((4, 6)), TypeError, "^out_labels: expected integers up to 2, got dtype float64"),
        (None, torch.zeros(3, 4, 6, dtype=torch.uint8), ValueError, r"^out_labels: expected shape \[4, 6\]"),
        (np.broadcast_to(np.float32(0), (3, 4, 6)), None, ValueError, "^out: expected an array that can be written to"),
        (torch.zeros(3, 4, 6).to_sparse(), None, TypeError, "^out: expected a dense tensor"),
        ("q.npy", "q.npy", ValueError, "^out_labels: expected memory or a file different from out"),
    ],
)
def test_what_cannot_hold_the_result(out, labels, error, message, tmp_path):
    places = [tmp_path / p if isinstance(p, str) else p for p in (out, labels)]
    with pytest.raises(error, match=message):
        run(*places)
    assert files(tmp_path) == []


def test_too_few_labels():
    with pytest.raises(TypeError, match="^out_labels: expected integers up to 199, got dtype int8"):
        run(None, np.zeros((4, 6), np.int8), form=Form((4, 6), 200, np.dtype(np.float32)))


def test_an_output_is_no_input(tmp_path):
    np.save(tmp_path / "p.npy", Q)
    (tmp_path / "link.npy").symlink_to(tmp_path / "p.npy")
    mapped = np.load(tmp_path / "p.npy", mmap_mode="r+")
    for out in tmp_path / "p.npy", tmp_path / "link.npy", mapped, mapped[:]:
        with pytest.raises(
            ValueError, match="^out: expected memory or a file different from probabilities, got the same"
        ):
            run(out, inputs={"image": None, "probabilities": mapped})


def test_an_output_is_no_input_of_another_library():
    array = np.zeros((6, 4, 6), np.float32)
    tensor = torch.from_numpy(array)
    for out in array[2:5], tensor[2:5]:
        with pytest.raises(ValueError, match="^out: expected memory or a file different from logits, got the same$"):
            run(out, inputs={"logits": tensor[:3]})
        with pytest.raises(ValueError, match="^out: expected memory or a file different from logits"):
            run(out, inputs={"logits": array[:3]})
    run(tensor[3:], inputs={"logits": tensor[:3]})
    assert np.array_equal(array[3:], Q)


@pytest.mark.parametrize("out", [np.zeros((3, 4, 6), ">f4"), torch.zeros(3, 4, 6, requires_grad=True)])
def test_arrays_of_other_forms(out):
    run(out)
    assert np.array_equal(np.asarray(out.detach() if isinstance(out, torch.Tensor) else out), Q)


def test_a_digest_tells_arguments_apart():
    one = {"theta": 3.0, "compatibility": np.eye(2)}
    assert digest(one, [1]) == digest(dict(one), (1,))
    assert len({digest(one), digest({**one, "theta": 3}), digest({**one, "compatibility": -np.eye(2)})}) == 3


def test_names_of_temporaries_are_short_enough(tmp_path):
    assert len(outputs._beside(tmp_path / ("ä" * 120 + ".npy"), ".01234567.part").name.encode()) < 255
