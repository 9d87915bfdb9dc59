"""Small problems: with answers derived by hand, which every backend solves; and for the layers, with their variants.

Each function returns what the library is given and what it must give back. The answers are written with
integers and `math`, never with the library.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F

import tritoncrf as tc
from assertions import assert_close
from cases import random_logits

FAR = 100.0  # features this far apart: exp(-5000) is 0 in float64 too


@dataclass(frozen=True)
class FilterProblem:
    """K values = answer; values and answer [C, *S], features [D, *S] as nested lists."""

    name: str
    features: list
    values: list
    answer: list
    window: dict

    def tensors(self, dtype, device="cpu"):
        return [torch.tensor([x], dtype=dtype, device=device) for x in (self.features, self.values, self.answer)]


@dataclass(frozen=True)
class BoxProblem:
    """box_mean(values, ...) = answer, both [C, *S]."""

    name: str
    values: list
    answer: list
    options: dict

    def tensors(self, dtype, device="cpu"):
        return [torch.tensor([x], dtype=dtype, device=device) for x in (self.values, self.answer)]


@dataclass(frozen=True)
class LoopProblem:
    """mean_field(logits, one window, ...) = answer, the probabilities; logits and answer [C, *S]."""

    name: str
    features: list
    logits: list
    answer: list
    window: dict
    weight: object  # number, [C] or [C, C]
    iterations: int
    options: dict = field(default_factory=dict)

    def tensors(self, dtype, device="cpu"):
        return [torch.tensor([x], dtype=dtype, device=device) for x in (self.features, self.logits, self.answer)]

    def arguments(self, dtype, device="cpu") -> dict:
        """Of mean_field, after the filters; lists become tensors."""

        def tensor(value):
            return torch.tensor(value, dtype=dtype, device=device) if isinstance(value, list) else value

        options = {name: tensor(value) for name, value in self.options.items()}
        return {"weights": [tensor(self.weight)], "iterations": self.iterations, **options}


def softmax(*scores: float) -> list[float]:
    total = sum(math.exp(s) for s in scores)
    return [math.exp(s) / total for s in scores]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def three_pixels(normalization: str, all_pairs: bool = False) -> FilterProblem:
    """Features 0, 1, 3. In a window of 3 each pixel sees its neighbours, the outer two not each other."""
    k01, k12, k02 = math.exp(-0.5), math.exp(-2.0), math.exp(-4.5) if all_pairs else 0.0
    r = [1 + k01 + k02, k01 + 1 + k12, k02 + k12 + 1]
    x = [1.0, 10.0, 100.0]
    n_in = {"before": [1 / v for v in r], "symmetric": [v**-0.5 for v in r]}.get(normalization, [1, 1, 1])
    n_out = {"after": [1 / v for v in r], "symmetric": [v**-0.5 for v in r]}.get(normalization, [1, 1, 1])
    a, b, c = (n * v for n, v in zip(n_in, x))
    answer = [a + k01 * b + k02 * c, k01 * a + b + k12 * c, k02 * a + k12 * b + c]
    answer = [[n * v for n, v in zip(n_out, answer)]]
    window = {"window_size": 5 if all_pairs else 3, "normalization": normalization}
    return FilterProblem(f"three pixels, {normalization}", [[0.0, 1.0, 3.0]], [x], answer, window)


RAMP = [[[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0], [9.0, 10.0, 11.0, 12.0]]]
FLAT = [[[7.0] * 4] * 3]
BOX_SUMS = [[[14.0, 24.0, 30.0, 22.0], [33.0, 54.0, 63.0, 45.0], [30.0, 48.0, 54.0, 38.0]]]
BOX_COUNTS = [[[4.0, 6.0, 6.0, 4.0], [6.0, 9.0, 9.0, 6.0], [4.0, 6.0, 6.0, 4.0]]]
BOX_MEANS = [[[s / n for s, n in zip(*rows)] for rows in zip(BOX_SUMS[0], BOX_COUNTS[0])]]
APART = [[[FAR * (4 * y + x) for x in range(4)] for y in range(3)]]
NEAR = math.exp(-0.5 * 1.5**2)  # of two pixels with features 0 and 1.5

FILTERS = [
    FilterProblem("one pixel", [[[3.0]]], [[[5.0]], [[-2.0]]], [[[5.0]], [[-2.0]]], {"window_size": 5}),
    FilterProblem("one pixel without itself", [[[3.0]]], [[[5.0]]], [[[0.0]]], {"window_size": 5, "include_self": False}),
    FilterProblem(
        "one pixel without itself, symmetric", [[[3.0]]], [[[5.0]]], [[[0.0]]],
        {"window_size": 3, "include_self": False, "normalization": "symmetric"},
    ),
    FilterProblem(
        "two pixels", [[[0.0, 1.5]]], [[[1.0, 10.0]]], [[[1 + 10 * NEAR, NEAR + 10]]], {"window_size": 3},
    ),
    FilterProblem(
        "two pixels without themselves", [[[0.0, 1.5]]], [[[1.0, 10.0]]], [[[10 * NEAR, NEAR]]],
        {"window_size": 3, "include_self": False},
    ),
    FilterProblem(
        "two pixels without themselves, after", [[[0.0, 1.5]]], [[[1.0, 10.0]]], [[[10.0, 1.0]]],
        {"window_size": 3, "include_self": False, "normalization": "after"},
    ),
    *map(three_pixels, ("none", "before", "after", "symmetric")),
    FilterProblem("box sum", FLAT, RAMP, BOX_SUMS, {"window_size": 3}),
    FilterProblem("box mean", FLAT, RAMP, BOX_MEANS, {"window_size": 3, "normalization": "after"}),
    FilterProblem("box counts", FLAT, [[[1.0] * 4] * 3], BOX_COUNTS, {"window_size": 3}),
    FilterProblem("the window holds the image", FLAT, RAMP, [[[78.0] * 4] * 3], {"window_size": 9}),
    FilterProblem("window of one", FLAT, RAMP, RAMP, {"window_size": 1}),
    FilterProblem("all far apart", APART, RAMP, RAMP, {"window_size": 5, "normalization": "after"}),
    FilterProblem(
        "all far apart without themselves", APART, RAMP, [[[0.0] * 4] * 3], {"window_size": 5, "include_self": False},
    ),
    FilterProblem(
        "dilation", [[0.0] * 5], [[1.0, 10.0, 100.0, 1e3, 1e4]], [[101.0, 1010.0, 10101.0, 1010.0, 10100.0]],
        {"window_size": 3, "dilation": 2},
    ),
    FilterProblem(
        "blur interpolates block means", [[0.0] * 4], [[1.0, 3.0, 10.0, 30.0]], [[2.0, 6.5, 15.5, 20.0]],
        {"window_size": 1, "blur": 2},
    ),
    FilterProblem(  # blocks {x0} and {x1, x2}: the pixel outside is before the image, and counts nowhere
        "blur of an odd size", [[0.0] * 3], [[4.0, 10.0, 30.0]], [[0.75 * 4 + 0.25 * 20, 0.25 * 4 + 0.75 * 20, 20.0]],
        {"window_size": 1, "blur": 2},
    ),
    FilterProblem(  # both blocks see both means, 2 and 20
        "blur and window", [[0.0] * 4], [[1.0, 3.0, 10.0, 30.0]], [[22.0] * 4], {"window_size": 3, "blur": 2},
    ),
]  # fmt: skip


ROW = [[1.0, 2.0, 3.0, 4.0]]
APART_2 = [[1.0, 10.0, 100.0, 1e3, 1e4]]
BOXES = [
    BoxProblem("one pixel", [[[5.0]], [[-2.0]]], [[[5.0]], [[-2.0]]], {"radius": 3}),
    BoxProblem("one pixel, constant", [[[5.0]]], [[[5.0]]], {"radius": 3, "box": "constant"}),
    BoxProblem("image", RAMP, BOX_MEANS, {"radius": 1}),
    BoxProblem(
        "image, constant", RAMP, [[[s / 9 for s in row] for row in BOX_SUMS[0]]], {"radius": 1, "box": "constant"},
    ),
    BoxProblem("a radius per axis", RAMP, [[[4.0, 4.5, 4.5, 5.0], [6.0, 6.5, 6.5, 7.0], [8.0, 8.5, 8.5, 9.0]]],
               {"radius": (1, 2)}),
    BoxProblem("the box holds the image", RAMP, [[[6.5] * 4] * 3], {"radius": 5}),
    BoxProblem("the box holds the image, constant", RAMP, [[[6.5] * 4] * 3], {"radius": 5, "box": "constant"}),
    BoxProblem("row", ROW, [[2.0, 2.5, 2.5, 3.0]], {"radius": 2}),
    BoxProblem("row, constant", ROW, [[1.5, 2.5, 2.5, 2.25]], {"radius": 2, "box": "constant"}),
    BoxProblem("dilation", APART_2, [[50.5, 505.0, 3367.0, 505.0, 5050.0]], {"radius": 1, "dilation": 2}),
    BoxProblem("dilation, constant", APART_2, [[s / 3 for s in (101, 1010, 10101, 1010, 10100)]],
               {"radius": 1, "dilation": 2, "box": "constant"}),
    BoxProblem("dilation past the image", APART_2, APART_2, {"radius": 2, "dilation": 5}),
]  # fmt: skip

# Where the guide is 0 only b is seen. Windows of the step, r = 1, eps = 1, (a, b): (0, 0), (0, 0),
# (4/3 / (8 + 1), 1/3 - 2 a), (3/2 / (9 + 1), 1/2 - 3 a).
_STEP_A, _STEP_B = (4 / 27 + 3 / 20), (1 / 27 + 1 / 20)
GUIDED_FILTERS = [
    FilterProblem("one pixel", [[[3.0]]], [[[5.0]], [[-2.0]]], [[[5.0]], [[-2.0]]], {"radius": 2, "eps": 0.5}),
    FilterProblem(  # mu = 1, Sigma = 1, cov = 2 or -1, a = 1 or -1/2
        "one window", [[0.0, 2.0]], [[1.0, 5.0], [7.0, 5.0]], [[2.0, 4.0], [6.5, 5.5]], {"radius": 1, "eps": 1.0},
    ),
    FilterProblem("more smoothing", [[0.0, 2.0]], [[1.0, 5.0]], [[2.5, 3.5]], {"radius": 1, "eps": 3.0}),
    FilterProblem(  # the box mean of the box means 3/2, 3, 6, 15/2
        "a flat guide", [[7.0] * 4], [[0.0, 3.0, 6.0, 9.0]], [[2.25, 3.5, 5.5, 6.75]], {"radius": 1, "eps": 1.0},
    ),
    FilterProblem(
        "a step", [[0.0, 0.0, 0.0, 6.0]], [[0.0, 0.0, 0.0, 1.0]],
        [[0.0, 1 / 81, _STEP_B / 3, (6 * _STEP_A + _STEP_B) / 2]], {"radius": 1, "eps": 1.0},
    ),
    FilterProblem(  # (a, b) = (0, 1), (1, 2), (4/3, 2/3)
        "constant box", [[0.0, 0.0, 3.0]], [[3.0, 0.0, 6.0]], [[1.0, 11 / 9, 29 / 9]],
        {"radius": 1, "eps": 1.0, "box": "constant"},
    ),
    FilterProblem(  # Sigma + 1 = [[3, -1], [-1, 3]], cov = (16/3, -8/3), a = (5/3, -1/3), b = 4/3
        "two channels", [[0.0, 3.0, 0.0], [0.0, 0.0, 3.0]], [[0.0, 8.0, 0.0]], [[4 / 3, 19 / 3, 1 / 3]],
        {"radius": 2, "eps": 1.0},
    ),
    FilterProblem(  # "one window" of the block means, a = 1 and b = 2, at the guide's full resolution
        "subsampled", [[-1.0, 1.0, 2.0, 2.0]], [[0.0, 2.0, 4.0, 6.0]], [[1.0, 3.0, 4.0, 4.0]],
        {"radius": 2, "eps": 1.0, "subsample": 2},
    ),
]  # fmt: skip


def everywhere(problem):
    """The problem for a filter of all pixels; for windows that leave out no pair that weighs anything."""
    return replace(problem, window={k: v for k, v in problem.window.items() if k != "window_size"})


SEE_ALL = ("one pixel", "two pixels", "all far apart", "the window holds the image")
EXACT_FILTERS = [everywhere(p) for p in FILTERS if p.name.startswith(SEE_ALL)]
EXACT_FILTERS += [everywhere(three_pixels(n, all_pairs=True)) for n in ("none", "before", "after", "symmetric")]


def lone_pixel(logits, weight: float, iterations: int) -> list[float]:
    """Q of one pixel, whose only message is its own: S = U + w Q."""
    q = softmax(*logits)
    for _ in range(iterations):
        q = softmax(*(u + weight * p for u, p in zip(logits, q)))
    return q


def two_labels(u: list[float], k: float, weight: float, iterations: int) -> list[list[float]]:
    """Two pixels, two labels: the difference d = S_1 - S_0 alone moves, d = u + w K (2 q - 1), q = sigmoid(d)."""
    q = [sigmoid(v) for v in u]
    for _ in range(iterations):
        y = [2 * v - 1 for v in q]
        q = [sigmoid(u[0] + weight * (y[0] + k * y[1])), sigmoid(u[1] + weight * (k * y[0] + y[1]))]
    return [[1 - v for v in q], q]


def _pixels(q: list[float], count: int) -> list:
    """The same distribution at every pixel of a row, [C, count]."""
    return [[p] * count for p in q]


U3 = (0.5, -1.0, 2.0)
_Q2 = softmax(0.3, 1.1)  # of one pixel of two labels
_PAIR = {"logits": [[0.0, 0.0], [1.0, -0.4]], "features": [[0.0, 1.5]], "window": {"window_size": 3}, "weight": 2.0}
_LONE = {"logits": [[0.3], [1.1]], "features": [[0.0]], "window": {"window_size": 3}, "iterations": 1}

LOOPS = [
    LoopProblem("zero iterations", [[0.0, 1.0]], _pixels(U3, 2), _pixels(softmax(*U3), 2), {"window_size": 3}, 3.0, 0),
    LoopProblem("one pixel", [[0.0]], _pixels(U3, 1), _pixels(lone_pixel(U3, 1.7, 4), 1), {"window_size": 3}, 1.7, 4),
    LoopProblem(
        "identical pixels", [[0.0] * 6], _pixels(U3, 6), _pixels(lone_pixel(U3, 1.7, 3), 6),
        {"window_size": 3, "normalization": "after"}, 1.7, 3,
    ),
    LoopProblem("all far apart", [[0.0, FAR, 2 * FAR]], _pixels(U3, 3), _pixels(softmax(*U3), 3),
                {"window_size": 3, "include_self": False}, 5.0, 3),
    LoopProblem("no weight", [[0.0, 1.0]], _pixels(U3, 2), _pixels(softmax(*(2 * u for u in U3)), 2),
                {"window_size": 3}, 0.0, 2, {"unary_weight": 2.0}),
    LoopProblem("equal labels stay equal", [[0.0, 0.3, 1.0]], [[1.0, 5.0, -3.0]] * 4, [[0.25] * 3] * 4,
                {"window_size": 3, "normalization": "symmetric"}, 3.0, 4),
    *(LoopProblem(f"two labels, {t} iterations", answer=two_labels([1.0, -0.4], NEAR, 2.0, t), iterations=t, **_PAIR)
      for t in (1, 2, 5)),
    LoopProblem("two labels, costs of [l != l']", answer=two_labels([1.0, -0.4], NEAR, 2.0, 3), iterations=3, **_PAIR,
                options={"compatibility": [[0.0, 1.0], [1.0, 0.0]]}),
    LoopProblem(  # label 0 pays 2 where its neighbours are 1, and nobody else pays: rows receive
        "an asymmetric cost", answer=_pixels(softmax(0.3 - 2 * _Q2[1], 1.1), 1), weight=1.0, **_LONE,
        options={"compatibility": [[0.0, 2.0], [0.0, 0.0]]},
    ),
    LoopProblem("a weight per label", answer=_pixels(softmax(0.3 + 4 * _Q2[0], 1.1 - _Q2[1]), 1), weight=[4.0, -1.0],
                **_LONE),
    LoopProblem("a matrix of weights: rows receive", answer=_pixels(softmax(0.3 + 3 * _Q2[1], 1.1), 1),
                weight=[[0.0, 3.0], [0.0, 0.0]], **_LONE),
    LoopProblem("a unary weight per label", answer=_pixels(softmax(2 * 0.3 + _Q2[0], 0.5 * 1.1 + _Q2[1]), 1), weight=1.0,
                **_LONE, options={"unary_weight": [2.0, 0.5]}),
    LoopProblem("first messages of logarithms", weight=2.0, **_LONE, options={"initial": "log_softmax"},
                answer=_pixels(softmax(0.3 + 2 * math.log(_Q2[0]), 1.1 + 2 * math.log(_Q2[1])), 1)),
]  # fmt: skip

EXACT_LOOPS = [everywhere(p) for p in LOOPS]


def named(problem) -> str:
    return problem.name


def described(value) -> str:
    """An argument in the name of its test."""
    return str(value).replace("torch.", "") or "nothing"


# Layers -----------------------------------------------------------------------------------------------------------

CLASSES = 3


@dataclass(frozen=True)
class Layer:
    """A layer of small arguments, its variants, and what it is given: scores [B, 3, *size], images [B, 3, *large]."""

    kind: type
    arguments: dict
    variants: dict
    size: tuple
    large: tuple
    colors: tuple  # from, to
    features: Callable  # what stands in for an image of the scores' size

    @property
    def name(self) -> str:
        return self.kind.__name__

    def make(self, variant="default", **changes):
        return self.kind(**{**self.arguments, **self.variants[variant], **changes})

    def picture(self, size=None, batch=1, channels=3):
        shape = batch, channels, *(self.large if size is None else size)
        return torch.randint(*self.colors, shape, dtype=torch.uint8)

    def problem(self, size=None, large=None, batch=1, dtype=torch.float64):
        """Scores and an image; of one size where `size` alone is given."""
        large = size if large is None else large
        return random_logits(size or self.size, CLASSES, batch, dtype), self.picture(large, batch)


CLOSE = (100, 140)  # colours so close that the appearance kernel fills (0, 1)
POSITIONS = (6, 7)
CONV_CRF = Layer(
    tc.ConvCRF,
    {"num_classes": CLASSES, "window_size": 3, "blur": 2, "iterations": 2},
    {
        "default": {},
        "class-weights": {"class_weights": True},
        "compatibility": {"compatibility": True},
        "learn-positions": {"learn_positions": POSITIONS},
        "theta-per-axis": {"theta_smooth": (2, 3), "theta_space": (20, 30), "theta_color": (10, 15, 20)},
        "no-position": {"appearance_position": False},
        "not-self-after": {"include_self": False, "normalization": "after"},
        "damped": {"damping": 0.4, "temperature": 1.3},
        "released": {"preset": "released"},
        "released-symmetric": {
            "preset": "released", "normalization": "symmetric", "appearance_position": True, "theta_space": 40,
        },
        "all": {"class_weights": True, "compatibility": True, "learn_positions": POSITIONS, "blur": 1},
        "released-all": {
            "preset": "released", "class_weights": True, "compatibility": True, "learn_positions": POSITIONS,
            "appearance_position": True, "theta_space": (20, 30), "normalization": "symmetric",
        },
    },
    size=POSITIONS, large=POSITIONS, colors=CLOSE,
    features=lambda image: tc.features.bilateral(image, 30, 5),
)  # fmt: skip
CRF_RNN = Layer(
    tc.CRFRNN,
    {
        "num_classes": CLASSES, "iterations": 2, "test_iterations": 3, "theta_smooth": 2.0, "theta_space": 9.0,
        "theta_color": 11.0,
    },
    {
        "default": {},
        "full": {"kernel_weights": "full"},
        "scalar": {"kernel_weights": "scalar"},
        "learn-thetas": {"learn_thetas": True},
        "theta-per-axis": {"theta_smooth": (2, 3), "theta_space": (8, 10), "theta_color": (10, 15, 20)},
        "learn-theta-per-axis": {"theta_smooth": (2, 3), "theta_color": (10, 15, 20), "learn_thetas": True},
        "spacing": {"spacing": (0.5, 2.0)},
        "symmetric-not-self": {"include_self": False, "normalization": "symmetric"},
        "before": {"normalization": "before"},
        "damped": {"damping": 0.4, "temperature": 1.3},
        "released": {"preset": "released"},
        "released-keras": {"preset": "released-keras"},
        "released-pytorch": {"preset": "released-pytorch"},
        "released-learn-thetas": {"preset": "released", "learn_thetas": True, "theta_color": (10, 15, 20)},
    },
    size=(5, 6), large=(5, 6), colors=CLOSE,
    features=lambda image: tc.features.bilateral(image, 9, 11),
)  # fmt: skip
GUIDANCE_CRF = Layer(
    tc.GuidanceCRF,
    {"num_classes": CLASSES, "radius": 1, "eps": 400.0},
    {
        "default": {},
        "radius-per-axis": {"radius": (2, 1)},
        "compatibility": {"compatibility": True},
        "constant": {"box": "constant"},
        "subsampled": {"subsample": 2, "radius": 3},
        "all": {
            "subsample": 2, "box": "constant", "compatibility": True, "strength": -1.5, "iterations": 2,
        },
        "at-the-scores-size": {"upsample": False},
        "damped": {"damping": 0.4, "temperature": 1.3, "compatibility": True},
        "released": {"preset": "released"},
    },
    size=(5, 6), large=(11, 14), colors=(0, 256),
    features=lambda image: tc.features.color(image, 1.0),
)  # fmt: skip
LAYERS = [CONV_CRF, CRF_RNN, GUIDANCE_CRF]


def call(crf, logits, image):
    return crf(logits, image)


def results(crf, logits, image, run=call, names=None):
    """Scores, and the gradients of <a fixed random cotangent, scores> by name; the image's if it is floating."""
    inputs = {"logits": logits, "image": image}
    inputs = {name: x.detach().clone().requires_grad_(x.is_floating_point()) for name, x in inputs.items()}
    scores = run(crf, *inputs.values())
    generator = torch.Generator().manual_seed(1)
    cotangent = torch.randn(scores.shape, dtype=torch.float64, generator=generator).to(scores.dtype)
    inputs = {name: x for name, x in (inputs | dict(crf.named_parameters())).items() if x.requires_grad}
    inputs = {name: x for name, x in inputs.items() if names is None or name in names}
    gradients = torch.autograd.grad(scores, list(inputs.values()), cotangent)
    return {"scores": scores.detach(), **{f"{name}'s gradient": g for name, g in zip(inputs, gradients)}}


def assert_same(found: dict, expected: dict, **tolerance):
    assert found.keys() == expected.keys()
    for name in expected:
        assert_close(name, found[name], expected[name], **tolerance)


def halves(size=(12, 12), step=1):
    """Scores of every `step`th pixel, wrong at a third of them, a picture of two halves, and their labels."""
    labels = (torch.arange(size[1]) >= size[1] // 2).long().expand(1, *size)
    image = (100 + 60 * labels)[:, None].expand(-1, 3, -1, -1) + torch.randint(0, 8, (1, 3, *size))
    low = labels[:, ::step, ::step]
    wrong = torch.rand(low.shape) < 1 / 3
    logits = 2 * F.one_hot(torch.where(wrong, 1 - low, low), 2).movedim(-1, 1).float()
    return logits, image.to(torch.uint8), labels


def trained_losses(crf, data, steps=8) -> list[float]:
    """The cross entropy before each step of Adam on `data`: scores, an image and labels."""
    logits, image, labels = data
    optimizer, losses = torch.optim.Adam(crf.parameters(), lr=0.05), []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = F.cross_entropy(crf(logits, image), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses
