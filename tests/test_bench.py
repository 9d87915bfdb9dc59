"""The benchmarks' own plumbing, at tiny sizes: what is counted, who is compared with whom, and what the reports say."""

import math
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import tritoncrf as tc
import tritoncrf.densecrf
from assertions import assert_close
from bench import floors, gpu, peers, pipelines, providers
from bench import test_crf as benchmarks
from bench.peak_memory import peak_on_cpu
from bench.providers import errors, facts, runner
from bench.workloads import (
    GROWTH,
    ConvCRFWork,
    ExactWork,
    GrowthPoint,
    GuidedWork,
    Inputs,
    LatticeWork,
    growth_points,
    live_share,
)
from tritoncrf.models import FCN8sCRFRNN, ResNetConvCRF, SegModel
from tritoncrf.models.__main__ import _parser as models_parser
from tritoncrf.reference import exact as reference

pytestmark = pytest.mark.extras

SIZE = (24, 32)
CPU = torch.device("cpu")

# Floors -----------------------------------------------------------------------------------------------------------


def test_a_lattice_filter_is_counted():
    """21 classes, 10 pixels in simplices of 3 corners, 4 vertices."""
    gathered = 4 * 21 * (2 * 10 * 3 + 4 * 4 * 3)
    counted = floors.Work(2 * 21 * 10 * 4, 21 * (10 * 3 * 4 + 4 * 3 * 3), 0, gathered=gathered)
    assert floors.lattice_filter(21, 10, 3, 4) == counted
    assert floors.lattice_build(10, 3).bytes == 4 * (10 * 2 + 3 * 10 * 3)


def test_an_exact_filter_is_counted():
    counted = floors.exact_filter(21, 10, 5, 0.25)
    assert counted == floors.Work(2 * 21 * 10 * 4, 0, 25, 2 * 26 * 25)


def test_a_step_reads_u_and_q_and_writes_q():
    filters = [floors.lattice_filter(2, 10, 3, 4), floors.lattice_filter(2, 10, 6, 7)]
    step = floors.full_step(filters, 2, 10)
    assert step.bytes == 3 * 2 * 10 * 4 and step.exponentials == 20
    assert step.operations == sum(f.operations for f in filters)
    backward = {learns: floors.full_step_backward(filters, 2, 10, learns) for learns in ("weights", "features")}
    assert backward["weights"].operations == step.operations + 2 * 2 * 20
    assert backward["features"].operations == 3 * step.operations + 2 * 2 * 20


def test_a_guided_filter_is_counted():
    """2 classes, 10 pixels, a guide of 3 channels: 6 entries of A, 4 coefficients, box sums of 5 operations a field."""
    numbers = 2 * 20 + 2 * 4 * 20 + (2 * 3 + 3 + 6) * 10
    filtered = floors.guided_filter(2, 10, 3)
    assert filtered == floors.Work(4 * numbers, 20 * (3 + 6 + 18 + 6 + 6 + 2 * 5 * 4), 0)
    assert floors.guided_step(2, 10, 3) == filtered + floors.Work(4 * 20, 2 * 20, 20)
    backward = {learns: floors.guided_step_backward(2, 10, 3, learns) for learns in ("weights", "features")}
    assert backward["weights"] == filtered + floors.Work(4 * 3 * 20, 4 * 20, 0)
    assert backward["features"].operations == 3 * filtered.operations + (4 + 2 * (4 * 3 + 2 * 6)) * 20
    assert backward["features"].bytes == backward["weights"].bytes + 4 * (2 * 2 * 4 * 20 + (2 * 3 + 6) * 10)
    assert floors.guided_statistics(10, 3) == floors.Work(4 * 12 * 10, (6 + 5 * 9 + 9 + 12) * 10, 0)
    assert floors.guided_statistics_backward(10, 3).bytes == 4 * (3 + 3 + (3 + 6) + 3) * 10


def test_the_floor_is_the_slowest_unit():
    rates = floors.Rates(bytes=1.0, operations=2.0, exponentials=4.0, products=8.0)
    for work, seconds in [((8, 1, 1, 1), 8), ((1, 8, 1, 1), 4), ((1, 1, 8, 1), 2), ((0, 0, 0, 8), 1)]:
        assert floors.Work(*work, gathered=1000).floor(rates) == seconds


# Works and providers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [LatticeWork, ExactWork])
def test_stages_add_up(kind):
    work = kind(size=SIZE, classes=3, batch=2)
    found = facts(work, CPU)
    counts = {stage: work.counts(found, stage) for stage in ("smooth", "appearance", "loop", "kept", "total")}
    assert counts["kept"] == counts["appearance"] + counts["loop"]
    assert counts["total"] == counts["smooth"] + counts["kept"]
    assert work.counts(found, "loop", "weights").operations > counts["loop"].operations
    assert all(c.bytes > 0 for c in counts.values())


def test_stages_of_a_guidance_crf_add_up():
    work = GuidedWork(size=SIZE, batch=2)
    assert facts(work, CPU) == {}
    for learns in (None, "weights", "features"):
        counts = {stage: work.counts({}, stage, learns) for stage in ("build", "loop", "total")}
        assert counts["total"] == counts["build"] + counts["loop"]
        assert counts["total"] == replace(work, batch=1).counts({}, "total", learns) * 2


def test_vertices_are_counted_per_image():
    one, two = (facts(LatticeWork(size=SIZE, batch=b), CPU) for b in (1, 2))
    assert one["vertices"][0] == two["vertices"][0]  # positions serve both images
    assert [m / math.prod(SIZE) for m in one["vertices"]] == one["vertices_per_pixel"]
    # The second image is the first one, shifted: about as many vertices, not twice as many.
    assert two["vertices"][1] == pytest.approx(one["vertices"][1], rel=0.2)


def test_live_share_of_all_pairs_and_of_few():
    f = torch.linspace(0, 1, 400).view(1, 1, -1)
    assert live_share(tc.filters.Exact(f, rtol=0)) == 1
    apart = torch.arange(400.0).view(1, 1, -1) * 100
    blocks = -(-400 // reference.TILE)
    assert live_share(tc.filters.Exact(apart)) == pytest.approx(1 / blocks)


@pytest.mark.parametrize("kind", [LatticeWork, ExactWork, GuidedWork])
def test_the_stages_compute_the_same(kind):
    inputs = Inputs(kind(size=SIZE, classes=3), CPU)
    total = runner("tritoncrf", inputs)()
    assert torch.equal(runner("tritoncrf", inputs, "loop")(), total)
    if kind is LatticeWork:
        assert torch.equal(runner("tritoncrf", inputs, "kept")(), total)
    if kind is GuidedWork:
        assert [f.size for f in runner("tritoncrf", inputs, "build")()] == [SIZE]
        return
    for stage in ("smooth", "appearance"):
        assert runner("tritoncrf", inputs, stage)().size == SIZE


@pytest.mark.parametrize("learns", [None, "weights"])
@pytest.mark.parametrize("work, builds", [
    (LatticeWork(size=SIZE, classes=3), {"loop": 2, "total": 4, "kept": 3}), (ExactWork(size=SIZE, classes=3), {"total": 4}),
    (ConvCRFWork(3, size=SIZE, classes=3), {"total": 4}), (GuidedWork(size=SIZE, classes=3), {"loop": 1, "total": 2}),
])  # fmt: skip
def test_what_waits_for_the_device_is_not_captured(work, builds, learns, monkeypatch):
    """Filters are built once for the capture, and by each call before the replay; those of windows and guides within."""
    built = []
    monkeypatch.setattr(providers, "replayed", lambda call: call)
    for name in ("filters",) if work.filter == "guided" else ("smooth", "appearance"):
        build = getattr(type(work), name)
        monkeypatch.setattr(type(work), name, lambda *args, build=build: built.append(args) or build(*args))
    inputs = Inputs(work, CPU, learns=learns or ("features" if work.filter == "window" else None))
    for stage, count in builds.items():
        built.clear()
        call = providers.graphed(inputs, stage)
        call()
        if not work.follows_picture and stage == "total":
            call()
        assert len(built) == count


@pytest.mark.parametrize("kind, learns, count", [
    (LatticeWork, "weights", 3), (LatticeWork, "features", 6), (GuidedWork, "weights", 2), (GuidedWork, "features", 4),
])  # fmt: skip
def test_a_training_step_gives_every_gradient(kind, learns, count):
    inputs = Inputs(kind(size=SIZE, classes=3), CPU, learns=learns)
    gradients = runner("tritoncrf", inputs)()
    assert len(gradients) == len(inputs.learned) == count
    assert all(g.abs().sum() > 0 for g in gradients)


@pytest.mark.parametrize("kind", [LatticeWork, GuidedWork])
def test_errors_are_those_of_float32(kind):
    work = kind(size=SIZE, classes=3, iterations=2)
    found = errors(work, CPU, None)
    assert 0 < found["step_rms"] < 1e-5 and 0 < found["loop_max"] < 1e-4
    assert 0 < errors(work, CPU, "weights")["gradient_rms"] < 1e-4


def test_pydensecrf_is_called_as_its_own_shape_asks(monkeypatch):
    """Run through tritoncrf.densecrf, which has pydensecrf's API, and its order of axes: columns first."""
    monkeypatch.setitem(sys.modules, "pydensecrf", tritoncrf)
    monkeypatch.setitem(sys.modules, "pydensecrf.densecrf", tritoncrf.densecrf)
    inputs = Inputs(LatticeWork(size=SIZE, classes=3), CPU)
    work = inputs.work
    smooth, appearance = work.smooth_features(inputs)[:, [1, 0]], work.appearance_features(inputs)[:, [1, 0, 2, 3, 4]]
    filters = [tc.filters.Lattice(f, normalization="symmetric") for f in (smooth, appearance)]
    expected = tc.mean_field(inputs.logits, filters, inputs.weights, iterations=work.iterations)[0].flatten(1)
    q = torch.from_numpy(runner("pydensecrf", inputs)())
    assert torch.equal(q, torch.from_numpy(runner("pydensecrf", inputs, "loop")()))
    assert_close("Q", q, expected)
    for stage in ("smooth", "appearance"):
        runner("pydensecrf", inputs, stage)()


@pytest.mark.parametrize("radius", [1, 3, 9])
def test_torch_boxes_compute_the_guidance_crf(radius):
    """The same in float64, values and what is timed of the gradients, with windows wider than the image among them."""
    work = GuidedWork(size=(15, 17), classes=3, batch=2, radius=radius)
    inputs = Inputs(work, CPU, torch.float64)
    assert_close("S", runner("torch_boxes", inputs)(), runner("tritoncrf", inputs)())
    assert torch.equal(runner("torch_boxes", inputs, "loop")(), runner("torch_boxes", inputs)())
    inputs = Inputs(work, CPU, torch.float64, learns="weights")
    gradients = [runner(provider, inputs)() for provider in ("torch_boxes", "tritoncrf")]
    for name, *pair in zip(("logits", "weight"), *gradients, strict=True):
        assert_close(name, *pair)


def test_kornia_filters_as_we_do():
    """Beyond the image it has zeros: the same everywhere with constant boxes, and else inside."""
    pytest.importorskip("kornia", reason="kornia: not installed")
    work = GuidedWork(size=SIZE, classes=3)
    inputs = Inputs(work, CPU, torch.float64)
    guide, values = work.guide(inputs), inputs.logits.softmax(1)
    found = peers.guided_blur(guide, values, work.radius, *work.thetas)
    for box, inside in ("constant", ...), ("count", (..., *[slice(2 * work.radius, -2 * work.radius)] * 2)):
        expected = tc.filters.Guided(guide, work.radius, *work.thetas, box=box)(values)
        assert_close(box, found[inside], expected[inside])
    filter = tc.filters.Guided(guide, work.radius, *work.thetas, box="constant")
    expected = tc.mean_field(inputs.logits, [filter], work.weights, iterations=work.iterations, output="logits")
    assert_close("S", runner("kornia", inputs)(), expected)


@pytest.mark.slow  # it compiles
def test_keops_computes_the_exact_crf():
    pytest.importorskip("pykeops", reason="pykeops: not installed")
    inputs = Inputs(ExactWork(size=(16, 16), classes=3, iterations=2), CPU)
    assert_close("S", runner("pykeops", inputs)(), runner("tritoncrf", inputs)(), rms=1e-4, worst=1e-3)


@pytest.mark.processes
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_is_measured_in_a_process_of_its_own():
    assert peak_on_cpu("tritoncrf", LatticeWork(size=(64, 64)), "loop", "weights") > 0
    assert peak_on_cpu("torch_boxes", GuidedWork(size=(64, 64)), "total", "weights") > 0


@pytest.mark.parametrize("filter", GROWTH)
def test_growth_points_are_made_and_counted(filter, monkeypatch):
    assert {point[0] for point in growth_points("cpu")} == {"window", "lattice", "guided"}
    monkeypatch.setitem(GROWTH[filter][0], "side", 20)
    for axis, value in (("side", 16), ("features", 1), ("features", 7)):
        grown = GrowthPoint(filter, axis, value, CPU)
        assert grown.features.shape[1] == grown.point["features"]
        assert grown.apply().shape == grown.values.shape
        assert all(c.bytes > 0 for c in grown.counts.values())


def test_peers_that_are_not_installed_are_named(monkeypatch):
    monkeypatch.setattr(peers, "OPTIONAL", ("no_such_peer",))
    assert peers.versions() == {"no_such_peer": "not installed"}
    assert not peers.installed("no_such_peer") and peers.installed("im2col")


def names(comparisons) -> list[str]:
    return ["-".join(filter(None, [*benchmarks.words(work), *run])) for runs in comparisons for work, *run in runs]


def test_quick_benchmarks_take_the_lattice_and_its_peer():
    quick, whole = (names(benchmarks.forward(q)) for q in (True, False))
    assert set(quick) < set(whole) and len(set(whole)) == len(whole)
    for provider in ("tritoncrf", "pydensecrf"):
        assert f"lattice-batch1-T5-grace_hopper-total-{provider}-eager" in quick
    assert "exact-batch1-T5-grace_hopper-total-pykeops-eager" in whole
    assert not any(run.startswith("exact") for run in quick)
    for provider in ("tritoncrf", "torch_boxes", "kornia"):
        assert f"guided-r3-500x500-batch1-T3-grace_hopper-total-{provider}-eager" in quick
        assert f"guided-r3-256x512-batch1-T3-grace_hopper-total-{provider}-eager" in whole
    # Of peers whose calls take seconds only the whole is timed.
    assert "lattice-batch1-T5-grace_hopper-loop-pydensecrf-eager" in quick
    for name in ("torch_boxes", "kornia", "pykeops"):
        assert not any(name in run and "-total-" not in run for run in whole)


def test_peers_do_each_thing_once():
    found = names(benchmarks.forward(False) + benchmarks.training(False))
    others = [name for name in found if "tritoncrf" not in name]
    assert "window-k13-blur1-none-batch1-T5-grace_hopper-total-im2col-eager" in others
    assert not any("symmetric" in name or "T10" in name for name in others)
    assert [name for name in others if "weights" in name] == [
        "guided-r3-500x500-batch1-T3-grace_hopper-total-weights-torch_boxes-eager"
    ]
    assert any("k13-blur1-symmetric" in name for name in found) and any("T10" in name for name in found)


# Pipelines --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["forward", "training step"])
def test_pipelines_are_timed_with_and_without_their_crf(mode, monkeypatch):
    """The networks themselves at a tenth of their width."""
    options = {"network": {"width": 0.1}, "crf": {"iterations": 1}}
    tiny = {
        "FCN-8s": (lambda c: FCN8sCRFRNN(c, **options), (24, 32), "lattice"),
        "ResNet": (lambda c: ResNetConvCRF(c, network={"depth": 18, "width": 0.1}), (40, 48), "window"),
        "SegModel": (lambda c: SegModel(c, 18, 0.1), (40, 50), "guided"),
    }
    monkeypatch.setattr(pipelines, "PIPELINES", tiny)
    monkeypatch.setattr(pipelines, "ROUNDS", 1)
    assert [case[0] for case in pipelines.cases("cpu")] == list(tiny)
    assert len(pipelines.cases("cuda")) == 4 * len(tiny)
    for name, (_, size, filter) in tiny.items():
        pipeline = pipelines.Pipeline(name, 2, mode, CPU)
        assert pipeline.filter == filter and pipeline.image.shape == (2, 3, *size)
        found = pipeline.run()
        if mode == "forward":
            assert found.shape[0] == 2 and not found.requires_grad
        else:
            assert all(p.grad is not None for p in pipeline.model.parameters() if p.requires_grad)
        assert math.isfinite(pipeline.crf_seconds())


@pytest.mark.parametrize("name", gpu.TABLES)
def test_the_tables_of_the_gpu_stages_are_experiments_at_full_size(name, tmp_path, monkeypatch):
    """Run as a user would; what they leave is taken to the stage's folder."""

    def boxed(command, seconds, environment):
        assert seconds == 150 and environment == {"TRITONCRF_COMMIT": "abc"}
        options = models_parser().parse_args(command[3:])
        assert options.data == tmp_path / ("" if name == "synthetic" else "camvid")
        assert name == "synthetic" or (options.full_size and options.name == name)
        options.out.mkdir(parents=True)
        (options.out / f"{name}.md").write_text("a table")
        return 0

    monkeypatch.setattr(gpu, "time", SimpleNamespace(monotonic=lambda: 0.0))
    monkeypatch.setattr(gpu, "run_boxed", boxed)
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    assert gpu.run(name, tmp_path / "out", "abc", tmp_path, minutes=3) == 0
    assert (tmp_path / "out" / f"{name}.md").read_text() == "a table"
    assert gpu.run(name, tmp_path / "out", "abc", None, minutes=3) == 2
