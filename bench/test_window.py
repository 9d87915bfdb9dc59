"""W1, ConvCRF; its training step (W5); and the growth of the window filter (W7). CPU or GPU, as found."""

from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import pytest

from bench import floors
from bench.memory import peak_on_cpu, peak_on_gpu
from bench.timing import clock, device_found, replayed
from bench.workloads import ConvCRFWork, Inputs, errors, growth_call, growth_points, runner

pytestmark = pytest.mark.benchmark(timer=clock)

DEVICE_TYPE = device_found().type
SIZE = (500, 500) if DEVICE_TYPE == "cuda" else (500, 334)
MODES = ["eager", "graph"] if DEVICE_TYPE == "cuda" else ["eager"]
# The peer is timed eagerly: its launches are short beside its kernels.
RUNS = [("tritoncrf", mode) for mode in MODES] + [("im2col", "eager")]
PHOTO_SUFFIXES = {".jpg", ".jpeg", ".png"}
MAX_PHOTOS = 4

# Quick runs take the published settings.
WORKS = [
    ConvCRFWork(k, blur, normalization, SIZE)
    for normalization in ("none", "symmetric")
    for k in (7, 11, 13)
    for blur in (1, 4)
]
QUICK = [work for work in WORKS if work.window_size <= 11 and work.normalization == "none"]


def name(work: ConvCRFWork) -> str:
    return f"k{work.window_size}-blur{work.blur}-{work.normalization}-batch{work.batch}"


def pytest_generate_tests(metafunc):
    config = metafunc.config
    works = QUICK if config.getoption("--quick") else WORKS
    if metafunc.function is test_photos:
        folder = config.getoption("--photos")
        photos = sorted(p for p in folder.rglob("*") if p.suffix.lower() in PHOTO_SUFFIXES) if folder else []
        metafunc.parametrize("photo", photos[:: max(1, len(photos) // MAX_PHOTOS)][:MAX_PHOTOS], ids=lambda p: p.stem)
    if metafunc.function is test_growth:
        points = growth_points(DEVICE_TYPE)
        metafunc.parametrize("axis, value", points[:2] if config.getoption("--quick") else points)
    if "work" in metafunc.fixturenames:
        if metafunc.function is test_training_step and DEVICE_TYPE == "cuda":
            works = [*works, *(replace(work, batch=8) for work in works)]
        metafunc.parametrize("work", works, ids=name)
    if "mode" in metafunc.fixturenames:
        metafunc.parametrize("provider, mode", RUNS)


def convcrf(measure, device, work, provider, mode, *, training=False):
    inputs = Inputs(work, device, training=training)
    call = runner(provider, inputs)
    memory = partial(peak_on_gpu, call) if device.type == "cuda" else partial(peak_on_cpu, provider, work, training)
    facts = asdict(work) | {"picture": Path(work.picture).stem, "provider": provider, "mode": mode}
    if provider == "tritoncrf" and work.batch == 1:  # images of a batch do not meet
        facts |= errors(work, device, training)
    measure(
        replayed(call) if mode == "graph" else call,
        floors.convcrf(
            work.batch, work.classes, work.size, work.window_size, work.blur, work.iterations, backward=training
        ),
        memory,
        work="W5" if training else "W1",
        **facts,
    )


def test_forward(measure, device, work, provider, mode):
    convcrf(measure, device, work, provider, mode)


def test_photos(measure, device, photo):
    """The same work on other pictures: what a window costs must not depend on what it sees."""
    convcrf(measure, device, ConvCRFWork(7, size=SIZE, picture=str(photo)), "tritoncrf", MODES[-1])


def test_growth(measure, device, axis, value):
    call, point = growth_call(axis, value, device)
    size = (point["side"], point["side"])
    pairs = floors.pairs(size, (point["window_size"] // 2,) * 2)
    # values in and out; one multiply-add per pair and class; one exponential per pair
    counts = floors.Work(2 * point["classes"] * size[0] * size[1] * 4, 2 * point["classes"] * pairs, pairs)
    facts = {"work": "W7", "provider": "tritoncrf", "mode": "eager", "axis": axis, "value": value}
    measure(call, counts * point["batch"], **facts, **point)


def test_training_step(measure, device, work, provider, mode):
    # Each iteration keeps its k^2 C N values for the backward: beyond this the peer needs tens of gigabytes.
    if provider == "im2col" and (work.batch > 1 or work.window_size > 7):
        pytest.skip("the peer's memory: T k^2 C N values are kept for its backward")
    convcrf(measure, device, work, provider, mode, training=True)
