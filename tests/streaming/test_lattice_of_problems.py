"""The lattice CRF of what `refine` takes, in tiles, and the memory that it asks for."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from assertions import assert_close
from tritoncrf.problem import part, posed, solved
from tritoncrf.streaming import lattice
from tritoncrf.streaming.budget import expect_bytes
from tritoncrf.streaming.needs import Form, expect_fit, shape_of
from tritoncrf.streaming.scratch import Folder

TESTS = Path(__file__).parent.parent
CPU = torch.device("cpu")
PLENTY = 1 << 40


def streamed(problem, image, scores, budget=PLENTY, taken=0.0, **arrays):
    """Q of a whole image's problem, from parts of what it was made of."""
    q, passes = torch.full(problem.unary.shape, torch.nan), []

    def pose(window):
        own = {name: None if x is None else x[(..., *window)] for name, x in arrays.items()}
        return part(
            problem.whole, [s.start for s in window], None if image is None else image[window],
            scores[(slice(None), *window)], own.get("features"), own.get("valid"), CPU,
        )  # fmt: skip

    def write(n, window, found):
        q[(slice(None), *window)] = found

    plan = lattice.planned(problem.whole, pose, budget, taken)
    plan.run((), write, Folder(None), False, passes.append)
    assert len(passes) == plan.steps
    return q


@pytest.fixture
def small(monkeypatch):
    """Tiles of an awkward size."""
    monkeypatch.setattr(
        Form, "tile_shape", lambda self, size, *budget: [min(n, own) for n, own in zip(size, (7, 11, 5))]
    )


def probabilities(size, classes=3):
    return torch.softmax(2 * torch.randn(classes, *size), 0).numpy()


CASES = {
    "photo": ((16, 26), 3, np.uint8, {}),
    "bands": ((16, 26), 4, np.uint16, {"value_range": ("1%", "99%"), "theta_space": "10%", "theta_smooth": 2.0}),
    "volume": (
        (6, 9, 11),
        1,
        np.float32,
        {"value_range": (0, 1000), "spacing": (2.5, 0.8, 0.8), "theta_space": 6.0, "theta_smooth": 2.0},
    ),
    "signal": ((83,), 2, np.uint8, {"theta_space": 9.0, "theta_smooth": 2.0}),
}


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_images(case, missing, small):
    size, channels, dtype, arguments = CASES[case]
    image = np.random.randint(0, 256 if dtype == np.uint8 else 1000, (*size, channels)).astype(dtype)
    p, valid = probabilities(size), np.random.rand(*size) < 0.8 if missing else None
    given = {"method": "lattice", "theta_color": 40.0, "valid": valid, **arguments}
    problem = posed(image, {"probabilities": p}, CPU, given)
    assert_close("Q", streamed(problem, image, p, valid=valid), solved([problem])[0])


def test_features_of_ones_own(small):
    p, f = probabilities((9, 14)), np.random.randn(5, 9, 14).astype(np.float32)
    problem = posed(None, {"probabilities": p}, CPU, {"method": "lattice", "features": f, "theta_smooth": 2.0})
    assert_close("Q", streamed(problem, None, p, features=f), solved([problem])[0])


def noise(size=(30, 40)):
    image, p = np.random.randint(0, 256, (*size, 3)).astype(np.uint8), probabilities(size)
    given = {"method": "lattice", "theta_color": 10.0, "theta_space": 20.0, "theta_smooth": 3.0}
    return posed(image, {"probabilities": p}, CPU, given), image, p


def test_a_budget_that_is_too_small_says_what_would_do():
    """A little more than it says is enough, as are such bandwidths."""
    problem, image, p = noise()
    wanted = (
        "^max_memory: expected at least .* for the [0-9,]+ vertices .*, got 400kB; or theta_space, theta_color about"
    )
    with pytest.raises(ValueError, match=wanted) as error:
        streamed(problem, image, p, budget=400_000)
    words = str(error.value).split()
    least = expect_bytes("least", words[4])
    streamed(problem, image, p, budget=least)
    with pytest.raises(ValueError, match="max_memory"):
        streamed(problem, image, p, budget=int(0.98 * least))
    factor = float(words[-4])
    given = {**problem.whole.chosen, "theta_space": 20.0 * factor, "theta_color": 10.0 * factor, "theta_smooth": 3.0}
    chosen = {name: given[name] for name in ("theta_space", "theta_color", "theta_smooth")}
    larger = posed(image, {"probabilities": p}, CPU, {"method": "lattice", **chosen})
    streamed(larger, image, p, budget=400_000)


FORM = Form((2, 6), 10, 4)
COUNTS = 10**7, 2 * 10**7


def test_what_is_taken_by_others_counts():
    need = sum(FORM.vertex_bytes(COUNTS)) + FORM.tile_pixels(PLENTY, CPU) * FORM.pixel_bytes()
    expect_fit(FORM, COUNTS, 1.0, True, 2, ("a", "b"), int(need) + 1, 0, CPU)
    with pytest.raises(ValueError, match="for the 30,000,000 vertices .*; or b about 1.[0-9] times as large"):
        expect_fit(FORM, COUNTS, 1.0, True, 2, ("a", "b"), int(need) + 1, need / 10, CPU)


def test_counting_them_stops_where_there_is_no_place_for_that():
    expect_fit(FORM, COUNTS, 1.0, False, 2, ("a", "b"), 15 * 10**8, 0, CPU)
    with pytest.raises(ValueError, match="more than .* for the 30,000,000 vertices of a part of this image's lattices"):
        expect_fit(FORM, COUNTS, 1.0, False, 2, ("a", "b"), 5 * 10**8, 0, CPU)


def test_tiles_with_more_vertices_than_reckoned_leave_less():
    need = sum(FORM.vertex_bytes(COUNTS)) + FORM.tile_pixels(PLENTY, CPU) * FORM.pixel_bytes()
    with pytest.raises(ValueError, match="max_memory: expected at least"):
        expect_fit(FORM, COUNTS, 3.0, True, 2, ("a", "b"), int(need) + 1, 0, CPU)


@pytest.mark.parametrize("size", [(6000, 6000), (50, 100_000), (7, 9), (155, 240, 240), (10**7,), (3, 10**6)])
@pytest.mark.parametrize("pixels", [1, 31, 2**10, 2**18])
def test_tiles_keep_within_their_pixels_and_are_not_thin(size, pixels):
    shape = shape_of(size, pixels)
    assert 1 <= np.prod(shape) <= pixels
    if pixels >= 32 ** len(size):
        assert all(own == n or own >= 32 for own, n in zip(shape, size))


def test_tiles_are_whole_rows_where_they_may_be():
    assert shape_of((6000, 6000), 2**18) == (43, 6000)
    assert shape_of((6000, 60_000), 2**18) == (32, 8192)


def test_a_budget_without_a_place_for_a_tile():
    problem, image, p = noise((6, 7))
    with pytest.raises(ValueError, match="^max_memory: expected at least (.*) for this image, got 500B") as error:
        streamed(problem, image, p, budget=500)
    least = expect_bytes("least", str(error.value).split()[4])
    with pytest.raises(ValueError, match="vertices"):
        streamed(problem, image, p, budget=least)


def test_a_tile_takes_a_share_of_the_budget():
    pixels = FORM.tile_pixels(8 * 10**6, CPU)
    assert pixels * FORM.pixel_bytes() <= 2 * 10**6 < 2 * pixels * FORM.pixel_bytes()
    assert FORM.tile_pixels(7.9 * 10**6, CPU) == pixels
    assert FORM.tile_pixels(PLENTY, CPU) == 2**18 < FORM.tile_pixels(PLENTY, torch.device("cuda"))


PEAK = """
import gc, math, torch
import tritoncrf as tc
from tiled import cut
from tritoncrf.streaming.passes import Passes
from tritoncrf.streaming.needs import Form, expect_fit
from tritoncrf.streaming.points import Posed
from tritoncrf.streaming.scratch import Folder

SIZE, BUDGET, CPU, FORM = (900, 1000), 10**8, torch.device("cpu"), Form((2, 5), 8, 4)
tiles = cut(SIZE, FORM.tile_shape(SIZE, BUDGET, 0, CPU))

def pose(n):  # waves with texture, the same every time
    torch.manual_seed(n)
    y, x = torch.meshgrid(*(torch.arange(s.start, s.stop, dtype=torch.float32) for s in tiles[n]), indexing="ij")
    colors = torch.stack([torch.sin(y / a) * torch.cos(x / b) for a, b in ((31, 57), (90, 23), (47, 70))])
    photo = 5 * colors + torch.randn(colors.shape)
    features = torch.stack([y, x])[None] / 3, torch.cat([torch.stack([y, x]) / 40, photo / 1.2])[None]
    return Posed(features, torch.randn(8, *y.shape))

class Nowhere:
    def written(self, n):
        return False
    def write(self, n, q):
        pass

def status(name):
    lines = open("/proc/self/status").read().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))

def limit(counts, seen, complete):
    if complete:
        print(sum(counts), end=" ")
    expect_fit(FORM, counts, seen, complete, 2, ("a", "b"), BUDGET, 0, CPU)

tc.mean_field(torch.rand(1, 8, 30, 30), [tc.filters.Lattice(torch.rand(1, 5, 30, 30))], [1.0])
arguments = {"weights": [3.0, 10.0], "compatibility": "potts", "iterations": 1, "damping": 0.0, "temperature": 1.0}
passes = Passes(pose, pose(0), len(tiles), math.prod(SIZE), "ab", arguments, Folder(None), False, lambda name: None)
gc.collect()
before = status("VmRSS")
passes.run(Nowhere(), limit)
print(status("VmHWM") - before)
"""


@pytest.mark.processes
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_a_run_keeps_within_its_budget():
    """Most of which the vertices take; to hold the image in tiles would take several times as much."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{TESTS.parent}:{TESTS}"}
    done = subprocess.run([sys.executable, "-c", PEAK], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    vertices, peak = map(int, done.stdout.split())
    assert vertices > 200_000
    assert 0.3e8 < peak < 1e8
