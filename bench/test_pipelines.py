"""W6: whole pipelines, and what the CRF adds to their time."""

import pytest

from bench.floors import NOTHING
from bench.pipelines import PIPELINES, Pipeline, cases
from bench.runs import Run
from bench.timing import clock
from bench.workloads import GRACE_HOPPER
from tritoncrf.devices import device_found

pytestmark = pytest.mark.benchmark(timer=clock)


def pytest_generate_tests(metafunc):
    # Quick runs leave them out: the networks take most of the time.
    found = [] if metafunc.config.getoption("--quick") else cases(device_found().type)
    marked = [pytest.param(*case, marks=getattr(pytest.mark, PIPELINES[case[0]][2])) for case in found]
    metafunc.parametrize("name, batch, mode", marked)


def test_pipeline(measure, device, name, batch, mode):
    pipeline = Pipeline(name, batch, mode, device)
    about = {"work": "W6", "pipeline": name, "filter": pipeline.filter, "picture": GRACE_HOPPER.stem}
    about |= {"size": pipeline.size, "batch": batch, "provider": "tritoncrf", "mode": mode}
    about["crf"] = pipeline.crf_seconds()
    measure(Run(pipeline.run, NOTHING, about))
