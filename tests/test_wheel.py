"""The wheel: it builds, holds every module, and what is installed from it imports away from the checkout."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]


def run(command: list[str], cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy, since setuptools leaves its build folder beside the sources."""
    copy = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for name in ("tritoncrf", "models"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    out = tmp_path_factory.mktemp("wheel")
    run([*PIP, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(out), str(copy)], cwd=out)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("installed")
    run([*PIP, "install", "--no-deps", "--no-index", "--target", str(target), str(wheel)], cwd=target)
    return target


def test_the_wheel_holds_every_module_and_nothing_else(wheel):
    """Of `models` the configurations too, but not what its experiments found. py.typed: type checkers read the annotations."""
    expected = {path.relative_to(ROOT).as_posix() for path in (ROOT / "tritoncrf").rglob("*.py")}
    models = [*(ROOT / "models").rglob("*.py"), *(ROOT / "models" / "configs").iterdir()]
    expected |= {"tritoncrf/" + path.relative_to(ROOT).as_posix() for path in models}
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == expected | {"tritoncrf/py.typed"}


def test_the_wheel_says_what_it_is(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (archive.read(n).decode() for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        (entry,) = (archive.read(n).decode() for n in archive.namelist() if n.endswith("/entry_points.txt"))
        licences = [n for n in archive.namelist() if n.endswith("/LICENSE")]
    header = metadata.split("\n\n")[0].splitlines()
    assert "Name: tritoncrf" in header
    assert "License-Expression: Apache-2.0" in header
    assert "Requires-Python: >=3.10" in header
    assert wheel.name.endswith("-py3-none-any.whl")
    assert "tritoncrf = tritoncrf.cli:main" in entry
    assert licences


def test_what_is_installed_imports_away_from_the_checkout(installed, wheel, tmp_path):
    code = f"""
import sys
sys.path.insert(0, {str(installed)!r})
import tritoncrf, tritoncrf.cli, tritoncrf.models.metrics
for module in (tritoncrf, tritoncrf.cli, tritoncrf.models.metrics):
    assert module.__file__.startswith({str(installed)!r}), module.__file__
print(tritoncrf.__version__)
"""
    # -I: neither the folder nor PYTHONPATH is searched.
    version = run([sys.executable, "-I", "-c", code], cwd=tmp_path).strip()
    assert wheel.name.split("-")[1] == version
