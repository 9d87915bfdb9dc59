"""A DataLoader whose workers refine: forked after their parent's threads have been used, or spawned."""

import os
import subprocess
import sys

import pytest
from test_architecture import ROOT

pytestmark = pytest.mark.processes

LOADED = """
import multiprocessing

import numpy as np
import torch

import tritoncrf as tc


class Sharpened(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, n):
        generator = np.random.default_rng(n)
        photo = generator.integers(0, 256, (90, 120, 3), dtype=np.uint8)
        return torch.from_numpy(tc.refine(
            photo, logits=generator.normal(size=(3, 90, 120)), device="cpu", method="lattice", iterations=2
        ))


if __name__ == "__main__":
    torch.set_num_threads(2)
    items = Sharpened()
    items[0]
    found = []
    for way, workers in ("fork", 2), ("spawn", 1):
        if way in multiprocessing.get_all_start_methods():
            loader = torch.utils.data.DataLoader(
                items, num_workers=workers, batch_size=None, multiprocessing_context=way
            )
            found.append((way, list(loader)))
    torch.set_num_threads(1)
    expected = list(items[n] for n in range(len(items)))
    for way, refined in found:
        assert len(refined) == len(items) and all(map(torch.equal, refined, expected)), way
"""


def test_the_workers_of_a_loader_give_the_bits_of_one_thread(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(LOADED)
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    environment["OMP_WAIT_POLICY"] = "passive"  # threads that wait take no time from the workers
    environment["PYTHONPATH"] = str(ROOT)
    subprocess.run([sys.executable, script], env=environment, timeout=600, check=True)
