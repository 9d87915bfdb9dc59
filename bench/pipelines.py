"""W6: whole pipelines with random weights, and the CRF's share of their time: `python -m bench pipelines`.

The networks' weights do not matter for the time; the picture does, for the lattice. On a GPU also batches of 8 and
training steps; a CPU takes minutes for these, so there it is one image, forward.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from bench import report
from bench.timing import clock
from bench.workloads import GRACE_HOPPER
from tritoncrf.commands import device_found
from tritoncrf.models import FCN8sCRFRNN, ResNetConvCRF, SegModel

CLASSES = 21
PIPELINES = {
    "FCN-8s + CRF-RNN": (FCN8sCRFRNN, (500, 500)),
    "ResNet-101 + ConvCRF": (ResNetConvCRF, (500, 500)),
    "SegModel": (SegModel, (500, 300)),
}
ROUNDS = 5
HEADER = ["pipeline", "size", "images", "mode", "network ms", "CRF ms", "CRF's share", "images/s"]


def run(out: Path | None) -> int:
    """Print the table, and write it and its rows into the folder `out`."""
    device = device_found()
    batches = (1, 8) if device.type == "cuda" else (1,)
    modes = ("forward", "training step") if device.type == "cuda" else ("forward",)
    environment, rows = report.environment(), []
    for name, (pipeline, size) in PIPELINES.items():
        torch.manual_seed(0)
        model = pipeline(CLASSES).to(device)
        for batch in batches:
            for mode in modes:
                network, crf = seconds(model, picture(size, batch, device), mode)
                rows.append(
                    {"pipeline": name, "size": size, "batch": batch, "mode": mode, "network": network, "crf": crf}
                )
        del model
    text = f"# Pipelines: {environment['device']}, {environment['date']}\n\n"
    text += (
        ", ".join(f"{name} {environment[name]}" for name in ("commit", "torch", "triton", "cuda", "python")) + "\n\n"
    )
    text += report.table(HEADER, [line(row) for row in rows])
    print(text)
    if out is not None:
        report.write_both(out / f"pipelines-{report.slug(environment)}", environment, rows, text)
    return 0


def line(row: dict) -> list[str]:
    whole = row["network"] + row["crf"]
    times = (report.number(row[part], 1e3) for part in ("network", "crf"))
    shares = f"{row['crf'] / whole:.1%}", report.number(row["batch"] / whole)
    return [row["pipeline"], "{}x{}".format(*row["size"]), str(row["batch"]), row["mode"], *times, *shares]


def picture(size, batch: int, device) -> torch.Tensor:
    """Copies of one photo, uint8 [batch, 3, *size]."""
    with Image.open(GRACE_HOPPER) as image:
        photo = np.array(image.convert("RGB").resize(size[::-1], Image.Resampling.BICUBIC))
    return torch.from_numpy(photo).permute(2, 0, 1).expand(batch, -1, -1, -1).contiguous().to(device)


def seconds(model, image, mode: str) -> tuple[float, float]:
    """Medians of what the network takes, and of what the CRF adds to it."""
    if mode == "training step":
        model.train()
        network, whole = (median(lambda: step(model, image, output)) for output in ("unary", "refined"))  # noqa: B023
        return network, whole - network
    model.eval()
    with torch.no_grad():
        scores = model.scores(image)
        network = median(lambda: model(image, "unary"))
        with_crf, without = (median(lambda: model.finish(scores, image, crf)) for crf in (True, False))  # noqa: B023
        return network, with_crf - without


def step(model, image, output: str) -> None:
    model.zero_grad(set_to_none=True)
    model(image, output).logsumexp(1).mean().backward()


def median(call) -> float:
    call()
    times = []
    for _ in range(ROUNDS):
        start = clock()
        call()
        times.append(clock() - start)
    return sorted(times)[ROUNDS // 2]
