"""TIFF stacks: pages are slices, unless the file says that they are channels."""

import numpy as np
import pytest

from tritoncrf.files import FileError
from tritoncrf.rasters import geotiff
from tritoncrf.rasters.opening import open_raster
from tritoncrf.rasters.tiff import Stack, write
from tritoncrf.rasters.windows import View

tifffile = pytest.importorskip("tifffile")
pytest.importorskip("zarr")

pytestmark = pytest.mark.extras

STACK = np.random.default_rng(0).integers(0, 4096, (5, 3, 12, 14)).astype(np.uint16)  # [Z, C, Y, X]
WINDOW = slice(1, 4), slice(3, 9), slice(0, 14)


@pytest.fixture
def opened():
    rasters = []

    def open_(*arguments):
        rasters.append(Stack(*arguments))
        return rasters[-1]

    yield open_
    for raster in rasters:
        raster.close()


@pytest.mark.parametrize("compression", [None, "zlib", "lzw"])
def test_pages_are_slices(tmp_path, opened, compression):
    if compression == "lzw":
        pytest.importorskip("imagecodecs")
    tifffile.imwrite(
        tmp_path / "stack.tif", STACK[:, 0], photometric="minisblack", compression=compression, rowsperstrip=5
    )
    raster = opened(tmp_path / "stack.tif")
    image = View(raster, "last", raster.colors)
    assert image.shape == (5, 12, 14, 1) and np.array_equal(image[(*WINDOW, slice(0, 1))][..., 0], STACK[:, 0][WINDOW])


@pytest.mark.parametrize("how", [{"imagej": True}, {"ome": True}])
def test_channels_are_what_the_file_calls_so(tmp_path, opened, how):
    tifffile.imwrite(tmp_path / "stack.tif", STACK, metadata={"axes": "ZCYX"}, **how)
    raster = opened(tmp_path / "stack.tif")
    assert raster.size == (5, 12, 14) and raster.channels == 3
    assert np.array_equal(raster.read((2, 0), WINDOW), STACK[1:4, [2, 0], 3:9].swapaxes(0, 1))


@pytest.mark.parametrize("axes, shape", [(2, (5, 12, 14)), (3, (3, 5, 12, 14))])
def test_the_first_pages_of_scores_are_classes(tmp_path, opened, axes, shape):
    scores = np.random.default_rng(1).random(shape).astype(np.float32)
    tifffile.imwrite(tmp_path / "scores.tif", scores, photometric="minisblack")
    raster = opened(tmp_path / "scores.tif", axes)
    view = View(raster, "first", raster.colors)
    assert view.shape == shape
    assert np.array_equal(view[(slice(1, 3), *WINDOW[3 - axes :])], scores[(slice(1, 3), *WINDOW[3 - axes :])])


@pytest.mark.parametrize("shape, letters", [((12, 14), "YX"), ((5, 12, 14), "ZYX"), ((3, 5, 12, 14), "CZYX")])
def test_outputs(tmp_path, shape, letters):
    pixels = np.random.default_rng(1).integers(0, 9, shape).astype(np.uint8)
    write(tmp_path / "out.tif", pixels, min(len(shape), 3))
    with tifffile.TiffFile(tmp_path / "out.tif") as file:
        assert file.series[0].axes == letters and np.array_equal(file.asarray(), pixels)
    assert [path.name for path in tmp_path.iterdir()] == ["out.tif"]


def test_a_plain_tiff_where_rasterio_is_missing(tmp_path, monkeypatch):
    page = STACK[0, 0]
    tifffile.imwrite(tmp_path / "page.tif", page)
    monkeypatch.setattr(geotiff, "found", lambda: False)
    raster = open_raster(tmp_path / "page.tif")
    assert isinstance(raster, Stack) and np.array_equal(raster.read((0,), (slice(0, 12), slice(0, 14)))[0], page)
    raster.write(tmp_path / "out.tif", page, None, None)
    raster.close()
    assert np.array_equal(tifffile.imread(tmp_path / "out.tif"), page)


def test_too_many_axes(tmp_path):
    tifffile.imwrite(tmp_path / "stack.tif", STACK[:, :, None].repeat(2, 2), metadata={"axes": "TZCYX"}, ome=True)
    with pytest.raises(
        FileError, match=r"stack.tif: expected axes Y, X and at most one .*, got TZCYX \[5, 3, 2, 12, 14\]"
    ):
        Stack(tmp_path / "stack.tif")


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_a_file_that_is_cut_short(tmp_path, compression, capfd):
    path = tmp_path / "cut.tif"
    tifffile.imwrite(path, STACK[:, 0], photometric="minisblack", compression=compression)
    content = path.read_bytes()
    for part in len(content) - 100, len(content) // 2, 100, 0:
        path.write_bytes(content[:part])
        with pytest.raises(FileError, match="cut.tif: expected a TIFF, unreadable: ") as error:
            raster = Stack(path)
            try:
                raster.read((0,), (slice(0, 5), slice(0, 12), slice(0, 14)))
            finally:
                raster.close()
        assert "\n" not in str(error.value)
    assert capfd.readouterr().err == ""
