"""The gallery: masks that fit their pictures, figures that show what they say. Here on details of the pictures."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image

import tritoncrf as tc
from docs.gallery import failures, filter_rows, labels, layers, methods, network, parameters, pictures, volume
from docs.gallery.__main__ import PIXELS, main
from drawings import picture, texts
from tritoncrf import files
from tritoncrf.options import ARGUMENTS

FEW = np.s_[0:40, 0:48]


def shipped(name):
    """A picture by name; scikit-image need not be installed."""
    if name in ("astronaut", "coffee"):
        pytest.importorskip("skimage", reason="the extra `gallery` installs scikit-image, whose photo this is")
    return getattr(pictures, name)()


@pytest.fixture
def detail(monkeypatch):
    """A part of Hopper's head, with hair."""
    whole = pictures.hopper().cropped(np.s_[200:280, 140:236])
    monkeypatch.setattr(pictures, "hopper", lambda: whole)
    return whole


@pytest.mark.parametrize("name", ["hopper", "astronaut", "coffee", "scan"])
def test_a_mask_covers_its_picture(name):
    found = shipped(name)
    assert found.image.dtype == np.uint8 and found.image.shape[:2] == found.truth.shape
    shares = np.bincount(found.truth.ravel(), minlength=len(found.classes)) / found.truth.size
    assert len(shares) == len(found.classes) and shares.min() > 0.005
    half = found.halved()
    assert half.image.shape[:2] == half.truth.shape == tuple(-(-n // 2) for n in found.truth.shape)


def test_the_phantom_holds_every_class():
    scan, truth = volume.phantom()
    assert scan.shape == truth.shape == volume.SIZE and scan.dtype == np.uint8
    assert set(np.unique(truth)) == set(range(len(volume.CLASSES)))
    for number, (*_, level) in enumerate(volume.ELLIPSOIDS, 1):
        assert scan[truth == number].mean() == pytest.approx(level, abs=3)


def test_scribbles_are_right():
    whole = shipped("astronaut")
    drawn = labels.scribbled(whole)
    known = drawn != labels.UNKNOWN
    assert (drawn == whole.truth)[known].mean() > 0.999
    assert set(np.unique(drawn[known])) == set(range(len(whole.classes)))


def test_coarse_labels_are_blocks():
    truth = np.arange(32 * 48).reshape(32, 48)
    coarse = labels.coarsened(pictures.Picture(truth, truth, ()))
    assert coarse.shape == truth.shape and len(np.unique(coarse)) == 6
    assert coarse[8, 8] == truth[8, 8] and coarse[31, 47] == truth[24, 40]


def test_methods_are_timed(detail):
    shown = texts(methods.methods())
    assert {"Input labels", "Guided", "Window", "Lattice", "Exact"} <= set(shown)
    assert sum(text.endswith(" s") for text in shown) == 4


def test_before_and_after(detail):
    figure = methods.before_and_after("Photo", detail.halved())
    shown = texts(figure)
    assert [text for text in shown if text in ("Photo", "Input labels", "Guided", "Window", "Lattice", "Exact")] == [
        "Photo", "Input labels", "Guided", "Window", "Lattice", "Exact",
    ]  # fmt: skip
    assert "48 x 40 pixels" in shown and any(text.endswith("right, radius 8") for text in shown)
    assert set(shown) >= {name for n, name in enumerate(detail.classes) if n in detail.truth}
    assert picture(figure).std() > 0


def test_layers_stand_beside_their_presets(detail):
    shown = texts(layers.layers())
    assert {"ConvCRF", "CRFRNN", "GuidanceCRF", "ConvCRF, preset", "CRFRNN, preset", "GuidanceCRF, preset"} <= set(
        shown
    )


def test_labels_become_masks(detail, monkeypatch):
    monkeypatch.setattr(pictures, "astronaut", lambda: pictures.Picture(detail.image, detail.truth, pictures.ASTRONAUT))
    monkeypatch.setattr(labels, "SCRIBBLES", (("suit", "5,5 60,5"), ("flag", "5,70 60,70")))
    shown = texts(labels.labels())
    assert {"Scribbles", "Coarse labels", "Lattice", "Window", "Guided"} <= set(shown)
    assert sum("of the pixels" in text for text in shown) == 1


def test_a_volume_is_refined_both_ways(monkeypatch):
    monkeypatch.setattr(volume, "SIZE", (4, 40, 40))
    monkeypatch.setattr(volume, "SHOWN", (1, 2))
    figure = volume.volume()
    assert {"Phantom", "Input labels", "Slice by slice", "As one volume", "4 slices of 40 x 40"} <= set(texts(figure))
    assert len(figure.axes) == 4


def test_failures_stand_beside_what_does_not_fail(detail, monkeypatch):
    for name in ("LOWER", "UPPER", "HEAD", "NECK"):
        monkeypatch.setattr(failures, name, FEW)
    figure = failures.failures()
    assert len(figure.axes) == 12
    assert {"Window: wide flaws stay", "Lattice: approximate", "Where they differ"} <= set(texts(figure))


def test_a_row_is_that_of_the_filter(monkeypatch):
    monkeypatch.setattr(filter_rows, "PIXEL", (2, 3))
    f = torch.randn(1, 3, 6, 7, generator=torch.Generator().manual_seed(0))
    expected = torch.exp(-0.5 * (f - f[..., 2:3, 3:4]).square().sum(1))[0]
    np.testing.assert_allclose(filter_rows.row_of(tc.filters.Exact(f), (6, 7)), expected.numpy(), rtol=1e-5, atol=1e-6)


def test_weights_are_drawn_for_every_filter(detail, monkeypatch):
    monkeypatch.setattr(filter_rows, "DETAIL", FEW)
    monkeypatch.setattr(filter_rows, "PIXEL", (20, 25))
    shown = texts(filter_rows.weights())
    assert shown[::2] == ["Exact", "Lattice", "Window", "Guided"] * 3
    assert all(0 <= int(text.split(": ")[1].split("%")[0]) <= 100 for text in shown[1::2])


def test_parameters_have_what_is_usual_in_the_middle(detail, monkeypatch):
    monkeypatch.setattr(parameters, "DETAIL", FEW)
    usual = {name: argument.default for name, argument in ARGUMENTS.items()}
    for method, rows in ("window", parameters.GAUSSIAN | parameters.WINDOW), ("guided", parameters.GUIDED):
        settings = usual | pictures.SETTINGS[method]
        assert all(small < settings[name] == middle < large for name, ((small, middle, large), *_) in rows.items())
    shown = texts(parameters.parameters()) + texts(parameters.parameters_local())
    assert sum(text.endswith("as usual") for text in shown) == 10
    assert {"theta_color 13", "iterations 0", "blur 12", "eps 10000"} <= set(shown)


def test_a_figure_is_written_as_a_small_picture(detail, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(parameters, "DETAIL", FEW)
    assert main(["parameters-local", "--out", str(tmp_path)]) == 0
    assert "parameters-local.png" in capsys.readouterr().out
    with Image.open(tmp_path / "parameters-local.png") as written:
        assert written.mode == "P" and written.width == pytest.approx(PIXELS, abs=1)


def test_unknown_figures_are_refused(tmp_path, capsys):
    assert main(["methods", "nothing", "--out", str(tmp_path)]) == 2
    assert "nothing" in capsys.readouterr().err
    assert main(["methods", "--out", str(tmp_path / "missing")]) == 2


@pytest.mark.parametrize("name", ["astronaut", "coffee", "labels"])
def test_without_scikit_image_its_photos_are_left_out(name, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage", None)  # as where it is not installed
    assert main([name, "--out", str(tmp_path)]) == 0
    assert f"skipped {name}" in capsys.readouterr().out and not list(tmp_path.iterdir())


def test_the_network_s_scores_are_cut_out_and_refined(tmp_path):
    photo = tc.demo.photo()
    rough = (
        pictures.hopper()
        .truth[8::16, 8::16]
        .astype(bool)
        .repeat(16, 0)
        .repeat(16, 1)[: photo.shape[0], : photo.shape[1]]
    )
    rough = np.pad(rough, [(0, n - m) for n, m in zip(photo.shape, rough.shape)])
    np.savez(tmp_path / "scores.npz", foreground=rough.astype(np.float16))
    figure = network.network(tmp_path / "scores.npz")
    shown = [axes.images[0].get_array() for axes in figure.axes]
    assert len(shown) == 6 and all(array.min() >= 0 and array.max() <= 1 for array in shown)
    outside = ~rough[network.PLACE]
    assert (shown[1][outside] == 1).all() and not np.array_equal(shown[1], shown[2])
    np.savez(tmp_path / "scores.npz", foreground=np.zeros((3, 4)))
    with pytest.raises(files.FileError, match=r"scores.npz: expected a foreground of \[600, 512\], got \[3, 4\]"):
        network.network(tmp_path / "scores.npz")
    assert main(["network", "--out", str(tmp_path)]) == 2  # without scores there is no such figure
