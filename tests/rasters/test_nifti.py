"""NIfTI: volumes as they are stored, spacings from the affine, and outputs in the same place."""

import gzip

import numpy as np
import pytest

from tritoncrf.files import FileError
from tritoncrf.rasters.nifti import Nifti, unpacked
from tritoncrf.rasters.windows import View

nibabel = pytest.importorskip("nibabel")

pytestmark = pytest.mark.extras

SIZE = 7, 5, 4
VOXELS = np.random.default_rng(0).integers(0, 500, SIZE).astype(np.int16)
AFFINE = np.array([[0, -1.5, 0, 3], [2, 0, 0, 4], [0, 0, 3, 5], [0, 0, 0, 1.0]])  # axes point to A, L and S
EVERYTHING = tuple(slice(0, n) for n in SIZE)


def volume(path, voxels=VOXELS, affine=AFFINE, kind="Nifti1Image", **header):
    image = getattr(nibabel, kind)(voxels, affine)
    image.header.set_xyzt_units("mm", "sec")
    for name, value in header.items():
        image.header[name] = value
    nibabel.save(image, path)
    return path


@pytest.mark.parametrize("name", ["t1.nii", "t1.nii.gz"])
def test_windows(tmp_path, name):
    raster = Nifti(volume(tmp_path / name))
    image = View(raster, "last", raster.colors)
    assert image.shape == (*SIZE, 1) and image.dtype == np.int16 and raster.spacing == (2, 1.5, 3)
    window = slice(2, 5), slice(0, 5), slice(1, 2), slice(0, 1)
    assert np.array_equal(image[window][..., 0], VOXELS[window[:3]])


def test_channels_are_the_last_axis_of_a_file_and_the_first_of_scores(tmp_path):
    p = np.random.default_rng(1).random((*SIZE, 3)).astype(np.float32)
    for voxels in p, p[:, :, :, None]:  # as a fourth axis, or as a fifth
        raster = Nifti(volume(tmp_path / "p.nii", voxels), axes=3)
        scores = View(raster, "first", raster.colors)
        assert scores.shape == (3, *SIZE)
        assert np.array_equal(
            scores[slice(1, 3), slice(1, 2), slice(0, 5), slice(2, 4)], p[1:2, :, 2:4, 1:3].transpose(3, 0, 1, 2)
        )
    with pytest.raises(
        FileError, match=r"p.nii: expected 3 axes, or one more for channels, got shape \[7, 5, 4, 3, 2\]"
    ):
        Nifti(volume(tmp_path / "p.nii", np.stack([p, p], -1)), axes=3)


def test_stored_integers_are_scaled_as_the_header_says(tmp_path):
    raster = Nifti(volume(tmp_path / "t1.nii", scl_slope=0.25, scl_inter=-3))
    assert raster.dtype.kind == "f" and np.abs(raster.read((0,), EVERYTHING)[0] - (VOXELS * 0.25 - 3)).max() < 1e-3


@pytest.mark.parametrize("kind", ["Nifti1Image", "Nifti2Image"])
@pytest.mark.parametrize("name", ["out.nii", "out.nii.gz"])
@pytest.mark.parametrize("dtype, classes", [(np.uint8, None), (np.uint16, None), (np.float32, 3)])
def test_an_output_has_the_affine_and_the_units_of_the_image(tmp_path, kind, name, dtype, classes):
    raster = Nifti(volume(tmp_path / "t1.nii.gz", kind=kind, cal_max=400))
    pixels = np.random.default_rng(1).integers(0, 200, (*([classes] if classes else []), *SIZE)).astype(dtype)
    raster.write(tmp_path / name, pixels, None, None)
    image, out = nibabel.load(tmp_path / "t1.nii.gz"), nibabel.load(tmp_path / name)
    assert np.array_equal(out.affine, image.affine) and nibabel.aff2axcodes(out.affine) == ("A", "L", "S")
    assert out.header.get_zooms()[:3] == image.header.get_zooms() and out.header.get_xyzt_units() == ("mm", "sec")
    for code in "sform_code", "qform_code":
        assert out.header[code] == image.header[code]
    assert out.get_data_dtype() == dtype and type(out) is type(image) and out.header["cal_max"] == 0
    assert np.array_equal(np.asarray(out.dataobj), np.moveaxis(pixels, 0, -1) if classes else pixels)


def test_outputs_are_the_same_bytes_every_time(tmp_path):
    raster = Nifti(volume(tmp_path / "t1.nii"))
    for name in "one.nii.gz", "two.nii.gz":
        raster.write(tmp_path / name, VOXELS.astype(np.uint8), None, None)
    assert (tmp_path / "one.nii.gz").read_bytes() == (tmp_path / "two.nii.gz").read_bytes()


def test_a_failure_in_the_middle_of_writing_leaves_nothing(tmp_path):
    class Broken:
        shape, dtype = SIZE, np.dtype(np.uint8)

        def __getitem__(self, window):
            if window[2].start == 2:
                raise OSError(28, "No space left on device")
            return VOXELS[window].astype(np.uint8)

    raster = Nifti(volume(tmp_path / "t1.nii"))
    for name in "out.nii", "out.nii.gz":
        with pytest.raises(OSError, match=f"No space left on device: '.*{name}'"):
            raster.write(tmp_path / name, Broken(), None, None)
    assert [path.name for path in tmp_path.iterdir()] == ["t1.nii"]


@pytest.mark.parametrize(
    "column, message",
    [
        ((0, 0, 0), "expected an affine without zero columns"),
        ((0.5, 1, 0), "expected an affine with axes at right angles"),
    ],
)
def test_an_affine_that_is_no_grid_of_boxes(tmp_path, column, message):
    affine = AFFINE.copy()
    affine[:3, 1] = column
    image = nibabel.Nifti1Image(VOXELS, AFFINE)
    image.header.set_sform(affine, code=1)
    image.header["qform_code"] = 0
    with (tmp_path / "t1.nii").open("wb") as file:
        image.header.write_to(file)
        file.write(bytes(4) + VOXELS.tobytes(order="F"))
    raster = Nifti(tmp_path / "t1.nii")
    with pytest.raises(FileError, match=f"t1.nii: {message}, got .*; --spacing sets the distance between voxels$"):
        raster.spacing  # noqa: B018


@pytest.mark.parametrize("name", ["t1.nii", "t1.nii.gz"])
def test_sides_of_0_are_no_spacing(tmp_path, name, capfd):
    content = bytearray(volume(tmp_path / "t1.nii").read_bytes())
    content[80:92], content[252:256] = bytes(12), bytes(4)  # the sides, and the codes that another affine has
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    with pytest.raises(FileError, match="expected an affine without zero columns"):
        Nifti(tmp_path / name).spacing  # noqa: B018
    assert capfd.readouterr().err == ""


def test_a_file_that_is_cut_short(tmp_path):
    for name in "t1.nii", "t1.nii.gz":
        path = volume(tmp_path / name)
        content = path.read_bytes()
        for part in len(content) - 20, 30, 0:
            path.write_bytes(content[:part])
            with pytest.raises(FileError, match=f"{name}: expected a NIfTI, unreadable: ") as error:
                Nifti(path).read((0,), EVERYTHING)
            assert "\n" not in str(error.value)
    with pytest.raises(FileError, match="none.nii: expected a NIfTI, got no such file"):
        Nifti(tmp_path / "none.nii")


def test_what_is_packed_as_a_whole_is_unpacked_to_be_read_by_windows(tmp_path):
    (tmp_path / "scratch").mkdir()
    packed = volume(tmp_path / "t1.nii.gz")
    content = unpacked(packed, tmp_path / "scratch")
    raster = Nifti(packed, content=content)
    assert content.parent.name == "scratch" and np.array_equal(raster.read((0,), EVERYTHING)[0], VOXELS)
    packed.write_bytes(packed.read_bytes()[:60])
    with pytest.raises(FileError, match="t1.nii.gz: expected a NIfTI, unreadable"):
        unpacked(packed, tmp_path / "scratch")
