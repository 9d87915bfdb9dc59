"""Runs for a sanitizer or a profiler: every kernel once, on few pixels, or the training steps; nothing is timed."""

import torch

from bench.providers import runner
from bench.workloads import ConvCRFWork, ExactWork, GuidedWork, Inputs, LatticeWork
from tritoncrf.devices import device_found


def exercise(large: bool, work: str | None = None) -> int:
    device = device_found()
    if work is not None:
        from bench.first import works

        chosen, learns = works()[work]
        for kind in dict.fromkeys((None, "weights", learns)):
            runner("tritoncrf", Inputs(chosen, device, learns=kind))()
        return 0
    if large:
        short = {"size": (500, 500), "iterations": 2}
        for work in ExactWork(**short), ConvCRFWork(11, **short), LatticeWork(**short), GuidedWork(**short):
            runner("tritoncrf", Inputs(work, device, learns="weights" if work.filter == "exact" else "features"))()
        return 0
    from bench.compiled.sweep import Configuration  # needs Triton

    watched = [
        Configuration(),
        Configuration(classes=3, weights="class", normalization="symmetric", batch=2),
        Configuration(classes=21, weights="matrix", dilation=2, include_self=False),
        Configuration(classes=5, blur=2, normalization="symmetric"),
        Configuration(classes=70, size=(9, 40), blur=4, weights="class", filters=1),
        Configuration(classes=4, size=(5, 6, 7), window_size=3),
        Configuration(classes=300, size=(7, 50), window_size=3),
        Configuration("lattice", features=5, normalization="symmetric", batch=2),
        Configuration("lattice", classes=3, size=(5, 6, 7), features=4, weights="matrix", include_self=False),
        Configuration("lattice", classes=300, size=(301,), features=12, weights="class", filters=1),
        Configuration("exact", features=5, normalization="symmetric", batch=2),
        Configuration("exact", classes=70, size=(301,), features=20, include_self=False),
        Configuration("guided", weights="class", batch=2),
        Configuration("guided", classes=70, radius=16, box="constant"),
        Configuration("guided", classes=4, size=(5, 6, 7), radius=2, features=1),
        Configuration("guided", classes=300, size=(301,), radius=5, features=2),
    ]
    for configuration in watched:
        configuration.run(device)
        if device.type == "cuda":
            torch.cuda.synchronize()
        print(configuration, flush=True)
    return 0
