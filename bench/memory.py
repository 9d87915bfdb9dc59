"""How much memory a call needs beyond what the process and its inputs held before.

On a GPU the allocator knows. On a CPU it is the growth of the resident set to its peak, in a process of its own:
`python -m bench.memory '{"provider": ..., "training": ..., "work": {...}}'` prints bytes. Linux only; elsewhere None.
"""

import json
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from bench.workloads import ConvCRFWork, Inputs, runner, small

ROOT = Path(__file__).parent.parent


def peak_on_gpu(call) -> int:
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def peak_on_cpu(provider: str, work: ConvCRFWork, training: bool) -> int | None:
    if not sys.platform.startswith("linux"):
        return None
    job = json.dumps({"provider": provider, "training": training, "work": asdict(work)})
    command = [sys.executable, "-m", "bench.memory", job]
    return int(subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout)


def _status(field: str) -> int:
    return int(re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024


def _main(provider, training, work):
    work = ConvCRFWork(**work | {"size": tuple(work["size"])})
    runner(provider, Inputs(small(work), "cpu", training=training))()
    call = runner(provider, Inputs(work, "cpu", training=training))
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = _status("VmRSS")
    kept = call()  # outputs count: a training step's gradients are as large as the scores
    print(_status("VmHWM") - before)
    del kept


if __name__ == "__main__":
    _main(**json.loads(sys.argv[1]))
