"""The work that every report measures: W1 (ConvCRF), its backward (W5), and the growth of the window filter (W7).

Scores come from a picture, never from noise: the label map is the picture's own brightness in large regions, cut
into as many equal bands as there are classes, and `noisy_scores` spoils it from the seed below.
"""

import functools
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

import tritoncrf as tc
from bench.peers import im2col_convcrf
from tritoncrf.synthetic import noisy_scores

SEED = 2018
GRACE_HOPPER = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
THETA_POSITION, THETA_COLOR = 3.0, 13.0
WEIGHT_POSITION, WEIGHT_COLOR = 3.0, 10.0


@dataclass(frozen=True)
class ConvCRFWork:
    """W1: five iterations with a position and a colour kernel. `picture` is a file; its stem names it in reports."""

    window_size: int
    blur: int = 1
    normalization: str = "none"
    size: tuple = (500, 334)
    classes: int = 21
    batch: int = 1
    iterations: int = 5
    picture: str = str(GRACE_HOPPER)


def small(work: ConvCRFWork) -> ConvCRFWork:
    """The same work on few pixels: what is loaded or compiled on first use is so, and little memory is touched."""
    return replace(work, size=(32, 32), batch=1, iterations=2)


def load_picture(path, size) -> np.ndarray:
    """[H, W, 3] uint8, resized, writable."""
    with Image.open(path) as image:
        return np.array(image.convert("RGB").resize((size[1], size[0]), Image.Resampling.BILINEAR))


def brightness_bands(picture: np.ndarray, classes: int) -> np.ndarray:
    """[H, W] labels: brightness averaged over regions of about 16 pixels, cut at its quantiles."""
    grey = torch.from_numpy(picture).float().mean(-1)[None, None]
    coarse = F.adaptive_avg_pool2d(grey, [max(1, n // 16) for n in grey.shape[2:]])
    smooth = F.interpolate(coarse, grey.shape[2:], mode="bilinear")[0, 0].numpy()
    edges = np.quantile(smooth, np.linspace(0, 1, classes + 1)[1:-1])
    return np.digitize(smooth, edges)


class Inputs:
    """A work's tensors on a device. `training` makes everything a ConvCRF learns require gradients."""

    def __init__(self, work: ConvCRFWork, device, dtype=torch.float32, training=False):
        picture = load_picture(work.picture, work.size)
        labels = brightness_bands(picture, work.classes)
        # Images of a batch are shifted copies, each with noise of its own.
        images = [np.roll(picture, 16 * b, axis=1) for b in range(work.batch)]
        scores = [noisy_scores(np.roll(labels, 16 * b, axis=1), work.classes, seed=SEED + b) for b in range(work.batch)]
        self.work = work
        self.image = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).to(device, dtype).contiguous() / 255
        self.logits = torch.from_numpy(np.stack(scores)).to(device, dtype)
        self.parameters = [THETA_POSITION, THETA_COLOR, WEIGHT_POSITION, WEIGHT_COLOR]
        if training:
            self.parameters = [torch.tensor(p, device=device, dtype=dtype, requires_grad=True) for p in self.parameters]
            self.logits.requires_grad_()

    @property
    def learnt(self):
        return [self.logits, *self.parameters]

    @cached_property
    def cotangent(self):
        """Fixed and random: a gradient checked with ones sees only the sums."""
        generator = torch.Generator().manual_seed(SEED)
        return torch.randn(self.logits.shape, generator=generator).to(self.logits)


def tritoncrf_scores(inputs: Inputs, backend="auto") -> torch.Tensor:
    """S_T by this library, preparation of the filters included."""
    work = inputs.work
    theta_position, theta_color, *weights = inputs.parameters
    image = inputs.image
    features = [
        tc.features.spatial(work.size, theta_position, device=image.device, dtype=image.dtype),
        tc.features.color(image, theta_color),
    ]
    options = dict(blur=work.blur, normalization=work.normalization, backend=backend)
    filters = [tc.filters.Window(f, work.window_size, **options) for f in features]
    return tc.mean_field(inputs.logits, filters, weights, iterations=work.iterations, output="logits")


def im2col_scores(inputs: Inputs) -> torch.Tensor:
    """S_T by the published code's algorithm. Its released scores differ from ours by quirks, its work does not."""
    work = inputs.work
    theta_position, theta_color, weight_position, weight_color = inputs.parameters
    return im2col_convcrf(
        inputs.logits, inputs.image, size=work.window_size, blur=work.blur, iterations=work.iterations,
        theta_position=theta_position, theta_color=theta_color, weight_position=weight_position,
        weight_color=weight_color, normalization=work.normalization, merge=work.normalization == "none",
    )  # fmt: skip


PROVIDERS = {"tritoncrf": tritoncrf_scores, "im2col": im2col_scores}


def runner(provider: str, inputs: Inputs):
    """The call that is timed: scores without gradients, or gradients of all that is learnt."""
    scores = PROVIDERS[provider]

    def forward():
        with torch.no_grad():
            return scores(inputs)

    def training_step():
        return torch.autograd.grad(scores(inputs), inputs.learnt, inputs.cotangent)

    return training_step if inputs.logits.requires_grad else forward


@functools.lru_cache
def errors(work: ConvCRFWork, device, training: bool) -> dict:
    """Distance from float64, which runs in PyTorch.

    step_rms: of the scores after one iteration, relative. loop_rms, loop_max: of the probabilities after all,
    absolute. reference_rms, where the loop ran in Triton: loop_rms of PyTorch in float32, the rounding any
    float32 loop has. gradient_rms: the worst of the gradients, relative.
    """
    exact, found = Inputs(work, device, torch.float64, training), Inputs(work, device, training=training)
    if training:
        pairs = zip(runner("tritoncrf", found)(), runner("tritoncrf", exact)(), strict=True)
        return {"gradient_rms": max(relative_rms(a, b) for a, b in pairs)}

    def after(inputs, iterations=work.iterations, **options):
        inputs.work = replace(work, iterations=iterations)
        with torch.no_grad():
            return tritoncrf_scores(inputs, **options).double()

    truth = after(exact).softmax(1)
    difference = after(found).softmax(1) - truth
    measured = {
        "step_rms": relative_rms(after(found, 1), after(exact, 1)),
        "loop_rms": difference.square().mean().sqrt().item(),
        "loop_max": difference.abs().max().item(),
    }
    if found.logits.is_cuda:
        plain = after(found, backend="torch").softmax(1) - truth
        measured["reference_rms"] = plain.square().mean().sqrt().item()
    return measured


def relative_rms(found, exact) -> float:
    return ((found.double() - exact).norm() / exact.norm()).item()


# W7: one axis grows, the others stay here.
GROWTH_BASE = {"side": 256, "classes": 21, "window_size": 7, "batch": 1, "features": 3}
GROWTH = {
    "side": [128, 256, 512, 1024, 2048, 4096, 8192],
    "classes": [2, 8, 21, 64, 150, 256],
    "window_size": [3, 7, 11, 15, 21, 31],
    "batch": [1, 4, 16, 32],
    "features": [1, 3, 8, 16, 32, 64],
}
LARGEST_SIDE_ON_CPU = 2048


def growth_points(device_type: str) -> list[tuple[str, int]]:
    return [
        (axis, value)
        for axis, values in GROWTH.items()
        for value in values
        if device_type != "cpu" or axis != "side" or value <= LARGEST_SIDE_ON_CPU
    ]


def growth_call(axis: str, value: int, device):
    """One application of a window filter, its preparation apart, at the base point with one axis changed."""
    point = GROWTH_BASE | {axis: value}
    size = (point["side"], point["side"])
    picture = torch.from_numpy(load_picture(GRACE_HOPPER, size)).to(device).permute(2, 0, 1)[None]
    # More features than colours: copies shifted a little, as deep features of neighbouring pixels resemble each other.
    copies = [picture.roll(d, dims=3) for d in range(-(-point["features"] // 3))]
    features = torch.cat(copies, 1)[:, : point["features"]].float() / (THETA_COLOR * len(copies) ** 0.5)
    filter = tc.filters.Window(features, point["window_size"])
    # Probabilities of the right size made on the device: 8192 x 8192 scores from a label map would take minutes.
    shift = torch.linspace(-2, 2, point["classes"], device=device).view(1, -1, 1, 1)
    values = (shift * picture.float().mean(1, keepdim=True) / 64).softmax(1).repeat(point["batch"], 1, 1, 1)

    def apply():
        with torch.no_grad():
            return filter(values)

    return apply, point
