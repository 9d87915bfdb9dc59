"""`tritoncrf refine` of a scene, a volume and a stack: what `refine` gives, in a file of the image's kind and place."""

import numpy as np
import pytest
from PIL import Image

from tritoncrf import cli
from tritoncrf.rasters import drawing
from tritoncrf.refine import refine

rasterio = pytest.importorskip("rasterio")
nibabel = pytest.importorskip("nibabel")
tifffile = pytest.importorskip("tifffile")

pytestmark = pytest.mark.extras

H, W, C = 30, 40, 3
GENERATOR = np.random.default_rng(0)
BANDS = GENERATOR.integers(1, 4096, (4, H, W)).astype(np.uint16)
P = GENERATOR.dirichlet(np.ones(C), (H, W)).transpose(2, 0, 1).astype(np.float32)
PLACE = rasterio.Affine(10, 0, 500000, 0, -10, 5e6)
SIZE = 8, 9, 6
AFFINE = np.diag([2, 1.5, 3, 1.0])
T1, T2 = (GENERATOR.integers(0, 500, SIZE).astype(np.int16) for _ in range(2))
V = GENERATOR.dirichlet(np.ones(C), SIZE).astype(np.float32)  # [x, y, z, C]
RANGE = "--value-range", "0,4095"


def write_tiff(path, bands, **profile):
    shape = {"count": len(bands), "height": bands.shape[1], "width": bands.shape[2], "dtype": bands.dtype.name}
    with rasterio.open(path, "w", "GTiff", **{**shape, "crs": "EPSG:32633", "transform": PLACE, **profile}) as file:
        file.write(bands)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with a scene and a volume, and their scores."""
    monkeypatch.chdir(tmp_path)
    write_tiff("scene.tif", BANDS)
    write_tiff("p.tif", P)
    np.save("p.npy", P)
    for name, voxels in {"t1.nii.gz": T1, "t2.nii": T2, "v.nii.gz": V}.items():
        nibabel.save(nibabel.Nifti1Image(voxels, AFFINE), name)
    return tmp_path


def run(*arguments):
    return cli.main(["refine", *(str(a) for a in arguments)])


def read(path):
    with rasterio.open(path) as file:
        assert file.transform == PLACE and file.crs.to_epsg() == 32633
        return file.read().squeeze()


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def error_of(capsys, folder, *arguments) -> str:
    """The one line that a failing command prints, which has written nothing."""
    before = files(folder)
    assert run(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("tritoncrf: error: ")
    assert files(folder) == before
    return err.removeprefix("tritoncrf: error: ").rstrip()


# Scenes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scores", ["p.tif", "p.npy"])
def test_labels_of_a_scene(folder, capsys, scores):
    assert run("scene.tif", "--probabilities", scores, "-o", "labels.tif", "--bands", "1,2,4", *RANGE) == 0
    q = refine(BANDS[[0, 1, 3]].transpose(1, 2, 0), probabilities=P, value_range=(0, 4095))
    assert np.array_equal(read("labels.tif"), q.argmax(0))
    changed = np.mean(q.argmax(0) != P.argmax(0))
    assert capsys.readouterr().out.startswith(f"wrote labels.tif: {changed:.2%} of the pixels changed, class ")


def test_probabilities_of_a_scene(folder):
    for out in "q.tif", "q.npy":
        options = "--save", "probabilities", "--value-range", "1%,99%", "--method", "lattice"
        assert run("scene.tif", "--probabilities", "p.tif", "-o", out, *options) == 0
    q = refine(BANDS.transpose(1, 2, 0), probabilities=P, value_range=("1%", "99%"), method="lattice")
    assert np.array_equal(read("q.tif"), q) and np.array_equal(np.load("q.npy"), q)


def test_a_range_for_each_band(folder):
    ranges = ((0, 4095), (0, 2000), (100, 3000), (0, 4095))
    text = ",".join(str(end) for pair in ranges for end in pair)
    assert run("scene.tif", "--probabilities", "p.tif", "-o", "q.npy", "--value-range", text) == 0
    assert np.array_equal(np.load("q.npy"), refine(BANDS.transpose(1, 2, 0), probabilities=P, value_range=ranges))


def test_bands_of_8_bits_need_no_range(folder):
    small = (BANDS // 16).astype(np.uint8)
    write_tiff("small.tif", small, photometric="MINISBLACK")
    assert run("small.tif", "--probabilities", "p.tif", "-o", "q.npy") == 0
    assert np.array_equal(np.load("q.npy"), refine(small.transpose(1, 2, 0), probabilities=P, value_range=(0, 255)))


def test_what_may_be_opacity_is_neither_dropped_nor_taken(folder, capsys):
    """GDAL calls the fourth band of bytes opacity unless it is told what it is."""
    small = (BANDS // 16).astype(np.uint8)
    write_tiff("small.tif", small)
    message = error_of(capsys, folder, "small.tif", "--probabilities", "p.tif", "-o", "q.npy")
    assert message.startswith("small.tif: expected --bands 1,2,3,4 or 1,2,3, since the file declares band 4 as opacity")
    for bands in "1,2,3,4", "1,2,3":
        options = "--method", "lattice", "--bands", bands
        assert run("small.tif", "--probabilities", "p.tif", "-o", "q.npy", *options) == 0


def test_an_output_that_nobody_named(folder):
    assert run("scene.tif", "--probabilities", "p.tif", *RANGE) == 0
    assert read("scene_refined.tif").max() < C
    assert run("t1.nii.gz", "--probabilities", "v.nii.gz", "--value-range", "0,500") == 0
    assert nibabel.load("t1_refined.nii.gz").shape == SIZE


def absent(path="scene.tif"):
    """A scene of which a corner is nodata, in all its bands; and where it has pixels."""
    bands = BANDS.copy()
    bands[:, :7, :9] = 0
    write_tiff(path, bands, nodata=0)
    return bands.transpose(1, 2, 0), bands[0] > 0


def test_nodata_stays_nodata(folder, capsys):
    image, there = absent()
    options = *RANGE, "--method", "lattice"
    assert run("scene.tif", "--probabilities", "p.tif", "-o", "labels.tif", *options) == 0
    q = refine(image, probabilities=P, value_range=(0, 4095), method="lattice", valid=there)
    assert np.array_equal(read("labels.tif"), np.where(there, q.argmax(0), 255))
    assert f", {1 - there.mean():.2%} have no data, " in capsys.readouterr().out
    assert run("scene.tif", "--probabilities", "p.tif", "-o", "q.tif", "--save", "probabilities", *options) == 0
    assert np.array_equal(read("q.tif"), np.where(there, q, np.nan), equal_nan=True)
    for name in "labels.tif", "q.tif":
        with rasterio.open(name) as file:
            assert np.array_equal(file.dataset_mask() > 0, there)


def test_scores_may_be_missing_where_the_image_is(folder, capsys):
    image, there = absent()
    write_tiff("holes.tif", np.where(there, P, np.nan).astype(np.float32))
    command = "--probabilities", "holes.tif", "-o", "q.npy", *RANGE, "--method", "lattice"
    assert run("scene.tif", *command) == 0
    q = refine(image, probabilities=P, value_range=(0, 4095), method="lattice", valid=there)
    found = np.load("q.npy")
    assert np.array_equal(found[:, there], q[:, there]) and np.abs(found[:, ~there] - 1 / C).max() < 1e-6
    write_tiff("holes.tif", np.where(np.arange(W) < 20, P, np.nan).astype(np.float32))
    capsys.readouterr()
    assert "probabilities: expected finite values" in error_of(capsys, folder, "scene.tif", *command)


def test_a_mask_of_a_scene_with_nodata(folder):
    image, there = absent()
    mask = (np.arange(W) < W // 2) * np.full((H, 1), 255, np.uint8)
    write_tiff("mask.tif", mask[None])
    assert run("scene.tif", "--mask", "mask.tif", "-o", "out.tif", *RANGE, "--method", "lattice") == 0
    p = refine(image, mask=mask, value_range=(0, 4095), method="lattice", valid=there)
    assert np.array_equal(read("out.tif"), (p > 0.5) * 255)
    with rasterio.open("out.tif") as file:
        assert np.array_equal(file.dataset_mask() > 0, there)


def test_labels_of_a_file_and_a_mask_of_pixels(folder):
    image, there = absent()
    labels, more = P.argmax(0).astype(np.uint8), np.arange(W) > 3
    labels[10:12] = 255
    write_tiff("labels.tif", labels[None])
    np.save("valid.npy", more * np.ones((H, 1), np.uint8))
    options = "--valid", "valid.npy", *RANGE, "--method", "lattice"
    assert run("scene.tif", "--labels", "labels.tif", "-o", "out.tif", *options) == 0
    q = refine(image, labels=labels, value_range=(0, 4095), method="lattice", valid=there & more)
    assert np.array_equal(read("out.tif"), np.where(there & more, q.argmax(0), 255))


def test_labels_that_are_stored_as_floats(folder, capsys):
    labels = V.argmax(-1)
    for name, voxels in {"seg.nii.gz": labels.astype(np.uint8), "floats.nii.gz": labels.astype(float)}.items():
        nibabel.save(nibabel.Nifti1Image(voxels, AFFINE), name)
        assert run("t1.nii.gz", "--labels", name, "-o", f"out-{name}", "--value-range", "0,500") == 0
    assert (folder / "out-seg.nii.gz").read_bytes() == (folder / "out-floats.nii.gz").read_bytes()
    nibabel.save(nibabel.Nifti1Image(labels + 0.5, AFFINE), "halves.nii")
    capsys.readouterr()
    message = error_of(capsys, folder, "t1.nii.gz", "--labels", "halves.nii", "-o", "o.nii", "--value-range", "0,500")
    assert message == "--labels: expected whole numbers, got others in halves.nii; use --probabilities for scores"


def test_more_classes_than_8_bits_hold(folder):
    labels = GENERATOR.integers(0, 300, (H, W))
    np.save("labels.npy", labels)
    assert (
        run("scene.tif", "--labels", "labels.npy", "--unknown", "none", "--num-classes", "300", "-o", "out.tif", *RANGE)
        == 0
    )
    found = read("out.tif")
    assert found.dtype == np.uint16
    q = refine(BANDS.transpose(1, 2, 0), labels=labels, unknown=None, num_classes=300, value_range=(0, 4095))
    assert np.array_equal(found, q.argmax(0))


# Volumes and stacks ---------------------------------------------------------------------------------------------


def test_labels_of_a_volume(folder):
    options = "--modality", "t2.nii", "--value-range", "0,500", "--method", "lattice"
    assert run("t1.nii.gz", "--probabilities", "v.nii.gz", "-o", "labels.nii.gz", *options) == 0
    q = refine(
        np.stack([T1, T2], -1), probabilities=np.moveaxis(V, -1, 0), spacing=(2, 1.5, 3), value_range=(0, 500),
        method="lattice",
    )  # fmt: skip
    out = nibabel.load("labels.nii.gz")
    assert np.array_equal(np.asarray(out.dataobj), q.argmax(0)) and np.array_equal(out.affine, AFFINE)


def test_a_spacing_that_is_given_wins(folder):
    options = "--spacing", "1,1,4", "--value-range", "0,500", "--method", "lattice"
    assert run("t1.nii.gz", "--probabilities", "v.nii.gz", "-o", "q.npy", *options) == 0
    p = np.moveaxis(V, -1, 0)
    q = refine(T1, probabilities=p, spacing=(1, 1, 4), value_range=(0, 500), method="lattice")
    assert np.array_equal(np.load("q.npy"), q)


def test_labels_of_a_stack(folder):
    stack = np.moveaxis(T1, 2, 0).astype(np.uint16)
    tifffile.imwrite("stack.tif", stack, photometric="minisblack")
    np.save("s.npy", V.transpose(3, 2, 0, 1))
    options = "--spacing", "3,1,1", "--value-range", "0,500", "--method", "lattice"
    assert run("stack.tif", "--probabilities", "s.npy", "-o", "out.tif", *options) == 0
    q = refine(stack, probabilities=np.load("s.npy"), spacing=(3, 1, 1), value_range=(0, 500), method="lattice")
    assert np.array_equal(tifffile.imread("out.tif"), q.argmax(0))


@pytest.mark.parametrize("out", ["out.tif", "out.png"])
def test_a_picture_of_16_bits(folder, out):
    Image.fromarray(BANDS[0]).save("deep.png")
    assert run("deep.png", "--probabilities", "p.npy", "-o", out, *RANGE) == 0
    q = refine(BANDS[0], probabilities=P, value_range=(0, 4095))
    with Image.open(out) as picture:
        assert np.array_equal(np.asarray(picture), q.argmax(0))


def test_features_of_ones_own(folder):
    features = GENERATOR.normal(size=(5, H, W)).astype(np.float32)
    np.save("f.npy", features)
    q = refine(features=features, probabilities=P)
    for image in [], ["scene.tif"]:
        assert run(*image, "--features", "f.npy", "--probabilities", "p.npy", "-o", "q.npy") == 0
        assert np.array_equal(np.load("q.npy"), q)


@pytest.mark.parametrize(
    "image, scores, values", [("scene.tif", "p.tif", "0,4095"), ("t1.nii.gz", "v.nii.gz", "0,500")]
)
def test_figures(folder, image, scores, values):
    assert (
        run(image, "--probabilities", scores, "-o", "out.npy", "--value-range", values, "--figure", "figure.png") == 0
    )
    with Image.open("figure.png") as picture:
        assert picture.width > 1000


def test_figures_know_the_spacing_of_the_file(folder, monkeypatch):
    """Which the guided filter does not take."""
    seen = []
    own = drawing.sections
    monkeypatch.setattr(drawing, "sections", lambda *given: seen.append(given[2]) or own(*given))
    command = "t1.nii.gz", "--probabilities", "v.nii.gz", "-o", "o.nii", "--value-range", "0,500", "--figure", "f.png"
    assert run(*command, "--method", "guided") == 0 and seen == [(2, 1.5, 3)]


def test_a_trace(folder, capsys):
    assert (
        run("scene.tif", "--probabilities", "p.tif", "-o", "out.tif", *RANGE, "--trace", "--trace-figure", "t.png") == 0
    )
    assert capsys.readouterr().out.startswith("iteration") and (folder / "t.png").read_bytes()[1:4] == b"PNG"


# Bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("scene.tif --probabilities small.tif -o o.tif", "--probabilities: expected the size of scene.tif, 30 x 40, got 29 x 40 in small.tif"),
        ("scene.tif --probabilities small.npy -o o.tif", "--probabilities: expected the size of scene.tif, 30 x 40, got 29 x 40"),
        (
            "scene.tif --probabilities moved.tif -o o.tif",
            "--probabilities: expected the georeference of scene.tif, EPSG:32633, from (500000, 5000000) by (0, -10) (10, 0), "
            "got EPSG:32633, from (500010, 5000000) by (0, -10) (10, 0) in moved.tif",
        ),
        ("scene.tif --probabilities p.tif -o o.tif --bands 1,5", "scene.tif: expected --bands from 1 to 4, each once, got 1,5"),
        ("scene.tif --probabilities p.tif -o scene.tif", "--out: expected a file that is not an input, got scene.tif"),
        ("scene.tif --probabilities p.tif -o p.tif", "--out: expected a file that is not an input, got p.tif"),
        ("scene.tif --probabilities p.tif --valid v.npy -o v.npy", "--out: expected a file that is not an input, got v.npy"),
        ("scene.tif --probabilities p.tif -o o.tif --figure p.tif --value-range 0,4095", "--figure: expected a file name ending in .png"),
        ("scene.tif --probabilities p.tif -o o.png --figure o.png --value-range 0,4095", "--out, --figure, --trace-figure: expected different files, got o.png twice"),
        ("scene.tif --probabilities p.tif -o o.nii", "--out: expected a file name ending in .tif or .tiff or .npy or .png, got o.nii"),
        ("t1.nii.gz --probabilities v.nii.gz -o o.tif", "--out: expected a file name ending in .nii or .nii.gz or .npy, got o.tif"),
        ("scene.tif --labels p.tif -o o.tif", "--labels: expected one channel, got 3 in p.tif"),
        ("scene.tif --probabilities p.tif --valid p.tif -o o.tif", "--valid: expected one channel, got 3 in p.tif"),
        ("scene.tif --probabilities p.tif -o o.tif", "--value-range: expected LOW,HIGH for an image of uint16, such as 1%,99%, got none"),
        ("scene.tif --probabilities p.tif -o o.png --save probabilities", "--save: expected labels in a .png, got probabilities"),
        ("t1.nii.gz --modality small.nii --probabilities v.nii.gz -o o.nii", "--modality: expected the size of t1.nii.gz, 8 x 9 x 6, got 7 x 9 x 6"),
        ("t1.nii.gz --modality moved.nii --probabilities v.nii.gz -o o.nii", "--modality: expected the affine of t1.nii.gz, from (0, 0, 0) by (2, 0, 0)"),
        ("skewed.nii --probabilities v.nii.gz -o o.nii", "skewed.nii: expected an affine with axes at right angles"),
        ("cut.tif --probabilities p.tif -o o.tif --value-range 0,4095", "cut.tif: expected a GeoTIFF, unreadable: "),
        ("gone.nii --probabilities v.nii.gz -o o.nii", "gone.nii: expected a NIfTI, got no such file"),
        ("scene.tif --probabilities small.tif -o o.tif --resize", "--resize: expected scores as a picture or an array, got small.tif"),
        ("t1.nii.gz --probabilities volume.npy -o o.nii --resize", "--resize: expected two pictures or arrays in memory"),
        ("scene.tif --probabilities bytes.tif -o o.tif", "--probabilities: expected floats, got uint8 in bytes.tif; use --labels for a label map"),
        ("colors.tif --probabilities p.npy -o o.png", "--value-range: expected LOW,HIGH for an image of uint16"),
        ("scene.tif --probabilities p.tif -o o.tif --max-memory 1GB --scratch gone", "--scratch: expected a folder that exists, got gone"),
        ("scene.tif --probabilities p.tif -o o.tif --scratch .", "--scratch: expected --max-memory beside it, got . alone"),
        ("scene.tif --probabilities p.tif -o o.tif --value-range 0", "--value-range: expected two numbers or percentiles"),
        ("scene.tif --probabilities p.tif -o o.tif --bands one", "--bands: expected band numbers separated by commas"),
        ("--features p.npy --probabilities p.npy", "--out: expected the name of the output, got none"),
        ("scene.tif p.tif --probabilities p.tif -o o --bands 1", "--bands: expected one image and its scores, got a data set"),
        ("scene.tif --features small.npy --probabilities p.tif -o o.tif", "--features: expected the size of scene.tif, 30 x 40, got 29 x 40"),
        ("scene.tif --probabilities p.tif -o o.tif --trace --max-memory 1GB", "--max-memory: expected none with --trace"),
    ],
)  # fmt: skip
def test_bad_input(folder, capsys, arguments, message):
    write_tiff("small.tif", P[:, 1:])
    write_tiff("bytes.tif", BANDS[:1].astype(np.uint8))
    tifffile.imwrite("colors.tif", BANDS[:3].transpose(1, 2, 0), photometric="rgb")
    np.save("volume.npy", np.moveaxis(V, -1, 0))
    np.save("small.npy", P[:, 1:])
    np.save("v.npy", np.ones((H, W), np.uint8))
    write_tiff("moved.tif", P, transform=PLACE @ rasterio.Affine.translation(1, 0))
    skewed = AFFINE.copy()
    skewed[0, 1] = 1
    for name, voxels, affine in (
        ("small", T1[1:], AFFINE),
        ("moved", T1, AFFINE + np.eye(4, 4, 3)),
        ("skewed", T1, skewed),
    ):
        nibabel.save(nibabel.Nifti1Image(voxels, affine), f"{name}.nii")
    (folder / "cut.tif").write_bytes((folder / "scene.tif").read_bytes()[:-500])
    assert message in error_of(capsys, folder, *arguments.split())


@pytest.mark.parametrize(
    "package, image, extra", [("rasterio", "scene.tif", "geo"), ("nibabel", "t1.nii.gz", "medical")]
)
def test_a_package_that_is_missing(folder, capsys, monkeypatch, package, image, extra):
    import sys

    from tritoncrf.rasters import geotiff

    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(geotiff, "found", lambda: package != "rasterio")
    message = error_of(
        capsys, folder, image, "--probabilities", "p.npy", "-o", f"out{image[image.index('.') :]}", *RANGE
    )
    assert f"pip install 'tritoncrf[{extra}]'" in message and message.startswith(image)


def test_a_disk_that_fills_up(folder, capsys, monkeypatch):
    from tritoncrf.rasters import geotiff

    def full(*_, **__):
        raise geotiff._rasterio("").errors.RasterioIOError("Write failed. See previous exception for details.")

    monkeypatch.setattr(rasterio.io.DatasetWriter, "write", full)
    message = error_of(capsys, folder, "scene.tif", "--probabilities", "p.tif", "-o", "out.tif", *RANGE)
    assert message.startswith("out.tif: GDAL could not write a GeoTIFF: Write failed")
