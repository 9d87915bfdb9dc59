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
import sys
import torch
import tritoncrf as tc

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

torch.set_num_threads(2)
expected = [run(n)[0] for n in range(len(jobs))]
with multiprocessing.get_context("fork").Pool(2) as pool:
    for (found, threads), wanted in zip(pool.map_async(run, range(len(jobs))).get(500), expected):
        assert threads == 1 and abs(found - wanted) <= 1e-3 * abs(wanted) + 1e-6, (found, wanted)
assert torch.get_num_threads() == 2
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_pool_of_forked_workers():
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    subprocess.run([sys.executable, "-c", FORKED], cwd=ROOT, env=environment, timeout=600, check=True)
