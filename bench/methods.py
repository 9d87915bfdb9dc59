"""The methods side by side, on the demo's photo at half its size: `python -m bench methods` draws docs/methods.png.

All start from the same noisy scores and take `refine`'s defaults, but for the guided filter's radius.
"""

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import tritoncrf as tc
from bench import report
from bench.suite import ROOT
from bench.timing import clock
from tritoncrf import figures
from tritoncrf.commands import device_found
from tritoncrf.demo import CLASSES, mask, photo
from tritoncrf.synthetic import noisy_scores

FIGURE = ROOT / "docs" / "methods.png"
# The windows reach beyond a cell of the noise, which is 8 pixels wide.
METHODS = {"guided": {"radius": 8}, "window": {}, "lattice": {}, "exact": {}}
WIDTH = 1360  # of the figure, in pixels
# A palette makes the file small; this way to choose it keeps the legend's few pixels in their colours.
PALETTE = {"method": Image.Quantize.MAXCOVERAGE, "kmeans": 1, "dither": Image.Dither.NONE}


def refined(image, scores, method: str, settings: dict):
    """Labels [H, W] and the seconds they took, what is loaded or compiled on first use left out."""
    tc.refine(image[:16, :16], probabilities=scores[:, :16, :16], method=method, **settings)
    start = clock()
    labels = tc.refine(image, probabilities=scores, method=method, **settings).argmax(0)
    return labels.cpu().numpy(), clock() - start


def run(out: Path) -> int:
    image, truth = np.array(Image.fromarray(photo()).reduce(2)), mask()[::2, ::2]
    scores = noisy_scores(truth, len(CLASSES))
    on_device = torch.from_numpy(scores).to(device_found())
    before = scores.argmax(0)
    found = {method: refined(image, on_device, method, settings) for method, settings in METHODS.items()}

    titled = {method.capitalize(): outcome for method, outcome in found.items()}
    save(figures.methods(image, before, titled, truth=truth, names=CLASSES), out)
    exact, _ = found["exact"]
    lines = [["input", "", "", f"{(before == truth).mean():.1%}", f"{(before != exact).mean():.1%}"]]
    for method, (labels, seconds) in found.items():
        settings = ", ".join(f"{name} {value}" for name, value in METHODS[method].items())
        shares = [f"{(labels == truth).mean():.1%}", f"{(labels != exact).mean():.1%}"]
        lines.append([method, settings, f"{seconds:.2f}", *shares])
    height, width = truth.shape
    print(f"{width} x {height} pixels, {len(CLASSES)} classes, {report.environment()['device']}")
    print(report.table(["method", "settings", "s", "right", "unlike exact"], lines), end="")
    print(f"wrote {out}")
    return 0


def save(figure, out: Path) -> None:
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=WIDTH / figure.get_size_inches()[0])
    with Image.open(drawn) as picture:
        picture.convert("RGB").quantize(**PALETTE).save(out, optimize=True)
