"""The wheel: it builds, holds every module, and what is installed from it imports away from the checkout."""

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = [pytest.mark.extras, pytest.mark.processes]

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
    needed = [line for line in header if line.startswith("Requires-Dist: ")]
    assert [line for line in needed if "triton>" in line] == [
        'Requires-Dist: triton>=3.6; sys_platform == "linux" and extra == "triton"'
    ]  # otherwise torch brings the one that fits it
    assert all(re.search(r">=\d", line) for line in needed if "extra ==" not in line)
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


PARTS = """
import sys
sys.path.insert(0, {path!r})
import tritoncrf.models.metrics, tritoncrf.models.experiments.tables
from tritoncrf.models import SegModel
for module in (tritoncrf, tritoncrf.models, tritoncrf.models.metrics, sys.modules[SegModel.__module__]):
    assert module.__file__.startswith({path!r}), module.__file__
print(*tritoncrf.__path__)
"""


@pytest.fixture
def checkout(tmp_path) -> Path:
    """The sources as they lie in a checkout, in a place that is not installed."""
    for name in ("tritoncrf", "models"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def test_a_checkout_has_the_models_without_an_install(checkout):
    path = run([sys.executable, "-c", PARTS.format(path=str(checkout))], cwd=checkout.parent).split()
    assert path == [str(checkout / "tritoncrf"), str(checkout)]
    shown = run([sys.executable, "-m", "tritoncrf.models", "--help"], cwd=checkout)
    assert "train | evaluate | predict" in shown
    assert run([sys.executable, "-m", "tritoncrf.models", "train", "--help"], cwd=checkout).count("small_unary") > 0


def test_a_checkout_beside_an_install_has_its_own_models(checkout, installed):
    code = PARTS.format(path=str(checkout)).replace(
        "sys.path.insert(0,", f"sys.path[:0] = ({str(installed)!r},); sys.path.insert(0,"
    )
    run([sys.executable, "-c", code], cwd=checkout.parent)


def test_what_is_installed_looks_for_modules_in_itself_alone(installed, tmp_path):
    assert run([sys.executable, "-I", "-c", PARTS.format(path=str(installed))], cwd=tmp_path).split() == [
        str(installed / "tritoncrf")
    ]
