"""The README and the pages beside it keep their word: their Python runs, and their commands are understood and work."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tritoncrf import cli, demo

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = {path.name: path.read_text() for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]}


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands() -> list[list[str]]:
    """The arguments of every `tritoncrf ...` line."""
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("tritoncrf ")]


PYTHON = [
    pytest.param(block, id=f"{name}-{n}")
    for name, text in PAGES.items()
    for n, block in enumerate(blocks("python", text))
]
NOTEBOOKS = [name for name, text in PAGES.items() if text.startswith("---\nfile_format: mystnb\n")]
[EXAMPLE] = [block for block in blocks("python") if "probabilities.npy" in block]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty working directory, and a detail of the demo's photo: all that is run here is quick."""
    monkeypatch.chdir(tmp_path)
    detail = slice(60, 140), slice(150, 250)
    image, mask = demo.photo()[detail], demo.mask()[detail]
    monkeypatch.setattr(demo, "photo", lambda: image)
    monkeypatch.setattr(demo, "mask", lambda: mask)


def run_block(block: str) -> None:
    if "__main__" in block:  # a script, which processes that it starts import
        Path("script.py").write_text(block)
        subprocess.run([sys.executable, "script.py"], check=True, timeout=120)
        return
    exec(compile(block, "a page", "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("block", PYTHON)
def test_python(block):
    run_block(block)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebooks_run_from_top_to_bottom(name):
    cells = blocks(r"\{code-cell\}", PAGES[name])
    assert cells
    run_block("\n".join(cells))


def test_the_first_six_pages_are_notebooks():
    wanted = {"quickstart", "masks-and-photos", "pseudo-labels", "network", "volumes", "large-images"}
    assert {name.removesuffix(".md") for name in NOTEBOOKS} == wanted


@pytest.mark.parametrize("name", ["refine", "info"])
def test_every_command_is_shown(name):
    assert name in [arguments[0] for arguments in commands()]


def write_rasters():
    """A scene and a volume, with their scores."""
    rasterio, nibabel = pytest.importorskip("rasterio"), pytest.importorskip("nibabel")
    generator = np.random.default_rng(0)
    place = {"crs": "EPSG:32633", "transform": rasterio.Affine(10, 0, 500000, 0, -10, 5e6)}
    bands = generator.integers(0, 4096, (4, 20, 24)).astype(np.uint16)
    p = generator.dirichlet(np.ones(3), (20, 24)).transpose(2, 0, 1).astype(np.float32)
    for name, array in ("scene.tif", bands), ("scores.tif", p):
        form = {"count": len(array), "height": 20, "width": 24, "dtype": array.dtype.name}
        with rasterio.open(name, "w", "GTiff", **form, **place) as file:
            file.write(array)
    voxels = {name: generator.integers(0, 500, (8, 9, 6)).astype(np.int16) for name in ("t1", "t2")}
    voxels["p"] = generator.dirichlet(np.ones(3), (8, 9, 6)).astype(np.float32)
    for name, array in voxels.items():
        nibabel.save(nibabel.Nifti1Image(array, np.diag([2, 1.5, 3, 1.0])), f"{name}.nii.gz")


def test_the_commands_work_in_their_order(capsys):
    run_block(EXAMPLE)
    for folder in "photos", "scores", "truth":
        Path(folder).mkdir()
    shutil.copy("photo.png", "photos")
    shutil.copy("probabilities.npy", "scores/photo.npy")
    Image.fromarray(demo.mask().astype(np.uint8)).save("truth/photo.png")
    write_rasters()
    for arguments in commands():
        assert cli.main(arguments) == 0, capsys.readouterr().err
        written = [Path(value) for option, value in zip(arguments, arguments[1:]) if option in ("-o", "--figure")]
        assert all(path.stat().st_size > 0 for path in written), arguments


@pytest.mark.parametrize("arguments", commands(), ids=" ".join)
def test_every_option_is_in_the_help(arguments, capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main([arguments[0], "--help"])
    known = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", capsys.readouterr().out))
    assert {argument for argument in arguments if argument.startswith("-")} <= known


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name):
    folder = ROOT if name == "README.md" else ROOT / "docs"
    prose = re.sub(r"^```.*?^```$", "", PAGES[name], flags=re.MULTILINE | re.DOTALL)
    for target, _, anchor in re.findall(r"\]\(([^)#]*)(#([^)]+))?\)", prose):
        if "://" in target:
            continue
        path = folder / target if target else ROOT / name
        assert path.is_file(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles], anchor
