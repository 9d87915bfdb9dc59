"""Clocks that wait for the device."""

import time

import torch


def clock() -> float:
    """The timer of every benchmark: pytest-benchmark knows nothing of GPUs, and would time launches."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


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
    started = clock()
    call()
    if clock() - started > 2e-3:
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
