"""GeoTIFF: bands by windows, and outputs at the image's place in the world, whole or not at all."""

import resource
from pathlib import Path

import numpy as np
import pytest

from tritoncrf.files import FileError
from tritoncrf.rasters.geotiff import GeoTiff, pages_of, write
from tritoncrf.rasters.opening import chosen, is_raster
from tritoncrf.rasters.windows import View

rasterio = pytest.importorskip("rasterio")

pytestmark = pytest.mark.extras

H, W = 70, 90
BANDS = np.random.default_rng(0).integers(1, 4096, (4, H, W)).astype(np.uint16)
PLACE = rasterio.Affine(10, 0, 500000, 0, -10, 5e6)


def scene(path: Path, bands: np.ndarray = BANDS, **profile) -> Path:
    shape = {"count": len(bands), "height": bands.shape[1], "width": bands.shape[2], "dtype": bands.dtype}
    layout = {"tiled": True, "blockxsize": 32, "blockysize": 16, "compress": "lzw"}
    with rasterio.open(
        path, "w", "GTiff", **shape, **{"crs": "EPSG:32633", "transform": PLACE, **layout, **profile}
    ) as f:
        f.write(bands)
    return path


@pytest.fixture
def opened(tmp_path):
    """Opens scenes, which are closed at the end."""
    rasters = []

    def open_(*arguments, **profile):
        rasters.append(GeoTiff(scene(tmp_path / f"scene{len(rasters)}.tif", *arguments, **profile)))
        return rasters[-1]

    yield open_
    for raster in rasters:
        raster.close()


def everything(size):
    return tuple(slice(0, n) for n in size)


@pytest.mark.parametrize(
    "rows, columns", [(slice(0, H), slice(0, W)), (slice(13, 14), slice(31, 67)), (slice(69, 70), slice(0, 1))]
)
def test_windows(opened, rows, columns):
    raster = opened()
    image = chosen(raster, (4, 1))
    assert image.shape == (H, W, 2) and image.dtype == np.uint16
    assert np.array_equal(image[rows, columns, :], BANDS[[3, 0], rows, columns].transpose(1, 2, 0))
    assert np.array_equal(image[rows, columns, slice(1, 2)], BANDS[:1, rows, columns].transpose(1, 2, 0))
    scores = View(raster, "first", raster.colors)
    assert np.array_equal(scores[slice(1, 3), rows, columns], BANDS[1:3, rows, columns])


@pytest.mark.parametrize("bands", [(5,), (0,), (1, 1), ()])
def test_bands_that_are_not_there(opened, bands):
    with pytest.raises(FileError, match="expected --bands from 1 to 4, each once, got"):
        chosen(opened(), bands)


def test_opacity_is_no_band_unless_it_is_asked_for(opened):
    photo = np.full((4, H, W), 200, np.uint8)
    photo[3] = np.where(np.arange(H) < 20, 0, 255)[:, None]
    assert chosen(opened(photo, photometric="RGB", alpha="unspecified"), None).shape == (H, W, 4)
    raster = opened(photo, photometric="RGB", alpha="yes")
    assert chosen(raster, None).shape == (H, W, 3)
    there = raster.valid((0, 1, 2))[everything((H, W))]
    assert not there[:20].any() and there[20:].all()
    assert raster.valid((0, 3)) is None


def test_what_has_no_nodata_is_there(opened):
    assert opened().valid((0, 1)) is None


def test_nodata_of_all_bands_is_not_there(opened):
    bands = BANDS.copy()
    bands[:, :10] = 0
    bands[1, 20:30] = 0  # of one band alone
    there = opened(bands, nodata=0).valid((0, 1))[everything((H, W))]
    assert not there[:10].any() and there[10:].all()


@pytest.mark.parametrize("dtype, shape", [(np.uint8, (H, W)), (np.uint16, (H, W)), (np.float32, (3, H, W))])
def test_an_output_has_the_place_and_the_layout_of_the_image(opened, tmp_path, dtype, shape):
    pixels = np.random.default_rng(1).integers(0, 200, shape).astype(dtype)
    out = tmp_path / "out.tif"
    opened().write(out, pixels, 255, None)
    with rasterio.open(out) as file:
        assert file.transform == PLACE and file.crs.to_epsg() == 32633 and file.nodata == 255
        assert (
            file.block_shapes[0] == (16, 32)
            and file.compression.name == "lzw"
            and file.dtypes[0] == np.dtype(dtype).name
        )
        assert np.array_equal(file.read(), pixels.reshape(-1, H, W))
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".part"] == []


def test_a_layout_of_its_own_where_the_image_has_none(opened, tmp_path):
    opened(blockysize=1, tiled=False, compress="none").write(
        tmp_path / "out.tif", np.zeros((H, W), np.uint8), None, None
    )
    with rasterio.open(tmp_path / "out.tif") as file:
        assert file.compression.name == "deflate" and file.profile["tiled"] and file.nodata is None


def test_a_mask_keeps_what_is_not_there_in_a_mask(opened, tmp_path):
    there = np.ones((H, W), bool)
    there[5:9] = False
    opened().write(tmp_path / "out.tif", np.full((H, W), 255, np.uint8), None, there)
    with rasterio.open(tmp_path / "out.tif") as file:
        assert np.array_equal(file.dataset_mask() > 0, there) and (file.read() == 255).all()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.tif", "scene0.tif"]


def test_a_cloud_optimized_image_gives_a_cloud_optimized_output(tmp_path):
    scene(tmp_path / "plain.tif", BANDS.repeat(10, 1).repeat(10, 2))
    rasterio.shutil.copy(
        tmp_path / "plain.tif", tmp_path / "cloud.tif", driver="COG", blocksize=256, compress="deflate"
    )
    raster = GeoTiff(tmp_path / "cloud.tif")
    labels = np.random.default_rng(1).integers(0, 9, (10 * H, 10 * W)).astype(np.uint8)
    raster.write(tmp_path / "out.tif", labels, 255, None)
    raster.close()
    with rasterio.open(tmp_path / "out.tif") as file:
        assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG" and file.overviews(1)
        assert file.transform == PLACE and file.block_shapes[0] == (256, 256) and np.array_equal(file.read(1), labels)
        assert set(np.unique(file.read(1, out_shape=(35, 45)))) <= set(range(9))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cloud.tif", "out.tif", "plain.tif"]


def test_ground_control_points_are_kept(tmp_path):
    points = [rasterio.control.GroundControlPoint(r, c, 10 * c, -10 * r) for r, c in ((0, 0), (0, W), (H, 0), (H, W))]
    path = tmp_path / "points.tif"
    with rasterio.open(path, "w", "GTiff", W, H, 1, dtype="uint8", gcps=points, crs="EPSG:4326") as file:
        file.write(np.zeros((1, H, W), np.uint8))
    raster = GeoTiff(path)
    raster.write(tmp_path / "out.tif", np.zeros((H, W), np.uint8), None, None)
    raster.close()
    with rasterio.open(tmp_path / "out.tif") as file:
        assert [(p.row, p.col, p.x, p.y) for p in file.gcps[0]] == [(p.row, p.col, p.x, p.y) for p in points]


def test_a_disk_that_fills_up_leaves_what_was_there(tmp_path, capfd):
    """Files of this process may not grow beyond a limit, as on a disk that is full."""
    noise = np.random.default_rng(0).integers(0, 255, (1000, 1000)).astype(np.uint8)
    (tmp_path / "out.tif").write_text("old")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    for most in 100_000, 990_000:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, limit[1]))
        try:
            with pytest.raises((OSError, FileError), match="out.tif"):
                write(tmp_path / "out.tif", noise, None)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert (tmp_path / "out.tif").read_text() == "old" and len(list(tmp_path.iterdir())) == 1
    assert capfd.readouterr().err == ""


def test_a_file_that_is_cut_short(tmp_path):
    path = scene(tmp_path / "cut.tif", tiled=False, compress="none")
    content = path.read_bytes()
    for part in len(content) - 5000, 100, 0:
        path.write_bytes(content[:part])
        with pytest.raises(FileError, match="cut.tif: expected a GeoTIFF, unreadable: ") as error:
            raster = GeoTiff(path)
            try:
                raster.read(range(4), everything((H, W)))
            finally:
                raster.close()
        assert "\n" not in str(error.value)


def test_which_files_are_rasters(tmp_path):
    from PIL import Image

    assert is_raster(scene(tmp_path / "georeferenced.tif", BANDS[:3].astype(np.uint8), photometric="RGB"))
    for name, array in {"rgb": np.zeros((4, 5, 3), np.uint8), "grey": np.zeros((4, 5), np.uint8)}.items():
        Image.fromarray(array).save(tmp_path / f"{name}.tif")
        assert not is_raster(tmp_path / f"{name}.tif")
    Image.fromarray(np.zeros((4, 5), np.uint16)).save(tmp_path / "deep.tif")
    Image.fromarray(np.zeros((4, 5), np.uint8)).save(
        tmp_path / "stack.tif", save_all=True, append_images=[Image.fromarray(np.zeros((4, 5), np.uint8))]
    )
    assert is_raster(tmp_path / "deep.tif") and is_raster(tmp_path / "stack.tif")
    assert is_raster(Path("x.nii.gz")) and not is_raster(Path("x.png")) and not is_raster(tmp_path / "none.tif")
    assert pages_of(tmp_path / "stack.tif") == 2 and pages_of(tmp_path / "deep.tif") == 1
