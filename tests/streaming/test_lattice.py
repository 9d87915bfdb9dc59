"""The lattice of an image that is seen in tiles: the same vertices and the same Q as in memory."""

import itertools

import pytest
import torch
from tiled import Image, Streamed

from assertions import assert_close
from cases import random_features
from tritoncrf.reference import simplex
from tritoncrf.streaming.vertices import Codes, Merging, Table, ends_of, layout_of, tile_lattice

WEIGHTS = {"weights": [1.5, 3.0]}
COSTS = torch.tensor([[-1.0, 0.3, 0.0], [0.3, -2.0, 0.5], [0.0, 0.5, -0.7]], dtype=torch.float64)
SETTINGS = {
    "plain": {},
    "one-step": {"iterations": 1},
    "none": {"iterations": 0},
    "hot": {"temperature": 1.7},
    "costs": {"compatibility": COSTS},
    "damped": {"damping": 0.4},
    "damped-costs-hot": {"damping": 0.7, "compatibility": COSTS, "temperature": 0.6, "iterations": 4},
}
SIZES = {
    "primes": ((17, 23), (5, 7)),
    "larger": ((17, 23), (40, 50)),
    "rows": ((9, 23), (1, 23)),
    "columns": ((9, 23), (9, 1)),
    "pixels": ((3, 4), (1, 1)),
    "volume": ((7, 6, 5), (3, 4, 5)),
    "signal": ((61,), (13,)),
}


def same(streamed: Streamed, image: Image) -> None:
    """As in memory, on as many vertices."""
    assert_close("Q", streamed.run(), image.in_memory(**{"iterations": 3, **streamed.arguments}))
    if streamed.arguments.get("iterations") != 0:
        assert list(streamed.counts) == [K.tensors[2].shape[1] - 1 for K in image.lattices()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sizes", SIZES)
def test_tiles_of_any_size(sizes, dtype):
    size, shape = SIZES[sizes]
    image = Image.of(size, dtype=dtype)
    same(Streamed(image, shape, WEIGHTS), image)


@pytest.mark.parametrize("kept", ["nothing", "state", "tables"])
@pytest.mark.parametrize("setting", SETTINGS)
def test_settings(setting, kept, tmp_path):
    image = Image.of((13, 19))
    path = None if kept == "nothing" else tmp_path
    same(Streamed(image, (7, 11), {**WEIGHTS, **SETTINGS[setting]}, path, kept == "tables"), image)


@pytest.mark.parametrize("missing", ["some", "a tile", "all but one", "all"])
def test_pixels_that_are_not_there(missing, tmp_path):
    """They neither send nor receive, and keep their scores; their features may be anything."""
    image = Image.of((12, 15))
    image.valid = torch.rand(12, 15) < 0.7
    if missing == "a tile":
        image.valid[:6, :5] = False
    elif missing != "some":
        image.valid[:] = False
        image.valid[7, 8] = missing == "all but one"
    for f in image.features:
        f[..., ~image.valid] = torch.nan
    streamed = Streamed(image, (6, 5), {**WEIGHTS, "damping": 0.3}, tmp_path, True)
    if missing == "all":
        assert_close("Q", streamed.run(), torch.softmax(image.unary, 0))
    else:
        same(streamed, image)


def test_classes_that_are_ruled_out():
    image = Image.of((9, 10))
    image.unary[0, :4] = -torch.inf
    same(Streamed(image, (4, 4), WEIGHTS), image)


@pytest.mark.parametrize("spread, groups", [(1.0, 1), (10.0, 2), (300.0, 3)])
def test_codes_of_several_integers(spread, groups):
    """Twelve features over so many cells that their integers do not fit in 63 bits together."""
    near = random_features((17,), 12)
    near = torch.cat([near, near + 0.05 * torch.randn_like(near)], 2)
    f = near + spread * torch.randn(1, 12, 17, dtype=torch.float64).repeat(1, 1, 2)
    image = Image([f], torch.randn(3, 34, dtype=torch.float64))
    assert len(layout_of(ends_of(f), 34).keys.sizes) == groups
    same(Streamed(image, (5,), {"weights": [2.0]}), image)


def test_features_far_from_the_origin():
    """Beyond where float32 places them they are shifted, by what belongs to the whole image."""
    image = Image.of((11, 14), dtype=torch.float32)
    image.features = [f + 3e5 for f in image.features]
    same(Streamed(image, (4, 5), WEIGHTS), image)


def test_features_too_far_apart_are_refused_by_name():
    image = Image.of((4, 5))
    image.features[0] = 1e6 * image.features[0]
    with pytest.raises(ValueError, match="^theta_smooth: expected lattice coordinates of at most 65536, got"):
        Streamed(image, (2, 2), WEIGHTS).run()


def test_scores_that_pass_float32_are_refused():
    image = Image.of((4, 5), dtype=torch.float32)
    with pytest.raises(ValueError, match="expected values whose sums float32 holds"):
        Streamed(image, (2, 2), {"weights": [3e38, 3e38]}).run()


def test_the_vertices_are_those_of_memory():
    """In the same order, with the same neighbours, whatever tiles they are met in, and in whatever order."""
    f = torch.cat(Image.of((19, 21)).features, 1).flatten(2)
    layout = layout_of(ends_of(f), f.shape[2])
    codes, own, bounds = _in_memory(f, layout)
    merging = Merging(layout, f)
    for part in reversed(f.split(23, 2)):
        lattice, seen = tile_lattice(part, layout, "torch")
        merging.add(seen, lattice.weights.new_ones(lattice.count))
    found, sums = merging.finish()
    assert found.bounds == bounds
    assert all(torch.equal(a, b) for a, b in zip(found.groups, own, strict=True))
    table = Table(layout, found)
    assert torch.equal(table.neighbours(), simplex.connect(codes, None, layout.keys, False)[1])
    assert int(sums.sum()) == sum(tile_lattice(part, layout, "torch")[0].count for part in f.split(23, 2))


def _in_memory(f, layout):
    """Codes of all pairs; and those of the distinct vertices, and where they begin."""
    _, codes, simplices = simplex.simplex(f, layout.keys)
    corners = f.shape[1] + 1
    every = [codes[0].view(-1, corners)[simplices].flatten()]
    distinct = [torch.unique(every[0][r::corners]) for r in range(corners)]
    return every, [torch.cat(distinct)], [0, *itertools.accumulate(map(len, distinct))]


@pytest.mark.parametrize("groups", [1, 2])
def test_numbers_of_a_tiles_vertices(groups):
    keys = simplex.KeyLayout(
        (0, 0), ((20, 1), (0, 0)) if groups == 1 else ((1, 0), (0, 1)), (400,) if groups == 1 else (20, 20), 400
    )
    layout = layout_of(ends_of(torch.zeros(1, 2, 1)), 1)
    layout = type(layout)(keys, layout.shift)
    pairs = torch.randperm(400)[:90].sort().values
    pick = torch.tensor([0, 3, 29, 35, 60, 89])  # two of each corner
    columns = [pairs] if groups == 1 else [pairs // 20, pairs % 20]
    table = Table(layout, Codes([torch.cat([c[:30], c[30:60], c[60:]]) for c in columns], [0, 30, 60, 90]))
    assert table.numbers(Codes([c[pick] for c in columns], [0, 3, 4, 6])).tolist() == [0, 3, 29, 35, 60, 89]


def test_runs_stay_few():
    """So many are merged again and again that all together are little more than the result."""
    f = random_features((512,), 2).mul(9)
    layout = layout_of(ends_of(f), 512)
    merging = Merging(layout, f)
    for part in f.split(8, 2):
        lattice, codes = tile_lattice(part, layout, "torch")
        merging.add(codes, lattice.weights.new_ones(lattice.count))
        for runs in merging.runs:
            lengths = [len(sums) for _, sums in runs]
            assert sum(lengths) <= 2 * lengths[0]


@pytest.mark.parametrize("keeps_tables", [False, True])
def test_a_run_that_is_killed_goes_on_where_it_was(keeps_tables, tmp_path):
    """The same bits; nothing but the tile at hand is computed again."""
    image = Image.of((8, 11), dtype=torch.float32)
    setting = (4, 6), {**WEIGHTS, "damping": 0.2}
    whole = Streamed(image, *setting, tmp_path / "whole", keeps_tables)
    expected = whole.run()
    assert keeps_tables == (whole.posed == 1 + 2 * len(whole.tiles))
    for stop in range(2, whole.posed, 1 if keeps_tables else 7):
        path = tmp_path / str(stop)
        first = Streamed(image, *setting, path, keeps_tables, stops_at=stop)
        with pytest.raises(KeyboardInterrupt):
            first.run()
        second = Streamed(image, *setting, path, keeps_tables)
        second.q.copy_(first.q)
        assert torch.equal(second.run(), expected)
        if not keeps_tables:
            assert second.posed == whole.posed - stop + 1  # and the first tile once more, to know its form


def test_what_is_left_when_it_is_done(tmp_path):
    """One state, not one for each pass."""
    Streamed(Image.of((8, 11)), (4, 6), WEIGHTS, tmp_path).run()
    assert sorted(path.stem for path in tmp_path.iterdir()) == ["ranges", "splats2", "vertices"]


def test_progress():
    """Every pass over every tile."""
    streamed = Streamed(Image.of((4, 5)), (2, 5), WEIGHTS)
    streamed.run()
    assert streamed.passes == [
        name for name in ("ranges", "vertices", "splats0", "splats1", "splats2", "result") for _ in range(2)
    ]
