"""What is read and written by windows, in tiles, within a budget."""

import math

import numpy as np
import pytest
import torch

from tritoncrf.streaming.budget import expect_bytes, in_words, tile_shape
from tritoncrf.streaming.sources import Npy, identity, path_of, read, relative, same_memory, write
from tritoncrf.streaming.tiles import Layout, largest, tiles

SHAPE = 3, 7, 11
ARRAY = np.arange(math.prod(SHAPE), dtype=np.float32).reshape(SHAPE)
WINDOWS = [
    (slice(0, 3), slice(0, 7), slice(0, 11)),
    (slice(1, 3), slice(0, 7), slice(0, 11)),
    (slice(0, 3), slice(2, 5), slice(0, 11)),
    (slice(0, 2), slice(6, 7), slice(3, 4)),
    (slice(2, 2), slice(0, 7), slice(3, 4)),
]


# Sources ----------------------------------------------------------------------------------------------------------


def kept_in(kind, folder, array):
    """An array as others keep it."""
    if kind == "torch":
        return torch.from_numpy(array.copy())
    if kind == "memmap" or kind == "npy":
        np.save(folder / "a.npy", array)
        return np.load(folder / "a.npy", mmap_mode="r+") if kind == "memmap" else Npy(folder / "a.npy")
    if kind == "zarr":
        zarr = pytest.importorskip("zarr")
        found = zarr.open(str(folder / "a.zarr"), mode="w", shape=array.shape, dtype=array.dtype, chunks=(2, 3, 4))
        found[:] = array
        return found
    if kind == "h5py":
        return pytest.importorskip("h5py").File(folder / "a.h5", "w").create_dataset("scores", data=array)
    return array.copy()


KINDS = ["numpy", "torch", "memmap", "npy", "zarr", "h5py"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("window", WINDOWS[:4])
def test_windows_are_read_and_written(kind, window, tmp_path):
    source = kept_in(kind, tmp_path, ARRAY)
    found = read("scores", source, window)
    assert type(found) is np.ndarray or isinstance(found, np.memmap)
    assert np.array_equal(found, ARRAY[window])
    changed = ARRAY.copy()
    changed[window] = -1
    write(source, window, np.full(ARRAY[window].shape, -1.0))
    assert np.array_equal(read("scores", source, WINDOWS[0]), changed)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("order", ["C", "F"])
def test_an_npy_of_either_order(order, window, tmp_path):
    np.save(tmp_path / "a.npy", np.asarray(ARRAY, order=order))
    file = Npy(tmp_path / "a.npy")
    assert np.array_equal(file[window], ARRAY[window])
    changed = ARRAY.copy()
    changed[window] += 1
    file[window] = changed[window]
    assert np.array_equal(np.load(tmp_path / "a.npy"), changed)


def test_a_new_npy_is_zeros(tmp_path):
    file = Npy.create(tmp_path / "a.npy", (3, 5), np.dtype(np.float16))
    file[1:2, 2:4] = np.ones((1, 2))
    found = np.load(tmp_path / "a.npy")
    assert found.dtype == np.float16 and found.shape == (3, 5) and found.sum() == found[1, 2:4].sum() == 2


@pytest.mark.parametrize("kept, message", [(100, "expected 1052 bytes"), (5, "expected an .npy file, unreadable")])
def test_an_npy_cut_short(kept, message, tmp_path):
    np.save(tmp_path / "a.npy", ARRAY)
    content = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "a.npy").write_bytes(content[: kept if kept < 50 else -kept])
    with pytest.raises(ValueError, match=message):
        Npy(tmp_path / "a.npy")


def test_bfloat16_is_read_as_float32():
    assert read("scores", torch.ones(2, 3, dtype=torch.bfloat16), (slice(0, 1), slice(0, 3))).dtype == np.float32


@pytest.mark.parametrize("kind", KINDS[2:])
def test_what_is_kept_in_a_file_says_so(kind, tmp_path):
    source = kept_in(kind, tmp_path, ARRAY)
    assert path_of(source).parent == tmp_path
    assert same_memory(source, source) and not same_memory(source, ARRAY)
    if kind in ("memmap", "npy"):
        assert same_memory(source, tmp_path / "a.npy") and not same_memory(source, tmp_path / "b.npy")


def test_views_share_the_memory_of_their_array():
    tensor = torch.from_numpy(ARRAY.copy())
    assert same_memory(ARRAY, ARRAY[1:]) and same_memory(tensor, tensor[1:])
    assert not same_memory(ARRAY, ARRAY.copy()) and not same_memory(tensor, tensor.clone())


@pytest.mark.parametrize("kind", ["numpy", "torch", "memmap"])
def test_another_array_has_another_identity(kind, tmp_path):
    (tmp_path / "b").mkdir()
    one = kept_in(kind, tmp_path, ARRAY)
    other = ARRAY.copy()
    other[2, 3, 4] += 1
    arrays = one, one[1:], one[:-1], kept_in(kind, tmp_path / "b", other)
    assert len({str(identity("image", array)) for array in arrays}) == 4
    assert identity("image", one) == identity("image", one)


# Tiles ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "size, shape, halo, align",
    [
        ((100, 90), (17, 13), (6, 6), (1, 1)),
        ((100, 91), (1, 91), (5, 5), (4, 4)),
        ((7, 5), (50, 50), (3, 3), (2, 2)),
        ((31,), (10,), (7,), (6,)),
        ((9, 10, 11), (4, 5, 6), (1, 0, 2), (2, 3, 4)),
        ((5, 40), (2, 3), (0, 0), (8, 8)),
    ],
)
def test_tiles_own_each_pixel_once_and_see_what_they_must(size, shape, halo, align):
    layout, count = Layout(size, halo, align), np.zeros(size, int)
    for tile in tiles(layout, shape):
        count[tile.own] += 1
        assert tile.inner == relative(tile.own, tile.seen)
        for axis, (n, h, a) in enumerate(zip(size, halo, align)):
            own, seen = tile.own[axis], tile.seen[axis]
            assert 0 <= seen.start <= max(0, own.start - h) and min(n, own.stop + h) <= seen.stop <= n
            assert seen.start % a == 0 and (n - seen.stop) % a == 0
            assert seen.stop - seen.start <= layout.most(axis, own.stop - own.start)
            assert seen.stop - seen.start >= min(a, n)
    assert (count == 1).all()


@pytest.mark.parametrize("size", [(1000,), (997, 1013), (60, 70, 80)])
@pytest.mark.parametrize("share", [1, 2, 7, 30])
def test_the_largest_tiles_see_no_more_than_they_may(size, share):
    layout = Layout(size, (5,) * len(size), (4,) * len(size))
    most = math.prod(size) // share

    def work(shape):
        seen = [math.prod(s.stop - s.start for s in tile.seen) for tile in tiles(layout, shape)]
        return sum(seen) if max(seen) <= most else math.inf

    shape = largest(layout, most)
    assert (shape == size) == (share == 1)
    assert work(shape) <= 1.2 * min(work((side,) * len(size)) for side in range(5, 1000, 5))


def test_no_tile_is_small_enough():
    layout = Layout((100, 100), (10, 10), (1, 1))
    assert largest(layout, 441) is not None and largest(layout, 440) is None


# Budget -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value, expected",
    [(5, 5), ("4GB", 4 * 10**9), ("1.5 gib", 3 << 29), ("500M", 5 * 10**8), ("12", 12), ("3kB", 3000), ("7B", 7)],
)
def test_budgets(value, expected):
    assert expect_bytes("max_memory", value) == expected


@pytest.mark.parametrize("bad", [0, -1, 1.5, "4 apples", "GB", "", "-4GB", "0MB", "9" * 400 + "GB", None, True])
def test_what_is_no_budget(bad):
    with pytest.raises((TypeError, ValueError), match="^max_memory: expected bytes above 0 as an int, or text"):
        expect_bytes("max_memory", bad)


def test_a_budget_that_is_too_small_says_the_least_which_works():
    layout = Layout((100, 100), (10, 10), (2, 2))
    with pytest.raises(ValueError, match="^max_memory: expected at least .* for the smallest block") as error:
        tile_shape(layout, 3000, 1000, 10, 1 << 22)
    least = str(error.value).split()[4]
    assert math.prod(tile_shape(layout, expect_bytes("max_memory", least), 1000, 10, 1 << 22)) >= 1


@pytest.mark.parametrize("count", [1, 999, 1000, 1234567, 99950000, 10**9 + 1])
def test_words_for_bytes_are_never_less(count):
    found = expect_bytes("max_memory", in_words(count))
    assert count <= found <= 1.1 * count + 1
