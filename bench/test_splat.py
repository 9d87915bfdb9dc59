"""The lattice's splat, sorted and deterministic, against atomic additions. On a GPU only: what is asked is what
additions at the same address cost there."""

import math
from functools import partial

import pytest
import torch

import tritoncrf as tc
from bench.atomic_splat import atomic_splat
from bench.floors import Work
from bench.runs import Run
from bench.timing import clock, replayed
from bench.workloads import GRACE_HOPPER, Inputs, LatticeWork, lattice_of
from tritoncrf.devices import device_found
from tritoncrf.kernels import lattice as kernels
from tritoncrf.models.experiments.lattice_error import gaussian_features
from tritoncrf.reference.lattice import ScaledLattice

ON_GPU = device_found().type == "cuda"
pytestmark = [
    pytest.mark.benchmark(timer=clock),
    pytest.mark.skipif(not ON_GPU, reason="needs a GPU"),
    pytest.mark.lattice,
]

WORK = LatticeWork(size=(500, 500))
THETAS = [(3,), (80, 13), (67, 3), (50, 5)]
FORMS = {"tritoncrf": kernels.splat, "atomic": atomic_splat}


@pytest.mark.parametrize("thetas", THETAS, ids=str)
def test_splat(measure, device, thetas):
    inputs = Inputs(WORK, device)
    lattice = lattice_of(tc.filters.Lattice(gaussian_features(inputs.image, thetas)))
    rows, side = kernels.rows_of(inputs.logits.softmax(1)), ScaledLattice(lattice, None)
    pixels, classes = math.prod(WORK.size), WORK.classes
    pairs = pixels * lattice.corners
    # values in, vertices out, and a weight and a place in a table for each pair; a multiply-add per pair and class
    counts = Work(4 * (classes * (pixels + lattice.count) + 2 * pairs), 2 * classes * pairs, 0, 0, 4 * classes * pairs)
    about = {"picture": GRACE_HOPPER.stem, "size": WORK.size, "batch": 1, "classes": classes, "filter": "lattice"}
    about |= {"vertices_per_pixel": [lattice.count / pixels], "axis": "theta", "value": ", ".join(map(str, thetas))}
    about |= {"work": "splat", "mode": "graph"}
    with torch.no_grad():
        calls = {form: replayed(partial(splat, rows, side)) for form, splat in FORMS.items()}
    measure(*(Run(call, counts, about | {"provider": form}) for form, call in calls.items()))
