"""The lattice CRF of what `refine` takes, in tiles, and the memory that it asks for."""

import numpy as np
import pytest
import torch
from tiled import cut

from assertions import assert_close
from tritoncrf.problem import part, posed, solved
from tritoncrf.streaming import lattice
from tritoncrf.streaming.budget import expect_bytes
from tritoncrf.streaming.needs import Form, expect_room
from tritoncrf.streaming.scratch import Folder

CPU = torch.device("cpu")
PLENTY = 1 << 40


class Collected:
    """An output in memory."""

    def __init__(self, size, tiles):
        self.q, self.tiles = torch.full(size, torch.nan), tiles

    def written(self, n):
        return False

    def write(self, n, q):
        self.q[(slice(None), *self.tiles[n])] = q


def streamed(problem, image, scores, shape, budget=PLENTY, taken=0.0, **arrays):
    """Q of a whole image's problem, from parts of what it was made of."""
    tiles = cut(problem.whole.size, shape)

    def pose(n):
        window = tiles[n]
        own = {name: None if x is None else x[(..., *window)] for name, x in arrays.items()}
        return part(
            problem.whole, [s.start for s in window], None if image is None else image[window],
            scores[(slice(None), *window)], own.get("features"), own.get("valid"), CPU,
        )  # fmt: skip

    output, passes = Collected(problem.unary.shape, tiles), []
    lattice.run(problem.whole, len(tiles), pose, output, Folder(None), False, budget, taken, passes.append)
    return output.q


def probabilities(size, classes=3):
    return torch.softmax(2 * torch.randn(classes, *size), 0).numpy()


CASES = {
    "photo": ((21, 26), 3, np.uint8, {}),
    "bands": ((21, 26), 4, np.uint16, {"value_range": ("1%", "99%"), "theta_space": "10%", "theta_smooth": 2.0}),
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
def test_images(case, missing):
    size, channels, dtype, arguments = CASES[case]
    image = np.random.randint(0, 256 if dtype == np.uint8 else 1000, (*size, channels)).astype(dtype)
    p, valid = probabilities(size), np.random.rand(*size) < 0.8 if missing else None
    given = {"method": "lattice", "theta_color": 40.0, "valid": valid, **arguments}
    problem = posed(image, {"probabilities": p}, CPU, given)
    assert_close("Q", streamed(problem, image, p, [4] * len(size), valid=valid), solved([problem])[0])


def test_features_of_ones_own():
    p, f = probabilities((9, 14)), np.random.randn(5, 9, 14).astype(np.float32)
    problem = posed(None, {"probabilities": p}, CPU, {"method": "lattice", "features": f, "theta_smooth": 2.0})
    assert_close("Q", streamed(problem, None, p, (5, 5), features=f), solved([problem])[0])


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
        streamed(problem, image, p, (10, 10), budget=400_000)
    words = str(error.value).split()
    least = expect_bytes("least", words[4])
    streamed(problem, image, p, (10, 10), budget=least)
    with pytest.raises(ValueError, match="max_memory"):
        streamed(problem, image, p, (10, 10), budget=int(0.98 * least))
    factor = float(words[-4])
    given = {**problem.whole.chosen, "theta_space": 20.0 * factor, "theta_color": 10.0 * factor, "theta_smooth": 3.0}
    chosen = {name: given[name] for name in ("theta_space", "theta_color", "theta_smooth")}
    larger = posed(image, {"probabilities": p}, CPU, {"method": "lattice", **chosen})
    streamed(larger, image, p, (10, 10), budget=400_000)


FORM = Form((2, 6), 10, 4)


def test_what_is_taken_by_others_counts():
    need = sum(FORM.vertex_bytes([1000, 2000]))
    expect_room(FORM, [1000, 2000], 1.0, 2, ("a", "b"), int(need / 0.75) + 1, 0)
    with pytest.raises(ValueError, match="for the 3,000 vertices .*; or b about 1.[0-9] times as large"):
        expect_room(FORM, [1000, 2000], 1.0, 2, ("a", "b"), int(need / 0.75) + 1, need / 10)


def test_tiles_with_more_vertices_than_reckoned_leave_less():
    need = sum(FORM.vertex_bytes([1000, 2000]))
    with pytest.raises(ValueError, match="max_memory: expected at least"):
        expect_room(FORM, [1000, 2000], 3.0, 2, ("a", "b"), int(need / 0.75) + 1, 0)


def test_no_budget_serves_features_of_too_many_vertices_a_pixel():
    with pytest.raises(ValueError, match="max_memory: expected fewer features for the"):
        expect_room(Form((2, 40), 10, 4), [1000, 2000], 41.0, 2, ("a", "b"), 10**6, 0)
