"""refine_many: each image as `refine` gives it, in order, whatever becomes of one of them."""

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

import tritoncrf as tc
from tritoncrf.datasets import pipeline

CPU = ["cpu"]
OPTIONS = {"method": "lattice", "iterations": 2}


def drawn(n, classes=3):
    """Image n and its probabilities, of a size of its own."""
    rng = np.random.default_rng(n)
    size = 9 + n % 3, 11
    p = rng.random((classes, *size), dtype=np.float32)
    return f"image {n}", rng.integers(0, 256, (*size, 3), dtype=np.uint8), p / p.sum(0)


class Drawn(Dataset):
    """Images that are drawn where they are read; one has NaN, if asked for."""

    def __init__(self, bad=None):
        self.bad = bad

    def __len__(self):
        return 5

    def __getitem__(self, n):
        name, image, p = drawn(n)
        return name, image, p * np.float32(np.nan) if n == self.bad else p


@pytest.fixture
def expected(one_thread):
    return [(name, tc.refine(image, probabilities=p, **OPTIONS)) for name, image, p in map(drawn, range(5))]


def assert_same(found, expected):
    assert [name for name, _ in found] == [name for name, _ in expected]
    for (_, q), (_, wanted) in zip(found, expected):
        np.testing.assert_array_equal(q, wanted)


@pytest.mark.parametrize("jobs", [0, 2])
@pytest.mark.parametrize("items", [lambda: map(drawn, range(5)), Drawn], ids=["iterable", "data set"])
def test_each_image_has_the_bits_of_refine(items, jobs, expected):
    assert_same(list(tc.refine_many(items(), jobs=jobs, devices=CPU, **OPTIONS)), expected)


@pytest.mark.parametrize("method", ["lattice", "window", "guided", "exact"])
def test_images_of_one_size_refined_together(method, monkeypatch):
    monkeypatch.setattr(pipeline, "pace", lambda device: pipeline.Pace(ahead=8, together=4, behind=4, threads=2))
    items = [drawn(3 * (n // 4) + n % 2) for n in range(9)]
    found = list(tc.refine_many(items, devices=CPU, method=method))
    for (name, q), (wanted, image, p) in zip(found, items, strict=True):
        assert name == wanted
        np.testing.assert_allclose(q, tc.refine(image, probabilities=p, method=method), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["logits", "probabilities", "energies", "labels", "mask", "foreground"])
def test_every_kind_of_scores(kind):
    _, image, p = drawn(0)
    of = {"labels": p.argmax(0), "mask": p[1] > 0.4, "foreground": p[1]}
    value = of.get(kind, np.log(p) if kind == "logits" else -np.log(p) if kind == "energies" else p)
    [(name, q)] = tc.refine_many([("a", image, value)], scores=kind, devices=CPU)
    expected = tc.refine(image, **{kind: value})
    assert name == "a" and q.dtype == expected.dtype
    np.testing.assert_array_equal(q, expected)


def test_tensors_give_tensors():
    _, image, p = drawn(0)
    [(_, q)] = tc.refine_many([("a", torch.from_numpy(image).permute(2, 0, 1), torch.from_numpy(p))], devices=CPU)
    np.testing.assert_array_equal(q, tc.refine(image, probabilities=p))
    assert isinstance(q, torch.Tensor)


@pytest.mark.parametrize("jobs", [0, 1])
def test_an_image_that_fails(jobs):
    with pytest.raises(ValueError, match="^image 2: probabilities: expected finite values"):
        list(tc.refine_many(Drawn(bad=2), jobs=jobs, devices=CPU))
    found = list(tc.refine_many(Drawn(bad=2), jobs=jobs, devices=CPU, errors="yield"))
    assert [name for name, _ in found] == ["image 0", "image 1", 2, "image 3", "image 4"]
    assert [isinstance(q, np.ndarray) for _, q in found] == [True, True, False, True, True]
    assert isinstance(found[2][1], ValueError)


def test_of_an_iterable_the_name_of_what_failed_is_known():
    name, image, p = drawn(0)
    [(found, error)] = tc.refine_many([(name, image[:5], p)], devices=CPU, errors="yield")
    assert found == name and str(error).startswith("image 0: image: expected the size of probabilities")


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"scores": "score"}, "scores: expected"),
        ({"errors": "ignore"}, "errors: expected"),
        ({"items": 5}, "items: expected (name, image, scores)"),
        ({"items": {"a": 1}}, "items: expected (name, image, scores)"),
        ({"method": "grid"}, "method: expected"),
        ({"iteration": 5}, "iteration: expected an argument of refine"),
        (
            {"device": "cpu"},
            "device: expected an argument of refine that is valid for many images, got another one; use devices=",
        ),
        ({"features": np.zeros((1, 2, 2))}, "features: expected an argument of refine that is valid for many images"),
        ({"method": "guided", "theta_color": 3}, "theta_color: expected none with method='guided'"),
        ({"jobs": -1}, "jobs: expected"),
    ],
)
def test_what_does_not_work_is_said_at_once(arguments, message):
    items = arguments.pop("items", [])
    with pytest.raises((TypeError, ValueError)) as raised:
        tc.refine_many(items, **arguments)
    assert str(raised.value).startswith(message)


def test_items_that_are_no_triples():
    with pytest.raises(TypeError, match="^items: expected \\(name, image, scores\\), got \\('a', 1\\)"):
        list(tc.refine_many([("a", 1)], devices=CPU))


def test_no_items():
    assert list(tc.refine_many([], jobs=0)) == list(tc.refine_many([], jobs=1, devices=CPU)) == []
