"""`tritoncrf refine` of data sets: the bits of `refine`, one line for what is bad, and how good the labels are."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tritoncrf import cli
from tritoncrf.datasets import run as runs
from tritoncrf.datasets import workers
from tritoncrf.datasets.file_stages import FileStages
from tritoncrf.datasets.manifest import in_shard
from tritoncrf.locks import locked
from tritoncrf.models.metrics import boundary_counts, boundary_iou_per_class, confusion_matrix, iou_per_class
from tritoncrf.refine import refine

C = 3
NAMES = ["a", "b 1", "çé", "d", "e"]
SIZES = [(20, 30), (21, 17), (20, 30), (16, 16), (9, 40)]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with images, scores of every kind, and true labels."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    for kind in "images", "logits", "probabilities", "labels", "foreground", "mask", "cams", "truth":
        Path(kind).mkdir()
    for name, (height, width) in zip(NAMES, SIZES):
        image = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(image).save(f"images/{name}.png")
        truth = np.zeros((height, width), np.uint8)
        truth[3:8, 4:12], truth[8:, 8:], truth[:1] = 1, 2, 255
        Image.fromarray(truth).save(f"truth/{name}.png")
        logits = generator.normal(size=(C, height, width)) + 2 * (truth == np.arange(C)[:, None, None])
        logits = logits.astype(np.float32)
        p = np.exp(logits) / np.exp(logits).sum(0)
        np.save(f"logits/{name}.npy", logits)
        np.save(f"probabilities/{name}.npy", p)
        np.savez(f"cams/{name}.npz", keys=np.array([1, 4]), cam=p[1:])
        np.save(f"foreground/{name}.npy", p[1])
        Image.fromarray(p.argmax(0).astype(np.uint8)).save(f"labels/{name}.png")
        Image.fromarray(255 * (p[1] > 0.5).astype(np.uint8)).save(f"mask/{name}.png")
    return tmp_path


def run(*arguments, kind="probabilities", out="out", jobs=0):
    given = ["refine", "images", f"--{kind}", kind, "-o", out, "--device", "cpu", *arguments]
    return cli.main([str(a) for a in given] + ([] if jobs is None else ["--jobs", str(jobs)]))


def error_of(capsys, *arguments, **options) -> str:
    """The one line that a failing command prints."""
    capsys.readouterr()
    assert run(*arguments, **options) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("tritoncrf: error: ")
    return err.removeprefix("tritoncrf: error: ").rstrip()


def image(name):
    return np.asarray(Image.open(f"images/{name}.png"))


def labels(name, out="out"):
    return np.asarray(Image.open(f"{out}/{name}.png"))


def records(out="out"):
    lines = [line for path in sorted(Path(out).glob("manifest*.jsonl")) for line in path.read_text().splitlines()]
    return {record["name"]: record for record in map(json.loads, lines)}


def contents(out="out"):
    return {path.name: path.read_bytes() for path in sorted(Path(out).glob("*.png"))}


# What it writes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("jobs", [0, 2])
@pytest.mark.parametrize("method", ["lattice"])
def test_the_labels_are_those_of_refine(folder, one_thread, capsys, jobs, method):
    assert run("--method", method, "--theta-color", "20", jobs=jobs) == 0
    for name in NAMES:
        p = np.load(f"probabilities/{name}.npy")
        expected = refine(image(name), probabilities=p, method=method, theta_color=20, device="cpu").argmax(0)
        assert np.array_equal(labels(name), expected)
        assert records()[name]["changed"] == pytest.approx(np.mean(expected != p.argmax(0)), abs=1e-6)
    out, err = capsys.readouterr()
    assert out.startswith("5 refined, 0 skipped, 0 failed; ") and out.count("\n") == 1
    assert any(out.endswith(f" images per second; bound by {stage}\n") for stage in ("reading", "refining", "writing"))


@pytest.mark.parametrize("kind", ["logits", "labels", "foreground", "mask"])
def test_scores_of_every_kind(folder, one_thread, kind):
    assert run(kind=kind) == 0
    for name in NAMES:
        if kind in ("labels", "mask"):
            scores = np.asarray(Image.open(f"{kind}/{name}.png"))
        else:
            scores = np.load(f"{kind}/{name}.npy")
        q = refine(image(name), **{kind: scores}, device="cpu")
        expected = 255 * (q > 0.5) if kind in ("foreground", "mask") else q.argmax(0)
        assert np.array_equal(labels(name), expected)


@pytest.mark.parametrize("ends", ["20,200", "1%,99%"])
def test_a_range_of_values(folder, one_thread, ends):
    assert run("--value-range", ends) == 0
    given = tuple(end if end.endswith("%") else float(end) for end in ends.split(","))
    p = np.load(f"probabilities/{NAMES[0]}.npy")
    q = refine(image(NAMES[0]), probabilities=p, value_range=given)
    assert np.array_equal(labels(NAMES[0]), q.argmax(0))


def test_class_activation_maps(folder, one_thread):
    np.savez("cams/a.npz", keys=np.array([], np.int64), cam=np.zeros((0, *SIZES[0]), np.float32))
    costs = np.random.default_rng(1).uniform(size=(7, 7)).astype(np.float32)
    costs += costs.T
    np.fill_diagonal(costs, 0)
    np.save("costs.npy", costs)
    shutil.rmtree("probabilities")
    os.rename("cams", "probabilities")
    assert run("--cams", "--background-power", 4, "--compatibility", "costs.npy") == 0
    own = np.array([0, 2, 5])
    for name in NAMES[1:]:
        cams = np.load(f"probabilities/{name}.npz")["cam"]
        scores = np.concatenate([(1 - cams.max(0, keepdims=True)) ** 4, cams])
        q = refine(image(name), probabilities=scores, compatibility=costs[np.ix_(own, own)], device="cpu")
        assert np.array_equal(labels(name), own[q.argmax(0)])
    assert not labels("a").any()  # which has no class beside the background


def test_a_list_of_names_and_several_images(folder):
    Path("val.txt").write_text("d\ne\n")
    given = ["--probabilities", "probabilities", "--jobs", "0", "--device", "cpu"]
    assert cli.main(["refine", "val.txt", "--images-dir", "images", "-o", "one", *given]) == 0
    assert cli.main(["refine", "images/d.png", "images/e.png", "-o", "two", *given]) == 0
    assert cli.main(["refine", "images/[de].png", "-o", "three", *given]) == 0
    assert set(contents("one")) == {"d.png", "e.png"} and contents("one") == contents("two") == contents("three")


def test_without_jobs_all_cores_work(folder, monkeypatch):
    asked = {}

    def spy(stages, tasks, **where):
        asked.update(where)
        return iter_of(stages, tasks, jobs=0, devices=["cpu"])

    iter_of = workers.run
    monkeypatch.setattr(workers, "run", spy)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(3)), raising=False)
    assert run(jobs=None) == 0 and asked == {"jobs": 3, "devices": ["cpu"]}


def test_an_object_store(folder, one_thread):
    upath = pytest.importorskip("upath", reason="universal-pathlib is not installed")
    assert run() == 0 and run(out="memory://command/out") == 0
    store = upath.UPath("memory://command/out")
    try:
        assert {path.name: path.read_bytes() for path in store.glob("*.png")} == contents()
        found = {name: json.loads((store / "records" / f"{name}.json").read_bytes()) for name in NAMES}
        strip = lambda record: {**record, "seconds": None}  # noqa: E731
        assert {name: strip(record) for name, record in found.items()} == {n: strip(r) for n, r in records().items()}
        (store / "records" / "a.json").unlink()
        (store / "d.png").unlink()
        assert run(out="memory://command/out") == 0
        assert {path.name: path.read_bytes() for path in store.glob("*.png")} == contents()
    finally:
        store.fs.rm("/command", recursive=True)


# Going on -----------------------------------------------------------------------------------------------------------


def stamps(out="out"):
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in Path(out).glob("*.png")}


def test_what_is_finished_is_skipped(folder, capsys):
    assert run() == 0
    before, lines = stamps(), Path("out/manifest.jsonl").read_bytes()
    capsys.readouterr()
    assert run() == 0
    assert capsys.readouterr().out == "0 refined, 5 skipped, 0 failed\n"
    assert stamps() == before and Path("out/manifest.jsonl").read_bytes() == lines


def test_outputs_without_their_lines_are_adopted(folder, capsys):
    assert run() == 0
    before, known = stamps(), records()
    path = Path("out/manifest.jsonl")
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:2]))
    capsys.readouterr()
    assert run() == 0
    assert capsys.readouterr().out == "0 refined, 5 skipped, 0 failed\n" and stamps() == before
    assert {name: r["changed"] for name, r in records().items()} == {name: r["changed"] for name, r in known.items()}
    assert [r["seconds"] is None for r in records().values()] == [False, False, True, True, True]


def test_an_output_that_is_gone_is_made_again(folder, capsys):
    assert run() == 0
    before, whole = stamps(), contents()
    Path("out/d.png").unlink()
    capsys.readouterr()
    assert run() == 0
    assert capsys.readouterr().out.startswith("1 refined, 4 skipped, 0 failed; ") and contents() == whole
    assert {name for name, stamp in stamps().items() if before[name] != stamp} <= {"d.png"}


def test_what_a_killed_run_has_left_is_removed(folder):
    assert run() == 0
    Path("out/a.png").unlink()
    left = Path("out/.a.png.0123456789abcdef.part")
    left.write_bytes(b"half")
    other = Path("out/.notes.part")
    other.write_bytes(b"mine")
    assert run() == 0 and not left.exists() and other.exists()


def test_failed_images_are_listed_and_tried_again_when_told(folder, capsys):
    scores = np.load("probabilities/d.npy")
    np.save("probabilities/d.npy", np.where(scores > 0.9, np.nan, scores))
    Path("images/e.png").write_bytes(Path("images/e.png").read_bytes()[:200])
    assert run() == 1
    out, err = capsys.readouterr()
    assert out.startswith("3 refined, 0 skipped, 2 failed; ")
    lines = err.splitlines()
    assert lines[0].startswith("tritoncrf: failed: d: probabilities: expected finite") and "e.png" in lines[1]
    assert lines[2:] == ["tritoncrf: --retry-failed retries them"]
    assert records()["d"]["changed"] is None and records()["d"]["error"].startswith("probabilities: expected finite")
    assert set(contents()) == {"a.png", "b 1.png", "çé.png"} and not list(Path("out").glob(".*"))

    np.save("probabilities/d.npy", scores)
    assert run() == 1 and capsys.readouterr() == ("0 refined, 3 skipped, 2 failed\n", err)
    assert run("--retry-failed") == 1
    assert capsys.readouterr().out.startswith("1 refined, 3 skipped, 1 failed; ") and records()["d"]["error"] is None


def test_other_settings_are_refused(folder, capsys):
    assert run("--iterations", 10) == 0
    before = contents()
    assert error_of(capsys, "--iterations", 5).endswith("--iterations: 10 before, 5 now")
    assert error_of(capsys, "--iterations", 10, "--save", "probabilities").endswith(
        "--save: labels before, probabilities now"
    )
    assert error_of(capsys, kind="logits").endswith(
        "scores: --probabilities before, --logits now; --iterations: 10 before, 5 now"
    )
    assert contents() == before
    assert run("--iterations", 10, "--method", "guided", "--num-classes", 3) == 0  # which says nothing else


def test_settings_that_made_nothing_may_change(folder, capsys):
    """As where every image needed an option that was forgotten."""
    shutil.copytree("probabilities", "large")
    for name in NAMES:
        np.save(f"probabilities/{name}.npy", np.load(f"probabilities/{name}.npy")[:, ::2, ::2])
    assert run() == 1 and not contents()
    assert run("--upsample", "bilinear") == 0 and set(records()) == set(NAMES)
    assert error_of(capsys).endswith("--upsample: bilinear before, none now")


def test_two_runs_at_once(folder, capsys):
    assert run() == 0
    with locked(Path("out")):
        assert "expected a folder for this run alone, got one in use by another" in error_of(capsys)


def test_shards(folder, capsys):
    assert run(out="whole") == 0
    for shard in "1/3", "3/3", "2/3":
        assert run("--shard", shard) == 0
    assert contents() == contents("whole") and set(records()) == set(NAMES)
    for number in 1, 2, 3:
        lines = Path(f"out/manifest-{number}-of-3.jsonl").read_text().splitlines()
        assert [json.loads(line)["name"] for line in lines] == [
            name for name in sorted(NAMES) if in_shard(name, (number, 3))
        ]
    capsys.readouterr()
    assert run() == 0 and capsys.readouterr().out == "0 refined, 5 skipped, 0 failed\n"


def test_an_interrupted_run_says_so(folder, capsys, monkeypatch):
    assert run(out="whole") == 0
    write = FileStages.write
    done = []

    def interrupted(self, task, refined):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(task)
        return write(self, task, refined)

    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(FileStages, "write", interrupted)
        assert run() == 130
    line = "tritoncrf: interrupted, 2 of 5 images are done; run the same command to resume\n"
    assert capsys.readouterr() == ("", line)
    assert run() == 0 and contents() == contents("whole")
    assert capsys.readouterr().out.startswith("3 refined, 2 skipped, 0 failed; ")


def test_a_full_disk_ends_the_run(folder, capsys, monkeypatch):
    write = FileStages.write

    def full(self, task, refined):
        if task.entry.name == "e":
            raise OSError(28, "No space left on device", "out/d.png")
        return write(self, task, refined)

    with monkeypatch.context() as patch:
        patch.setattr(FileStages, "write", full)
        assert "No space left on device" in error_of(capsys)
    assert run() == 0 and set(records()) == set(NAMES)
    assert capsys.readouterr().out.startswith("2 refined, 3 skipped, 0 failed; ")


# How good it is -----------------------------------------------------------------------------------------------------


def expected_table(found, width=1):
    """The numbers of a table, by the definitions."""
    columns = []
    for which in 0, 1:
        confusion, boundary = np.zeros((C, C), np.int64), np.zeros((C, 2), np.int64)
        for name in NAMES:
            truth = np.asarray(Image.open(f"truth/{name}.png")).astype(np.int64)
            confusion += confusion_matrix(found[name][which], truth, C)
            boundary += boundary_counts(found[name][which], truth, C, widths=[width])[0]
        columns.append((iou_per_class(confusion), boundary_iou_per_class(boundary)))
    (iou, boundary), (iou_after, boundary_after) = columns
    return 100 * np.stack([iou, iou_after, boundary, boundary_after], 1)


def numbers(out):
    head, *rows = out.splitlines()[: C + 2]
    assert head.split() == ["IoU", "before", "after", "Boundary", "IoU", "before", "after"]
    assert [row[:12].strip() for row in rows] == ["mean", *(f"class {c}" for c in range(C))]
    return np.array([[float(word) for word in row[12:].split()] for row in rows])


def test_ground_truth(folder, capsys):
    assert run("--ground-truth", "truth") == 0
    said = capsys.readouterr().out
    found = {name: (np.load(f"probabilities/{name}.npy").argmax(0), labels(name).astype(np.int64)) for name in NAMES}
    expected = expected_table(found)
    assert np.abs(numbers(said) - np.vstack([expected.mean(0), expected])).max() < 0.0051

    Path("out/d.png").unlink()
    assert run("--ground-truth", "truth") == 0  # those that are skipped count too
    again = capsys.readouterr().out
    assert numbers(again).tolist() == numbers(said).tolist() and "1 refined, 4 skipped" in again


@pytest.mark.parametrize("options", [["--save", "probabilities"], ["--confidence", "0.9"]])
def test_what_was_written_counts(folder, capsys, options):
    """Labels that are left unknown are missed, and a second run says the same."""
    assert run("--ground-truth", "truth", *options) == 0
    said = numbers(capsys.readouterr().out)
    assert run("--ground-truth", "truth", *options) == 0
    assert numbers(capsys.readouterr().out).tolist() == said.tolist()
    if options[0] == "--confidence":
        assert (labels("a") == 255).any()
        confusion = np.zeros((C + 1, C + 1), np.int64)
        for name in NAMES:
            truth = np.asarray(Image.open(f"truth/{name}.png")).astype(np.int64)
            found = labels(name).astype(np.int64)
            confusion += confusion_matrix(np.where(found == 255, C, found), truth, C + 1)
        assert np.abs(said[1:, 1] - 100 * iou_per_class(confusion)[:C]).max() < 0.0051


def test_ground_truth_of_maps_has_its_own_numbers(folder, capsys):
    shutil.rmtree("probabilities")
    os.rename("cams", "probabilities")
    for name in NAMES:
        truth = np.array(Image.open(f"truth/{name}.png"))
        Image.fromarray(np.where(truth == 1, 2, np.where(truth == 2, 5, truth)).astype(np.uint8)).save(
            f"truth/{name}.png"
        )
    assert run("--ground-truth", "truth", "--cams", "--background-score", 0.3) == 0
    rows = capsys.readouterr().out.splitlines()
    assert [row.split()[:2] for row in rows[2:5]] == [["class", "0"], ["class", "2"], ["class", "5"]]
    assert float(rows[3].split()[2]) > 30


def test_ground_truth_that_is_none(folder, capsys):
    Image.fromarray(np.full(SIZES[0], 7, np.uint8)).save("truth/a.png")
    Image.fromarray(np.zeros((4, 4), np.uint8)).save("truth/d.png")
    assert run("--ground-truth", "truth") == 1
    err = capsys.readouterr().err.splitlines()
    assert err[0] == (
        "tritoncrf: failed: a: truth/a.png: expected true labels from 0 to 2, or 255 where unknown, got 7 to 7"
    )
    assert err[1] == ("tritoncrf: failed: d: truth/d.png: expected true labels of the image's size, 16 x 16, got 4 x 4")


def test_masks_of_255_as_ground_truth(folder, capsys):
    for name in NAMES:
        Image.fromarray(255 * (np.array(Image.open(f"truth/{name}.png")) == 1).astype(np.uint8)).save(
            f"truth/{name}.png"
        )
    assert run("--ground-truth", "truth", kind="foreground") == 0
    assert "--ground-truth: expected objects labelled 1, got none; 255 means unknown" in capsys.readouterr().err


# Bad input ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, message",
    [
        (["--figure", "x.png"], "--figure: expected one image and its scores, got a data set"),
        (["--trace"], "--trace: expected one image and its scores, got a data set"),
        (["--force"], "--force: expected one image and its scores, got a data set"),
        (["--shard", "0/4"], "argument --shard: expected I/N, from 1/N to N/N, got '0/4'"),
        (["--shard", "5/4"], "argument --shard: expected I/N, from 1/N to N/N, got '5/4'"),
        (["--devices", "gpu"], "argument --devices: expected GPU numbers separated by commas, got 'gpu'"),
        (["--devices", "0"], "--devices: expected none beside --device, got both"),
        (["--engine", "ray"], "--device: expected none beside --engine ray, which places the work"),
        (["--address", "auto"], "--address: expected --engine ray beside it, got auto alone"),
        (["--damping", "1.5"], "--damping: expected"),
        (["--theta-space", "0"], "--theta-space: expected"),
        (["--method", "guided", "--theta-color", "3"], "--theta-color: expected none with --method='guided'"),
        (["--num-classes", "300", "--compatibility", "costs.npy"], "--compatibility: expected"),
        (["--ground-truth", "nowhere"], "--ground-truth: expected a folder"),
        (["--confidence", "2"], "--confidence: expected a probability"),
        (["--jobs", "-1"], "--jobs: expected"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_options_that_do_not_work(folder, capsys, options, message):
    np.save("costs.npy", np.zeros((2, 2), np.float32))
    assert error_of(capsys, *options, jobs=None if "--jobs" in options else 0).startswith(message)
    assert not Path("out").exists()


@pytest.mark.parametrize("option", [["--jobs", "2"], ["--shard", "1/2"], ["--cams"], ["--overlay"]])
def test_options_of_data_sets_beside_one_image(folder, capsys, option):
    given = ["refine", "images/a.png", "--probabilities", "probabilities/a.npy", "-o", "a.png", *option]
    assert cli.main(given) == 2
    expected = f"tritoncrf: error: {option[0]}: expected a data set, got one image and its scores\n"
    assert capsys.readouterr() == ("", expected)


def test_the_folder_of_outputs(folder, capsys):
    given = ["refine", "images", "--probabilities", "probabilities", "--jobs", "0"]
    assert cli.main(given) == 2
    assert capsys.readouterr().err == "tritoncrf: error: --out: expected the folder of the outputs, got none\n"
    assert "expected a folder of its own to write to, got one that is read from" in error_of(capsys, out="images")
    assert "expected a folder of its own to write to" in error_of(capsys, "--recursive", out="images/out")
    Path("file").write_text("")
    assert "--out: expected a folder that can be created, got file" in error_of(capsys, out="file")
    Path("mine").mkdir()
    Path("mine/d.png").write_bytes(b"by hand")
    message = "mine/d.png: expected an output of this command or none, got another file"
    assert error_of(capsys, out="mine") == message and os.listdir("mine") == ["d.png"]


def test_images_without_scores(folder, capsys):
    Path("probabilities/d.npy").unlink()
    assert "got none for 1 of 5: d" in error_of(capsys) and not Path("out").exists()
    assert run("--skip-missing") == 0
    out, err = capsys.readouterr()
    assert out.startswith("4 refined") and err == "tritoncrf: warning: left out d, without scores or image\n"


def test_many_failures_are_shown_in_part(folder, capsys, monkeypatch):
    monkeypatch.setattr(runs, "SHOWN", 2)
    for name in NAMES:
        Path(f"images/{name}.png").write_bytes(b"")
    assert run() == 1
    err = capsys.readouterr().err.splitlines()
    assert len(err) == 4 and err[2] == "tritoncrf: failed: 3 more, in the manifest"
