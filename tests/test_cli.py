"""The command line: files in and out, one line and exit code 2 for bad input, files whole or not at all."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from assertions import assert_close
from tritoncrf import PARAMETERS, __version__, actions, cli, demo, figures
from tritoncrf.options import ARGUMENTS, TEXTS
from tritoncrf.refine import refine

H, W, C = 24, 30, 3
GENERATOR = np.random.default_rng(0)
IMAGE = GENERATOR.integers(0, 256, (H, W, 3), dtype=np.uint8)
LOGITS = GENERATOR.normal(size=(C, H, W)).astype(np.float32)
LABELS = GENERATOR.integers(0, C, (H, W), dtype=np.uint8)
SCORES = [("labels", "unknown.png"), ("logits", "logits.npy"), ("energies", "logits.npy")]
SMALL = ("--method", "window", "--window-size", "5", "--blur", "2")


def save_labels(path, labels):
    picture = Image.fromarray(labels)
    picture.putpalette(figures.palette().tobytes())
    picture.save(path)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with an image and its scores."""
    monkeypatch.chdir(tmp_path)
    Image.fromarray(IMAGE).save("image.png")
    np.save("logits.npy", LOGITS)
    save_labels("labels.png", LABELS)
    return tmp_path


def run(*arguments):
    return cli.main([str(a) for a in arguments])


def error_of(capsys, *arguments) -> str:
    """The one line that a failing command prints."""
    assert run(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("tritoncrf: error: ")
    return err.removeprefix("tritoncrf: error: ").rstrip()


def said(capsys) -> str:
    """What a working command printed, as one line."""
    out, err = capsys.readouterr()
    assert err == ""
    return " ".join(out.split())


# What it writes -------------------------------------------------------------------------------------------------


def test_logits_to_probabilities(folder):
    assert run("refine", "image.png", "--logits", "logits.npy", "-o", "out.npy", *SMALL) == 0
    q = np.load("out.npy")
    assert q.dtype == np.float32
    assert np.array_equal(q, refine(IMAGE, logits=LOGITS, method="window", window_size=5, blur=2))


def test_labels_to_labels(folder):
    assert run("refine", "image.png", "--labels", "labels.png", "-o", "out.png", *SMALL) == 0
    expected = refine(IMAGE, labels=LABELS, method="window", window_size=5, blur=2).argmax(0)
    with Image.open("out.png") as picture:
        assert picture.mode == "P" and np.array_equal(np.array(picture), expected)
        assert np.array_equal(np.array(picture.convert("RGB")), figures.palette()[expected])


def test_every_parameter_arrives(folder):
    values = {
        "theta_space": 60.0, "theta_color": 20.0, "weight_appearance": 7.0, "theta_smooth": 4.0, "weight_smooth": 2.0,
        "compatibility": "potts", "iterations": 3, "damping": 0.25, "temperature": 1.5, "window_size": 7, "blur": 3,
        "radius": 5, "eps": 4.0, "label_confidence": 0.6, "num_classes": 5, "unknown": 2, "spacing": (2.0, 1.5),
        "value_range": (10.0, "99%"),
    }  # fmt: skip
    assert set(values) == set(cli.NUMBERS) == set(TEXTS) == set(ARGUMENTS)
    for method in "window", "guided":
        settings = {name: value for name, value in values.items() if method in ARGUMENTS[name].methods}
        words = {name: ",".join(map(str, v)) if isinstance(v, tuple) else v for name, v in settings.items()}
        options = [word for name, value in words.items() for word in (f"--{name.replace('_', '-')}", value)]
        assert run("refine", "image.png", "--labels", "labels.png", "-o", "out.npy", "--method", method, *options) == 0
        assert np.array_equal(np.load("out.npy"), refine(IMAGE, labels=LABELS, method=method, **settings))


def test_the_help_tells_the_defaults(capsys):
    with pytest.raises(SystemExit):
        run("refine", "--help")
    words = " ".join(capsys.readouterr().out.split())
    for name, argument in ARGUMENTS.items():
        text = words.split(f"--{name.replace('_', '-')} {cli.METAVARS.get(name, 'N')} ")[1].split(")")[0]
        default = cli.ABSENT.get(name, str(argument.default))
        if argument.gentle is not None:
            default += f"; {argument.gentle} for the scores of a network, unless guided"
        assert text.endswith(f"(default: {default}"), name


@pytest.mark.parametrize("method", ["lattice", "exact", "guided", None])
def test_methods(folder, method):
    chosen = [] if method is None else ["--method", method]
    assert run("refine", "image.png", "--logits", "logits.npy", "-o", "out.npy", *chosen) == 0
    assert np.array_equal(np.load("out.npy"), refine(IMAGE, logits=LOGITS, method=method or "guided"))


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_of_known_pipelines(folder, name):
    assert run("refine", "image.png", "--labels", "labels.png", "-o", "out.npy", "--parameters", name) == 0
    assert np.array_equal(np.load("out.npy"), refine(IMAGE, labels=LABELS, **PARAMETERS[name]))


def test_what_else_is_given_wins(folder):
    options = "--iterations", "2", "--theta-space", "30", "--parameters", "deeplab", "--theta-color", "20"
    assert run("refine", "image.png", "--logits", "logits.npy", "-o", "out.npy", *options) == 0
    settings = {**PARAMETERS["deeplab"], "iterations": 2, "theta_space": 30, "theta_color": 20}
    assert np.array_equal(np.load("out.npy"), refine(IMAGE, logits=LOGITS, **settings))


def test_trace(folder, capsys):
    options = "--iterations", "3", "--trace", "--trace-figure", "trace.png"
    assert run("refine", "image.png", "--logits", "logits.npy", "-o", "out.npy", *options) == 0
    q, trace = refine(IMAGE, logits=LOGITS, iterations=3, return_trace=True)
    assert np.array_equal(np.load("out.npy"), q)
    out, err = capsys.readouterr()
    table, summary = out.split(str(trace.summary))
    head, *rows = table.splitlines()
    assert (
        err == ""
        and summary.startswith("\nwrote out.npy: ")
        and head.split() == ["iteration", "energy", "free", "energy", "entropy", "changed"]
    )
    for row, record in zip(rows, trace.records, strict=True):
        iteration, energy, free_energy, entropy, changed = row.replace(",", "").replace("%", "").split()
        assert int(iteration) == record.iteration
        assert float(energy) == pytest.approx(record.energy, abs=0.006)
        assert float(free_energy) == pytest.approx(record.free_energy, abs=0.006)
        assert float(entropy) == pytest.approx(record.entropy, abs=6e-5)
        assert float(changed) == pytest.approx(100 * record.changed, abs=0.006)


@pytest.mark.parametrize("command", [["refine", "image.png", "--logits", "logits.npy", *SMALL], ["demo"]])
def test_device(folder, capsys, command):
    assert run(*command, "-o", "out.png", "--device", "cpu") == 0
    capsys.readouterr()
    assert "device: expected a device of torch" in error_of(capsys, *command, "-o", "out.png", "--device", "gpu")


@pytest.mark.parametrize("name", ["trace.png", "trace.PDF", "trace.svg"])
def test_a_trace_is_drawn_without_being_printed(folder, capsys, name):
    options = "--iterations", "2", "--trace-figure", name
    assert run("refine", "image.png", "--logits", "logits.npy", "-o", "out.png", *options) == 0
    start = (folder / name).read_bytes()[:200]
    assert {"png": b"PNG", "pdf": b"%PDF", "svg": b"<?xml"}[name[-3:].lower()] in start
    assert said(capsys).startswith("wrote out.png: ")


@pytest.mark.parametrize("kind", ["logits", "energies", "probabilities"])
@pytest.mark.parametrize("dtype", ["float16", "float64", ">f4"])
def test_every_kind_of_score(folder, kind, dtype):
    scores = np.abs(LOGITS) / 9 if kind == "probabilities" else LOGITS
    np.savez("scores.npz", any_name=scores.astype(dtype))
    assert run("refine", "image.png", f"--{kind}", "scores.npz", "-o", "out.npy", *SMALL) == 0
    expected = refine(IMAGE, method="window", window_size=5, blur=2, **{kind: scores.astype(dtype)})
    actual, expected = (torch.from_numpy(q.astype(np.float32)) for q in (np.load("out.npy"), expected))
    assert np.load("out.npy").dtype == np.float32
    assert_close("q", actual, expected, rms=1e-3, worst=1e-3)


@pytest.mark.parametrize("name", ["labels.npy", "labels.npz", "grey.png"])
def test_every_kind_of_label_file(folder, name):
    np.save("labels.npy", LABELS.astype(np.int64))
    np.savez("labels.npz", LABELS)
    Image.fromarray(LABELS).save("grey.png")
    assert run("refine", "image.png", "--labels", name, "-o", "out.npy", *SMALL) == 0
    assert np.array_equal(np.load("out.npy"), refine(IMAGE, labels=LABELS, method="window", window_size=5, blur=2))


@pytest.mark.parametrize("name", ["figure.png", "figure.PDF", "figure.svg"])
@pytest.mark.parametrize("kind, scores", SCORES)
def test_figure(folder, kind, scores, name):
    labels = LABELS.copy()
    labels[:5] = 255
    save_labels("unknown.png", labels)
    assert run("refine", "image.png", f"--{kind}", scores, "-o", "out.png", "--figure", name, *SMALL) == 0
    start = (folder / name).read_bytes()[:200]
    assert {"png": b"PNG", "pdf": b"%PDF", "svg": b"<?xml"}[name[-3:].lower()] in start


def test_an_older_output_is_replaced_with_the_usual_permissions(folder):
    (folder / "out.png").write_text("old")
    (folder / "usual").touch()
    assert run("refine", "image.png", "--labels", "labels.png", "-o", "out.png", *SMALL) == 0
    assert (folder / "out.png").read_bytes()[1:4] == b"PNG"
    assert (folder / "out.png").stat().st_mode == (folder / "usual").stat().st_mode


BOX = np.zeros((H, W), np.uint8)
BOX[6:16, 8:20] = 255


def test_a_mask_to_a_mask(folder, capsys):
    Image.fromarray(BOX).save("mask.png")
    assert run("image.png", "--mask", "mask.png", *SMALL) == 0
    q = refine(IMAGE, mask=BOX, method="window", window_size=5, blur=2)
    changed = np.mean((q > 0.5) != (BOX > 0))
    wanted = rf"wrote image_refined.png: {changed:.2%} of the pixels changed.*, [\d.]+ s"
    assert re.fullmatch(wanted, said(capsys))
    with Image.open("image_refined.png") as picture:
        assert picture.mode == "L" and np.array_equal(np.array(picture), (q > 0.5) * 255)
    assert run("image.png", "--mask", "mask.png", "-o", "out.npy", "--figure", "figure.png", *SMALL) == 0
    assert np.array_equal(np.load("out.npy"), q)


def test_shares_of_the_image(folder, capsys):
    given = "image.png", "--labels", "labels.png", "-o", "out.npy"
    assert run("refine", *given, "--theta-space", "30%", "--theta-smooth", "2%") == 0
    assert np.array_equal(np.load("out.npy"), refine(IMAGE, labels=LABELS, theta_space="30%", theta_smooth="2%"))
    said(capsys)
    assert "--theta-space: expected a number, or a share such as 16%, got 'wide'" in error_of(
        capsys, "refine", *given, "--theta-space", "wide"
    )
    assert "--theta-space: expected numbers above 0, or a share" in error_of(
        capsys, "refine", *given, "--theta-space", "0%"
    )


def test_a_compatibility_from_a_file(folder, capsys):
    costs = GENERATOR.normal(size=(C, C)) - np.eye(C)
    np.save("costs.npy", costs)
    given = "image.png", "--labels", "labels.png", "-o", "out.npy"
    assert run(*given, "--compatibility", "costs.npy") == 0
    assert np.array_equal(np.load("out.npy"), refine(IMAGE, labels=LABELS, compatibility=costs))
    capsys.readouterr()
    assert "none.npy: expected an array, got no such file" in error_of(capsys, *given, "--compatibility", "none.npy")


def test_what_looks_wrong_is_told(folder, capsys):
    """A spot that everything around it outvotes; and one that nothing does."""
    labels = np.zeros((H, W), np.uint8)
    labels[10:13, 10:14] = 3
    save_labels("spot.png", labels)
    given = "image.png", "--labels", "spot.png", "-o", "out.png", "--theta-space", "15"
    assert run(*given, "--theta-color", "500", "--weight-appearance", "30") == 0
    out, err = capsys.readouterr()
    assert ", class 3 from 1.67% to 0.00%, " in out
    assert (
        err.startswith("tritoncrf: warning: class 3 went from 1.67% to 0.00% of the pixels; ") and err.count("\n") == 1
    )
    assert run(*given, "--iterations", "0") == 0
    assert ": 0.00% of the pixels changed, " in said(capsys)


@pytest.mark.parametrize("name", ["p.npy", "p.png"])
def test_a_foreground(folder, name):
    grey = GENERATOR.integers(0, 256, (H, W), dtype=np.uint8)
    Image.fromarray(grey).save("p.png")
    np.save("p.npy", (grey / np.float32(255)))
    assert run("refine", "image.png", "--foreground", name, "-o", "out.npy", *SMALL) == 0
    expected = refine(IMAGE, foreground=grey / np.float32(255), method="window", window_size=5, blur=2)
    assert np.array_equal(np.load("out.npy"), expected)


def test_an_output_that_nobody_named_replaces_nothing(folder, capsys):
    command = ["image.png", "--labels", "labels.png", *SMALL]
    (folder / "image_refined.png").write_text("mine")
    assert "got image_refined.png, which exists; --force replaces it" in error_of(capsys, *command)
    assert (folder / "image_refined.png").read_text() == "mine"
    assert run(*command, "--force") == 0
    assert (folder / "image_refined.png").read_bytes()[1:4] == b"PNG"


def test_a_command_wins_over_a_picture_of_its_name(folder, capsys):
    shutil.copy("image.png", "info")
    assert run("info") == 0
    assert "backend" in said(capsys)


def test_without_arguments_it_helps(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["tritoncrf"])
    with pytest.raises(SystemExit, match="0"):
        cli.main()
    assert "tritoncrf IMAGE --mask FILE" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("unknown, marks", [("0", (0,)), ("0,1", (0, 1)), ("none", ()), ("auto", (255,))])
def test_unknown_labels(folder, unknown, marks):
    labels = ["refine", "image.png", "--labels", "labels.png", "--num-classes", "4", "--unknown", unknown]
    assert run(*labels, "-o", "out.npy", *SMALL) == 0
    settings = {"method": "window", "window_size": 5, "blur": 2, "num_classes": 4}
    assert np.array_equal(np.load("out.npy"), refine(IMAGE, labels=LABELS, unknown=marks, **settings))


def test_scores_of_another_size_are_resized(folder):
    settings = {"method": "window", "window_size": 5, "blur": 2}
    small = torch.from_numpy(LOGITS[:, ::2, ::3].copy())
    np.save("small.npy", small)
    large = torch.nn.functional.interpolate(small[None], (H, W), mode="bilinear")[0]
    assert run("refine", "image.png", "--logits", "small.npy", "--resize", "-o", "out.npy", *SMALL) == 0
    assert np.array_equal(np.load("out.npy"), refine(IMAGE, logits=large.numpy(), **settings))
    twice = LABELS.repeat(2, 0).repeat(2, 1)
    save_labels("large.png", twice)
    assert run("refine", "image.png", "--labels", "large.png", "--resize", "-o", "out.npy", *SMALL) == 0
    assert np.array_equal(np.load("out.npy"), refine(IMAGE, labels=LABELS, **settings))
    Image.fromarray(BOX.repeat(2, 0).repeat(2, 1)).save("large.png")
    assert run("refine", "image.png", "--mask", "large.png", "--resize", "-o", "out.npy", *SMALL) == 0
    assert np.array_equal(np.load("out.npy"), refine(IMAGE, mask=BOX, **settings))


@pytest.mark.parametrize("scores, message", [
    (LOGITS[:, ::2, ::2].transpose(1, 2, 0), "--logits: expected classes first, [C, H, W], got [12, 15, 3] in small.npy"),
    (np.full((C, 12, 15), np.inf, np.float32), "logits: expected finite values"),
    (np.full((C, 12, 15), -np.inf, np.float32), "logits: expected a class that is not ruled out"),
])  # fmt: skip
def test_scores_are_looked_at_before_they_are_resized(folder, capsys, scores, message):
    np.save("small.npy", scores)
    assert message in error_of(capsys, "refine", "image.png", "--logits", "small.npy", "--resize", "-o", "out.npy")


def test_a_link_that_leads_nowhere_is_an_output_that_is_there(folder, capsys):
    os.symlink("elsewhere.png", "image_refined.png")
    assert "image_refined.png, which exists" in error_of(capsys, "image.png", "--labels", "labels.png", *SMALL)


def test_pictures_are_turned_upright_or_left_as_stored(folder, capsys):
    exif = Image.Exif()
    exif[0x0112] = 6  # by a quarter to the right
    Image.fromarray(np.rot90(IMAGE)).save("phone.png", exif=exif)
    Image.fromarray(np.rot90(BOX)).save("mask.png", exif=exif)
    settings = {"method": "window", "window_size": 5, "blur": 2}
    assert run("refine", "phone.png", "--logits", "logits.npy", "-o", "out.npy", *SMALL) == 0
    assert np.array_equal(np.load("out.npy"), refine(IMAGE, logits=LOGITS, **settings))
    assert run("refine", "phone.png", "--mask", "mask.png", "-o", "out.npy", *SMALL) == 0
    assert np.array_equal(np.load("out.npy"), refine(IMAGE, mask=BOX, **settings))
    capsys.readouterr()
    command = ["refine", "phone.png", "--logits", "logits.npy", "--as-stored", "-o", "out.npy", *SMALL]
    assert "--logits: expected the size of phone.png, 30 x 24, got 24 x 30" in error_of(capsys, *command)
    np.save("logits.npy", np.rot90(LOGITS, axes=(1, 2)))
    assert run(*command) == 0
    assert np.array_equal(np.load("out.npy"), refine(np.rot90(IMAGE), logits=np.load("logits.npy"), **settings))


def test_info(capsys):
    assert run("info") == 0
    out = capsys.readouterr().out
    assert f"tritoncrf  {__version__}" in out and re.search(
        r"^backend +(torch|triton) on (cpu|cuda)$", out, re.MULTILINE
    )


def test_demo(folder, capsys):
    assert run("demo", "-o", "figure.png") == 0
    noisy, repaired, broken = (
        int(number.replace(",", ""))
        for number in re.search(r"([\d,]+) noisy .* repaired ([\d,]+) .* broke ([\d,]+)", said(capsys)).groups()
    )
    assert repaired > 0.9 * noisy and broken < 0.05 * noisy
    with Image.open("figure.png") as picture:
        assert picture.width > 1500


def test_the_mask_of_the_demo_fits_its_photo():
    mask = demo.mask()
    assert mask.shape == demo.photo().shape[:2] == (600, 512)
    assert np.array_equal(np.unique(mask), np.arange(len(demo.CLASSES)))


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["refine", "--help"]])
def test_help_and_version(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        run(*arguments)
    assert end.value.code == 0 and "tritoncrf" in capsys.readouterr().out


@pytest.mark.processes
def test_as_a_module(folder):
    def run_apart(scores):
        arguments = ["refine", "image.png", "--logits", scores, "-o", "out.png", *SMALL]
        environment = os.environ | {"PYTHONPATH": str(Path(cli.__file__).parent.parent)}
        done = subprocess.run(
            [sys.executable, "-m", "tritoncrf", *arguments], capture_output=True, text=True, env=environment
        )
        return done.returncode, done.stdout, done.stderr

    code, out, err = run_apart("logits.npy")
    assert (code, err) == (0, "") and out.startswith("wrote out.png: ") and out.count("\n") == 1
    assert run_apart("gone.npy") == (2, "", "tritoncrf: error: gone.npy: expected an array, got no such file\n")


def test_networks_have_their_commands_here_too(capsys):
    for name in "train", "evaluate", "predict", "experiments":
        with pytest.raises(SystemExit, match="0"):
            run(name, "--help")
        assert f"usage: tritoncrf {name}" in capsys.readouterr().out
    message = error_of(capsys, "train", "no_such_run", "-o", "run")
    assert message.startswith("no_such_run: expected a configuration file")


# Bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("refin", "invalid choice: 'refin'"),
        ("refin image.png", "; did you mean refine?"),
        ("refine image.png --logits logits.npy --wieght-smooth 3", "; did you mean --weight-smooth?"),
        ("train toy --reesume=1 -o run", "; did you mean --resume?"),
        ("refine", "required: IMAGE"),
        (
            "refine image.png -o out.png",
            "one of the arguments --logits --probabilities --energies --labels --mask --foreground is required",
        ),
        ("refine image.png --logits logits.npy --labels labels.png -o out.png", "not allowed with argument"),
        (
            "refine image.png --labels labels.png --unknown x",
            "--unknown: expected auto, none, or labels separated by commas",
        ),
        ("refine image.png --logits logits.npy --device mps", "device: expected a device of torch"),
        (
            "refine image.png --logits logits.npy -o out.png --method x",
            "method: expected one of 'lattice', 'exact', 'window', 'guided', got 'x'",
        ),
        ("refine image.png --logits logits.npy -o out.png --parameters x", "cutler or a .toml file, got 'x'"),
        (
            "refine image.png --logits logits.npy -o out.png --method guided --theta-color 5",
            "--theta-color: expected none with --method='guided', which does not use it, got 5.0",
        ),
        (
            "refine image.png --logits logits.npy -o out.png --label-confidence 0.6",
            "--label-confidence: expected none with --logits",
        ),
        (
            "refine image.png --logits logits.npy -o out.png --theta-color 1e-5",
            "--theta-space, --theta-color: expected lattice",
        ),
        ("refine image.png --logits logits.npy -o out.png --blur many", "--blur: invalid int value: 'many'"),
        ("demo --size 3", "unrecognized arguments: --size 3"),
        ("demo -o demo.gif", "--out: expected a file name ending in .png or .pdf or .svg, got demo.gif"),
        ("demo -o gone/demo.png", "--out: expected a file in a folder that exists, got gone/demo.png"),
    ],
)
def test_bad_commands(folder, capsys, arguments, message):
    assert message in error_of(capsys, *arguments.split()).replace("|", ".")


@pytest.mark.parametrize(
    "option, value, message",
    [
        ("--window-size", "4", "--window-size: expected an odd int"),
        ("--window-size", "-5", "--window-size: expected an odd int"),
        ("--theta-space", "0", "--theta-space: expected a finite number above 0"),
        ("--theta-color", "-1", "--theta-color: expected a finite number above 0"),
        ("--theta-smooth", "nan", "--theta-smooth: expected a finite number above 0"),
        ("--weight-smooth", "inf", "--weight-smooth: expected a finite number"),
        ("--iterations", "-1", "iterations: expected an int from 0 to 10000"),
        ("--blur", "0", "blur: expected an int of at least 1"),
        ("--radius", "0", "radius: expected an int of at least 1"),
        ("--eps", "0", "eps: expected a finite number above 0"),
        ("--num-classes", "99999999999999999999", "--num-classes: expected an int from 2 to 65536"),
        ("--weight-appearance", "1e39", "--weight-appearance: expected a finite number in the range of float32"),
        ("--iterations", "1000000000", "iterations: expected an int from 0 to 10000"),
        ("--num-classes", "2", "--labels: expected 0 to 1, or 255 where unknown, got 0 to 2"),
        ("--label-confidence", "2", "--label-confidence: expected a probability"),
    ],
)
def test_bad_parameters(folder, capsys, option, value, message):
    method = ("--method", "guided") if option in ("--radius", "--eps") else SMALL
    arguments = ["refine", "image.png", "--labels", "labels.png", "-o", "out.png", *method, option, value]
    assert message in error_of(capsys, *arguments)
    assert not (folder / "out.png").exists()


def broken(source, target):
    target.write_bytes(source.read_bytes()[: source.stat().st_size // 2])


@pytest.mark.parametrize(
    "option, name, message",
    [
        ("--logits", "gone.npy", "gone.npy: expected an array, got no such file"),
        (
            "--logits",
            "folder.npy",
            "--logits: expected a file in folder.npy for each image, got none for 1 of 1: image",
        ),
        ("--logits", "scores.txt", "scores.txt: expected a file ending in .npy or .npz"),
        ("--logits", "broken.npy", "broken.npy: expected an array, unreadable: "),
        ("--logits", "broken.npz", "broken.npz: expected an array, unreadable: "),
        ("--logits", "empty.npy", "empty.npy: expected an array, unreadable: "),
        ("--logits", "objects.npy", "objects.npy: expected an array, unreadable: "),
        ("--logits", "text.npy", "text.npy: expected numbers"),
        ("--logits", "two.npz", "two.npz: expected one array, got 2: first, second"),
        ("--logits", "none.npz", "none.npz: expected one array, got 0"),
        ("--logits", "integers.npy", "logits: expected a floating-point"),
        ("--logits", "nan.npy", "logits: expected finite values"),
        ("--logits", "small.npy", "--logits: expected the size of image.png, 24 x 30, got 23 x 30; --resize"),
        ("--logits", "flat.npy", "logits: expected [C, H, W]"),
        ("--logits", "number.npy", "logits: expected [C, H, W]"),
        ("--probabilities", "logits.npy", "probabilities: expected 0 to 1, got "),
        ("--labels", "gone.png", "gone.png: expected a .png of labels, got no such file"),
        ("--labels", "broken.png", "broken.png: expected a .png of labels, unreadable: "),
        ("--labels", "image.png", "image.png: expected label indices, one channel or a palette, got RGB"),
        ("--labels", "labels.jpg", "labels.jpg: expected a file ending in .png or .npy or .npz"),
        ("--labels", "nan.npy", "--labels: expected integers"),
        ("--labels", "small.png", "--labels: expected the size of image.png, 24 x 30, got 23 x 30; --resize"),
        (
            "--labels",
            "negative.npy",
            "--labels: expected 0 or more, or 255 where unknown, got -1 to 1; pass --unknown=-1",
        ),
    ],
)
def test_bad_scores(folder, capsys, option, name, message):
    (folder / "folder.npy").mkdir()
    (folder / "empty.npy").touch()
    for path in "scores.txt", "labels.jpg":
        shutil.copy("labels.png", path)
    np.savez("broken", LOGITS)
    broken(folder / "broken.npz", folder / "broken.npz")
    broken(folder / "logits.npy", folder / "broken.npy")
    broken(folder / "labels.png", folder / "broken.png")
    arrays = {"integers": LOGITS.astype(int), "nan": LOGITS * np.nan, "small": LOGITS[:, 1:], "flat": LOGITS[0]}
    arrays |= {"number": np.float32(3), "negative": LABELS.astype(int) - 1, "text": np.array(["a"])}
    for stem, array in arrays.items():
        np.save(stem, array)
    np.save("objects", np.array([{}]), allow_pickle=True)
    np.savez("two", first=LOGITS, second=LOGITS)
    np.savez("none")
    save_labels("small.png", LABELS[1:])
    assert message in error_of(capsys, "refine", "image.png", option, name, "-o", "out.png", *SMALL)
    assert not (folder / "out.png").exists()


@pytest.mark.parametrize(
    "name, message",
    [
        ("gone.png", "gone.png: expected a picture, got no such file"),
        ("logits.npy", "logits.npy: expected a picture, unreadable: "),
        ("broken.png", "broken.png: expected a picture, unreadable: "),
        ("deep.png", "deep.png: expected 8 bits per channel, got a picture of mode 'I;16'"),
        ("small.png", "--logits: expected the size of small.png, 23 x 30, got 24 x 30"),
    ],
)
def test_bad_images(folder, capsys, name, message):
    broken(folder / "image.png", folder / "broken.png")
    Image.fromarray(LABELS.astype(np.uint16)).save("deep.png")
    Image.fromarray(IMAGE[1:]).save("small.png")
    assert message in error_of(capsys, "refine", name, "--logits", "logits.npy", "-o", "out.png", *SMALL)


@pytest.mark.parametrize(
    "outputs, message",
    [
        (["-o", "out.jpg"], "--out: expected a file name ending in .png or .npy, got out.jpg"),
        (["-o", "out"], "--out: expected a file name ending in .png or .npy, got out"),
        (["-o", "gone/out.png"], "--out: expected a file in a folder that exists, got gone/out.png"),
        (["-o", "folder.png"], "--out: expected a file, got the folder folder.png"),
        (["-o", "logits.npy"], "got "),
        (["-o", "image.png"], "got "),
        (["-o", "out.png", "--figure", "./out.png"], "--out, --figure, --trace-figure: expected different files, got"),
        (["-o", "out.png", "--trace-figure", "out.png"], "--out, --figure, --trace-figure: expected different files"),
        (["-o", "out.png", "--figure", "f.png", "--trace-figure", "f.png"], "expected different files, got"),
        (["-o", "out.png", "--trace-figure", "trace.npy"], "--trace-figure: expected a file name ending in .png"),
        (["-o", "out.png", "--trace-figure", "gone/trace.png"], "--trace-figure: expected a file in a folder that"),
        (["-o", "out.png", "--figure", "figure.jpg"], "--figure: expected a file name ending in .png"),
        (["-o", "out.png", "--figure", "gone/figure.png"], "--figure: expected a file in a folder that exists"),
    ],
)
def test_bad_outputs_are_refused_before_any_work(folder, capsys, monkeypatch, outputs, message):
    (folder / "folder.png").mkdir()
    monkeypatch.setattr(actions, "refine", None)
    before = (folder / "logits.npy").read_bytes()
    assert message in error_of(capsys, "refine", "image.png", "--logits", "logits.npy", *outputs, *SMALL)
    assert (folder / "logits.npy").read_bytes() == before


def test_more_classes_than_a_png_holds(folder, capsys, monkeypatch):
    monkeypatch.setattr(actions, "refine", None)  # before any work
    np.save("many.npy", np.zeros((256, H, W), np.float32))
    message = "--out: expected at most 255 classes in a .png, got 256; write an .npy"
    for scores in ["--logits", "many.npy"], ["--labels", "labels.png", "--num-classes", "256"]:
        assert error_of(capsys, "refine", "image.png", *scores, "-o", "out.png", *SMALL) == message


# Whole or not at all --------------------------------------------------------------------------------------------


def files(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("old", [None, b"old"])
def test_a_failure_in_the_middle_of_writing_leaves_no_trace(folder, capsys, monkeypatch, old):
    if old is not None:
        (folder / "out.npy").write_bytes(old)
    before = files(folder)

    def disk_full(file, array):
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(actions.np, "save", disk_full)
    message = error_of(capsys, "refine", "image.png", "--logits", "logits.npy", "-o", "out.npy", *SMALL)
    assert "No space left on device" in message
    assert files(folder) == before
    assert old is None or (folder / "out.npy").read_bytes() == old


@pytest.mark.parametrize("failure", [ValueError("broken"), KeyboardInterrupt()])
@pytest.mark.parametrize("figure", ["comparison", "trace"])
def test_a_failing_figure_leaves_no_labels_either(folder, monkeypatch, figure, failure):
    def fail(*_, **__):
        raise failure

    monkeypatch.setattr(actions.figures, figure, fail)
    before = files(folder)
    drawn = "--figure", "figure.png", "--trace-figure", "trace.png"
    code = run("refine", "image.png", "--logits", "logits.npy", "-o", "out.png", *drawn, *SMALL)
    assert code == (130 if isinstance(failure, KeyboardInterrupt) else 2)
    assert files(folder) == before


def test_a_bug_shows_its_traceback(folder, monkeypatch):
    def bug(*_, **__):
        raise AssertionError("a bug")

    monkeypatch.setattr(actions, "refine", bug)
    with pytest.raises(AssertionError):
        run("refine", "image.png", "--logits", "logits.npy", "-o", "out.png", *SMALL)
