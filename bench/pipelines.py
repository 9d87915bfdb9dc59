"""W6: whole pipelines with random weights, and the CRF's share of their time.

The weights of the networks do not affect the time; the picture does, through the lattice. A GPU also runs batches of 8
and training steps, which would take minutes on a CPU; there it is one image, forward.
"""

from functools import partial
from statistics import median

import torch

from bench.timing import seconds
from bench.workloads import GRACE_HOPPER, load_picture
from tritoncrf.models import FCN8sCRFRNN, ResNetConvCRF, SegModel

CLASSES = 21
# Each with the filter of its CRF.
PIPELINES = {
    "FCN-8s + CRF-RNN": (FCN8sCRFRNN, (500, 500), "lattice"),
    "ResNet-101 + ConvCRF": (ResNetConvCRF, (500, 500), "window"),
    "SegModel": (SegModel, (500, 300), "guided"),
}
ROUNDS = 3


def cases(device_type: str) -> list[tuple[str, int, str]]:
    """(pipeline, batch, mode)"""
    on_gpu = device_type == "cuda"
    batches, modes = (1, 8) if on_gpu else (1,), ("forward", "training step") if on_gpu else ("forward",)
    return [(name, batch, mode) for name in PIPELINES for batch in batches for mode in modes]


class Pipeline:
    """One pipeline in one mode; `run` is timed."""

    def __init__(self, name: str, batch: int, mode: str, device):
        kind, self.size, self.filter = PIPELINES[name]
        torch.manual_seed(0)
        self.model, self.mode = kind(CLASSES).to(device).train(mode == "training step"), mode
        self.image = picture(self.size, batch, device)

    def run(self, output: str = "refined"):
        if self.mode == "forward":
            with torch.no_grad():
                return self.model(self.image, output)
        self.model.zero_grad(set_to_none=True)
        return self.model(self.image, output).logsumexp(1).mean().backward()

    def crf_seconds(self) -> float:
        """The time of the CRF: the median difference of calls with and without it, in turn. A forward pass is compared
        from the network's scores on, since the scatter of a slow network would hide a fast CRF."""
        if self.mode == "training step":
            return difference(self.run, lambda: self.run("unary"))
        with torch.no_grad():
            scores = self.model.scores(self.image)
            with_crf, without = (partial(self.model.finish, scores, self.image, crf) for crf in (True, False))
            return difference(with_crf, without)


def picture(size, batch: int, device) -> torch.Tensor:
    """Copies of one photo, uint8 [batch, 3, *size]."""
    photo = torch.from_numpy(load_picture(GRACE_HOPPER, size)).permute(2, 0, 1)
    return photo.expand(batch, -1, -1, -1).contiguous().to(device)


def difference(call, other) -> float:
    """Seconds that a call takes longer than another: the median of some rounds, after one that warms up."""
    return median([seconds(call) - seconds(other) for _ in range(ROUNDS + 1)][1:])
