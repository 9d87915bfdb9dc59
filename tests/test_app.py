"""The page that shows what settings do: its lines give its bits, its errors come before its server, and in a browser a
moved slider changes the picture and the lines."""

import importlib.util
import io
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tritoncrf import PARAMETERS, app, cli, demo, refine
from tritoncrf.options import ARGUMENTS, METHODS, SHARES, TEXTS
from tritoncrf.session import MOST_EXACT, UNSEEN, Problem, Session, problem_of

DETAIL = slice(60, 140), slice(150, 250)
H, W = 80, 100
GENERATOR = np.random.default_rng(0)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with a detail of the demo's photo, and scores of every kind."""
    monkeypatch.chdir(tmp_path)
    photo, labels = demo.photo()[DETAIL], demo.mask()[DETAIL]
    probabilities = GENERATOR.random((7, H, W)).astype(np.float32) + 2 * (labels == np.arange(7)[:, None, None])
    probabilities = (probabilities / probabilities.sum(0)).astype(np.float32)
    picture = Image.fromarray(photo)
    picture.save("photo.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save("turned.jpg", exif=exif)
    picture.convert("LA").save("grey.png")
    np.save("p.npy", probabilities)
    np.save("doubles.npy", probabilities.astype(np.float64))
    np.savez("p.npz", scores=np.log(probabilities))
    np.save("coarse.npy", probabilities[:, ::4, ::4])
    np.save("turned.npy", probabilities.transpose(0, 2, 1))
    np.save("foreground.npy", probabilities[4].astype(np.float64))
    np.save("mask.npy", labels == 4)
    Image.fromarray(labels).save("labels.png")
    Image.fromarray(np.where(labels == 4, 230, 20).astype(np.uint8)).save("mask.png")
    return tmp_path


def options_of(*words):
    return cli._parser().parse_args(["app", *map(str, words)])


def session_of(*words) -> tuple[Session, dict]:
    """What the page would hold, and the settings that it would start with."""
    options = options_of(*words)
    session = Session(problem_of(options))
    given = {name: value for name, value in app.settings_of(options).items() if name not in app.READING}
    return session, session.problem.start(given)


def python_gives(lines: str) -> np.ndarray:
    names: dict = {}
    exec(compile(lines, "the page", "exec"), names)
    return names["refined"]


def commands_give(lines: str) -> tuple[np.ndarray, np.ndarray]:
    """The probabilities and the picture that the lines of the command line write."""
    *earlier, last = [shlex.split(line)[1:] for line in lines.split("\n")]
    for words in earlier:
        assert cli.main(words) == 0
    *refine, option, out = last
    assert option == "-o" and cli.main([*last]) == 0 and cli.main([*refine, "-o", "all.npy"]) == 0
    with Image.open(out) as picture:
        return np.load("all.npy"), np.array(picture)


# The lines ------------------------------------------------------------------------------------------------------


FILES = [
    ("photo.png", "--probabilities", "p.npy"),
    ("photo.png", "--probabilities", "doubles.npy"),
    ("photo.png", "--logits", "p.npz"),
    ("photo.png", "--energies", "p.npy", "--damping", "0.25", "--temperature", "1.5"),
    ("photo.png", "--labels", "labels.png", "--unknown", "2,3", "--num-classes", "9"),
    ("photo.png", "--labels", "labels.png", "--unknown", "none", "--label-confidence", "0.8"),
    ("photo.png", "--labels", "labels.png", "--unknown=-1", "--device", "cpu"),
    ("photo.png", "--mask", "mask.png", "--label-confidence", "0.9"),
    ("photo.png", "--mask", "mask.npy", "--theta-space", "5.5%"),
    ("photo.png", "--foreground", "mask.png"),
    ("photo.png", "--foreground", "foreground.npy"),
    ("photo.png", "--probabilities", "coarse.npy", "--resize"),
    ("grey.png", "--probabilities", "p.npy"),
    ("turned.jpg", "--probabilities", "turned.npy"),
    ("turned.jpg", "--probabilities", "p.npy", "--as-stored"),
    ("photo.png", "--mask", "mask.png", "--as-stored", "--resize"),
]


@pytest.mark.parametrize("words", FILES, ids=" ".join)
def test_lines_give_the_bits_of_every_kind_of_file(folder, words):
    session, start = session_of(*words, "--method", "window", "--window-size", "5")
    refined = session.refined(start).numpy()
    python, command = session.problem.lines(start)
    assert np.array_equal(python_gives(python), refined)
    array, picture = commands_give(command)
    assert np.array_equal(array, refined.astype(np.float32))
    labels = session.outcome(tuple(start.items())).after
    assert np.array_equal(picture, labels * 255 if session.problem.kind in ("mask", "foreground") else labels)


@pytest.mark.parametrize("method", METHODS)
def test_lines_give_the_bits_of_every_method(folder, method):
    session, start = session_of("photo.png", "--logits", "p.npz", "--method", method, "--iterations", "2")
    refined = session.refined(start).numpy()
    python, command = session.problem.lines(start)
    assert np.array_equal(python_gives(python), refined) and np.array_equal(commands_give(command)[0], refined)
    used = {name for name in ARGUMENTS if method in ARGUMENTS[name].methods} - {"label_confidence", *UNSEEN}
    assert set(start) == {"method", *used} and all(f"{name}=" in python for name in start)


@pytest.mark.parametrize("name", ["a photo's.png", 'the "best".png', "-o.png", "été\u2028.png"])
def test_lines_quote_names(folder, name):
    shutil.copy("photo.png", name)
    shutil.copy("p.npy", f"{name}.npy")
    problem = problem_of(options_of(f"--probabilities={name}.npy", "--", name))
    start = problem.start({"method": "window", "iterations": 1})
    python, command = problem.lines(start)
    assert np.array_equal(python_gives(python), Session(problem).refined(start).numpy())
    assert shlex.split(command)[2] in (name, f"./{name}")
    commands_give(command)


def test_lines_of_the_demo(folder, monkeypatch):
    photo, mask = demo.photo()[DETAIL], demo.mask()[DETAIL]
    monkeypatch.setattr(demo, "photo", lambda: photo)
    monkeypatch.setattr(demo, "mask", lambda: mask)
    session, start = session_of("--method", "window")
    refined = session.refined(start).numpy()
    python, command = session.problem.lines(start)
    assert np.array_equal(python_gives(python), refined) and np.array_equal(commands_give(command)[0], refined)
    notes = session.outcome(tuple(start.items())).notes
    assert notes[1] == f"right: {np.mean(demo.scores().argmax(0) == mask):.1%} before, " + notes[1].split(", ")[1]


def test_more_classes_than_a_picture_holds_are_written_as_an_array():
    scores = np.zeros((300, 4, 4), np.float32)
    problem = Problem(np.zeros((4, 4, 3), np.uint8), "logits", scores, {}, ((), "image"), ("tritoncrf refine",), "x")
    assert problem.lines(problem.start({}))[1].endswith("-o x_refined.npy")


# What is shown --------------------------------------------------------------------------------------------------


def test_an_outcome_says_what_a_trace_says(folder):
    for words in ("--probabilities", "p.npy"), ("--mask", "mask.png"), ("--labels", "labels.png", "--unknown", "2"):
        session, start = session_of("photo.png", *words, "--method", "window")
        problem = session.problem
        outcome = session.outcome(tuple(start.items()))
        scores = {problem.kind: problem.scores}
        _, trace = refine(problem.image, **scores, **problem.reading, **start, return_trace=True)
        assert outcome.summary.changed == trace.summary.changed
        assert outcome.summary.before == trace.summary.before and outcome.summary.after == trace.summary.after
        assert outcome.summary.confidence_after == pytest.approx(trace.summary.confidence_after, abs=1e-6)
        assert outcome.notes[0].startswith(f"{trace.summary.changed:.2%} of the pixels changed")


def test_an_outcome_is_computed_once(folder, monkeypatch):
    session, start = session_of("photo.png", "--mask", "mask.png", "--method", "window")
    items = tuple(start.items())
    first = session.outcome(items)
    monkeypatch.setattr(session, "refined", None)
    assert session.outcome(items) is first


def test_the_report_names_classes_and_doubts(folder):
    session, start = session_of("photo.png", "--mask", "mask.png", "--theta-space", "90", "--weight-appearance", "0")
    text = app.report(session.outcome(tuple(start.items())), "mask")
    assert "foreground" in text and "background" in text and "theta_space 90 is more than half" in text
    assert "--" not in text
    session, start = session_of("photo.png", "--probabilities", "p.npy", "--method", "window")
    text = app.report(session.outcome(tuple(start.items())), "probabilities", ["<b>"] * 7)
    assert "&lt;b&gt;" in text and "<b>" not in text


def test_pictures_are_no_larger_than_a_screen():
    image, labels = np.zeros((2500, 40), np.uint8), np.zeros((2500, 40), int)
    photo, drawn = app.pictures(image, labels)
    assert photo.shape == drawn.shape == (834, 14, 3) and photo.dtype == drawn.dtype == np.uint8


# The controls ---------------------------------------------------------------------------------------------------


def test_every_argument_has_a_meaning_and_a_default_in_its_range():
    assert set(TEXTS) == set(ARGUMENTS)
    for name, text in TEXTS.items():
        default = ARGUMENTS[name].default
        if text.numbers is not None:
            low, high, step = SHARES if isinstance(default, str) else text.numbers
            number = float(str(default).removesuffix("%"))
            assert low <= number <= high and 0 < step < high - low, name


def test_sliders_reach_what_they_are_given():
    assert app.slider("theta_space", 80) == {"minimum": 1, "maximum": 200, "step": 1, "value": 80}
    assert app.slider("theta_space", 500)["maximum"] == 500
    assert app.slider("theta_space", "16%") == {"minimum": 0.1, "maximum": 40, "step": 0.1, "value": 16}
    assert app.slider("theta_space", "0.02%")["minimum"] == 0.02
    assert app.slider("eps", 3.5) == {"value": 3.5}


def test_numbers_of_a_browser():
    found = [app.value_of(x) for x in (0.1 + 0.2, 5.0, 5, 0.05)] + [app.value_of(16.0, app.SHARE)]
    assert found == [0.3, 5, 5, 0.05, "16%"] and [type(x) for x in found] == [float, int, int, float, str]
    assert app.converted(16, app.PIXELS, 500) == 80 and app.converted(80, app.SHARE, 500) == "16%"


def test_presets(folder):
    session, start = session_of("photo.png", "--labels", "labels.png")
    assert start["theta_space"] == ARGUMENTS["theta_space"].default and start["label_confidence"] == 0.7
    assert list(session.presets(start["method"], start)) == ["defaults", *PARAMETERS]
    deeplab = session.presets(start["method"], start)["deeplab"]
    assert PARAMETERS["deeplab"].items() <= deeplab.items() and set(deeplab) == set(start)
    session, start = session_of("photo.png", "--probabilities", "p.npy", "--method", "guided", "--radius", "7")
    assert list(session.presets(start["method"], start)) == ["defaults", "at the start"]
    assert session.presets(start["method"], start)["at the start"] == start
    assert "at the start" not in session.presets("lattice", start)


def test_settings_of_a_file_are_where_it_starts(folder):
    Path("tuned.toml").write_text('method = "window"\ntheta_space = "7.5%"\nweight_appearance = 2.0\n')
    _, start = session_of("photo.png", "--logits", "p.npz", "--parameters", "tuned.toml", "--blur", "2")
    assert (start["method"], start["theta_space"], start["weight_appearance"], start["blur"]) == (
        "window",
        "7.5%",
        2,
        2,
    )


# What does not work ---------------------------------------------------------------------------------------------


def error_of(capsys, monkeypatch, *words, gradio: bool = True) -> str:
    """The one line of a page that does not come up."""
    if gradio:
        monkeypatch.setattr(app, "_expect_gradio", lambda: None)
    monkeypatch.setattr(app, "page", lambda *_: pytest.fail("the page was made"))
    assert cli.main(["app", *map(str, words)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("tritoncrf: error: ")
    return err.removeprefix("tritoncrf: error: ").rstrip()


def test_without_gradio(folder, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert error_of(capsys, monkeypatch, gradio=False) == 'app needs Gradio: pip install "tritoncrf[app]"'


@pytest.mark.parametrize(
    "words, said",
    [
        (["photo.png"], "photo.png: expected its scores beside it, one of --logits, --probabilities"),
        (["--mask", "mask.png"], "IMAGE: expected a photo beside --mask, got none"),
        (["none.png", "--mask", "mask.png"], "none.png: expected a picture, got no such file"),
        (["photo.png", "--mask", "none.npy"], "none.npy: expected an array, got no such file"),
        (["photo.png", "--probabilities", "coarse.npy"], "--probabilities: expected the size of photo.png, 80 x 100"),
        (["photo.png", "--probabilities", "p.npz"], "--probabilities: expected 0 to 1"),
        (["photo.png", "--logits", "p.npy", "--method", "best"], "--method: expected "),
        (["photo.png", "--logits", "p.npy", "--method", "lattice", "--radius", "3"], "--radius: expected none with --method='lattice'"),
        (["photo.png", "--logits", "p.npy", "--theta-space", "x%"], "--theta-space: expected numbers above 0"),
        (["photo.png", "--logits", "p.npy", "--parameters", "best"], "--parameters: expected densecrf"),
        (["photo.png", "--logits", "p.npy", "--parameters", "two.toml"], "--parameters: theta_space: expected one number"),
        (["--method", "exact"], f"--method: expected at most {MOST_EXACT:,} pixels for exact on a CPU, got 307,200"),
        (["--port", "70000"], "--port: expected 0 to 65535, got 70000"),
        (["--port", "x"], "argument --port: invalid int value: 'x'"),
        (["--host", "192.0.2.1"], "--host, --port: 192.0.2.1 port 7860: Cannot assign"),
        (["--host", "no such host"], "--host: expected an address of this machine, got no such host"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_bad_input(folder, capsys, monkeypatch, words, said):
    Path("two.toml").write_text("theta_space = [3, 4]\n")
    assert error_of(capsys, monkeypatch, *words).startswith(said)


def test_a_port_in_use(folder, capsys, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        said = error_of(capsys, monkeypatch, "photo.png", "--mask", "mask.png", "--port", port)
    assert said == f"--port: expected a free port of 127.0.0.1, or 0 for any, got {port}, which is in use"


def test_exact_is_offered_where_it_answers_soon(folder):
    assert "exact" in session_of("photo.png", "--mask", "mask.png")[0].methods
    assert "exact" not in session_of("--iterations", "1")[0].methods


# In a browser ---------------------------------------------------------------------------------------------------


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MISSING = [name for name in ("gradio", "playwright") if importlib.util.find_spec(name) is None]
MISSING += [] if CHROMIUM else ["chromium"]
PATIENCE = 300_000  # milliseconds for what takes one on a machine with nothing else to do
# Python's own report of what a process asks the network for, beside what the browser asks for.
WATCHED = """
import sys
def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo") and "127.0.0.1" not in str(arguments):
        print(event, arguments, flush=True)
sys.addaudithook(watch)
from tritoncrf.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def server(folder):
    """The page of a photo, in a process of its own; (address, process)."""
    words = [
        "app",
        "photo.png",
        "--probabilities",
        "p.npy",
        "--method",
        "window",
        "--theta-color",
        "13",
        "--weight-appearance",
        "10",
        "--port",
        "0",
    ]
    environment = {**os.environ, "PYTHONPATH": str(Path(app.__file__).parent.parent)}
    process = subprocess.Popen(
        [sys.executable, "-c", WATCHED, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=environment,
    )  # fmt: skip
    with process:
        line = process.stdout.readline()
        if line.startswith("http://127.0.0.1:"):
            yield line.split()[0], process
        process.terminate()
    assert line.startswith("http://127.0.0.1:"), line


class Shown:
    """The page in a browser, and what a user does with it."""

    def __init__(self, browser, address):
        context = browser.new_context(viewport={"width": 1280, "height": 900})
        context.set_default_timeout(PATIENCE)
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        self.page, self.asked = context.new_page(), []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(address)
        self.page.locator("#wipe img").nth(1).wait_for()

    def pictures(self) -> list[np.ndarray]:
        """The input's labels and the refined ones, as they are drawn."""
        found = []
        for source in self.page.locator("#wipe img").evaluate_all("images => images.map(image => image.src)"):
            with urllib.request.urlopen(source) as answer, Image.open(io.BytesIO(answer.read())) as picture:
                found.append(np.array(picture.convert("RGB")))
        return found

    def copied(self, box: str) -> str:
        """What the button of a box leaves in the clipboard."""
        self.page.locator(f"#{box}").get_by_label("Copy").click()
        return self.page.evaluate("navigator.clipboard.readText()")

    def choose(self, label: str, choice: str) -> None:
        self.page.get_by_label(label, exact=True).click()
        self.page.get_by_role("option", name=choice, exact=True).click()

    def until(self, box: str, words: str) -> None:
        """Waits until a box says so."""
        self.page.locator(f"#{box}", has_text=re.compile(r"\s*".join(map(re.escape, words.split())))).wait_for()


@pytest.mark.processes
@pytest.mark.extras
@pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")
def test_in_a_browser(server):
    """A user moves sliders, chooses presets and methods, and runs the lines."""
    from playwright.sync_api import sync_playwright

    address, process = server
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        shown = Shown(browser, address)
        page, first = shown.page, shown.pictures()
        expect_lines(shown)

        # A dragged slider, whose first refinement takes until it stands still: what came between is left out, what came
        # last is shown.
        asked, held = len(shown.asked), []
        page.route("**/run/**", lambda route: route.continue_() if held else held.append(route))
        slider = page.locator("#theta_color input[type=range]")
        with page.expect_request("**/run/**"):
            slider.press("ArrowLeft")
        for _ in range(19):
            slider.press("ArrowLeft")
        held[0].continue_()
        shown.until("command", "--theta-color 3 ")
        page.unroute("**/run/**")
        assert sum("/run/" in url for url in shown.asked[asked:]) == 2
        now = shown.pictures()
        assert np.array_equal(now[0], first[0]) and not np.array_equal(now[1], first[1])
        assert page.get_by_label("preset").input_value() == ""
        expect_lines(shown)

        shown.choose("preset", "deeplab")
        shown.until("command", "--theta-space 67 --theta-color 3 --weight-appearance 4 --theta-smooth 1")
        assert page.get_by_label("preset").input_value() == "deeplab"
        page.locator("#theta_space_unit").get_by_label(app.SHARE).click()
        shown.until("command", "--theta-space 52.3% --theta-color 3")
        expect_lines(shown)

        shown.choose("method", "guided")
        shown.until("command", "--method guided --weight-appearance 10")
        assert page.locator("#eps").is_visible() and not page.locator("#theta_color").is_visible()
        page.locator("#eps input").fill("-1")
        shown.until("report", "eps: expected")
        shown.until("command", "# eps: expected")
        page.locator("#eps input").fill("")
        shown.until("report", "eps: expected a number, got none")
        page.locator("#eps input").fill("50")
        shown.until("command", "--eps 50")
        expect_lines(shown)

        outside = [url for url in shown.asked if not url.startswith((address, "data:", "blob:"))]
        assert not outside
        browser.close()
    process.terminate()
    assert process.stdout.read() == "", "the server said something, or reached for the network"


def expect_lines(shown: Shown) -> None:
    """The copied lines give the picture that is shown, and the same bits."""
    array, labels = commands_give(shown.copied("command"))
    assert np.array_equal(python_gives(shown.copied("python")), array)
    with Image.open("photo.png") as photo:
        *_, drawn = app.pictures(np.asarray(photo), labels.astype(int))
    assert np.array_equal(shown.pictures()[1], drawn)
