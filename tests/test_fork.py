"""Forked workers, after their parent's OpenMP has had threads, which a fork does not inherit."""

import os
import subprocess
import sys

import pytest
from test_architecture import ROOT

pytestmark = pytest.mark.processes

# Each on enough pixels that the parent's threads all have a part.
FORKED = """
import multiprocessing
import numpy
import torch
import tritoncrf as tc
from tritoncrf.densecrf import DenseCRF2D

image = torch.randint(0, 256, (3, 150, 160), dtype=torch.uint8)
scores = torch.randn(4, 150, 160)
features = tc.features.bilateral(image[None], 80, 13)

def trained():
    layer = tc.ConvCRF(4, window_size=3, blur=1)
    layer(scores[None], image[None]).square().mean().backward()
    return layer.weight_smooth.grad.detach()

jobs = [
    lambda: tc.refine(image, logits=scores),
    lambda: tc.filters.Lattice(features)(scores[None]),
    lambda: tc.guided_filter(scores[None], image[None].float(), radius=3, eps=1.0),
    trained,
]

def run(n):
    return jobs[n]().double().sum().item(), torch.get_num_threads()

def inferred(seed):
    d = DenseCRF2D(60, 50, 4)
    d.setUnaryEnergy(numpy.random.default_rng(seed).random((4, 3000)))
    d.addPairwiseGaussian(sxy=3, compat=3)
    return d.inference(2).sum()

torch.set_num_threads(2)
expected = [run(n)[0] for n in range(len(jobs))]
sums = [inferred(seed) for seed in range(3)]
with multiprocessing.get_context("fork").Pool(2) as pool:
    for (found, threads), wanted in zip(pool.map_async(run, range(len(jobs))).get(500), expected):
        assert threads == 1 and abs(found - wanted) <= 1e-3 * abs(wanted) + 1e-6, (found, wanted)
    assert pool.map_async(inferred, range(3)).get(500) == sums
assert torch.get_num_threads() == 2
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_pool_of_forked_workers():
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    environment["OMP_WAIT_POLICY"] = "passive"  # threads that wait take no time from the other processes
    subprocess.run([sys.executable, "-c", FORKED], cwd=ROOT, env=environment, timeout=600, check=True)
