"""Loops of random sizes, classes, batches and options, each of its own seed; forward and every gradient.

RANDOM_SHAPES=120 in the environment runs as many, some 30 minutes of them in the emulator.
"""

import math
import os
import random

import pytest
import torch

from assertions import assert_close
from filter_catalogue import EXACT, GUIDED, LATTICE, WINDOW, assert_loop_within_budget

COUNT = int(os.environ.get("RANDOM_SHAPES", "40"))
MOST_PIXELS = 1200
NORMALIZATIONS = ["none", "before", "after", "symmetric"]


def near_16(draw, most):
    """A length that is often a multiple of 16, or near one: what a compiler takes for another kernel."""
    return max(1, min(most, 16 * draw.randint(0, most // 16) + draw.choice([-1, 0, 0, 1, draw.randint(2, 14)])))


def a_size(draw):
    axes = draw.choices([1, 2, 3], [1, 6, 1])[0]
    if axes == 1:
        return (near_16(draw, 300),)
    width = near_16(draw, 100)
    rows = draw.randint(1, max(1, min(40, MOST_PIXELS // width)))
    return (rows, width) if axes == 2 else (draw.randint(1, 4), max(1, rows // 3), max(1, width // 2))


def of_window(draw):
    changes = {"window_size": draw.choice([1, 3, 3, 5, 7, 11, 15, 31]), "normalization": draw.choice(NORMALIZATIONS)}
    return changes | {"blur": draw.choice([1, 1, 2, 3, 4]), "dilation": draw.choice([1, 1, 1, 2, 5])}


def of_gaussian(draw):
    return {"normalization": draw.choice(NORMALIZATIONS)}


def of_guided(draw):
    return {"radius": draw.choice([1, 2, 3, 4, 7, 8, 20]), "box": draw.choice(["count", "constant"])}


KINDS = [(WINDOW, of_window), (LATTICE, of_gaussian), (EXACT, of_gaussian), (GUIDED, of_guided)]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(COUNT))
def test_a_loop(seed, device):
    draw = random.Random(seed)
    torch.manual_seed(seed)
    case, changes = draw.choices(KINDS, [4, 2, 1, 3])[0]
    count = 1 if case is GUIDED else draw.choice([1, 2])
    own = changes(draw)
    windows = [own] + [own | of_gaussian(draw)] * (count - 1)
    options = {
        "windows": windows,
        "size": a_size(draw),
        "channels": tuple(draw.choice([1, 2, 3, 3, 5]) for _ in range(count)),
        "classes": round(math.exp(draw.uniform(math.log(2), math.log(70)))),
        "batch": draw.choice([0, 1, 1, 2, 3]),
        "shared": draw.choice([True, False]),
        "weight": draw.choices(["scalar", "class", "matrix"], [2, 2, 1])[0],
        "unary": draw.choice(["scalar", "class"]),
        "iterations": draw.choice([1, 2]),
    }
    if case is WINDOW and len(options["size"]) == 3:  # 31^3 taps would take the emulator ten minutes
        for window in windows:
            window["window_size"] = min(window["window_size"], 7)
    print(case.name, options)  # which pytest shows where it fails
    setting = case.loop(**options)
    assert_loop_within_budget(setting, device)

    half = draw.choice([torch.float16, torch.bfloat16])
    K = case.filter(setting.features[0].to(device, torch.float32), "triton", **own)
    x = setting.logits.to(device, half)
    assert torch.equal(K(x), K(x.float()).to(half))
    assert_close("one class", K(x[:, :1].float()), K(x.float())[:, :1], dtype=torch.float32)
