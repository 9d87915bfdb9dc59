"""The pages: they build without a warning, and what is public has its entry in them."""

import re
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

import tritoncrf
from tritoncrf import densecrf, features, files, filters, layers, losses, models, published, synthetic, types
from tritoncrf.densecrf import utils

pytest.importorskip("sphinx", reason="sphinx is not installed")
pytest.importorskip("furo", reason="furo is not installed")

pytestmark = [pytest.mark.extras, pytest.mark.processes]

DOCS = Path(__file__).parent.parent / "docs"
MODULES = [tritoncrf, features, filters, layers, losses, types, densecrf, utils, synthetic, published, files, models]


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> Path:
    """The built pages, every warning an error."""
    out = tmp_path_factory.mktemp("docs")
    options = ["-W", "--keep-going", "-q", "-E", "-D", "nb_execution_mode=off"]  # tests/test_readme.py runs the cells
    command = [sys.executable, "-m", "sphinx", *options, "-d", out / "doctrees", DOCS, out / "html"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return out / "html"


def entries(pages: Path) -> set[str]:
    """The names of all that is documented, from the index that other projects link by."""
    packed = (pages / "objects.inv").read_bytes().split(b"\n", 4)[4]  # four lines of a header
    return {line.split()[0] for line in zlib.decompress(packed).decode().splitlines()}


def test_every_public_name_has_its_entry(pages):
    found = entries(pages)
    missing = [
        f"{module.__name__}.{name}"
        for module in MODULES
        for name in module.__all__
        if not {f"{module.__name__}.{name}", f"tritoncrf.{name}"} & found
    ]
    assert not missing, missing


def test_formulas_and_stars_are_shown_as_they_are_written(pages):
    text = (pages / "api" / "tritoncrf.html").read_text()
    assert "<pre><span></span>Q &lt;- softmax(U + weight_appearance K_a Q + weight_smooth K_s Q)\n</pre>" in text
    assert "<p>[B, C, *S], dtype and device of" in text


def test_formulas_need_no_network(pages):
    text = (pages / "api" / "layers.html").read_text()
    assert text.count("<math ") > 2 and "<msub>" in text
    for page in pages.rglob("*.html"):
        assert not re.search(r"<(script|link|img)[^>]*(src|href)=.https?:", page.read_text()), page


def test_the_command_reference_is_the_parser_s(pages):
    text = (pages / "commands.html").read_text()
    for option in "--probabilities", "--max-memory", "--engine", "--data-format", "--study":
        assert option in text, option


def test_signatures_name_the_types(pages):
    text = re.sub(r"<[^>]+>", "", (pages / "api" / "tritoncrf.html").read_text())
    assert text.count("refine(\n") == 1 and "theta_space: Theta | None = None" in text and "np.ndarray" not in text


def test_guides_outside_the_folder_are_pages_with_working_links(pages):
    for page, title in {"contributing": "Contributing", "models": "Networks", "benchmarks": "Benchmarks"}.items():
        text = (pages / f"{page}.html").read_text()
        assert re.search(rf"<h1>{title}", text)
        for target in re.findall(r'<a class="reference[^>]* href="([^"#:]+)["#]', text):  # those of this site
            assert (pages / target).is_file(), target


def test_every_picture_is_there(pages):
    shown = {path.name for path in (pages / "_images").iterdir()}
    assert {"demo.png", "methods.png", "compatibility.png"} <= shown
