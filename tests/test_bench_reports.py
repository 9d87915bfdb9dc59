"""What the benchmarks' reports say: the gate before them, growth, figures, comparisons, clocks and occupancy."""

import json
import subprocess
import sys
from collections import Counter
from dataclasses import asdict, replace
from importlib.metadata import version
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bench import __main__ as command
from bench import floors, growth, measurements, plots, suite, timing
from bench.compiled import profile, sweep
from bench.compiled.occupancy import MULTIPROCESSORS, Occupancy, occupancy
from bench.workloads import GRACE_HOPPER, ConvCRFWork, CRFWork, GuidedWork, Inputs, LatticeWork
from drawings import picture, texts

pytestmark = pytest.mark.extras

SIZE = (24, 32)
ENVIRONMENT = {
    "device": "a processor", "date": "today", "commit": "c0ffee", "torch": "2.0", "triton": "3.0", "cuda": None,
    "python": "3", "peers": {"pydensecrf": "not installed"}, "tests": {"window": "green", "lattice": "green"},
}  # fmt: skip


def row(work: CRFWork, provider: str, median: float, **others) -> dict:
    """As a benchmark writes it."""
    about = {"work": work.id, "filter": work.filter, "picture": GRACE_HOPPER.stem, "provider": provider}
    measured = {"median": median, "iqr": 0.0, "times": [median]}
    measured |= {"floor": None, "copy_bandwidth": None, "peak_memory": 1000}
    measured |= {"mode": "eager", "clocks": {"cpu": 2400.0}}
    return asdict(work) | about | measured | asdict(floors.Work(10, 20, 0)) | others


def point(filter: str, axis: str, value: int, median: float, operations: int, **others) -> dict:
    """A row of W7."""
    about = {"work": "W7", "filter": filter, "axis": axis, "value": value, "provider": "tritoncrf", "mode": "eager"}
    measured = {"median": median, "iqr": 0.0, "floor": None, "copy_bandwidth": None, "peak_memory": None}
    counted = asdict(floors.Work(8, operations, 0))
    return {"side": 256, "batch": 1, "clocks": {}} | about | measured | counted | {axis: value} | others


def tables(text: str) -> list[dict]:
    """Every line of every table, its cells by their header."""
    found, header = [], None
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]] if line.startswith("|") else None
        if cells and header and not set(line) <= set("|-"):
            found.append(dict(zip(header, cells)))
        header = cells and (header or cells)
    return found


# Reports ----------------------------------------------------------------------------------------------------------


def test_a_report_names_its_peers_and_compares_with_them():
    work = LatticeWork(size=SIZE)
    rows = [
        row(work, "tritoncrf", 1.0, stage="total", vertices_per_pixel=[0.1, 0.25]),
        row(work, "tritoncrf", 0.5, stage="kept"),
        row(work, "tritoncrf", 0.1, stage="loop"),
        row(work, "pydensecrf", 3.0, stage="total"),
        row(replace(work, iterations=10), "tritoncrf", 1.0, stage="total"),
    ]
    text = measurements.markdown(ENVIRONMENT, rows, {"a-times.png": "times"})
    assert "pydensecrf: not installed" in text and "commit c0ffee, torch 2.0" in text
    assert "![times](a-times.png)" in text and "refused" not in text
    found = tables(text)
    assert [line["faster"] for line in found] == ["3 x", "6 x", "", "", ""]
    assert found[0]["M/N"] == "0.1, 0.25" and found[0]["T"] == "5" and "k" not in found[0]


def test_a_row_with_two_peers_is_compared_with_both():
    work = GuidedWork(size=SIZE)
    rows = [
        row(work, provider, median, stage="total")
        for provider, median in (("tritoncrf", 1.0), ("torch_boxes", 3.0), ("kornia", 8.0))
    ]
    ours, *others = (measurements.cells(row, measurements.peers_of(row, measurements.peers(rows))) for row in rows)
    assert ours["faster"] == "3 x, 8 x" and ours["memory"] == "1 x, 1 x" and ours["r"] == "3"
    assert all(other["faster"] == "" for other in others)


def test_ratios_are_taken_within_a_round():
    """The machine was twice as slow in the second round."""
    ours = row(LatticeWork(size=SIZE), "tritoncrf", 2.0, times=[1.0, 4.0, 2.0], stage="kept")
    peer = row(LatticeWork(size=SIZE), "pydensecrf", 4.0, times=[3.0, 8.0, 4.0], stage="total")
    assert measurements.cells(ours, [peer])["faster"] == "2 x (2 to 3)"
    other = row(LatticeWork(size=SIZE), "pydensecrf", 4.0, times=[3.0, 8.0], stage="total")
    assert measurements.cells(ours, [other])["faster"] == "2 x"


def test_works_that_differ_in_any_number_are_told_apart():
    works = [GuidedWork(size=SIZE), GuidedWork(size=SIZE, radius=8), LatticeWork(size=SIZE), ConvCRFWork(3, size=SIZE)]
    assert len({measurements.key(row(work, "tritoncrf", 1.0)) for work in works}) == len(works)


def test_a_report_of_a_pipeline_tells_the_share_of_its_crf():
    about = {"work": "W6", "pipeline": "P", "filter": "guided", "size": (4, 5), "batch": 8, "mode": "forward"}
    measured = {
        "provider": "tritoncrf",
        "median": 0.4,
        "iqr": 0.0,
        "times": [0.4],
        "crf": 0.1,
        "peak_memory": None,
        "clocks": {},
    }
    counted = asdict(floors.NOTHING) | {"floor": None, "copy_bandwidth": None}
    (found,) = tables(measurements.markdown(ENVIRONMENT, [about | measured | counted], {}))
    assert found == {
        "pipeline": "P", "size": "4x5", "batch": "8", "run": "tritoncrf forward", "ms": "400", "IQR": "0",
        "network ms": "300", "CRF ms": "100", "CRF's share": "25.0%", "images/s": "20",
    }  # fmt: skip


def test_a_head_states_clocks_and_what_is_refused():
    rows = [row(ConvCRFWork(3, size=SIZE), "tritoncrf", 1.0, clocks={"sm": sm, "memory": 2619}) for sm in (1980, 1755)]
    head = "\n".join(measurements.head(ENVIRONMENT | {"tests": {"window": "green", "exact": "red (status 1)"}}, rows))
    assert "Clocks while measuring: sm 1755 to 1980 MHz, memory 2619 to 2619 MHz." in head
    assert (
        "The exact filter is not measured: its equivalence tests are red (status 1)." in head and "window" not in head
    )
    assert "not readable" in "\n".join(measurements.head(ENVIRONMENT, [row | {"clocks": {}} for row in rows]))


# The gate ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def only_benchmark_plugin(monkeypatch):
    """Each pytest that is started loads the plugin of the benchmarks alone: others take two seconds to import."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTEST_PLUGINS", "pytest_benchmark.plugin")


@pytest.fixture
def gated(tmp_path, monkeypatch, only_benchmark_plugin):
    """Puts files of tests that pass or fail in the place of the equivalence tests."""

    def put(**passes: bool) -> dict:
        files = {name: tmp_path / f"test_{name}.py" for name in passes}
        for name, file in files.items():
            file.write_text(f"def test_it():\n    assert {passes[name]}\n")
        found = {name: [str(file)] for name, file in files.items()}
        monkeypatch.setattr(suite, "TESTS_ON_CPU", found)
        monkeypatch.setattr(suite, "TESTS_ON_GPU", found)
        return found

    return put


@pytest.mark.processes
def test_a_red_filter_leaves_the_others_green(gated, capsys):
    found = suite.gate(gated(window=True, lattice=False, loop=True))
    assert found == {"window": "green", "lattice": "red (status 1)"}
    assert "assert False" in capsys.readouterr().out  # says what failed


@pytest.mark.processes
def test_a_red_loop_refuses_all(gated):
    assert set(suite.gate(gated(window=True, guided=True, loop=False)).values()) == {"red (status 1), the loop's"}


@pytest.mark.processes
def test_tests_that_find_nothing_are_not_green(tmp_path, only_benchmark_plugin):
    empty = tmp_path / "test_nothing.py"
    empty.write_text("")
    assert suite.gate({"exact": [str(empty)]}) == {"exact": "no tests"}


@pytest.mark.processes
def test_nothing_is_measured_where_all_are_red(gated, tmp_path):
    gated(window=False, lattice=False)
    assert suite.run_suite(tmp_path / "out") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.processes
def test_a_suite_measures_what_is_green_and_names_the_rest(gated, tmp_path, monkeypatch):
    """The two smallest windows, for the lattice is refused."""
    gated(window=True, lattice=False)
    out = tmp_path / "out"
    monkeypatch.setattr(suite, "BENCHMARKS", ["bench/test_growth.py", "-k", "128 or 256"])
    assert suite.run_suite(out, quick=True) == 1
    (found,) = out.glob("*.json")
    data = json.loads(found.read_text())
    assert [(row["filter"], row["value"]) for row in data["rows"]] == [("window", 128), ("window", 256)]
    assert all(row["median"] > 0 and len(row["times"]) >= 3 for row in data["rows"])
    text = found.with_suffix(".md").read_text()
    assert "The lattice filter is not measured" in text and f"({found.stem}-growth.png)" in text
    assert {path.suffix for path in out.iterdir()} == {".json", ".md", ".png"}


@pytest.mark.parametrize("tests", [suite.TESTS_ON_CPU, suite.TESTS_ON_GPU], ids=["cpu", "gpu"])
def test_every_filter_has_its_tests(tests):
    assert {"window", "lattice", "guided", "exact"} <= set(tests)
    files = [word for words in tests.values() for word in words if word.endswith(".py")]
    assert files and all((suite.ROOT / file).exists() for file in files)


# Growth -----------------------------------------------------------------------------------------------------------


def test_an_exact_power_law_is_found():
    law = growth.power_law([2, 8, 21, 64], [3 * v**1.7 for v in (2, 8, 21, 64)])
    assert law.exponent == pytest.approx(1.7) and law.error == pytest.approx(0, abs=1e-9)
    assert law.at([5.0]) == pytest.approx(3 * 5**1.7)
    assert growth.power_law([2, 4], [1, 8]) == growth.PowerLaw(pytest.approx(3), None, pytest.approx(np.log(1 / 8)))


def test_a_noisy_power_law_is_found_within_its_error():
    """Of 200 fits with 5 % noise about two in three are within one standard error: on 8 degrees of freedom 65 %."""
    generator, values = np.random.default_rng(0), np.geomspace(1, 1000, 10)
    laws = [growth.power_law(values, values**2 * np.exp(0.05 * generator.normal(size=10))) for _ in range(200)]
    within = np.mean([abs(law.exponent - 2) < law.error for law in laws])
    assert 0.55 < within < 0.75 and max(abs(law.exponent - 2) for law in laws) < 0.05


def test_the_upper_half_is_fitted_and_compared_with_the_counted_work():
    """The small values take 1 ms, whatever they are; the counted work grows as it should."""
    sides = [128, 256, 512, 1024, 2048, 4096, 8192]
    rows = [point("window", "side", n, max(1e-3, 1e-9 * n**2), n**2) for n in reversed(sides)]
    rows += [point("lattice", "features", n, 1e-3 * n, 0, bytes=n**3, stage="build") for n in (1, 2)]
    window, lattice = growth.curves(rows + [row(ConvCRFWork(3, size=SIZE), "tritoncrf", 1.0)])
    assert window.axis == "pixels" and window.values == [n**2 for n in sides]
    assert window.values[window.fitted] == [n**2 for n in sides[3:]]
    assert window.law.exponent == pytest.approx(1) and window.expected.exponent == pytest.approx(1)
    assert lattice.values[lattice.fitted] == [1, 2]
    assert lattice.law.exponent == pytest.approx(1) and lattice.expected.exponent == pytest.approx(3)
    lines = tables(measurements.exponents([window, lattice]))
    assert [line["exponent"] for line in lines] == ["1.00 ± 0.00", "1.00"]
    assert (lines[0]["from"], lines[0]["to"], lines[0]["points"]) == (str(1024**2), str(8192**2), "4")


# Figures ----------------------------------------------------------------------------------------------------------


def test_growth_is_drawn_a_panel_for_each_axis():
    rows = [point("guided", "radius", r, 2.0, 5, stage=stage) for r in (3, 8, 64) for stage in ("apply", "build")]
    rows += [
        point(filter, "classes", c, 1e-3 * c, c, stage="apply") for c in (2, 8, 64) for filter in ("guided", "lattice")
    ]
    figure = plots.growing(growth.curves(rows))
    assert [axes.get_xlabel() for axes in figure.axes] == ["radius", "classes", "classes"]
    shown = Counter(filter(None, texts(figure)))
    assert shown["guided filter"] == shown["lattice filter"] == 1
    assert shown["0.00 ± 0.00, expected 0.00"] == shown["1.00 ± 0.00, expected 1.00"] == 2
    assert [label.get_text() for label in figure.axes[1].get_xticklabels()] == ["2", "8", "64"]
    assert [len(axes.lines) for axes in figure.axes] == [6, 3, 3]  # points, fit and counted work of each stage
    assert picture(figure).std() > 0


def test_times_are_drawn_beside_those_of_peers_and_floors():
    window, guided = ConvCRFWork(7, size=SIZE), GuidedWork(size=SIZE)
    rows = [
        row(guided, "tritoncrf", 0.02, stage="total"),
        row(guided, "tritoncrf", 0.01, stage="total", mode="graph", floor=0.004),
        row(guided, "torch_boxes", 0.05, stage="total"),
        row(guided, "tritoncrf", 0.008, stage="loop"),
        row(window, "tritoncrf", 2.0),
        row(replace(window, picture="another"), "tritoncrf", 3.0, picture="another"),
        row(window, "tritoncrf", 4.0, learns="features") | {"work": "W5"},
    ]
    groups = plots.whole_calls(rows)
    assert [[r["median"] for r in group] for group in groups] == [[2.0], [4.0], [0.01, 0.05]]
    figure = plots.times(groups)
    labels = [[label.get_text() for label in axes.get_yticklabels()] for axes in figure.axes]
    assert labels == [["W1 k=7 blur 1", "W3 24x32"], ["W1 k=7 blur 1"]]
    assert {"Forward", "Training step", "10 ms  (2.5 x)", "50 ms  (5 x)", "2 s", "4 s"} <= set(texts(figure))
    assert {"tritoncrf", "torch_boxes"} <= set(texts(figure))
    assert picture(figure).std() > 0


def test_figures_stand_beside_the_report_and_are_small(tmp_path):
    rows = [row(ConvCRFWork(7, size=SIZE), "tritoncrf", 2.0)]
    assert list(plots.draw(tmp_path / "a", rows)) == ["a-times.png"]
    rows += [point("window", "batch", b, 0.1 * b, b) for b in (1, 2)]
    written = plots.draw(tmp_path / "b", rows)
    assert list(written) == ["b-times.png", "b-growth.png"]
    assert all(0 < (tmp_path / name).stat().st_size < 150_000 for name in written)


@pytest.mark.parametrize("seconds, text", [(12.34, "12.3 s"), (0.25, "250 ms"), (1e-3, "1 ms"), (2.5e-5, "25 µs")])
def test_durations_are_short(seconds, text):
    assert plots.duration(seconds) == text


# Comparisons ------------------------------------------------------------------------------------------------------


def saved(path, rows: list[dict]):
    path.write_text(json.dumps({"environment": ENVIRONMENT | {"commit": path.name}, "rows": rows}))
    return path


WORKS = {k: ConvCRFWork(k, size=SIZE) for k in (3, 5, 7, 9)}


@pytest.fixture
def compared(tmp_path, monkeypatch, capsys):
    """Two reports' rows to what `python -m bench compare` prints, and its exit status."""

    def run(before: list[dict], after: list[dict]) -> tuple[str, int]:
        paths = [str(saved(tmp_path / name, rows)) for name, rows in (("before", before), ("after", after))]
        monkeypatch.setattr(sys, "argv", ["bench", "compare", *paths])
        status = command.main()
        return capsys.readouterr().out, status

    return run


def test_a_regression_is_found_and_noise_is_not(compared):
    """15 % slower, twice: once with times that scatter as much. 8 % is little, 30 % less is no regression."""
    before = [row(work, "tritoncrf", 1.0, iqr=0.08 if k == 5 else 0.01) for k, work in WORKS.items()]
    after = [
        row(WORKS[k], "tritoncrf", t, iqr=0.08 if k == 5 else 0.01)
        for k, t in {3: 1.15, 5: 1.15, 7: 1.08, 9: 0.7}.items()
    ]
    text, status = compared(before, after)
    assert status == 1 and "1 are slower and 1 faster" in text
    lines = tables(text)
    assert [line["window_size"] for line in lines] == ["3", "5", "7", "9"]  # worst first
    assert [line[""] for line in lines] == ["slower", "", "", "faster"]
    assert lines[0]["after / before"] == "1.15" and "blur" not in lines[0]  # all rows have the same
    text, status = compared(before, [r for r in after if r["window_size"] != 3])
    assert status == 0 and "Only before" in text


def test_rows_in_one_report_alone_are_named(compared):
    old, new = (row(WORKS[k], "tritoncrf", 1.0) for k in (3, 5))
    text, status = compared([old], [new])
    assert status == 0
    before, after = text[text.index("Only before") :].split("Only after")
    assert "size 24x32" in before and "window_size 3," in before and "window_size 5," in after


def test_a_slower_peer_is_no_regression_of_ours(compared):
    rows = [row(WORKS[3], provider, 1.0) for provider in ("tritoncrf", "im2col")]
    text, status = compared(rows, [rows[0], rows[1] | {"median": 1.5}])
    assert status == 0 and "The peers took 1.5 times as long" in text


# Bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("compare gone.json gone.json", "gone.json: expected a report of the suite, .json, got no such file"),
        ("compare text.json text.json", "text.json: expected a report of the suite, .json, unreadable: "),
        (
            "compare empty.json empty.json",
            "empty.json: expected a report of the suite, .json, unreadable: 'environment'",
        ),
        (
            "gpu --stage tests --out text.json",
            "--out: expected a folder that can be created, got text.json: File exists",
        ),
        ("gpu --stage bench --out new --data gone", "--data: expected a folder, got gone"),
        ("run --out text.json", "--out: expected a folder that can be created, got text.json: File exists"),
        ("profile --out text.json", "--out: expected a folder that can be created, got text.json: File exists"),
        ("compile --out gone/report.md", "--out: expected a file in a folder that exists, got gone/report.md"),
        ("compile --targets sm_1", "--targets: expected some of "),
        ("gpu --stage nothing --out new", "--stage: invalid choice: 'nothing'"),
    ],
)
def test_bad_input_ends_with_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.json").write_text("no json")
    (tmp_path / "empty.json").write_text("{}")
    assert command.main(arguments.split()) == 2
    out, error = capsys.readouterr()
    assert error.startswith("bench: error: ") and message in error and error.count("\n") == 1 and out == ""


# Clocks -----------------------------------------------------------------------------------------------------------


def test_clocks_of_a_cpu(tmp_path):
    assert timing.cpu_rates(tmp_path) == {}
    for core, khz in enumerate((2_000_000, 3_000_000)):
        file = tmp_path / f"sys/devices/system/cpu/cpu{core}/cpufreq/scaling_cur_freq"
        file.parent.mkdir(parents=True)
        file.write_text(f"{khz}\n")
    assert timing.cpu_rates(tmp_path) == {"cpu": 2500}
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text("processor : 0\ncpu MHz\t\t: 2445.5\nprocessor : 1\ncpu MHz\t\t: 2446.5\n")
    assert timing.cpu_rates(tmp_path) == {"cpu": 2446}
    assert all(rate > 0 for rate in timing.clock_rates("cpu").values())


@pytest.mark.parametrize(
    "printed, rates", [("1980, 2619\n", {"sm": 1980, "memory": 2619}), ("[N/A], [N/A]\n", {}), (None, {})]
)
def test_clocks_of_a_gpu(printed, rates, monkeypatch):
    def run(command, **options):
        assert command[:2] == ["nvidia-smi", "--id=GPU-1234"]
        if printed is None:
            raise FileNotFoundError
        return SimpleNamespace(stdout=printed)

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="1234"))
    assert timing.clock_rates("cuda") == rates


# Occupancy and profile --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_warps, registers, shared, programs, limits", [
    (4, 32, 0, 16, ("registers", "warps")),  # 32 x 32 = 1024 a warp: 64 warps fill 65536, and there are no more
    (4, 33, 0, 12, ("registers",)),  # 1056 a warp, rounded to 1280: 12 warps in each file of 16384
    (4, 168, 0, 3, ("registers",)),  # 5376 = 21 x 256 a warp: 3 warps a file
    (4, 255, 0, 2, ("registers",)),  # 8160, rounded to 8192: 2 warps a file
    (8, 255, 0, 1, ("registers",)),
    (1, 16, 0, 32, ("programs",)),
    (4, 24, 0, 16, ("warps",)),
    (4, 24, 100 << 10, 2, ("shared",)),  # 101 KB with the system's of 228
    (4, 24, 75 << 10, 3, ("shared",)),  # 76 KB: exactly three
    (4, 24, (75 << 10) + 1, 2, ("shared",)),
])  # fmt: skip
def test_occupancy_by_hand(num_warps, registers, shared, programs, limits):
    found = occupancy(MULTIPROCESSORS["sm_90"], num_warps, registers, shared)
    assert found == Occupancy(programs, programs * num_warps, limits)


def test_resources_of_a_launched_kernel():
    compiled = SimpleNamespace(n_regs=168, n_spills=2, metadata=SimpleNamespace(num_warps=4, shared=512))
    cells = dict(zip(profile.RESOURCES, profile.held(compiled, "sm_90")))
    assert cells == {
        "warps": "4", "registers": "168", "spills": "8", "shared": "512", "programs": "3", "resident": "12 of 64",
        "limit": "registers",
    }  # fmt: skip
    assert profile.held(compiled, "sm_75") == ["4", "168", "8", "512", "", "", ""]


def test_kernels_are_told_apart_by_what_they_are_for():
    work = ConvCRFWork(3, normalization="symmetric", size=SIZE, classes=3)
    found = profile.kernels(Inputs(work, "cpu", learns="features", backend="triton"), run=False)
    of_name = {kernel.name: kernel for kernel in found}
    assert of_name["_window_quads_kernel softmax"].launches == {"loop": 4}
    assert of_name["_window_quads_kernel scores"].purpose == "loop 1"
    assert of_name["_window_quads_kernel softmax_adjoint"].launches == {"backward": 5}
    assert sum((kernel.launches for kernel in found), Counter())["build"] == 2
    gradients = [name for name in profile.names(found) if name.startswith("_window_quads_feature_gradient_kernel")]
    assert len(set(gradients)) == len(gradients) > 1 and all("D=" in name for name in gradients)


@pytest.mark.processes
def test_a_profile_without_a_gpu(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(profile, "WORKS", {"W1": (ConvCRFWork(3, size=SIZE, classes=3), "weights")})
    monkeypatch.setattr(sys, "argv", ["bench", "profile", "--targets", "sm_90,sm_80", "--out", str(tmp_path)])
    assert command.main() == 0
    printed = capsys.readouterr().out
    for target in "sm_90", "sm_80":
        (found,) = tmp_path.glob(f"compiled-{target}-*.md")
        assert found.read_text() in printed
        lines = tables(found.read_text())
        counts, kinds = lines[: len(lines) // 2], lines[len(lines) // 2 :]
        assert [line["kernel"] for line in counts] == [line["kernel"] for line in kinds]
        assert all(int(line["registers"]) > 0 and int(line["programs"]) > 0 for line in counts)
        assert all(float(line["x floor"]) >= 1 and line["per"] == "pixel, tap" for line in counts)
        assert counts[0]["kernel"].endswith("softmax") and counts[0]["launches"] == "loop 4"
        assert all(float(kind["ldg"]) > 0 and kind["share"] == "1" for kind in kinds)
        for line, kind in zip(counts, kinds):
            parts = [float(kind[f"{part} us"]) for part in ("issue", "fma", "int", "mufu", "L1", "matrix", "bytes")]
            assert max(parts) == float(line["predicted us"])
    (found,) = tmp_path.glob("compiled-sm_90-*.json")
    rows = json.loads(found.read_text())["rows"]
    read = profile.predictions(tmp_path, "sm_90", version("triton"))
    assert read == {"W1": rows} and profile.predictions(tmp_path, "sm_90", "2.0") == {}
    kernels = profile.compiled_kernels(*profile.WORKS["W1"])
    assert profile.predicted_of(rows, kernels) == [row["predicted"] for row in rows]
    assert profile.predicted_of(rows[1:], kernels) == [None] * len(kernels)


@pytest.mark.processes
def test_a_profile_of_some_kernels_counted_by_two_processes(monkeypatch, capsys):
    work = GuidedWork(size=SIZE, classes=3)
    monkeypatch.setattr(profile, "WORKS", {"W3": (work, "weights"), "W2": (LatticeWork(size=SIZE), "weights")})
    assert profile.run(["sm_90"], None, "W3", "step.*(softmax|scores)$", jobs=2) == 0
    lines = tables(capsys.readouterr().out)
    assert {line["kernel"].split()[1] for line in lines} == {"softmax", "scores"}
    assert all(line["per"] == "pixel, class" for line in lines if "per" in line)


@pytest.mark.processes
def test_a_compile_report(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sweep, "configurations", lambda thorough: [sweep.Configuration(classes=3, filters=1)])
    monkeypatch.setattr(
        sys, "argv", ["bench", "compile", "--targets", "sm_90,gfx942", "--out", str(tmp_path / "compiled.md")]
    )
    assert command.main() == 0
    lines = tables((tmp_path / "compiled.md").read_text())
    assert all(int(line["registers"]) > 0 for line in lines)
    assert all(float(line["instructions"]) > 20 and float(line["ldg"]) > 0 for line in lines if "ldg" in line)
    assert [line["kernel"] for line in lines if "ldg" in line] == [
        line["kernel"] for line in lines if "ldg" not in line
    ]
    assert "configurations, at most" in capsys.readouterr().out
