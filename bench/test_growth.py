"""W7: how one application of a filter, and the building of all but windows, grow along one axis at a time."""

import pytest

from bench.runs import Run
from bench.timing import clock
from bench.workloads import GrowthPoint, growth_points
from tritoncrf.devices import device_found

pytestmark = pytest.mark.benchmark(timer=clock)

# What a build knows of: nothing of classes, nor of images that share it.
BUILDS = {"lattice": ("side", "features"), "guided": ("side", "radius", "features")}


def cases(quick: bool) -> list:
    """(filter, axis, value, stage); quick runs take the three smallest images."""
    points = growth_points(device_found().type)
    if quick:
        points = [point for point in points if point[1] == "side" and point[2] <= 512]
    found = []
    for point in points:
        builds = point[1] in BUILDS.get(point[0], ())
        found += [(*point, stage) for stage in (("build", "apply") if builds else ("apply",))]
    return found


def pytest_generate_tests(metafunc):
    found = cases(metafunc.config.getoption("--quick"))
    marked = [pytest.param(*case, marks=getattr(pytest.mark, case[0])) for case in found]
    metafunc.parametrize("filter, axis, value, stage", marked)


def test_growth(measure, device, filter, axis, value, stage):
    grown = GrowthPoint(filter, axis, value, device)
    about = {"work": "W7", "provider": "tritoncrf", "mode": "eager", "axis": axis, "value": value, "filter": filter}
    if filter in BUILDS:
        about["stage"] = stage
    measure(Run(getattr(grown, stage), grown.counts[stage], about | grown.facts | grown.point))
