"""The pairwise filters, each described once: how it is made, its matrix, and what holds for it.

`tests/test_filters.py` and `tests/kernels/test_filters.py` hold each of them to what all filters promise.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

import tritoncrf as tc
from assertions import assert_close, assert_within_budget
from cases import (
    NORMALIZATIONS,
    Setting,
    dense_apply,
    dense_exact,
    dense_guided,
    dense_window,
    leaves,
    random_features,
)
from dictionary_lattice import dense_lattice
from problems import EXACT_FILTERS, EXACT_LOOPS, FILTERS, GUIDED_FILTERS, LOOPS
from tritoncrf.filters.base import Gaussian
from tritoncrf.step import KEPT_STATES, Step

SIZE, CHANNELS = (5, 7), 3


@dataclass(frozen=True)
class FilterCase:
    """A filter of small arguments, its variants, and its matrix.

    variants: changes of its arguments, at each of which every promise is kept; `pair` names the two that loops take.
    symmetric, keeps_constants: the variants where K = K^T, and K 1 = 1.
    geometries: size, channels and changes at which the matrix is compared, in each of `forms`.
    smooth: gradients reach what the filter is made of, everywhere, and so do those of its matrix.
    learnt: arguments that may be tensors, which gradients reach.
    mirrored: size and changes at which mirrored images have mirrored messages.
    dynamic: the variants that can be exported with dynamic sizes, made inside the graph.
    """

    kind: type
    dense: Callable
    arguments: dict
    variants: dict
    pair: tuple
    symmetric: tuple = ()
    keeps_constants: tuple = ()
    geometries: dict = field(default_factory=dict)
    forms: dict = field(default_factory=lambda: {"": {}})
    smooth: bool = True
    learnt: dict = field(default_factory=dict)
    mirrored: tuple = ()
    dynamic: tuple = ()
    spread: float = 1.0  # of the features
    known: list = field(default_factory=list)
    known_loops: list = field(default_factory=list)
    make: Callable | None = None  # where it is not `kind` itself

    @property
    def name(self) -> str:
        return (self.make or self.kind).__name__

    @property
    def source(self) -> str:
        return self.kind.source

    @property
    def planned(self) -> bool:
        """Whether it is the library's own, with operators, and not a function of the user's."""
        return self.make is None

    @property
    def gaussian(self) -> bool:
        return issubclass(self.kind, Gaussian)

    @property
    def made_of(self) -> tuple:
        """The names of the inputs that its gradients reach, beside the values."""
        return (self.source, *self.learnt) if self.smooth else ()

    def inputs(self, size=SIZE, channels=CHANNELS, batch=2, shared=False, classes=3) -> dict[str, torch.Tensor]:
        """Values, what the filter is made of, and the arguments that it learns; in float64."""
        values = torch.randn(batch, classes, *size, dtype=torch.float64)
        features = self.spread * random_features(size, channels, 1 if shared else batch)
        learnt = {name: torch.tensor(value, dtype=torch.float64) for name, value in self.learnt.items()}
        return {"values": values, self.source: features, **learnt}

    def example(self, changes=None, dtype=torch.float64, **sizes) -> tuple[tc.filters.Filter, torch.Tensor]:
        """A filter, by default of the first of the pair, and values for it."""
        inputs = self.inputs(**sizes)
        changes = self.variants[self.pair[0]] if changes is None else changes
        return self.filter(inputs[self.source].to(dtype), **changes), inputs["values"].to(dtype)

    def filter(self, features, backend="torch", **changes) -> tc.filters.Filter:
        return (self.make or self.kind)(features, backend=backend, **{**self.arguments, **changes})

    def matrix(self, features, **changes) -> torch.Tensor:
        """[Bf, N, N]; no gradient reaches the features of a filter that is not smooth."""
        return self.dense(features if self.smooth else features.detach(), **{**self.arguments, **changes})

    def apply(self, backend="torch", **changes) -> Callable:
        """K x as a function of `inputs`."""

        def run(values, **made_of):
            return self.filter(made_of.pop(self.source), backend, **changes, **made_of)(values)

        return run

    def apply_dense(self, **changes) -> Callable:
        def run(values, **made_of):
            return dense_apply(self.matrix(made_of.pop(self.source), **changes, **made_of), values)

        return run

    def loop(self, count=1, **options) -> Setting:
        """A mean-field problem of `count` filters, the pair first."""
        windows = [*(self.variants[v] for v in self.pair), {}][:count]
        options = {"size": (4, 5), "windows": windows, "iterations": 3, **options}
        return Setting(kind=self.filter, dense=self.matrix, **options)


def results(apply, inputs, wanted=None, dtype=torch.float64, device="cpu", make=lambda x: x, cotangent=None) -> dict:
    """K x, and by name the gradients of <cotangent, K x> (a fixed random one) with respect to the inputs wanted."""
    given = dict(zip(inputs, leaves(*(x.to(device, dtype) for x in inputs.values()))))
    y = apply(**{name: make(x) for name, x in given.items()})
    if cotangent is None:
        cotangent = torch.randn(y.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    wanted = list(inputs) if wanted is None else wanted
    given = [given[name] for name in wanted]
    gradients = torch.autograd.grad(y, given, make(cotangent.to(y)), materialize_grads=True)
    return {"K x": y.detach(), **dict(zip(wanted, gradients))}


def assert_alike(found: dict, expected: dict, **tolerance) -> None:
    """Within rounding of the whole tensor; of 1, where all of the expected one is next to nothing."""
    assert found.keys() == expected.keys()
    for name, exact in expected.items():
        nothing = exact.numel() == 0 or exact.abs().max() < 1e-12
        assert_close(name, found[name], exact, scale=1.0 if nothing else None, **tolerance)


def assert_same_bits(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for name, exact in expected.items():
        assert torch.equal(found[name], exact), name


def step_of(setting, backend="torch", dtype=torch.float64, device="cpu", kind=None) -> Step:
    """The step of a mean-field problem, put together by hand as the loop does; of another `kind` if that is given."""
    logits, features, options = setting.unpack([x.to(device, dtype) for x in setting.inputs])
    filters = [setting.kind(f, backend=backend, **w) for f, w in zip(features, setting.windows)]
    plans, budget = [f.resolved(logits) for f in filters], KEPT_STATES * logits.shape[1] / len(filters)
    operators = [p.operator(f.tensors_in(dtype), budget) for p, f in zip(plans, filters)]
    kind = plans[0].step(plans, options["weights"], logits) if kind is None else kind
    return kind(operators, options["weights"], logits, options["unary_weight"])


def assert_states_are_whole(setting, **where) -> None:
    """What a step makes of a state depends on nothing else: not on what was asked of the step before, in any order."""
    step, other = step_of(setting, **where), step_of(setting, **where)
    q = [torch.randn_like(step.unary).softmax(1) for _ in range(2)]
    states = [step.start(x) for x in q]

    def outcome(step, state):
        after = step.next(state)
        return step.scores(state), step.probabilities(after), step.scores(after)

    first = [outcome(step, state) for state in states]
    kept, g = (step.arrange(x) for x in (q[0], torch.randn_like(q[0])))
    step.backward(kept.contiguous(), g, through_softmax=True, messages=True)
    again = [outcome(step, state) for state in reversed(states)][::-1]
    alone = [outcome(other, other.start(x)) for x in q]
    for a, b, c in zip(first, again, alone):
        assert all(torch.equal(x, y) and torch.equal(x, z) for x, y, z in zip(a, b, c))


ENOUGH = 16  # numbers to estimate PyTorch's error from: of fewer it can be next to nothing by chance


def assert_loop_within_budget(setting, device, make=lambda x: x, close=False) -> None:
    """The kernels' scores and every gradient of a loop: no further from float64 than PyTorch in float32 is, times 4.

    close: and as near as one step must be, as loops are whose messages are means."""
    found = setting.gradients(
        lambda *inputs: setting.run(*inputs, backend="triton"), dtype=torch.float32, device=device, make=make
    )
    exact, plain = setting.gradients(setting.run), setting.gradients(setting.run, dtype=torch.float32)
    for name, a, b, c in zip(("scores", *setting.names), found, exact, plain, strict=True):
        if a.numel() < ENOUGH:
            # A sum over all pixels rounds as its terms do, however much of them cancels.
            scale = max(b.norm().item(), setting.cotangent.norm().item())
            assert_close(name, a, b, dtype=torch.float32, scale=scale)
        else:
            assert_within_budget(name, a, b, c)
            if close:
                assert_close(name, a, b, dtype=torch.float32)


def launches(setting, wanted: str, device) -> tuple[int, int]:
    """Launches of one more iteration of a loop: forward, and backward to its "logits" or to "everything".

    Set-up is in both counts that are subtracted. Counting needs no launch to run."""
    from tritoncrf.kernels.common import record_launches  # here, for the tests that go without Triton

    counts = []
    for setting.iterations in (3, 2):
        inputs = [x.to(device, torch.float32) for x in setting.inputs]
        inputs = [x.requires_grad_(wanted == "everything" or i == 0) for i, x in enumerate(inputs)]
        with record_launches(run=False) as forward:
            scores = setting.run(*inputs, backend="triton")
        with record_launches(run=False) as backward:
            torch.autograd.grad(scores, [x for x in inputs if x.requires_grad], torch.randn_like(scores))
        counts.append((len(forward), len(backward)))
    return counts[0][0] - counts[1][0], counts[0][1] - counts[1][1]


# The filters ------------------------------------------------------------------------------------------------------

BOTH_SELVES = {"": {}, "-not-self": {"include_self": False}}
NORMALIZED = {n: {"normalization": n} for n in NORMALIZATIONS}
SCALED = {"default": {}, **{n: NORMALIZED[n] for n in NORMALIZATIONS[1:]}}

WINDOW = FilterCase(
    tc.filters.Window,
    dense_window,
    arguments={"window_size": 3},
    variants={
        **SCALED,
        "not-self": {"include_self": False, "normalization": "symmetric"},
        "dilated": {"window_size": 5, "dilation": 2, "normalization": "after"},
        "blurred": {"blur": 2, "normalization": "symmetric"},
        "blurred-by-3": {"blur": 3},
    },
    pair=("symmetric", "after"),
    symmetric=("default", "symmetric", "not-self"),
    keeps_constants=("after", "dilated"),
    forms=NORMALIZED,
    geometries={
        "signal": ((13,), 2, {"window_size": 5}),
        "signal-dilated": ((11,), 2, {"window_size": 5, "dilation": 3}),
        "signal-blurred": ((11,), 2, {"blur": 3}),
        "image": ((5, 7), 2, {}),
        "image-dilated-not-self": ((11, 4), 2, {"window_size": 5, "dilation": 2, "include_self": False}),
        "image-of-a-row": ((1, 9), 2, {"window_size": 5}),
        "image-of-a-column": ((9, 1), 2, {"window_size": 5}),
        "image-of-a-pixel": ((1, 1), 2, {}),
        "window-past-the-image": ((4, 5), 2, {"window_size": 31}),
        "image-blurred-2": ((6, 9), 2, {"blur": 2}),
        "image-blurred-3-not-self": ((8, 7), 2, {"blur": 3, "include_self": False}),
        "image-blurred-4-dilated": ((13, 9), 2, {"blur": 4, "dilation": 2}),
        "image-smaller-than-a-block": ((3, 2), 2, {"blur": 4}),
        "volume": ((3, 4, 5), 2, {}),
        "volume-dilated": ((5, 3, 4), 2, {"dilation": 2}),
        "volume-blurred": ((5, 4, 3), 2, {"blur": 2}),
        "volume-thinner-than-a-block": ((2, 5, 3), 2, {"blur": 4}),
        "volume-of-a-plane": ((1, 4, 5), 2, {}),
    },
    mirrored=(
        ((5, 7), {"dilation": 2, "normalization": "after"}),
        ((6, 8), {"dilation": 2, "normalization": "after", "blur": 2}),
        ((8, 12), {"dilation": 2, "normalization": "after", "blur": 4}),
    ),
    dynamic=("symmetric",),
    known=FILTERS,
    known_loops=LOOPS,
)
EXACT = FilterCase(
    tc.filters.Exact,
    lambda features, rtol, **options: dense_exact(features, **options),
    arguments={"rtol": 0},
    variants={**SCALED, "not-self": {"include_self": False, "normalization": "symmetric"}},
    pair=("symmetric", "after"),
    symmetric=("default", "symmetric", "not-self"),
    keeps_constants=("after",),
    forms={n + s: {**NORMALIZED[n], **own} for n, (s, own) in itertools.product(NORMALIZED, BOTH_SELVES.items())},
    geometries={  # a tile is 128 pixels
        "pixel": ((1,), 2, {}),
        "points": ((131,), 5, {}),
        "tile": ((128,), 1, {}),
        "tile-and-one": ((129,), 3, {}),
        "image": ((5, 7), 2, {}),
        "image-of-blocks": ((17, 19), 16, {}),
        "volume": ((3, 4, 5), 3, {}),
        "volume-of-blocks": ((6, 5, 7), 4, {}),
    },
    mirrored=(((5, 7), {"normalization": "after"}),),
    known=EXACT_FILTERS,
    known_loops=EXACT_LOOPS,
)
LATTICE = FilterCase(
    tc.filters.Lattice,
    dense_lattice,
    arguments={},
    variants={
        **SCALED,
        "not-self": {"include_self": False, "normalization": "after"},
        "not-self-symmetric": {"include_self": False, "normalization": "symmetric"},
        "padded": {"normalization": "after", "padding": "four"},
    },
    pair=("symmetric", "after"),
    keeps_constants=("after", "padded"),
    forms={n: NORMALIZED[n] for n in ("none", "before")},
    geometries={
        **{
            f"{size}-{d}".replace(" ", ""): (size, d, {})
            for size in [(1,), (2,), (31,), (5, 7), (1, 9), (8, 1), (3, 4, 5)]
            for d in (1, 2, 3, 5)
        },
        **{f"features-{d}": ((23,), d, {}) for d in (4, 8, 16, 19)},
    },
    smooth=False,  # it jumps where a pixel changes its simplex
    spread=2.0,
)
GUIDED = FilterCase(
    tc.filters.Guided,
    dense_guided,
    arguments={"radius": 2, "eps": 0.2},
    variants={
        "default": {},
        "constant": {"box": "constant"},
        "per-axis": {"radius": (1, 3), "box": "constant"},
        "subsampled": {"subsample": 2},
        "subsampled-constant": {"subsample": 2, "radius": 4, "box": "constant"},
    },
    pair=("default", "constant"),
    symmetric=("constant", "per-axis"),
    keeps_constants=("default", "subsampled"),
    forms={"count": {}, "constant": {"box": "constant"}},
    geometries={
        "signal": ((13,), 1, {}),
        "signal-of-8-channels": ((11,), 8, {"radius": 3}),
        "image": ((5, 7), 3, {"radius": 1}),
        "image-wide": ((9, 8), 2, {"radius": 3}),
        "image-per-axis": ((6, 9), 2, {"radius": (1, 3)}),
        "image-of-a-row": ((1, 9), 3, {}),
        "image-of-a-column": ((9, 1), 1, {}),
        "image-of-a-pixel": ((1, 1), 2, {"radius": 1}),
        "window-past-the-image": ((4, 5), 3, {"radius": 31}),
        "window-past-an-axis": ((3, 11), 1, {"radius": (7, 2)}),
        "volume": ((3, 4, 5), 2, {"radius": 1}),
        "volume-per-axis": ((4, 3, 5), 8, {"radius": (2, 1, 3)}),
        "signal-by-2": ((11,), 2, {"radius": 3, "subsample": 2}),
        "image-by-2": ((6, 8), 3, {"subsample": 2}),
        "image-by-2-odd": ((7, 9), 1, {"radius": (2, 6), "subsample": 2}),
        "image-by-3": ((8, 7), 8, {"radius": 5, "subsample": 3}),
        "image-by-4": ((13, 6), 2, {"radius": 1, "subsample": 4}),  # a radius of 1 at the low resolution, at least
        "image-smaller-than-a-block": ((3, 2), 2, {"subsample": 4}),
        "volume-by-2": ((5, 4, 3), 3, {"subsample": 2}),
        "volume-thinner-than-a-block": ((2, 5, 3), 2, {"radius": 5, "subsample": 4}),
    },
    learnt={"eps": 0.2},
    mirrored=tuple(
        (size, {"radius": (1, 3), "box": box, "subsample": s})
        for box in ("count", "constant")
        for s, size in ((1, (5, 7)), (2, (6, 8)), (4, (8, 12)))
    ),
    dynamic=("default", "constant"),
    known=GUIDED_FILTERS,
)


def function(features, backend, **window):
    """A Function that is a window, by its matrix; autograd sees through it."""
    matrix = dense_window(features, **window)
    return tc.filters.Function(lambda x: dense_apply(matrix.to(x.dtype), x))


def function_with_adjoint(features, backend, **window):
    matrix = dense_window(features.detach(), **window)
    return tc.filters.Function(
        lambda x: dense_apply(matrix.to(x.dtype), x), adjoint=lambda y: dense_apply(matrix.mT.to(y.dtype), y)
    )


FUNCTIONS = [
    FilterCase(
        tc.filters.Function,
        dense_window,
        arguments={"window_size": 3},
        variants={"default": {}, "after": {"normalization": "after"}},
        pair=("after", "default"),
        symmetric=("default",),
        keeps_constants=("after",),
        geometries={"signal": ((9,), 2, {}), "volume": ((3, 4, 5), 2, {})},
        smooth=make is function,
        make=make,
    )
    for make in (function, function_with_adjoint)
]
PLANNED = [WINDOW, LATTICE, EXACT, GUIDED]
CATALOGUE = [*PLANNED, *FUNCTIONS]

# Loops of any filter, in the words of `FilterCase.loop`.
SETTINGS = {
    "scalar": {},
    "class": dict(weight="class", unary="class"),
    "matrix": dict(weight="matrix"),
    "matrix-costs": dict(weight="matrix", compatibility=True, unary="class"),
    "class-costs": dict(count=2, weight="class", compatibility=True),
    "logarithms": dict(initial="log_softmax"),
    "logarithms-matrix": dict(initial="log_softmax", weight="matrix"),
    "two-scalars": dict(count=2),
    "two-classes": dict(count=2, weight="class", unary="class", channels=(2, 5)),
    "two-mixed": dict(count=2, weight=["matrix", "scalar"]),
    "three": dict(count=3, channels=(1, 2, 3), weight="class", strength=0.2),
    "signal": dict(size=(11,)),
    "volume": dict(size=(2, 3, 4), classes=2),
    "batch": dict(count=2, batch=2, weight="class"),
    "batch-own-features": dict(batch=2, shared=False),
    "batch-mixed": dict(count=2, batch=3, shared=[True, False], weight=["scalar", "matrix"]),
    "hot": dict(weight="class", unary="class", temperature=1.7),
    "damped": dict(weight="class", damping=0.4),
    "damped-hot-matrix": dict(count=2, weight=["matrix", "scalar"], damping=0.3, temperature=0.8, classes=5),
    "one-iteration-damped": dict(iterations=1, damping=0.5),
    "one-iteration": dict(iterations=1, count=2, weight="class"),
    "no-iteration": dict(iterations=0),
}
