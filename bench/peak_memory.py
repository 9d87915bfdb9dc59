"""The memory that a call needs beyond that of the process and its inputs before.

On a GPU the allocator reports it. On a CPU it is the growth of the resident set to its peak, in a separate process:
`python -m bench.peak_memory '{"provider": ..., "stage": ..., "learns": ..., "kind": ..., "work": {...}}'` prints bytes.
Linux only; elsewhere None.
"""

import json
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from bench import ROOT
from bench.providers import runner
from bench.workloads import ConvCRFWork, CRFWork, ExactWork, GuidedWork, Inputs, LatticeWork, small

KINDS = {kind.__name__: kind for kind in (ConvCRFWork, LatticeWork, GuidedWork, ExactWork)}


def peak_on_gpu(call) -> int:
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def peak_on_cpu(provider: str, work: CRFWork, stage: str, learns: str | None) -> int | None:
    if not sys.platform.startswith("linux"):
        return None
    job = {"provider": provider, "stage": stage, "learns": learns, "kind": type(work).__name__, "work": asdict(work)}
    command = [sys.executable, "-m", "bench.peak_memory", json.dumps(job)]
    printed = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout
    return int(printed.splitlines()[-1])  # peers may print other lines before


def status(field: str) -> int:
    return int(re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024


def _main(provider, stage, learns, kind, work):
    work = KINDS[kind](**work | {"size": tuple(work["size"])})
    runner(provider, Inputs(small(work), "cpu", learns=learns), stage)()
    call = runner(provider, Inputs(work, "cpu", learns=learns), stage)
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    before = status("VmRSS")
    kept = call()  # outputs count, since a training step's gradients are as large as the scores
    print(status("VmHWM") - before)
    del kept


if __name__ == "__main__":
    _main(**json.loads(sys.argv[1]))
