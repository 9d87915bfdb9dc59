"""W1, ConvCRF; W2 and W4, fully connected CRFs; W3, guidance CRF; their training steps (W5). CPU or GPU, as found."""

from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import pytest

from bench.peak_memory import peak_on_cpu, peak_on_gpu
from bench.peers import installed
from bench.providers import errors, facts, graphed, offers, runner
from bench.runs import Run
from bench.timing import clock
from bench.workloads import ConvCRFWork, ExactWork, GuidedWork, Inputs, LatticeWork, photographs
from tritoncrf.devices import device_found

pytestmark = pytest.mark.benchmark(timer=clock)

DEVICE = device_found()
ON_GPU = DEVICE.type == "cuda"
SIZE = (500, 500) if ON_GPU else (500, 334)
EXACT_SIZE = SIZE if ON_GPU else (96, 128)  # a CPU forms some 1e8 weights a second
MODES = ["eager", "graph"] if ON_GPU else ["eager"]
MAX_PHOTOS = 4

WINDOWS = [
    ConvCRFWork(k, blur, normalization, size=SIZE)
    for normalization in ("none", "symmetric")
    for k in (7, 11, 13)
    for blur in (1, 4)
]
LATTICES = [LatticeWork(size=SIZE, iterations=t) for t in (5, 10)]
GUIDED = [GuidedWork(size=(500, 500)), GuidedWork(size=(256, 512), classes=19)]
EXACT = ExactWork(size=EXACT_SIZE)
# Quick runs take the published settings.
QUICK_WINDOWS = [work for work in WINDOWS if work.window_size <= 11 and work.normalization == "none"]


def runs(work, stage="total", learns=None, modes=MODES, peers=True):
    """A work by this library and by those of its peers that have the stage: (work, stage, learns, provider, mode).

    Peers are timed eagerly: their launches are short beside their kernels, or there is no GPU in them. They take most
    of the time, so each is timed once for what it does: ten iterations are five twice, a normalisation is little of it,
    and one peer is enough for a training step.
    """
    ours = [(work, stage, learns, "tritoncrf", mode) for mode in modes]
    once = work.iterations <= 5 and (work.filter != "window" or work.normalization == "none")
    names = work.peers[: 1 if learns else None] if peers and once else ()
    return ours + [(work, stage, learns, name, "eager") for name in names if offers(name, stage)]


def stages(work):
    """A whole CRF that is not of windows, and its stages, in turn. The filters of fully connected ones are built
    eagerly: building waits for the device. The peers of guided ones are timed as a whole."""
    found = runs(work) + runs(work, "loop", peers=work.filter != "guided")
    if work.filter == "guided":
        found += runs(work, "build", peers=False)
    elif work.iterations == 5:
        for stage in ("smooth", "appearance"):
            found += runs(work, stage, modes=["eager"])
        if work.filter == "lattice":
            found += runs(work, "kept")
    return found


def forward(quick: bool) -> list:
    """Lists of runs that are timed in turn. W2 comes first: it is the shortest, so a suite that ends early has at least
    that part."""
    lattices = [stages(work) for work in (LATTICES[:1] if quick else LATTICES)]
    guided = [stages(work) for work in (GUIDED[:1] if quick else GUIDED)]
    windows = [runs(work) for work in (QUICK_WINDOWS if quick else WINDOWS)]
    exact = stages(EXACT) if ON_GPU else runs(EXACT)  # a CPU takes seconds for each stage, nearly all for the loop
    return lattices + guided + windows + ([] if quick else [exact])


def training(quick: bool) -> list:
    """As `forward`."""
    windows = QUICK_WINDOWS if quick else WINDOWS
    if not ON_GPU:  # a CPU takes seconds for each step, and a normalisation adds two sums to it
        windows = [work for work in windows if work.normalization == "none"]
    batches = (1, 8) if ON_GPU else (1,)
    found = []
    for batch in batches:
        lattice = replace(LATTICES[0], batch=batch)
        found.append(runs(lattice, learns="weights", peers=False))
        # The gradient of features goes back through the build, which waits for the device: no graph holds it.
        found.append(runs(lattice, learns="features", modes=["eager"], peers=False))
    for batch in batches:
        guided = replace(GUIDED[0], batch=batch)
        found.append(runs(guided, learns="weights", peers=batch == 1))
        found.append(runs(guided, learns="features", peers=False))
    for batch in batches:
        for work in windows:
            # Each iteration of im2col keeps T k^2 C N values for its backward: beyond this, tens of gigabytes.
            peers = batch == 1 and work.window_size == 7
            found.append(runs(replace(work, batch=batch), learns="features", peers=peers))
    if ON_GPU and not quick:
        found.append(runs(EXACT, learns="weights", peers=False))
    return found


def photos(config) -> list:
    """The same work on other pictures: what a window costs must not depend on what it sees; what a lattice costs
    does."""
    paths, found = photographs(config.getoption("--photos")), []
    for path in paths[:: max(1, len(paths) // MAX_PHOTOS)][:MAX_PHOTOS]:
        found.append(runs(ConvCRFWork(7, size=SIZE, picture=str(path)), modes=MODES[-1:], peers=False))
        found.append(runs(LatticeWork(size=SIZE, picture=str(path)), modes=MODES[-1:]))
    return found


def words(work) -> list[str]:
    found = [work.filter]
    if work.filter == "window":
        found += [f"k{work.window_size}", f"blur{work.blur}", work.normalization]
    if work.filter == "guided":
        found += [f"r{work.radius}", "x".join(map(str, work.size))]
    return [*found, f"batch{work.batch}", f"T{work.iterations}", Path(work.picture).stem]


def pytest_generate_tests(metafunc):
    config = metafunc.config
    cases = {test_forward: forward, test_training_step: training}.get(metafunc.function)
    cases = cases(config.getoption("--quick")) if cases else photos(config)
    metafunc.parametrize("runs", [
        pytest.param(runs, id="-".join(filter(None, [*words(runs[0][0]), runs[0][2]])),
                     marks=getattr(pytest.mark, runs[0][0].filter))
        for runs in cases
    ])  # fmt: skip


def prepared(run) -> Run | None:
    """The run with its inputs made, or None where its provider is not installed."""
    work, stage, learns, provider, mode = run
    if not installed(provider):
        return None
    inputs = Inputs(work, DEVICE, learns=learns)
    eager = runner(provider, inputs, stage)
    call = eager if mode == "eager" else graphed(inputs, stage)
    memory = partial(peak_on_gpu, eager)  # a graph's replay allocates nothing
    if not ON_GPU:  # there it takes a process of its own: of whole calls only
        memory = partial(peak_on_cpu, provider, work, stage, learns) if stage == "total" else None
    about = asdict(work) | {"filter": work.filter, "picture": Path(work.picture).stem, "provider": provider}
    about |= {"mode": mode, "work": "W5" if learns else work.id}
    about |= {"learns": learns} if learns else {}
    about |= {"stage": stage} if work.filter != "window" else {}
    found = facts(work, DEVICE)
    # Building is held by tests alone, and images of a batch do not meet.
    if provider == "tritoncrf" and work.batch == 1 and stage in ("loop", "total"):
        about |= errors(work, DEVICE, learns)
    return Run(call, work.counts(found, stage, learns), found | about, memory)


def in_turn(measure, runs):
    measure(*filter(None, map(prepared, runs)))


def test_forward(measure, runs):
    in_turn(measure, runs)


def test_training_step(measure, runs):
    in_turn(measure, runs)


def test_photos(measure, runs):
    in_turn(measure, runs)
