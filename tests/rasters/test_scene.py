"""The synthetic scene and the BRATS volume of `python -m bench`."""

from pathlib import Path

import numpy as np
import pytest

from bench.__main__ import main
from bench.scene import BANDS, CLASSES, STRIP, Scene, accuracy

rasterio = pytest.importorskip("rasterio")

pytestmark = pytest.mark.extras
DATA = Path(__file__).parent.parent.parent.parent / "shared" / "data"


def test_a_scene_is_the_same_every_time(tmp_path, capsys):
    for name in "one", "two":
        assert main(["scene", "--size", "90", "--out", str(tmp_path / name)]) == 0
    assert "vertices a pixel at theta 80 and 13" in capsys.readouterr().out
    for name in "scene.tif", "probabilities.tif", "truth.tif":
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    with rasterio.open(tmp_path / "one" / "scene.tif") as scene, rasterio.open(tmp_path / "one" / "truth.tif") as truth:
        assert (scene.count, scene.dtypes[0], scene.shape) == (
            BANDS,
            "uint16",
            (90, 90),
        ) and scene.crs.to_epsg() == 32633
        strip = Scene(90).strip(0, 90)
        assert np.array_equal(scene.read(), strip.image) and np.array_equal(truth.read(1), strip.labels)
    with rasterio.open(tmp_path / "one" / "probabilities.tif") as file:
        assert (file.count, file.dtypes[0]) == (CLASSES, "float32") and np.abs(file.read().sum(0) - 1).max() < 1e-5
    assert accuracy(tmp_path / "one" / "truth.tif", tmp_path / "two" / "truth.tif") == 1


def test_regions_go_on_from_strip_to_strip():
    scene = Scene(60)
    above, below = scene.strip(0, STRIP), scene.strip(STRIP, STRIP + 4)
    assert np.mean(above.labels[-1] == below.labels[0]) > 0.9
    assert not np.array_equal(above.image[:, 0], below.image[:, 0])


@pytest.mark.skipif(not (DATA / "volumes").is_dir(), reason="the BRATS volume is not here")
def test_the_brats_volume_as_nifti(tmp_path, capsys):
    nibabel = pytest.importorskip("nibabel")
    truth = np.load(DATA / "volumes" / "brats_2013_pat0006_1.npz")["label"]
    cut = tmp_path / "volumes" / "brats_2013_pat0006_1.npz"
    cut.parent.mkdir()
    source = np.load(DATA / "volumes" / cut.name)
    part = slice(60, 84), slice(50, 80), slice(70, 74)
    np.savez(cut, **{name: value[part] if value.ndim == 3 else value for name, value in source.items()})
    assert main(["brats", "--data", str(tmp_path), "--out", str(tmp_path)]) == 0
    assert main(["brats", "--data", str(tmp_path), "--out", str(tmp_path), str(tmp_path / "truth.nii.gz")]) == 0
    *_, last = capsys.readouterr().out.splitlines()
    assert last.startswith("truth.nii.gz") and last.endswith("tumour 1.0000")
    flair = nibabel.load(tmp_path / "flair.nii.gz")
    wanted = source["flair"][part] * source["flair_slope"] + source["flair_inter"]
    assert np.abs(np.asarray(flair.dataobj) - wanted).max() < 1e-5 and nibabel.aff2axcodes(flair.affine) == (
        "L",
        "P",
        "S",
    )
    assert np.array_equal(np.asarray(nibabel.load(tmp_path / "truth.nii.gz").dataobj), truth[part])
