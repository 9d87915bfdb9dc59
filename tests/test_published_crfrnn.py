"""CRF-RNN's published codes, written once more in NumPy: that form by itself, and the presets of `CRFRNN` beside it."""

import itertools
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import tritoncrf as tc
from assertions import assert_close
from bench.published import crfrnn, derivatives
from bench.published.systems import around_the_means
from tritoncrf import demo, published

DATA = Path(os.environ.get("TRITONCRF_DATA", Path(__file__).parent.parent.parent / "shared" / "data"))
C = 3
tensor = torch.from_numpy


def problem(size, code, image=None):
    """Logits, image and parameters that are not diagonal."""
    draws = np.random.default_rng(sum(size))
    starts = (3, 5, crfrnn.CODES[code].sign)
    matrices = [start * np.eye(C) + 0.3 * draws.standard_normal((C, C)) for start in starts]
    image = around_the_means(size) if image is None else image
    return 2 * draws.standard_normal((len(image), C, *size)), image, dict(zip(crfrnn.NAMES, matrices, strict=True))


def crops(size):
    """Parts of photos, bytes [1, 3, *size]."""
    height, width = size
    photos = {"demo": demo.photo()[150:, 180:]}
    for name in "voc", "camvid/test":
        found = sorted((DATA / name / "images").glob("*.*"))[:1]
        photos[name] = np.asarray(Image.open(found[0]).convert("RGB"))[60:, 80:] if found else None
    return {k: None if p is None else p[:height, :width].transpose(2, 0, 1)[None].copy() for k, p in photos.items()}


# The form by itself -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [1, 2, 5])
def test_a_point_is_the_barycentre_of_vertices_of_the_lattice(d):
    points = 3 * np.random.default_rng(d).standard_normal((200, d))
    corners, weights = crfrnn.simplices(points)
    assert weights.min() >= 0 and np.abs(weights.sum(1) - 1).max() < 1e-14
    assert not corners.sum(2).any() and np.array_equal(corners % (d + 1), np.broadcast_to(np.arange(d + 1)[:, None], corners.shape))  # fmt: skip
    # Elevated, points keep their distances, times (D + 1) sqrt(2/3).
    elevated = np.einsum("nr,nrj->nj", weights, corners)
    distances, scaled = (np.linalg.norm(np.diff(p, axis=0), axis=1) for p in (elevated, points))
    assert_close("distances", tensor(distances), tensor((d + 1) * math.sqrt(2 / 3) * scaled))


def test_known_answers_of_the_lattice():
    """A pixel amid the vertices (-1, 1) and (-2, 2) of one feature, alone and with the vertex (0, 0) that padding adds."""
    step = 2 * math.sqrt(2 / 3) / math.sqrt(2)  # of a coordinate for a feature of 1
    middle = np.full((1, 1), -1.5 / step)
    assert_close(
        "padded",
        tensor(crfrnn.Permutohedral(middle)(np.ones((1, 1)))),
        torch.full((1, 1), 2 / 3 * 19 / 16, dtype=torch.float64),
    )
    four = crfrnn.Permutohedral(np.repeat(middle, 4, 0))
    assert_close("four", tensor(four(np.ones((1, 4)))), torch.full((1, 4), 4 * 2 / 3 * 9 / 8, dtype=torch.float64))


@pytest.mark.parametrize("points", [7, 8])
def test_the_reverse_is_the_adjoint(points):
    draws = np.random.default_rng(points)
    lattice = crfrnn.Permutohedral(draws.standard_normal((points, 2)))
    x, y = draws.standard_normal((2, 4, points))
    assert math.isclose((lattice(x) * y).sum(), (x * lattice(y, reverse=True)).sum(), rel_tol=1e-13)
    assert np.abs(lattice(y) - lattice(y, reverse=True)).max() > 1e-3


@pytest.mark.parametrize("code", crfrnn.CODES)
def test_its_gradients_are_those_of_complex_steps(code):
    logits, image, parameters = problem((3, 5), code)
    cotangent = np.random.default_rng(1).standard_normal(logits.shape)

    def form(logits, **parameters):
        return crfrnn.scores(logits, image, parameters, code, 3)

    expected = derivatives.gradients(form, {"logits": logits, **parameters}, cotangent, ["logits"])
    found = crfrnn.gradients(logits, image, parameters, code, 3, cotangent)
    for name, value in expected.items():
        assert_close(name, tensor(found[name]), tensor(value))


# The presets --------------------------------------------------------------------------------------------------------


def assert_preset_is_form(code, size, iterations, image=None, dtype=torch.float64, **tolerances):
    logits, image, parameters = problem(size, code, image)
    crf = tc.CRFRNN(C, iterations, preset=code, dtype=dtype)
    crf.load_published(list(parameters.values()))
    # What goes in is the same in either precision.
    leaves = [tensor(logits).to(dtype).requires_grad_(), *crf.parameters()]
    logits = leaves[0].detach().double().numpy()
    parameters = {name: p.detach().double().numpy() for name, p in zip(crfrnn.NAMES, leaves[1:], strict=True)}
    cotangent = np.random.default_rng(1).standard_normal(logits.shape).astype(np.float32)
    scores = crf(leaves[0], tensor(image))
    found = torch.autograd.grad(scores, leaves, tensor(cotangent).to(dtype))
    assert_close("S", scores.detach(), tensor(crfrnn.scores(logits, image, parameters, code, iterations)), dtype=dtype, **tolerances)  # fmt: skip
    expected = crfrnn.gradients(logits, image, parameters, code, iterations, cotangent.astype(float))
    for (name, value), gradient in zip(expected.items(), found, strict=True):
        assert_close(name, gradient, tensor(value), dtype=dtype, **tolerances)


@pytest.mark.parametrize("iterations", [1, 5, 10])
@pytest.mark.parametrize("size", [(8, 8), (5, 6), (7, 9), (1, 3)], ids=str)
@pytest.mark.parametrize("code", crfrnn.CODES)
def test_scores_and_gradients(code, size, iterations):
    assert_preset_is_form(code, size, iterations)


@pytest.mark.parametrize("code", crfrnn.CODES)
def test_scores_and_gradients_of_a_batch_in_float32(code):
    image = np.concatenate([around_the_means((7, 9)), 255 - around_the_means((7, 9))])
    assert_preset_is_form(code, (7, 9), 5, image, torch.float32)


@pytest.mark.parametrize("photo", ["demo", "voc", "camvid/test"])
@pytest.mark.parametrize("size, iterations", [((20, 26), 5), ((19, 23), 10)])
@pytest.mark.parametrize("code", crfrnn.CODES)
def test_scores_and_gradients_on_photos(code, size, iterations, photo):
    image = crops(size)[photo]
    if image is None:
        pytest.skip(f"no photos of {photo} beside the checkout")
    assert_preset_is_form(code, size, iterations, image)


@pytest.mark.parametrize("code", crfrnn.CODES)
def test_each_matters(code):
    """Pixels that fill up to four, the sign, and the mean: with another one the scores are not those of the form."""
    logits, image, parameters = problem((7, 9), code)
    expected = tensor(crfrnn.scores(logits, image, parameters, code, 1))
    for changes in {}, {"mean": "demo"}, {"padding": None}, {"sign": -crfrnn.CODES[code].sign}:
        crf = tc.CRFRNN(C, 1, preset=code, mean=changes.get("mean"), dtype=torch.float64)
        crf.load_published(list(parameters.values()))
        vars(crf).update({name: value for name, value in changes.items() if name != "mean"})
        error = (crf(tensor(logits), tensor(image)) - expected).norm() / expected.norm()
        assert error > 1e-6 if changes else error < 1e-13, changes


def test_the_form_has_the_means_of_the_codes():
    for name, code in crfrnn.CODES.items():
        assert code.mean == published.MEANS[published.CRFRNN_CODES[name].mean][::-1]
    assert len(set(itertools.chain(*published.MEANS.values()))) == 6
