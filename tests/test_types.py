"""The annotations: the package keeps the rules of pyproject.toml, and a user's programs are checked by them."""

import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from tritoncrf import types
from tritoncrf.reference.box import BOXES

ROOT = Path(__file__).parent.parent
PROGRAMS = ROOT / "tests" / "typed"


@pytest.fixture(scope="module")
def complaints(tmp_path_factory) -> list[str]:
    """What mypy says of the package, laid out as the wheel lays it out, and of the two programs. What it learns of
    torch, which takes most of its time, it keeps in the checkout."""
    pytest.importorskip("mypy", reason="mypy is not installed")
    folder = tmp_path_factory.mktemp("typed")
    shutil.copytree(ROOT / "tritoncrf", folder / "tritoncrf", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "models", folder / "tritoncrf" / "models", ignore=shutil.ignore_patterns("__pycache__"))
    for program in PROGRAMS.iterdir():
        shutil.copy2(program, folder)
    options = "--config-file", ROOT / "pyproject.toml", "--cache-dir", ROOT / ".mypy_cache", "--no-error-summary"
    command = [sys.executable, "-m", "mypy", *options, "tritoncrf", "right.py", "wrong.py"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 1, done.stdout + done.stderr  # wrong.py is wrong
    return done.stdout.splitlines()


def of(file: str, complaints: list[str]) -> list[str]:
    return [line for line in complaints if line.startswith(file)]


@pytest.mark.processes
@pytest.mark.extras
def test_the_package_keeps_its_own_types(complaints):
    found = of("tritoncrf/", complaints)
    assert not found, "\n".join(found)


@pytest.mark.processes
@pytest.mark.extras
def test_a_right_program_passes(complaints):
    found = of("right.py", complaints)
    assert not found, "\n".join(found)


def test_a_right_program_runs():
    runpy.run_path(str(PROGRAMS / "right.py"))


@pytest.mark.processes
@pytest.mark.extras
def test_a_wrong_program_fails_where_it_is_wrong(complaints):
    lines = enumerate((PROGRAMS / "wrong.py").read_text().splitlines(), 1)
    marked = {(number, line.split("# error: ")[1]) for number, line in lines if "# error: " in line}
    errors = (re.match(r"wrong\.py:(\d+): error: .*\[([a-z-]+)\]$", line) for line in complaints)
    assert {(int(error[1]), error[2]) for error in errors if error} == marked


def test_the_words_of_an_argument_are_those_of_its_check():
    assert get_args(types.Box) == BOXES
