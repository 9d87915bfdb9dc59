"""`tritoncrf refine --max-memory`: the same outputs by windows, and what a run leaves that was stopped."""

import re

import numpy as np
import pytest

from tritoncrf import cli
from tritoncrf.rasters import results, streamed
from tritoncrf.rasters.geotiff import GeoTiff
from tritoncrf.streaming import local
from tritoncrf.streaming.budget import expect_bytes

rasterio = pytest.importorskip("rasterio")
nibabel = pytest.importorskip("nibabel")

pytestmark = pytest.mark.extras

H, W, C = 70, 90, 3
GENERATOR = np.random.default_rng(0)
BANDS = GENERATOR.integers(1, 4096, (4, H, W)).astype(np.uint16)
P = GENERATOR.dirichlet(np.ones(C), (H, W)).transpose(2, 0, 1).astype(np.float32)
PLACE = rasterio.Affine(10, 0, 500000, 0, -10, 5e6)
SIZE = 8, 9, 6
OPTIONS = "--value-range", "0,4095", "--method", "window", "--window-size", "5"
BUDGET = "--max-memory", "4GB"


def write_tiff(path, bands, **profile):
    shape = {"count": len(bands), "height": H, "width": W, "dtype": bands.dtype.name, "crs": "EPSG:32633"}
    with rasterio.open(
        path, "w", "GTiff", **shape, transform=PLACE, tiled=True, blockxsize=32, blockysize=32, **profile
    ) as f:
        f.write(bands)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with a scene and a volume, and their scores."""
    monkeypatch.chdir(tmp_path)
    write_tiff("scene.tif", BANDS)
    write_tiff("p.tif", P)
    write_tiff("mask.tif", (P[:1] > 0.5).astype(np.uint8) * 255)
    np.save("p.npy", P)
    np.savez("p.npz", P)
    voxels, scores = GENERATOR.integers(0, 500, SIZE), GENERATOR.dirichlet(np.ones(C), SIZE)
    nibabel.save(nibabel.Nifti1Image(voxels.astype(np.int16), np.diag([2, 1.5, 3, 1])), "t1.nii.gz")
    nibabel.save(nibabel.Nifti1Image(scores.astype(np.float32), np.diag([2, 1.5, 3, 1])), "v.nii.gz")
    return tmp_path


def run(*arguments):
    return cli.main(["refine", *(str(a) for a in arguments)])


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def error_of(capsys, *arguments) -> str:
    assert run(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    return err.removeprefix("tritoncrf: error: ").rstrip()


@pytest.mark.parametrize(
    "scores, out, options",
    [
        ("--probabilities p.tif", "out.tif", OPTIONS),
        ("--probabilities p.npy", "out.tif", (*OPTIONS, "--save", "probabilities")),
        ("--probabilities p.npy", "out.npy", OPTIONS),
        ("--probabilities p.tif", "out.npy", (*OPTIONS, "--save", "labels")),
        ("--probabilities p.tif", "out.png", OPTIONS),
        ("--mask mask.tif", "out.tif", OPTIONS),
        ("--labels mask.tif --unknown none --num-classes 256", "out.tif", OPTIONS),
    ],
)
def test_outputs_are_those_of_the_whole_image(folder, capsys, scores, out, options):
    before, told = files(folder), []
    for name, budget in ("whole", ()), ("blocks", BUDGET):
        target = out.replace("out", name)
        assert run("scene.tif", *scores.split(), "-o", target, *options, *budget) == 0
        told.append(capsys.readouterr().out.split(" changed")[0].replace(name, "out"))
    assert told[0] == told[1]
    assert files(folder) == sorted([*before, out.replace("out", "whole"), out.replace("out", "blocks")])
    whole, blocks = (folder / out.replace("out", name) for name in ("whole", "blocks"))
    if out.endswith(".npy"):  # of another version of the format
        assert np.array_equal(np.load(whole), np.load(blocks)) and np.load(whole).dtype == np.load(blocks).dtype
    else:
        assert whole.read_bytes() == blocks.read_bytes()


def test_a_packed_volume(folder):
    before = files(folder)
    options = "--value-range", "0,500", "--method", "window", "--window-size", "3", "--figure", "figure.png"
    for name, budget in ("whole", ()), ("blocks", BUDGET):
        assert run("t1.nii.gz", "--probabilities", "v.nii.gz", "-o", f"{name}.nii.gz", *options, *budget) == 0
    assert files(folder) == sorted([*before, "whole.nii.gz", "blocks.nii.gz", "figure.png"])
    assert (folder / "whole.nii.gz").read_bytes() == (folder / "blocks.nii.gz").read_bytes()


@pytest.mark.parametrize("scratch", [[], ["--scratch", "scratch"]])
def test_what_could_not_be_written_is_written_by_the_next_command(folder, capsys, monkeypatch, scratch):
    """Of a run whose disk filled up at the end nothing is refined again; of another run all is."""
    (folder / "scratch").mkdir()
    before, refined = files(folder), []
    command = "scene.tif", "--probabilities", "p.tif", "-o", "out.tif", *OPTIONS, *BUDGET, *scratch

    def full(*_, **__):
        raise OSError(28, "No space left on device", "out.tif")

    own = streamed.refine
    monkeypatch.setattr(streamed, "refine", lambda *a, **k: refined.append(0) or own(*a, **k))
    with monkeypatch.context() as patch:
        patch.setattr(rasterio.io.DatasetWriter, "write", full)
        assert "No space left on device: 'out.tif'" in error_of(capsys, *command)
    assert "out.tif" not in files(folder) and len(refined) == 1
    assert run(*command, "--iterations", "4") == 0 and len(refined) == 2
    with monkeypatch.context() as patch:
        patch.setattr(rasterio.io.DatasetWriter, "write", full)
        capsys.readouterr()
        error_of(capsys, *command)
    assert run(*command) == 0 and len(refined) == 3
    assert files(folder) == sorted([*before, "out.tif"]) and files(folder / "scratch") == []


def test_what_was_interrupted_goes_on(folder, capsys, monkeypatch):
    """With the budget that it began with, though the process is of another size, and to the same bits."""
    command = "scene.tif", "--probabilities", "p.tif", "-o", "out.tif", *OPTIONS, "--iterations", "1"
    monkeypatch.setattr(streamed, "FURTHER", 0)
    monkeypatch.setattr(local, "FIXED", 0)
    monkeypatch.setattr(streamed, "_resident", lambda: 10_000)
    least = re.search("expected at least ([^ ]+) for", error_of(capsys, *command, "--max-memory", "20kB"))[1]
    small = "--max-memory", str(int(1.5 * expect_bytes("least", least)))  # of which a scene needs several blocks
    before = files(folder)
    assert run(*command, *small) == 0
    expected, reads = (folder / "out.tif").read_bytes(), []
    (folder / "out.tif").unlink()
    own = GeoTiff.read

    def read(raster, channels, window):
        reads.append(raster.path)
        if len(reads) == stop:
            raise KeyboardInterrupt
        return own(raster, channels, window)

    monkeypatch.setattr(GeoTiff, "read", read)
    stop = None
    assert run(*command, *small) == 0
    needed = len(reads)
    (folder / "out.tif").unlink()
    reads.clear()
    stop = needed * 3 // 4
    capsys.readouterr()
    assert run(*command, *small) == 130 and files(folder) != before and "out.tif" not in files(folder)
    assert capsys.readouterr().err == "tritoncrf: interrupted; run the same command to resume\n"
    monkeypatch.setattr(streamed, "_resident", lambda: 11_000)
    stop, first = None, len(reads)
    assert run(*command, *small) == 0 and len(reads) - first < needed
    assert (folder / "out.tif").read_bytes() == expected and files(folder) == sorted([*before, "out.tif"])


def test_a_budget_that_the_process_needs_by_itself(folder, capsys):
    message = error_of(
        capsys, "scene.tif", "--probabilities", "p.tif", "-o", "out.tif", *OPTIONS, "--max-memory", "10MB"
    )
    found = re.fullmatch(
        "--max-memory: expected at least (.+) for the smallest block of this image, of which the process itself takes "
        "(.+), got 10MB",
        message,
    )
    assert expect_bytes("least", found[1]) > expect_bytes("taken", found[2]) > 10**7


def test_a_budget_that_is_too_small_for_a_block(folder, capsys, monkeypatch):
    monkeypatch.setattr(streamed, "_resident", lambda: 0)
    monkeypatch.setattr(streamed, "FURTHER", 1000)
    message = error_of(
        capsys, "scene.tif", "--probabilities", "p.tif", "-o", "out.tif", *OPTIONS, "--max-memory", "2kB"
    )
    assert message.startswith("--max-memory: expected at least ")
    assert message.endswith(" for the smallest block of this image, of which the process itself takes 1kB, got 2kB")


def test_a_word_that_is_no_size(folder, capsys):
    message = error_of(
        capsys, "scene.tif", "--probabilities", "p.tif", "-o", "out.tif", *OPTIONS, "--max-memory", "much"
    )
    assert message.startswith("--max-memory: expected bytes above 0 as an int, or text such as")


def test_what_cannot_be_read_by_windows(folder, capsys):
    message = error_of(capsys, "scene.tif", "--probabilities", "p.npz", "-o", "out.tif", *OPTIONS, *BUDGET)
    assert message == "--max-memory: expected .npy, which can be read in windows, got p.npz"


def test_sums_over_windows(folder, capsys, monkeypatch):
    """Whatever their number is."""
    told = []
    for held in 1 << 22, 100:
        monkeypatch.setattr(results, "HELD", held)
        assert run("scene.tif", "--probabilities", "p.tif", "-o", "out.tif", *OPTIONS) == 0
        told.append(capsys.readouterr().out.rpartition(", ")[0])
    assert told[0] == told[1]
