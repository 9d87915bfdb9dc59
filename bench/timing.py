"""Clocks that wait for the device, and the rates of the device's own."""

import re
import subprocess
import time
from pathlib import Path

import torch


def clock() -> float:
    """The timer of every benchmark: pytest-benchmark knows nothing of GPUs, and would time launches."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds(call) -> float:
    """Of one call, by `clock`."""
    start = clock()
    call()
    return clock() - start


def replayed(call):
    """`call` captured in a CUDA graph; the result is its replay."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        graph.kept = call()  # its memory belongs to the graph as long as the graph lives
    return graph.replay


def seconds_on_gpu(call, repeats: int = 30, inside: int = 20) -> float:
    """Median time of `call` between two events: `inside` calls replayed from a graph, so that no launch waits for
    Python; one call, and fewer times, where it takes milliseconds."""
    call()
    if seconds(call) > 2e-3:
        repeats, inside = 9, 1

    def several():
        for _ in range(inside):
            call()

    replay, times = replayed(several), []
    for _ in range(repeats + 3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e-3 / inside)
    return sorted(times[3:])[repeats // 2]


def clock_rates(device_type: str) -> dict[str, float]:
    """MHz just now: of a GPU's multiprocessors ("sm") and memory, or the mean of a CPU's cores; empty where nothing
    tells."""
    return _gpu_rates() if device_type == "cuda" else cpu_rates()


def _gpu_rates() -> dict[str, float]:
    chosen = f"--id=GPU-{torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}"
    command = ["nvidia-smi", chosen, "--query-gpu=clocks.sm,clocks.mem", "--format=csv,noheader,nounits"]
    try:
        printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=5).stdout
        return dict(zip(("sm", "memory"), map(float, printed.split(","))))
    except (OSError, subprocess.SubprocessError, ValueError):
        return {}


def cpu_rates(root: Path = Path("/")) -> dict[str, float]:
    """Of the tree at `root`: /proc/cpuinfo, or cpufreq, which counts in kHz."""
    info = root / "proc/cpuinfo"
    rates = re.findall(r"^cpu MHz\s*:\s*([\d.]+)", info.read_text(), re.MULTILINE) if info.exists() else []
    if not rates:
        files = (root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_cur_freq")
        rates = [int(file.read_text()) / 1000 for file in files]
    return {"cpu": sum(map(float, rates)) / len(rates)} if rates else {}
