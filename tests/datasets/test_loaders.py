"""A DataLoader whose workers refine: forked after their parent's threads have been used, or spawned."""

import os
import subprocess
import sys

import pytest
from test_architecture import ROOT

pytestmark = pytest.mark.processes

LOADED = """
import sys

import numpy as np
import torch

import tritoncrf as tc


class Sharpened(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, n):
        generator = np.random.default_rng(n)
        photo = generator.integers(0, 256, (90, 120, 3), dtype=np.uint8)
        return torch.from_numpy(tc.refine(photo, logits=generator.normal(size=(3, 90, 120)), device="cpu", method="lattice"))


if __name__ == "__main__":
    torch.set_num_threads(2)
    items = Sharpened()
    items[0]
    loader = torch.utils.data.DataLoader(items, num_workers=2, batch_size=None, multiprocessing_context=sys.argv[1])
    found = list(loader)
    torch.set_num_threads(1)
    assert len(found) == len(items) and all(torch.equal(q, items[n]) for n, q in enumerate(found))
"""


@pytest.mark.parametrize("way", ["fork", "spawn"])
def test_the_workers_of_a_loader_give_the_bits_of_one_thread(way, tmp_path):
    if way == "fork" and not hasattr(os, "fork"):
        pytest.skip("no fork on this system")
    script = tmp_path / "script.py"
    script.write_text(LOADED)
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    environment["PYTHONPATH"] = str(ROOT)
    subprocess.run([sys.executable, script, way], env=environment, timeout=600, check=True)
