"""refine through a budget of memory, and to outputs: files, arrays, interruptions, bad input."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

import tritoncrf as tc
from tritoncrf.streaming import local, outputs, scratch
from tritoncrf.streaming.sources import Npy

GENERATOR = np.random.default_rng(0)
IMAGE = GENERATOR.integers(0, 256, (60, 50, 3), dtype=np.uint8)
LOGITS = GENERATOR.normal(size=(3, 60, 50)).astype(np.float32)
WINDOW = {"method": "window", "window_size": 3, "blur": 1, "iterations": 1}
TESTS = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def q():
    return tc.refine(IMAGE, logits=LOGITS, **WINDOW)


@pytest.fixture
def small(monkeypatch):
    """Tiles of 20 x 50 pixels: three."""
    monkeypatch.setattr(local, "tile_shape", lambda *arguments: (20, 50))


def streamed(image=IMAGE, logits=LOGITS, **arguments):
    return tc.refine(image, logits=logits, **{"max_memory": "1GB", **WINDOW, **arguments})


def files(folder):
    return sorted(path.name for path in folder.iterdir())


# Inputs and outputs ---------------------------------------------------------------------------------------------------


def stored(kind, folder, name, array):
    if kind == "npy":
        np.save(folder / f"{name}.npy", array)
        return Npy(folder / f"{name}.npy")
    if kind == "memmap":
        np.save(folder / f"{name}.npy", array)
        return np.load(folder / f"{name}.npy", mmap_mode="r+")
    if kind == "zarr":
        zarr = pytest.importorskip("zarr")
        found = zarr.open(str(folder / f"{name}.zarr"), mode="w", shape=array.shape, dtype=array.dtype)
        found[:] = array
        return found
    if kind == "h5py":
        return pytest.importorskip("h5py").File(folder / f"{name}.h5", "w").create_dataset(name, data=array)
    return torch.from_numpy(array.copy()) if kind == "torch" else array.copy()


def numbers(array):
    return np.asarray(array[tuple(slice(0, n) for n in array.shape)])


@pytest.mark.parametrize("kind", ["numpy", "memmap", "npy", "zarr", "h5py", "torch"])
def test_arrays_of_every_kind(kind, small, q, tmp_path):
    image = IMAGE.transpose(2, 0, 1) if kind == "torch" else IMAGE
    image, logits = stored(kind, tmp_path, "image", image), stored(kind, tmp_path, "logits", LOGITS)
    out = stored(kind, tmp_path, "out", np.zeros_like(LOGITS))
    labels = stored(kind, tmp_path, "labels", np.zeros((60, 50), np.uint8))
    found = streamed(image, logits, out=out, out_labels=labels)
    assert found[0] is out and found[1] is labels
    assert np.array_equal(numbers(out), q) and np.array_equal(numbers(labels), q.argmax(0))
    assert np.array_equal(streamed(image, logits), q)


@pytest.mark.parametrize("budget", [None, "1GB"])
def test_paths(budget, small, q, tmp_path):
    out, labels = tmp_path / "q.npy", tmp_path / "l.npy"
    assert streamed(out=out, out_labels=labels, max_memory=budget) == (out, labels)
    assert np.array_equal(np.load(out), q) and np.array_equal(np.load(labels), q.argmax(0))
    assert files(tmp_path) == ["l.npy", "q.npy"]
    assert streamed(out_labels=labels, max_memory=budget) == labels
    halves = tc.refine(IMAGE, probabilities=np.float16(q), out=str(out), max_memory=budget, **WINDOW)
    assert halves == str(out) and np.load(out).dtype == np.float16


@pytest.mark.parametrize("budget", [None, "1GB"])
def test_one_object(budget, small, tmp_path):
    mask = np.zeros((60, 50), np.uint8)
    mask[20:40, 10:30] = 255
    p = tc.refine(IMAGE, mask=mask, **WINDOW)
    tc.refine(IMAGE, mask=mask, out=tmp_path / "p.npy", out_labels=tmp_path / "l.npy", max_memory=budget, **WINDOW)
    assert np.array_equal(np.load(tmp_path / "p.npy"), p) and np.array_equal(np.load(tmp_path / "l.npy"), p > 0.5)


def test_a_lattice_goes_the_same_way(tmp_path):
    arguments = {"method": "lattice", "iterations": 1}
    whole = tc.refine(IMAGE, logits=LOGITS, **arguments)
    streamed(out=tmp_path / "q.npy", scratch=tmp_path / "scratch", **{**dict.fromkeys(WINDOW), **arguments})
    assert np.abs(np.load(tmp_path / "q.npy") - whole).max() < 1e-5
    assert files(tmp_path) == ["q.npy", "scratch"] and not files(tmp_path / "scratch")


# Interruptions --------------------------------------------------------------------------------------------------------


class Interrupted:
    """An array whose reading is interrupted in the last rows."""

    def __init__(self, array):
        self.array, self.shape, self.dtype, self.path = array, array.shape, array.dtype, array.filename
        self.interrupts, self.reads = True, 0

    def __getitem__(self, window):
        if self.interrupts and window[1].stop == 60:
            raise KeyboardInterrupt
        self.reads += window[1].stop > 1  # all but that of the first pixel, which says what there is
        return self.array[window]


@pytest.mark.parametrize("scratch", [False, True])
def test_an_interrupted_call_goes_on(scratch, small, q, tmp_path):
    np.save(tmp_path / "logits.npy", LOGITS)
    logits = Interrupted(np.load(tmp_path / "logits.npy", mmap_mode="r"))
    arguments = {"out": tmp_path / "q.npy", "scratch": tmp_path / "scratch" if scratch else None}
    with pytest.raises(KeyboardInterrupt):
        streamed(IMAGE, logits, **arguments)
    assert logits.reads == 2 and "q.npy" not in files(tmp_path)
    logits.interrupts, logits.reads = False, 0
    assert np.array_equal(np.load(streamed(IMAGE, logits, **arguments)), q)
    assert logits.reads == 1 and files(tmp_path) == ["logits.npy", "q.npy", *["scratch"] * scratch]
    assert not (scratch and files(tmp_path / "scratch"))


@pytest.mark.parametrize("change", ["iterations", "image", "logits"])
def test_another_call_starts_anew(change, small, tmp_path):
    np.save(tmp_path / "logits.npy", LOGITS)
    logits = Interrupted(np.load(tmp_path / "logits.npy", mmap_mode="r"))
    with pytest.raises(KeyboardInterrupt):
        streamed(IMAGE, logits, out=tmp_path / "q.npy")
    logits.interrupts, logits.reads, image, others = False, 0, IMAGE, {}
    if change == "iterations":
        others = {"iterations": 2}
    elif change == "image":
        image = IMAGE[::-1]
    else:
        np.save(tmp_path / "logits.npy", 2 * LOGITS)
        os.utime(tmp_path / "logits.npy", (1, 1))
        logits.array = 2 * LOGITS
    streamed(image, logits, out=tmp_path / "q.npy", **others)
    assert logits.reads == 3
    whole = tc.refine(image, logits=logits.array[:], **{**WINDOW, **others})
    assert np.array_equal(np.load(tmp_path / "q.npy"), whole)


KILLED = """
import os, signal
import numpy as np, tritoncrf as tc
from tritoncrf.streaming import local, outputs
local.tile_shape = lambda *arguments: (20, 50)
write = outputs.Results.write
def killed(self, block, *others):
    if block == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    print(block, flush=True)
    write(self, block, *others)
outputs.Results.write = killed
tc.refine(np.load("image.npy", mmap_mode="r"), logits=np.load("logits.npy", mmap_mode="r"), out="q.npy",
          method="window", window_size=3, blur=1, iterations=1, max_memory="1GB", device="cpu")
"""


@pytest.mark.processes
def test_a_killed_process_loses_a_block(q, small, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("image.npy", IMAGE)
    np.save("logits.npy", LOGITS)
    killed = subprocess.run([sys.executable, "-c", KILLED], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL and killed.stdout.split() == ["0"], killed.stderr
    assert "q.npy" not in files(tmp_path)
    blocks, write = [], outputs.Results.write
    monkeypatch.setattr(outputs.Results, "write", lambda self, n, *given: blocks.append(n) or write(self, n, *given))
    image, logits = (np.load(name, mmap_mode="r") for name in ("image.npy", "logits.npy"))
    streamed(image, logits, out="q.npy", device="cpu")
    assert blocks == [1, 2]
    assert np.array_equal(np.load(tmp_path / "q.npy"), q)
    assert files(tmp_path) == ["image.npy", "logits.npy", "q.npy"]


# Memory ---------------------------------------------------------------------------------------------------------------

GROWTH = """
import sys, threading
import numpy as np, torch, tritoncrf as tc
torch.set_num_threads(1)
def anonymous():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon")) * 1024
image, logits = (np.lib.format.open_memmap(name, mode="r") for name in ("image.npy", "logits.npy"))
arguments = {"method": sys.argv[1], "iterations": 2, "device": "cpu"}
tc.refine(image[:40, :40], logits=np.array(logits[:, :40, :40]), **arguments)
start, peak, done = anonymous(), 0, threading.Event()
def watch():
    global peak
    while not done.wait(0.001):
        peak = max(peak, anonymous())
thread = threading.Thread(target=watch)
thread.start()
tc.refine(image, logits=logits, out="q.npy", max_memory=sys.argv[2], **arguments)
done.set()
thread.join()
print(peak - start)
"""


@pytest.mark.processes
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the kernel does not say how much memory is used")
@pytest.mark.parametrize("method", ["window", "guided"])
def test_a_budget_bounds_what_is_allocated(method, tmp_path):
    np.save(tmp_path / "image.npy", GENERATOR.integers(0, 256, (1000, 1000, 3), dtype=np.uint8))
    np.save(tmp_path / "logits.npy", GENERATOR.normal(size=(3, 1000, 1000)).astype(np.float32))
    command = [sys.executable, "-c", GROWTH, method, "60MB"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 10e6 < int(done.stdout) < 60e6


def test_a_budget_that_is_too_small_says_the_smallest_that_works():
    for method in "window", "guided":
        arguments = {**dict.fromkeys(WINDOW), "method": method}
        with pytest.raises(ValueError, match="^max_memory: expected at least .* for the smallest block") as error:
            streamed(**{**arguments, "max_memory": "20MB"})
        least = str(error.value).split()[4]
        assert streamed(**{**arguments, "max_memory": least}).shape == LOGITS.shape


# Bad input ------------------------------------------------------------------------------------------------------------


class Masked:
    """An array whose slices are masked where it is 0, as those of readers are that know of nodata."""

    def __init__(self, array):
        self.array, self.shape, self.dtype = array, array.shape, array.dtype

    def __getitem__(self, window):
        return np.ma.masked_equal(self.array[window], 0)


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"max_memory": "much"}, ValueError, "^max_memory: expected bytes"),
        ({"method": "exact", "window_size": None, "blur": None}, ValueError, "^method: expected 'lattice', .*'exact'"),
        ({"image": IMAGE[1:]}, ValueError, r"^image: expected the size of logits, \[60, 50\], got \[59, 50\]"),
        ({"valid": np.ones((3, 4), bool)}, ValueError, "^valid: expected the size of logits"),
        ({"features": LOGITS[:, 1:], "image": None}, ValueError, "^features: expected the size of logits"),
        ({"image": IMAGE.transpose(2, 0, 1)}, ValueError, r"^image: .*image.transpose\(1, 2, 0\)"),
        ({"image": np.dstack([IMAGE, IMAGE[..., :1]])}, ValueError, r"^image: .*; image\[..., :-1\] drops"),
        ({"logits": LOGITS.transpose(1, 2, 0)}, ValueError, "^logits: .*; classes come first"),
        ({"logits": LOGITS[None]}, ValueError, r"^logits: .*; remove the batch axis: l\[0\]"),
        ({"logits": LOGITS[:1]}, ValueError, r"^logits: expected at least 2 classes, got shape \[1, 60, 50\]"),
        ({"logits": torch.from_numpy(LOGITS).to_sparse()}, TypeError, "^logits: expected a dense tensor"),
        ({"image": np.ma.masked_greater(IMAGE, 250)}, TypeError, "^image: expected a plain array, got a masked one"),
        ({"image": Masked(IMAGE)}, TypeError, "^image: expected numbers, got masked ones; valid="),
        ({"iterations": "a"}, TypeError, "^iterations: expected an int from 0"),
        ({"method": "lattice", "window_size": None, "blur": None, "iterations": -1}, ValueError, "^iterations: expec"),
        ({"scratch": 5}, TypeError, "^scratch: expected the path of a folder, got 5"),
        ({"image": "photo.png"}, TypeError, "^image: expected an array, or what has shape, dtype and slicing"),
        ({"logits": LOGITS.astype(int)}, TypeError, r"^logits: expected floats, got a ndarray of shape \[3, 60, 50\]"),
        ({"logits": LOGITS[0]}, ValueError, "^logits: expected"),
        ({"logits": np.where(LOGITS > 2, np.nan, LOGITS)}, ValueError, "^logits: expected finite values"),
        ({"image": IMAGE.astype(np.uint16)}, TypeError, "^image: expected uint8, .*value_range="),
        ({"theta_color": -1}, ValueError, "^theta_color: expected"),
        ({"return_trace": True}, ValueError, "^return_trace: expected False with out="),
        ({"max_memory": None, "scratch": "here"}, ValueError, "^scratch: expected none without max_memory="),
    ],
)
def test_bad_input(arguments, error, message, tmp_path, small, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        streamed(**{"out": tmp_path / "q.npy", **arguments})
    assert files(tmp_path) == []


def test_float_labels_are_told_before_the_work(small):
    labels = np.full((60, 50), np.nan)
    with pytest.raises(TypeError, match=r"^labels: expected integers, got .*; pass labels.astype\(int\)"):
        tc.refine(IMAGE, labels=labels, max_memory="1GB", **WINDOW)


def test_slices_of_which_nothing_is_masked(small, q):
    image = np.maximum(IMAGE, 1)
    assert np.array_equal(streamed(Masked(image)), tc.refine(image, logits=LOGITS, **WINDOW))


@pytest.mark.parametrize("mode", ["L", "1", "RGB", "RGBA", "P", "LA"])
def test_masks_that_are_pictures(mode, small):
    mask = np.zeros((60, 50), np.uint8)
    mask[20:40, 10:30] = 255
    picture = PIL.Image.fromarray(mask).convert(mode)
    found = tc.refine(PIL.Image.fromarray(IMAGE), mask=picture, max_memory="1GB", **WINDOW)
    assert np.array_equal(found, tc.refine(IMAGE, mask=mask, **WINDOW))


@pytest.mark.parametrize("kind", ["logits", "mask", "soft mask"])
def test_numbers_of_the_other_byte_order(kind, small):
    scores = {"logits": LOGITS.astype(">f4"), "mask": (IMAGE[..., 0] > 128).astype(">u2")}
    name, value = kind.split()[-1], scores.get(kind, (IMAGE[..., 0] / np.float32(255)).astype(">f4"))
    found = tc.refine(IMAGE.astype(">u2"), **{name: value}, value_range=(0, 255), max_memory="1GB", **WINDOW)
    whole = tc.refine(IMAGE, **{name: value}, **WINDOW)
    assert found.dtype == whole.dtype and np.abs(found - whole).max() < 1e-6


def test_a_lattice_leaves_no_folder_where_its_output_has_none(tmp_path):
    arguments = {**dict.fromkeys(WINDOW), "method": "lattice"}
    with pytest.raises(ValueError, match="none: expected a folder that exists, for out"):
        streamed(**arguments, out=tmp_path / "none" / "q.npy")
    assert files(tmp_path) == []


@pytest.mark.parametrize("method", ["window", "lattice"])
def test_a_folder_that_cannot_be_written(method, tmp_path, monkeypatch):
    def refused(path, *others, **options):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "touch", refused)
    monkeypatch.setattr(Path, "mkdir", refused)
    with pytest.raises(PermissionError, match=r"Permission denied: '.*/q\.npy'"):
        streamed(**{**dict.fromkeys(WINDOW), "method": method}, out=tmp_path / "q.npy")


def test_a_lattice_leaves_no_folder_that_is_empty(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Npy, "create", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*/q\.npy'"):
        streamed(**{**dict.fromkeys(WINDOW), "method": "lattice"}, out=tmp_path / "q.npy")
    assert files(tmp_path) == []


def test_a_lattice_that_runs_keeps_its_state_from_another(tmp_path, monkeypatch):
    arguments = {**dict.fromkeys(WINDOW), "method": "lattice", "iterations": 1, "out": tmp_path / "q.npy"}
    save = scratch.Folder.save

    def during(*saved):
        monkeypatch.setattr(scratch.Folder, "save", save)
        for iterations in 1, 2:
            with pytest.raises(ValueError, match="state: expected a folder for this run alone, got one in use"):
                streamed(**{**arguments, "iterations": iterations})
        save(*saved)

    monkeypatch.setattr(scratch.Folder, "save", during)
    streamed(**arguments)
    assert files(tmp_path) == ["q.npy"]


def test_labels_that_are_no_classes_are_told_before_the_work(small, tmp_path):
    labels = np.arange(3000).reshape(60, 50)
    with pytest.raises(ValueError, match="^labels: expected 0 to 199, .*3000 of them distinct"):
        tc.refine(IMAGE, labels=labels, out=tmp_path / "q.npy", max_memory="1GB", **WINDOW)


def test_an_output_that_is_an_input(small, tmp_path):
    np.save(tmp_path / "logits.npy", LOGITS)
    logits = np.load(tmp_path / "logits.npy", mmap_mode="r+")
    for budget in None, "1GB":
        with pytest.raises(ValueError, match="^out: expected memory or a file different from logits"):
            streamed(IMAGE, logits, out=tmp_path / "logits.npy", max_memory=budget)
