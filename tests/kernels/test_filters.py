"""What the kernels of every filter promise, against PyTorch in float64: values, gradients, the loop, launches, bits."""

import functools
import math

import pytest
import torch

import tritoncrf as tc
from assertions import assert_close, assert_within_budget
from cases import random_features, strided
from filter_catalogue import (
    EXACT,
    GUIDED,
    LATTICE,
    PLANNED,
    SETTINGS,
    SIZE,
    WINDOW,
    assert_alike,
    assert_loop_within_budget,
    assert_same_bits,
    assert_states_are_whole,
    launches,
    results,
    step_of,
)
from problems import named
from tritoncrf.kernels.common import record_launches
from tritoncrf.step import Step

each_filter = pytest.mark.parametrize("case", PLANNED, ids=named)
interpreter = pytest.mark.interpreter
FIRST = {"Exact": 6}  # known answers of loops that say no more of it
FUSED = [(WINDOW, {}), (WINDOW, {"blur": 2}), (LATTICE, {}), (GUIDED, {}), (GUIDED, {"radius": 8})]
each_fused = pytest.mark.parametrize("case, changes", FUSED, ids=lambda x: getattr(x, "name", str(x)))


def by_kernels(case, inputs, device, make=lambda x: x, **options):
    return results(case.apply("triton", **options), inputs, dtype=torch.float32, device=device, make=make)


# The filter -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case, problem", [
    pytest.param(c, p, marks=interpreter if p.name in ("constant box", "more smoothing") else ())
    for c in PLANNED for p in c.known
], ids=named)  # fmt: skip
def test_known_answers(case, problem, device):
    made_of, values, answer = problem.tensors(torch.float32, device)
    found = case.kind(made_of, **problem.window, backend="triton")(values)
    assert_close("K x", found, answer, scale=None if answer.any() else 1.0)


@pytest.mark.parametrize(
    "case, problem", [(c, p) for c in PLANNED for p in c.known_loops[: FIRST.get(c.name)]], ids=named
)
def test_known_answers_of_the_loop(case, problem, device):
    made_of, logits, answer = problem.tensors(torch.float32, device)
    filters = [case.kind(made_of, **problem.window, backend="triton")]
    assert_close("Q", tc.mean_field(logits, filters, **problem.arguments(torch.float32, device)), answer)


SIZES = [(1,), (37,), (4, 32), (5, 33), (2, 3, 5)]
PLACES = [
    pytest.param(c, SIZE, changes, id=f"{c.name}-{v}", marks=interpreter if v == c.pair[0] else ())
    for c in PLANNED for v, changes in c.variants.items()
]  # fmt: skip
PLACES += [pytest.param(c, size, c.variants[c.pair[0]], id=f"{c.name}-{size}") for c in PLANNED for size in SIZES]


@pytest.mark.parametrize("case, size, changes", PLACES)
def test_values_and_every_gradient(case, size, changes, device):
    inputs = case.inputs(size, shared=len(size) > 1)
    found, exact = by_kernels(case, inputs, device, **changes), results(case.apply(**changes), inputs)
    for name in case.learnt:  # a sum whose terms cancel each other: of <x, K x> they do not
        del found[name], exact[name]
    assert_alike(found, exact, dtype=torch.float32)
    if case is EXACT and size == SIZE:
        plain = results(case.apply(**changes), inputs, dtype=torch.float32)
        for name in found:
            assert_within_budget(name, found[name], exact[name], plain[name])


@pytest.mark.parametrize("case, changes", [
    pytest.param(c, changes, id=f"{c.name}-{v}") for c in PLANNED if c.learnt for v, changes in c.variants.items()
])  # fmt: skip
def test_the_gradient_of_what_is_learnt(case, changes, device):
    inputs = case.inputs()
    options = {"wanted": list(case.learnt), "cotangent": inputs["values"]}
    found = results(case.apply("triton", **changes), inputs, dtype=torch.float32, device=device, **options)
    exact = results(case.apply(**changes), inputs, **options)
    assert_alike(found, exact, dtype=torch.float32)


@pytest.mark.parametrize("classes", [1, 17, 33, 200])
@each_filter
def test_numbers_of_classes(case, classes, device):
    inputs = case.inputs((3, 5), classes=classes)
    found, exact = by_kernels(case, inputs, device), results(case.apply(), inputs)
    assert_alike(*({n: x for n, x in r.items() if n not in case.learnt} for r in (found, exact)), dtype=torch.float32)


@pytest.mark.parametrize("case, batch, classes", [
    *((c, 0, 3) for c in PLANNED), (EXACT, 2, 0), (GUIDED, 2, 0),
], ids=lambda x: getattr(x, "name", str(x)))  # fmt: skip
def test_nothing_to_filter(case, batch, classes, device):
    for shared in True, False:
        inputs = case.inputs(batch=batch, classes=classes, shared=shared)
        for changes in case.variants.values():
            found = by_kernels(case, inputs, device, **changes)
            for name, x in inputs.items():
                assert_close(name, found[name], torch.zeros_like(x), dtype=torch.float32, scale=1.0)


def classes_last(x):
    return x.movedim(1, -1).contiguous().movedim(-1, 1) if x.ndim > 1 else x


@pytest.mark.parametrize("make, classes", [(strided, 5), (classes_last, 4)])
@each_filter
def test_memory_order_does_not_matter(case, make, classes, device):
    inputs, changes = case.inputs(classes=classes), case.variants[case.pair[0]]
    assert_alike(*(by_kernels(case, inputs, device, how, **changes) for how in (make, torch.clone)))
    f, x = (inputs[name].to(device, torch.float32) for name in (case.source, "values"))
    K = case.filter(f, "triton", **changes)
    assert torch.equal(K(make(x)), K(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@each_filter
def test_half_precision_is_stored_and_never_summed_in(case, dtype, device):
    inputs = case.inputs()
    x = inputs["values"].to(device, dtype)
    K = case.filter(inputs[case.source].to(device, torch.float32), "triton", **case.variants[case.pair[1]])
    assert torch.equal(K(x), K(x.float()).to(dtype))
    q = tc.mean_field(x, [K], [2.0], iterations=2)
    assert torch.equal(q, tc.mean_field(x.float(), [K], [2.0], iterations=2).to(dtype))


# The loop ---------------------------------------------------------------------------------------------------------


FEW = "class", "matrix-costs", "batch-mixed"  # of a filter whose step is that of separate passes


@pytest.mark.parametrize("case, options", [
    pytest.param(c, {"iterations": 2, **options}, id=f"{c.name}-{n}", marks=interpreter if n == "class" else ())
    for c in PLANNED
    for n, options in {**SETTINGS, "empty-batch": dict(batch=0)}.items()
    if n != "no-iteration" and (c is not EXACT or n in FEW)
])  # fmt: skip
def test_the_loop_and_every_gradient(case, options, device):
    assert_loop_within_budget(case.loop(**options), device, close=case is GUIDED)


@each_filter
def test_the_loop_takes_classes_that_are_ruled_out(case, device):
    setting = case.loop(weight="class", unary="class", iterations=2)
    setting.logits[:, 1, ..., ::2] = -math.inf

    def gradients(backend, dtype, device="cpu"):
        run = functools.partial(setting.run, backend=backend, output="probabilities")
        return setting.gradients(run, dtype=dtype, device=device)

    found, exact = gradients("triton", torch.float32, device), gradients("torch", torch.float64)
    for name, *values in zip(("Q", *setting.names), found, exact, gradients("torch", torch.float32), strict=True):
        assert_within_budget(name, *values)


@pytest.mark.parametrize("name", ["two-mixed", "batch-own-features"])
@each_filter
def test_the_loop_takes_any_memory_order(case, name, device):
    assert_loop_within_budget(case.loop(**SETTINGS[name], iterations=2), device, strided)


@pytest.mark.parametrize("order", [1, -1])
@each_filter
def test_the_loop_takes_it_beside_a_window(case, order, device):
    inputs = {**case.inputs((4, 7), batch=1), "other": random_features((4, 7))}
    for name in case.learnt:
        del inputs[name]

    def run(backend):
        def mixed(values, other, **made_of):
            filters = [case.filter(made_of[case.source], backend), WINDOW.filter(other, backend, window_size=5)]
            return tc.mean_field(values, filters[::order], [0.1, 0.3][::order], iterations=1, output="logits")

        return mixed

    found, exact = results(run("triton"), inputs, dtype=torch.float32, device=device), results(run("torch"), inputs)
    assert_alike(found, exact, dtype=torch.float32)


@pytest.mark.parametrize("case, changes, weight", [
    pytest.param(c, changes, w, id=f"{c.name}-{changes}-{w}", marks=interpreter if changes and w == "class" else ())
    for c, changes in FUSED for w in ("scalar", "class", "matrix")
])  # fmt: skip
def test_a_step_is_that_of_separate_passes(case, changes, weight, device):
    """Forward and back; each of its results by itself: where the messages too are asked for, for the gradient of the
    weights, they go elsewhere."""
    setting = case.loop(windows=[{**case.variants[case.pair[0]], **changes}], size=(9, 11), weight=weight)
    q, g = torch.randn(2, *setting.logits.shape, dtype=torch.float64).unbind()
    found = []
    for kind, backend, dtype, where in (Step, "torch", torch.float64, "cpu"), (None, "triton", torch.float32, device):
        step, u, v = step_of(setting, backend, dtype, where, kind), q.softmax(1).to(where, dtype), g.to(where, dtype)
        assert kind is Step or weight == "matrix" or type(step) is not Step
        state, kept, v = step.start(u), step.arrange(u).contiguous(), step.arrange(v)
        outcome = {"S": step.scores(state), "Q": step.image(step.probabilities(step.next(state)))}
        for softmax in (True, False):
            for messages in (True, False):
                dq, back = step.backward(kept, v, softmax, messages)
                outcome[f"dS {softmax} {messages}"] = step.image(dq)
                assert (back is not None) == messages
                of_weights = step.mixing_gradients(kept, back) if messages else []
                outcome |= {f"dA {softmax}": d for d in of_weights}
        found.append(outcome)
    assert_alike(found[1], found[0], dtype=torch.float32)


@pytest.mark.parametrize("classes", [2, 17, 33, 256])
@each_fused
def test_the_kernels_softmax_gives_distributions(case, changes, classes, device):
    setting = case.loop(
        windows=[{**case.variants[case.pair[1]], **changes}], size=(3, 4), classes=classes, weight="class"
    )
    setting.logits[..., :2] *= 1e4
    step = step_of(setting, "triton", torch.float32, device)
    state = step.start(torch.softmax(step.unary, 1))
    for t in range(2):
        state = step.next(state)
        q = step.image(step.probabilities(state))
        assert_close(f"sum of Q_{t}", q.sum(1), torch.ones_like(q[:, 0]))
        assert q.min() >= 0


@each_fused
def test_certain_scores_stay_finite(case, changes, device):
    labels = torch.randint(0, 4, (1, 1, 5, 6))
    logits = torch.full((1, 4, 5, 6), -1e4).scatter_(1, labels, 1e4).to(device).requires_grad_()
    f = case.inputs((5, 6), batch=1)[case.source].to(device, torch.float32)
    q = tc.mean_field(logits, [case.filter(f, "triton", **changes)], [3.0])
    assert torch.equal(q.argmax(1, keepdim=True).cpu(), labels)
    (gradient,) = torch.autograd.grad(q, logits, torch.randn_like(q))
    assert torch.isfinite(gradient).all()


# Bits and launches ------------------------------------------------------------------------------------------------


@each_filter
def test_the_same_bits_twice(case, device):
    inputs, changes = case.inputs((9, 15), classes=5), case.variants[case.pair[0]]
    assert_same_bits(*(by_kernels(case, inputs, device, **changes) for _ in range(2)))
    blurred = [dict(windows=[{"blur": 2}] * 2)] if case is WINDOW else []
    for options in SETTINGS["two-classes"], SETTINGS["matrix-costs"], *blurred:
        setting = case.loop(**options, iterations=2)
        run = functools.partial(setting.run, backend="triton")
        first, second = (setting.gradients(run, dtype=torch.float32, device=device) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("case, count, changes", [
    (WINDOW, 1, {}), (WINDOW, 2, {}), (WINDOW, 1, {"blur": 2}), (LATTICE, 2, {}), (EXACT, 2, {}), (GUIDED, 1, {}),
    (GUIDED, 1, {"radius": 8}),
], ids=lambda x: getattr(x, "name", str(x)))  # fmt: skip
def test_the_same_q_gives_the_same_answer_whoever_called_the_step_before(case, count, changes, device):
    windows = [{**case.variants[v], **changes} for v in case.pair][:count]
    setting = case.loop(windows=windows, size=(9, 11), weight="class")
    assert_states_are_whole(setting, backend="triton", dtype=torch.float32, device=device)


def of_lattices(count, d):
    """Per filter: splat in two launches, blurs two by two; one slice with the step. At most d + 3."""
    there = 2 + (d + 2) // 2
    assert there + 1 <= d + 3
    each_way = count * there + 1
    return LATTICE, dict(windows=[{}] * count, channels=(d, d)), each_way, each_way, each_way + count * (2 * there + 1)


@pytest.mark.parametrize("case, options, forward, backward, everything", [
    (WINDOW, {}, 1, 1, 4),
    (WINDOW, dict(count=2), 1, 1, 6),
    (WINDOW, dict(windows=[{"blur": 2}] * 2, channels=(2, 5)), 2, 3, 5),
    (EXACT, {}, 2, 2, 9),
    (EXACT, dict(count=2), 4, 4, 16),
    (GUIDED, dict(size=(5, 6), windows=[{"radius": 3}]), 2, 2, 10),
    (GUIDED, dict(size=(5, 6), windows=[{"radius": 4}]), 2, 2, 10),
    (GUIDED, dict(size=(5, 70), windows=[{"radius": 64}]), 4, 4, 12),
    (GUIDED, dict(size=(70, 5), windows=[{"radius": (64, 1)}]), 4, 4, 12),
    (GUIDED, dict(size=(40,), windows=[{"radius": 31}]), 4, 4, 8),
    (GUIDED, dict(size=(3, 4, 5), windows=[{"radius": 1}]), 6, 6, 18),
    *(of_lattices(count, d) for count in (1, 2) for d in (1, 2, 3, 5, 8)),
], ids=lambda x: getattr(x, "name", str(x)))  # fmt: skip
def test_launches_per_iteration(case, options, forward, backward, everything, device):
    assert launches(case.loop(**options), "logits", device) == (forward, backward)
    assert launches(case.loop(**options), "everything", device) == (forward, everything)


@each_filter
def test_a_batch_may_pass_65535(case, device):
    """Where all axes of a grid end but the first."""
    of_features = case is not GUIDED  # a guide's gradient takes one image at a time
    features = torch.rand(1, 2, 1, 2, device=device, requires_grad=of_features)
    K = case.kind(features, **case.arguments, backend="triton")
    scores = torch.zeros(65537, 2, 1, 2, device=device, requires_grad=True)
    with record_launches(run=False) as launched:
        K(scores)
        refined = tc.mean_field(scores, [K], [1.0], iterations=2, output="logits")
        wanted = [scores, features] if of_features else [scores]
        torch.autograd.grad(refined, wanted, torch.zeros_like(refined))
    assert launched and all(n < 65536 for launch in launched for n in launch.grid[1:])
    assert any(launch.grid[0] * launch.arguments.get("CP", 1) >= 65537 for launch in launched)
