"""The mean-field loop in PyTorch: against dense matrices, finite differences, known answers, and its invariances."""

import importlib
import math

import numpy as np
import pytest
import torch

import tritoncrf as tc
from assertions import assert_close
from cases import NORMALIZATIONS, Setting, dense_scores, dense_window, leaves, random_features, random_logits, strided
from problems import LOOPS, named
from tritoncrf.filters.window import WindowPlan
from tritoncrf.reference import window as reference
from tritoncrf.step import Step, softmax

Window = tc.filters.Window
step, made = reference.MergedStep, reference.MergedStep.__init__
loop = importlib.import_module("tritoncrf.mean_field")  # `tc.mean_field` is the function


def window(features, window_size=3, **options):
    return Window(features, window_size, **options)


# Known answers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("problem", LOOPS, ids=named)
def test_known_answers(problem, dtype):
    features, logits, answer = problem.tensors(dtype)
    q = tc.mean_field(logits, [Window(features, **problem.window)], **problem.arguments(dtype))
    assert_close("Q", q, answer)


# Values and gradients ---------------------------------------------------------------------------------------------

ONE = [{"window_size": 3}]
TWO = [{"window_size": 3}, {"window_size": 3, "include_self": False}]
SETTINGS = {
    "scalar": dict(windows=ONE),
    "class": dict(windows=ONE, weight="class"),
    "matrix": dict(windows=ONE, weight="matrix"),
    "costs": dict(windows=ONE, compatibility=True),
    "class-costs": dict(windows=ONE, weight="class", compatibility=True),
    "matrix-costs": dict(windows=ONE, weight="matrix", compatibility=True, unary="class"),
    "unary-class": dict(windows=ONE, unary="class"),
    "logarithms": dict(windows=ONE, initial="log_softmax"),
    "hot": dict(windows=ONE, temperature=1.7),
    "logarithms-cold": dict(windows=TWO, initial="log_softmax", temperature=0.6),
    "damped": dict(windows=ONE, damping=0.4),
    "damped-hot": dict(windows=TWO, damping=0.7, temperature=1.7, weight="class"),
    "damped-costs": dict(windows=ONE, damping=0.4, weight="matrix", compatibility=True, unary="class"),
    "damped-blurred": dict(windows=[{"window_size": 3, "blur": 2}], damping=0.4),
    "logarithms-unary-class": dict(windows=ONE, initial="log_softmax", unary="class", weight="class"),
    **{n: dict(windows=[{"window_size": 3, "normalization": n}], weight="class") for n in NORMALIZATIONS[1:]},
    **{
        f"{n}-not-self": dict(windows=[{"window_size": 3, "normalization": n, "include_self": False}])
        for n in NORMALIZATIONS
    },
    **{
        f"blur-{n}": dict(windows=[{"window_size": 3, "blur": 2, "normalization": n}], weight="matrix")
        for n in NORMALIZATIONS
    },
    "two": dict(windows=TWO, weight="class"),
    "two-scalars": dict(windows=TWO),
    "two-mixed": dict(windows=TWO, weight=["scalar", "matrix"], compatibility=True),
    "two-different": dict(
        windows=[{"window_size": 5, "blur": 2}, {"window_size": 3, "dilation": 2, "normalization": "after"}],
        weight=["class", "scalar"],
    ),
    "signal": dict(size=(9,), windows=[{"window_size": 5, "normalization": "symmetric"}]),
    "volume": dict(size=(2, 3, 4), windows=ONE, classes=2),
    "volume-blur": dict(size=(3, 2, 4), windows=[{"window_size": 3, "blur": 2}], classes=2),
    "batch": dict(size=(2, 5), windows=[{"window_size": 3, "normalization": "after"}], batch=2),
    "batch-own-features": dict(size=(2, 5), windows=[{"window_size": 3, "normalization": "before"}], batch=2, shared=False),
    "four-labels": dict(windows=ONE, classes=4, weight="class"),
}  # fmt: skip


def setting(name: str, iterations: int) -> Setting:
    return Setting(**{"size": (4, 5), "iterations": iterations, **SETTINGS[name]})


@pytest.mark.parametrize("iterations", [1, 3])
@pytest.mark.parametrize("name", SETTINGS)
def test_scores_and_every_gradient_are_those_of_dense_matrices(name, iterations):
    case = setting(name, iterations)
    found, expected = case.gradients(case.run), case.gradients(case.run_dense)
    for what, a, b in zip(("scores", *case.names), found, expected, strict=True):
        assert_close(what, a, b)


@pytest.mark.parametrize("iterations", [1, 3])
@pytest.mark.parametrize("name", SETTINGS)
def test_gradcheck(name, iterations):
    case = setting(name, iterations)
    assert torch.autograd.gradcheck(case.run, leaves(*case.inputs), fast_mode=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["class", "matrix-costs", "blur-symmetric", "two-mixed", "logarithms-unary-class"])
def test_gradcheck_of_every_entry(name):
    case = Setting(**{**SETTINGS[name], "size": (3, 4), "iterations": 2, "classes": 2})
    assert torch.autograd.gradcheck(case.run, leaves(*case.inputs))


@pytest.mark.parametrize("wanted", range(4))
def test_a_gradient_does_not_depend_on_which_others_are_wanted(wanted):
    case = setting("matrix-costs", 2)
    alone = [x.clone().requires_grad_(i == wanted) for i, x in enumerate(case.inputs)]
    (found,) = torch.autograd.grad(case.run(*alone), alone[wanted], case.cotangent)
    assert_close(case.names[wanted], found, case.gradients(case.run)[1 + wanted])


def test_gradients_reach_the_thetas_of_features():
    image, logits = torch.rand(1, 3, 4, 5, dtype=torch.float64), random_logits((4, 5))
    weight, thetas = torch.tensor(2.0, dtype=torch.float64), leaves(torch.tensor([3.0, 40.0], dtype=torch.float64))[0]

    def run(theta_space, theta_color):
        f = tc.features.bilateral(image, theta_space, theta_color)
        return tc.mean_field(logits, [window(f, normalization="symmetric")], [weight], iterations=2)

    assert torch.autograd.gradcheck(run, tuple(leaves(*thetas.detach())))


# Invariances ---------------------------------------------------------------------------------------------


def run(logits, weights=(1.5,), seed=7, **options):
    """The loop on fixed features of the size of `logits`."""
    generator = torch.Generator().manual_seed(seed)
    f = torch.randn(1, 2, *logits.shape[2:], dtype=torch.float64, generator=generator).to(logits.dtype)
    return tc.mean_field(logits, [window(f, normalization="symmetric")], list(weights), **options)


U = {"size": (5, 6), "classes": 4, "batch": 2}


def test_a_constant_per_pixel_changes_nothing_unless_classes_weigh_it_differently():
    logits = random_logits(**U)
    shift = 10 * torch.randn(2, 1, 5, 6, dtype=torch.float64)
    for initial in ("softmax", "log_softmax"):
        assert_close("Q", run(logits + shift, initial=initial), run(logits, initial=initial))
    a = torch.tensor([1.0, 0.8, 1.1, 0.9], dtype=torch.float64)
    assert (run(logits + shift, unary_weight=a) - run(logits, unary_weight=a)).abs().max() > 0.1
    normal = torch.log_softmax(logits, 1), torch.log_softmax(logits + shift, 1)
    assert_close("Q of log_softmax", run(normal[1], unary_weight=a), run(normal[0], unary_weight=a))


@pytest.mark.parametrize("weight", [1.5, torch.randn(4, dtype=torch.float64).exp(), torch.randn(4, 4).double()])
def test_equivalent_compatibilities(weight):
    logits, eye, mu = random_logits(**U), torch.eye(4, dtype=torch.float64), torch.randn(4, 4, dtype=torch.float64)
    potts = run(logits, [weight])
    assert_close("-I", run(logits, [weight], compatibility=-eye), potts)
    assert_close("[l != l']", run(logits, [weight], compatibility=1 - eye), potts)
    same_rows = mu + torch.randn(1, 4, dtype=torch.float64)
    expected = run(logits, [weight], compatibility=mu)
    assert_close("mu + 1 c^T", run(logits, [weight], compatibility=same_rows), expected)
    product = mu @ weight if getattr(weight, "ndim", 0) == 2 else mu * weight
    assert_close("only mu W matters", run(logits, [-product]), expected)


def test_without_weight_or_cost_only_the_unary_is_left():
    logits, nothing = random_logits(**U), torch.zeros(4, 4, dtype=torch.float64)
    expected = torch.softmax(0.7 * logits, 1)
    assert_close("W = 0", run(logits, [0.0], unary_weight=0.7), expected)
    assert_close("W = 0, matrix", run(logits, [nothing], unary_weight=0.7), expected)
    assert_close("mu = 0", run(logits, compatibility=nothing, unary_weight=0.7), expected)


def test_classes_may_be_permuted():
    logits, order = random_logits(**U), torch.tensor([2, 0, 3, 1])
    w, mu = torch.randn(2, 4, 4, dtype=torch.float64).unbind(0)
    a = torch.rand(4, dtype=torch.float64)
    q = run(logits, [w], compatibility=mu, unary_weight=a)
    square = (order[:, None], order[None, :])
    permuted = run(logits[:, order], [w[square]], compatibility=mu[square], unary_weight=a[order])
    assert_close("Q", permuted, q[:, order])
    vector = torch.rand(4, dtype=torch.float64)
    assert_close("Q, vector", run(logits[:, order], [vector[order]]), run(logits, [vector])[:, order])


@pytest.mark.parametrize("factor, size", [(1, (5, 7)), (2, (4, 6))])
def test_images_may_be_flipped_and_transposed(factor, size):
    f, logits = random_features(size, 3), random_logits(size)
    for transform in (lambda x: x.flip(-1), lambda x: x.flip(-2), lambda x: x.mT):
        q = tc.mean_field(logits, [window(f, blur=factor)], [2.0])
        moved = tc.mean_field(transform(logits), [window(transform(f), blur=factor)], [2.0])
        assert_close("Q", moved, transform(q))


def test_filters_may_be_split_and_reordered():
    f, g, logits = random_features((5, 6)), random_features((5, 6)), random_logits((5, 6))
    first, second = window(f, normalization="after"), window(g, window_size=5)
    expected = tc.mean_field(logits, [first, second], [2.0, 0.5])
    assert_close("split", tc.mean_field(logits, [first, second, first], [1.2, 0.5, 0.8]), expected)
    assert_close("reordered", tc.mean_field(logits, [second, first], [0.5, 2.0]), expected)


def gradients_of_probabilities(**options):
    logits, mu = leaves(random_logits(**U), torch.randn(4, 4, dtype=torch.float64))
    q = run(logits, [0.5], compatibility=mu, **options)
    return torch.autograd.grad(q, (logits, mu), torch.randn_like(q))


def test_gradients_vanish_along_what_changes_nothing():
    d_logits, d_mu = gradients_of_probabilities()
    assert_close("sum_l dU", d_logits.sum(1), torch.zeros_like(d_logits[:, 0]), scale=d_logits.abs().max().item())
    assert_close("sum_l dmu", d_mu.sum(0), torch.zeros_like(d_mu[0]), scale=d_mu.abs().max().item())


@pytest.mark.parametrize("options", [dict(damping=0.6), dict(temperature=2.5), dict(damping=0.6, temperature=0.4)])
def test_damping_and_temperature_by_hand(options):
    """One pixel, whose only message is its own."""
    d, tau = options.get("damping", 0.0), options.get("temperature", 1.0)
    u, w = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64), 1.7
    K = Window(torch.zeros(1, 1, 1, dtype=torch.float64), 3)
    q = torch.softmax(u, 0)
    for iterations in range(4):
        found = tc.mean_field(u.view(1, 3, 1), [K], [w], iterations=iterations, **options)
        assert_close("Q", found[0, :, 0], q)
        q = (1 - d) * torch.softmax((u + w * q) / tau, 0) + d * q


@pytest.mark.parametrize("damping", [0.0, 0.3])
def test_outputs_at_any_temperature_are_of_one_q(damping):
    logits, f = random_logits((4, 5)), random_features((4, 5))
    q, s, log_q = (
        tc.mean_field(logits, [window(f)], [2.0], damping=damping, temperature=1.9, output=output)
        for output in ("probabilities", "logits", "log_probabilities")
    )
    assert_close("softmax of logits", torch.softmax(s, 1), q)
    assert_close("exp of log Q", log_q.exp(), q)


def test_damped_certain_scores_stay_finite():
    logits = (1e4 * random_logits((4, 5))).float().requires_grad_()
    logits.data[:, 0, 0] = -math.inf
    for output in "probabilities", "log_probabilities":
        refined = tc.mean_field(logits, [window(random_features((4, 5)).float())], [3.0], damping=0.5, output=output)
        (gradient,) = torch.autograd.grad(refined, logits, torch.randn_like(refined))
        assert torch.isfinite(refined).all() and torch.isfinite(gradient).all()


def test_rows_sum_to_one_and_stay_between_zero_and_one():
    q = run(random_logits(**U).mul(20).float(), [30.0])
    assert_close("sum_l Q", q.sum(1), torch.ones_like(q[:, 0]))
    assert q.min() >= 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("classes", [2, 5])
def test_equal_labels_stay_equal(classes, dtype):
    """Equal logits everywhere; no feature of the image can tell the labels apart."""
    q = run(torch.full((1, classes, 5, 6), -3.0, dtype=dtype), [4.0])
    assert_close("Q", q, torch.full_like(q, 1 / classes))


@pytest.mark.parametrize("initial", ["softmax", "log_softmax"])
@pytest.mark.parametrize("sure", [1e4, -math.log(1e-20)])
def test_certain_scores_stay_finite(sure, initial):
    labels = torch.randint(0, 4, (1, 1, 5, 6))
    (logits,) = leaves(torch.full((1, 4, 5, 6), -sure).scatter_(1, labels, sure))
    weight, mu = leaves(torch.tensor(3.0), torch.eye(4))
    q = run(logits, [weight], compatibility=mu, initial=initial)
    assert torch.isfinite(q).all()
    for found in torch.autograd.grad(q, (logits, weight, mu), torch.randn_like(q)):
        assert torch.isfinite(found).all()
    if initial == "softmax":
        assert torch.equal(run(logits, output="log_probabilities").argmax(1, keepdim=True), labels)


# Arguments --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("iterations", [0, 1, 3])
def test_outputs(iterations):
    case = Setting((5, 6), ONE, iterations=iterations)
    scores = case.run(*case.inputs)
    assert_close("logits", scores, case.run_dense(*case.inputs))
    assert_close("probabilities", case.run(*case.inputs, output="probabilities"), torch.softmax(scores, 1))
    logs = case.run(*case.inputs, output="log_probabilities")
    assert_close("log_probabilities", logs, torch.log_softmax(scores, 1))


@pytest.mark.parametrize("output", ["probabilities", "logits", "log_probabilities"])
def test_gradients_through_each_output(output):
    case = setting("class", 2)
    assert torch.autograd.gradcheck(lambda *x: case.run(*x, output=output), leaves(*case.inputs), fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("classes", [2, 3, 21])
def test_a_softmax_has_the_same_bits_wherever_a_pixel_lies(classes, dtype):
    x = 5 * torch.randn(1, classes, 61, 67, dtype=dtype)
    whole = softmax(x)
    assert_close("softmax", whole, torch.softmax(x, 1))
    for part in (slice(0, 60), slice(0, 66)), (slice(3, 61), slice(1, 67)), (slice(7, 8), slice(5, 12)):
        assert torch.equal(softmax(x[(..., *part)]), whole[(..., *part)])


def test_zero_iterations_give_the_unary_as_it_came():
    logits = random_logits((5, 6))
    assert torch.equal(run(logits, iterations=0, unary_weight=0.3), softmax(logits))
    assert torch.equal(run(logits, iterations=0, output="logits"), logits)
    assert torch.autograd.gradcheck(lambda x: run(x, iterations=0), leaves(logits))


def test_numbers_tensors_and_their_matrices_are_one_weight():
    logits, eye = random_logits(**U), torch.eye(4, dtype=torch.float64)
    expected = run(logits, [2.0], unary_weight=0.5)
    vector = torch.full((4,), 2.0, dtype=torch.float64)
    for weight in (2, np.float32(2), torch.tensor(2.0), vector, vector.float(), 2 * eye):
        assert_close("W", run(logits, [weight], unary_weight=0.5), expected)
    for a in (torch.tensor(0.5), torch.full((4,), 0.5, dtype=torch.float16)):
        assert_close("a", run(logits, [2.0], unary_weight=a), expected)


def test_lists_and_tuples_of_filters():
    f, logits = random_features((5, 6)), random_logits((5, 6))
    assert torch.equal(tc.mean_field(logits, (window(f),), (2.0,)), tc.mean_field(logits, [window(f)], [2.0]))


def test_defaults():
    f, logits = random_features((5, 6)), random_logits((5, 6))
    scores = dense_scores(logits, [dense_window(f, 3)], [0.5], iterations=5)
    assert_close("Q", tc.mean_field(logits, [window(f)], [0.5]), torch.softmax(scores, 1))


@pytest.mark.parametrize("feature_batch", [0, 1])
def test_an_empty_batch(feature_batch):
    logits, f, weight = leaves(random_logits((5, 6), batch=0), random_features((5, 6), batch=feature_batch),
                               torch.ones(3, dtype=torch.float64))  # fmt: skip
    q = tc.mean_field(logits, [window(f, normalization="symmetric")], [weight])
    assert q.shape == logits.shape
    for name, x, found in zip(("U", "f", "W"), (logits, f, weight),
                              torch.autograd.grad(q, (logits, f, weight), torch.randn_like(q))):  # fmt: skip
        assert_close(name, found, torch.zeros_like(x), scale=1.0)


def test_memory_order_does_not_matter():
    case = Setting((5, 6), TWO, weight="matrix", compatibility=True, batch=2)
    plain, found = case.gradients(case.run), case.gradients(case.run, make=strided)
    for name, a, b in zip(("scores", *case.names), found, plain, strict=True):
        assert_close(name, a, b)


def test_a_batch_is_its_images_one_by_one():
    logits, f = random_logits((5, 6), batch=3), random_features((5, 6), batch=3)
    together = tc.mean_field(logits, [window(f, normalization="before")], [2.0])
    singles = [
        tc.mean_field(logits[b : b + 1], [window(f[b : b + 1], normalization="before")], [2.0]) for b in range(3)
    ]
    assert_close("batch", together, torch.cat(singles))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("output", ["probabilities", "log_probabilities"])
def test_half_precision_is_stored_and_never_summed_in(dtype, output):
    f, logits = random_features((5, 6), dtype=dtype), random_logits((5, 6)).to(dtype)
    q = tc.mean_field(logits, [window(f)], [0.5], output=output)
    exact = tc.mean_field(logits.double(), [window(f.double())], [0.5], output=output)
    assert_close("Q", q, exact, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_scores_of_any_dtype_equal_the_float32_loop_on_the_same_numbers(dtype):
    f, logits = random_features((5, 6), dtype=torch.float32), random_logits((5, 6)).to(dtype)
    (scores,), cotangent = leaves(logits), torch.randn(logits.shape).to(dtype)
    q = tc.mean_field(scores, [window(f)], [0.5])
    (wide,) = leaves(logits.float())
    expected = tc.mean_field(wide, [window(f)], [0.5])
    assert torch.equal(q, expected.to(dtype))
    (d,), (d_wide,) = torch.autograd.grad(q, scores, cotangent), torch.autograd.grad(expected, wide, cotangent.float())
    assert torch.equal(d, d_wide.to(dtype))


# Merged kernels ---------------------------------------------------------------------------------------------------


def both(**options):
    return [{"window_size": 3, **options}, {"window_size": 3, "include_self": False, **options}]


@pytest.mark.parametrize("wanted", ["logits", "everything"])
@pytest.mark.parametrize("windows, merges", [
    (ONE, True), (both(), True), (both(normalization="symmetric"), True), (both(blur=2), True),
    (both(normalization="after"), False), (both(blur=2, normalization="symmetric"), False),
    ([ONE[0], {"window_size": 5}], False), ([ONE[0], {"window_size": 3, "dilation": 2}], False),
])  # fmt: skip
def test_kernels_with_scalar_weights_are_summed_where_that_is_the_same(windows, merges, wanted, monkeypatch):
    case = Setting((5, 6), windows, batch=2, iterations=3)
    built = []
    for shared in (True, False):
        case.features = [random_features((5, 6), d, 1 if shared else 2) for d, _ in zip((2, 3), windows)]
        monkeypatch.setattr(step, "__init__", lambda *a: built.append(made(*a)))
        results = []
        for fuse in (True, False):
            if not fuse:
                monkeypatch.setattr(WindowPlan, "step", lambda *arguments: Step)
            inputs = [x.clone().requires_grad_(wanted == "everything" or x is case.logits) for x in case.inputs]
            scores = case.run(*inputs)
            leaf = [x for x in inputs if x.requires_grad]
            results.append([scores.detach(), *torch.autograd.grad(scores, leaf, case.cotangent)])
        monkeypatch.undo()
        for name, a, b in zip(("scores", *case.names), *results):
            assert_close(name, a, b)
    assert bool(built) == merges


# What is kept -----------------------------------------------------------------------------------------------------


def tensors_returned(monkeypatch, call) -> int:
    counts = []
    chosen = loop.iterate.on

    def on(backend):
        operator = chosen(backend)
        return lambda *a: counts.append(operator(*a)) or counts[-1]

    with monkeypatch.context() as patch:
        patch.setattr(loop.iterate, "on", on)
        call()
    (found,) = counts
    return len(found)


def test_states_are_kept_for_a_gradient_only(monkeypatch):
    (logits,), f = leaves(random_logits((5, 6))), random_features((5, 6))
    weight = torch.tensor(2.0, requires_grad=True)
    assert tensors_returned(monkeypatch, lambda: run(logits, iterations=4)) == 5
    assert tensors_returned(monkeypatch, lambda: run(logits.detach(), iterations=4)) == 1
    assert tensors_returned(monkeypatch, lambda: run(logits.detach(), [weight], iterations=4)) == 5
    (g,) = leaves(f)
    assert tensors_returned(monkeypatch, lambda: tc.mean_field(logits.detach(), [window(g)], [1.0])) == 6
    with torch.no_grad():
        assert tensors_returned(monkeypatch, lambda: run(logits, [weight], iterations=4)) == 1
    with torch.inference_mode():
        assert tensors_returned(monkeypatch, lambda: run(logits, [weight], iterations=4)) == 1


def test_inputs_are_left_as_they_were():
    case = Setting((5, 6), TWO, weight="class", compatibility=True)
    before = [x.clone() for x in case.inputs]
    case.gradients(case.run)
    assert all(torch.equal(a, b) for a, b in zip(case.inputs, before))


# Bad input --------------------------------------------------------------------------------------------------------

F = torch.zeros(1, 2, 4, 5)
K = Window(F, 3)
LOGITS = torch.zeros(1, 3, 4, 5)


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"logits": np.zeros((1, 3, 4, 5))}, TypeError, "^logits: expected a floating.*torch.from_numpy"),
        ({"logits": LOGITS.int()}, TypeError, "^logits: expected a floating.*got a int32 tensor"),
        ({"logits": None}, TypeError, "^logits: expected a floating.*got None"),
        ({"logits": LOGITS[0, 0]}, ValueError, r"^logits: expected \[B, C, \*S\].*got shape \[4, 5\]"),
        ({"logits": LOGITS[:, :0]}, ValueError, r"^logits: expected at least 2 classes on axis 1, got shape \[1, 0, 4, 5\]"),
        ({"logits": LOGITS.mT}, ValueError, r"^logits: expected \[B, C, 4, 5\] as.* got \[1, 3, 5, 4\]"),
        ({"logits": LOGITS[0]}, ValueError, r"^logits: expected \[B, C, 4, 5\].*got \[3, 4, 5\]"),
        ({"logits": LOGITS / 0}, ValueError, "^logits: expected finite values, or -inf for a class that is ruled out, got"),
        ({"logits": LOGITS - math.inf}, ValueError, "^logits: expected a class that is not ruled out, got 20 pixels"),
        ({"logits": LOGITS.to("meta")}, ValueError, "^logits: expected the device .* cpu, got meta"),
        (
            {"filters": [Window(F.expand(2, -1, -1, -1), 3)]},
            ValueError, r"^logits: expected a batch of 2 as in the filter's features, got \[1, 3, 4, 5\]",
        ),
        ({"filters": K}, TypeError, "^filters: expected a list, one per filter, got .*Window"),
        ({"filters": []}, ValueError, "^filters: expected at least one filter, got an empty list"),
        ({"filters": ["window"]}, TypeError, r"^filters\[0\]: expected a filter of tritoncrf.filters, got 'window'"),
        ({"filters": [K, F], "weights": [1.0, 1.0]}, TypeError, r"^filters\[1\]: expected a filter"),
        ({"weights": 3.0}, TypeError, r"^weights: expected a list, one per filter, got 3.0 \(float\)"),
        ({"weights": torch.ones(1)}, TypeError, "^weights: expected a list, one per filter, got a float32 tensor"),
        ({"weights": [1.0, 2.0]}, ValueError, "^weights: expected one per filter, 1, got 2"),
        ({"weights": [None]}, TypeError, r"^weights\[0\]: expected a finite number, got None"),
        ({"weights": ["3"]}, TypeError, r"^weights\[0\]: expected a finite number, got '3'"),
        ({"weights": [math.nan]}, ValueError, r"^weights\[0\]: expected a finite number, got nan"),
        ({"weights": [torch.tensor(3)]}, TypeError, r"^weights\[0\]: expected a number or a floating.*int64"),
        ({"weights": [torch.ones(4)]}, ValueError, r"^weights\[0\]: expected a shape of \[\], \[3\], \[3, 3\], got \[4\]"),
        ({"weights": [torch.ones(3, 1)]}, ValueError, r"^weights\[0\]: expected a shape of .*got \[3, 1\]"),
        ({"weights": [torch.ones(3) / 0]}, ValueError, r"^weights\[0\]: expected finite values, got 3"),
        ({"weights": [torch.ones(3, device="meta")]}, ValueError, r"^weights\[0\]: expected the device of logits, cpu"),
        ({"compatibility": "Potts"}, ValueError, "^compatibility: expected 'potts' or a .*, got 'Potts'"),
        ({"compatibility": 1.0}, ValueError, "^compatibility: expected 'potts' or a .*, got 1.0"),
        ({"compatibility": np.eye(3)}, ValueError, "^compatibility: expected 'potts' or a .*ndarray"),
        ({"compatibility": torch.eye(3).int()}, TypeError, "^compatibility: expected a floating.*int32"),
        ({"compatibility": torch.eye(4)}, ValueError, r"^compatibility: expected shape \[3, 3\], got \[4, 4\]"),
        ({"compatibility": torch.ones(3)}, ValueError, r"^compatibility: expected shape \[3, 3\], got \[3\]"),
        ({"compatibility": torch.eye(3) / 0}, ValueError, "^compatibility: expected finite values"),
        ({"compatibility": torch.eye(3, device="meta")}, ValueError, "^compatibility: expected the device of logits"),
        ({"iterations": -1}, ValueError, "^iterations: expected an int from 0 to 10000, got -1"),
        ({"iterations": 2.0}, TypeError, "^iterations: expected an int from 0 to 10000, got 2.0"),
        ({"iterations": True}, TypeError, "^iterations: expected an int"),
        ({"unary_weight": "1"}, TypeError, "^unary_weight: expected a finite number, got '1'"),
        ({"unary_weight": math.inf}, ValueError, "^unary_weight: expected a finite number, got inf"),
        ({"unary_weight": torch.eye(3)}, ValueError, r"^unary_weight: expected a shape of \[\], \[3\], got \[3, 3\]"),
        ({"unary_weight": torch.ones(3) / 0}, ValueError, "^unary_weight: expected finite values"),
        ({"initial": "uniform"}, ValueError, "^initial: expected one of 'softmax', 'log_softmax', got 'uniform'"),
        ({"damping": 1.0}, ValueError, "^damping: expected a number from 0 to below 1, got 1.0"),
        ({"damping": -0.1}, ValueError, "^damping: expected a number from 0 to below 1, got -0.1"),
        ({"damping": "0.5"}, TypeError, "^damping: expected a finite number, got '0.5'"),
        ({"damping": 0.5, "initial": "log_softmax"}, ValueError, "^damping: expected 0 with initial='log_softmax'"),
        ({"temperature": 0.0}, ValueError, "^temperature: expected a finite number above 0, got 0.0"),
        ({"temperature": torch.tensor(-1.0)}, ValueError, "^temperature: expected a finite number above 0, got -1.0"),
        ({"temperature": torch.ones(3)}, ValueError, "^temperature: expected a finite number above 0, got .*shape"),
        ({"temperature": None}, TypeError, "^temperature: expected a finite number above 0, got None"),
        ({"output": "scores"}, ValueError, "^output: expected one of 'probabilities', .* got 'scores'"),
        ({"output": 1}, ValueError, "^output: expected one of 'probabilities', .* got 1"),
    ],
)  # fmt: skip
def test_bad_arguments(change, error, message):
    with pytest.raises(error, match=message):
        tc.mean_field(**{"logits": LOGITS, "filters": [K], "weights": [1.0], **change})
