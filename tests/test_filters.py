"""What every pairwise filter promises, whatever it computes: values, gradients, the loop, PyTorch's machinery, errors."""

import copy
import functools
import math
import pickle

import numpy as np
import pytest
import torch
from torch.autograd import forward_ad

import tritoncrf as tc
from assertions import assert_close, assert_within_budget
from cases import assert_exports_with_dynamic_sizes, dense_scores, leaves, random_features, strided
from covering import combined_or_whole, covering
from filter_catalogue import (
    CATALOGUE,
    CHANNELS,
    EXACT,
    FUNCTIONS,
    GUIDED,
    LATTICE,
    PLANNED,
    SETTINGS,
    SIZE,
    WINDOW,
    assert_alike,
    assert_same_bits,
    assert_states_are_whole,
    results,
)
from problems import named
from tritoncrf.filters.plan import decode, encode, filter_apply, filter_backward
from tritoncrf.mean_field import iterate, iterate_backward


def shown(x) -> str:
    return getattr(x, "name", str(x))


def variants_of(cases):
    return [pytest.param(c, changes, id=f"{c.name}-{v}") for c in cases for v, changes in c.variants.items()]


each_filter = pytest.mark.parametrize("case", CATALOGUE, ids=named)
each_planned = pytest.mark.parametrize("case", PLANNED, ids=named)
each_variant = pytest.mark.parametrize("case, changes", variants_of(CATALOGUE))
each_planned_variant = pytest.mark.parametrize("case, changes", variants_of(PLANNED))
every_dtype = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])


def named_variants(attribute):
    """The variants that a case names in an attribute."""
    pairs = [(c, c.variants[v]) for c in CATALOGUE for v in getattr(c, attribute)]
    return pytest.mark.parametrize("case, changes", pairs, ids=shown)


# Values and gradients ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case, problem", [(c, p) for c in CATALOGUE for p in c.known], ids=named)
def test_known_answers(case, problem, dtype):
    made_of, values, answer = problem.tensors(dtype)
    found = case.kind(made_of, **problem.window)(values)
    assert_close("K x", found, answer, scale=None if answer.any() else 1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case, problem", [(c, p) for c in CATALOGUE for p in c.known_loops], ids=named)
def test_known_answers_of_the_loop(case, problem, dtype):
    made_of, logits, answer = problem.tensors(dtype)
    q = tc.mean_field(logits, [case.kind(made_of, **problem.window)], **problem.arguments(dtype))
    assert_close("Q", q, answer)


PLACES = [
    pytest.param(
        c, size, channels, {**changes, **c.forms[form]}, id="-".join(filter(None, (c.name, place, form))), marks=p.marks
    )
    for c in CATALOGUE
    for p in covering(c.geometries, c.forms, at_once=1)
    for place, form in [p.values]
    for size, channels, changes in [c.geometries[place]]
]
PLACES += [
    pytest.param(*p.values[:1], SIZE, CHANNELS, *p.values[1:], id=f"{p.id}-variant") for p in variants_of(CATALOGUE)
]


@pytest.mark.parametrize("case, size, channels, changes", PLACES)
def test_values_and_every_gradient_are_those_of_the_dense_matrix(case, size, channels, changes, nan_memory):
    for shared in (True, False):
        inputs = case.inputs(size, channels, shared=shared)
        wanted = ["values", *case.made_of]
        found, expected = (results(f(**changes), inputs, wanted) for f in (case.apply, case.apply_dense))
        for name, a in found.items():
            b, scale = expected[name], None
            if name in case.made_of:  # a pixel alone has no difference of features, nor has a normalised row of one tap
                scale = max(1.0, b.abs().max().item())
            elif not b.any():
                scale = 1.0
            assert_close(name, a, b, scale=scale)


@each_planned_variant
@pytest.mark.parametrize("size", [(9,), SIZE, (3, 5, 4)])
def test_the_operator_and_its_adjoint(size, case, changes):
    """K^T is K where the catalogue says so, and visibly another one elsewhere."""
    symmetric = changes in [case.variants[v] for v in case.symmetric]
    if isinstance(changes.get("radius"), tuple):
        changes = {**changes, "radius": changes["radius"][: len(size)] + (2,) * (len(size) - 2)}
    filter, x = case.example(changes, size=size)
    K, y = filter.operator(x), torch.randn_like(x)
    assert_close("K x", K.apply(x), filter(x))
    back = K.adjoint(y)
    assert_close("<K x, y>", (K.apply(x) * y).sum(), (x * back).sum(), scale=(x.norm() * back.norm()).item())
    (gradient,) = torch.autograd.grad(filter(x.requires_grad_()), x, y)
    assert_close("K^T y", back, gradient)
    difference = (K.apply(y) - back).norm() / back.norm()
    assert difference < 1e-12 if symmetric else difference > 0.01


@combined_or_whole
@pytest.mark.parametrize("case, changes", variants_of([c for c in CATALOGUE if c.smooth]))
def test_gradcheck(case, changes, fast_mode):
    size = (3, 5) if "subsample" in changes or "blur" in changes else (3, 4)
    inputs = case.inputs(size, 2, shared=True, classes=1)

    def apply(*tensors):
        return case.apply(**changes)(**dict(zip(inputs, tensors)))

    assert torch.autograd.gradcheck(apply, leaves(*inputs.values()), fast_mode=fast_mode)


@each_variant
def test_classes_are_independent(case, changes):
    (K, x), order = case.example(changes, classes=4), [2, 0, 3, 1]
    assert_close("permuted classes", K(x[:, order]), K(x)[:, order])
    assert_close("one class", K(x[:, 1:2]), K(x)[:, 1:2])


TRANSFORMS = {"x": lambda x: x.flip(-1), "y": lambda x: x.flip(-2), "xy": lambda x: x.mT}


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("case, size, changes", [
    pytest.param(c, size, changes, id=f"{c.name}-{n}") for c in CATALOGUE for n, (size, changes) in enumerate(c.mirrored)
])  # fmt: skip
def test_flips_and_transposes_commute(case, size, changes, transform):
    move, inputs = TRANSFORMS[transform], case.inputs(size)
    turned = {n: v[::-1] if transform == "xy" and isinstance(v, tuple) else v for n, v in changes.items()}
    found = case.filter(move(inputs[case.source]), **turned)(move(inputs["values"]))
    assert_close("moved", found, move(case.filter(inputs[case.source], **changes)(inputs["values"])))


@pytest.mark.parametrize("case, changes", [(WINDOW, {}), (WINDOW, {"blur": 2}), (EXACT, {})], ids=str)
def test_features_may_be_shifted(case, changes):
    x, f = case.inputs().values()
    assert_close("shifted", case.filter(f + 3.0, **changes)(x), case.filter(f, **changes)(x))


@named_variants("keeps_constants")
def test_constants_are_kept(case, changes):
    K, x = case.example(changes)
    assert_close("K 1", K(torch.ones_like(x)), torch.ones_like(x))


@pytest.mark.parametrize("case, options", [
    (WINDOW, {}), (WINDOW, {"include_self": False}), (WINDOW, {"blur": 2}), (WINDOW, {"blur": 2, "include_self": False}),
    (EXACT, {}), (EXACT, {"include_self": False}), (LATTICE, {}),
], ids=str)  # fmt: skip
def test_what_each_normalization_preserves(case, options):
    f, ones = case.inputs((7, 8))[case.source], torch.ones(2, 1, 7, 8, dtype=torch.float64)
    root = case.filter(f, **options)(ones).sqrt()
    after, before, symmetric = (case.filter(f, **options, normalization=n) for n in ("after", "before", "symmetric"))
    assert_close("after: rows sum to 1", after(ones), ones)
    assert_close("symmetric: r^1/2 is fixed", symmetric(root), root)
    if case is not LATTICE and "blur" not in options:
        assert_close("before: columns sum to 1", before.operator(ones).adjoint(ones), ones)


@pytest.mark.parametrize("include_self", [True, False])
@pytest.mark.parametrize("normalization", ["none", "before", "after", "symmetric"])
@pytest.mark.parametrize("case", [WINDOW, EXACT], ids=named)
def test_an_isolated_pixel_has_finite_gradients(case, normalization, include_self):
    f, x = leaves(100.0 * torch.arange(6.0).view(1, 1, 6), torch.randn(1, 2, 6))
    y = case.filter(f, include_self=include_self, normalization=normalization)(x)
    d_f, d_x = torch.autograd.grad(y, (f, x), torch.randn_like(y))
    assert_close("features' gradient", d_f, torch.zeros_like(f), scale=None if case is WINDOW else 1.0)
    assert torch.isfinite(d_x).all()


# Forms of the input -----------------------------------------------------------------------------------------------


@each_variant
def test_a_batch_is_its_images_one_by_one(case, changes):
    inputs = case.inputs(batch=3)
    f, x = inputs[case.source], inputs["values"]
    singles = [case.filter(f[b : b + 1], **changes)(x[b : b + 1]) for b in range(3)]
    assert_close("batch", case.filter(f, **changes)(x), torch.cat(singles))
    one = case.filter(f[:1], **changes)(x)
    assert_close("one image for all", one, case.filter(f[:1].expand(3, -1, -1, -1), **changes)(x))
    assert_close("one by one", one, torch.cat([case.filter(f[:1], **changes)(image) for image in x.split(1)]))


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("case, changes, batch, classes", [
    pytest.param(*p.values, *counts, id=f"{p.id}-{name}")
    for p in variants_of(CATALOGUE)
    for name, counts in (("no-images", (0, 3)), ("no-classes", (2, 0)))
    if name == "no-images" or "blur" not in p.values[1]  # PyTorch does not pool nothing
])  # fmt: skip
def test_nothing_to_filter(case, changes, shared, batch, classes):
    inputs = case.inputs(batch=batch, classes=classes, shared=shared)
    found = results(case.apply(**changes), inputs)
    assert found["K x"].shape == inputs["values"].shape
    for name, x in inputs.items():
        assert_close(name, found[name], torch.zeros_like(x), scale=1.0)


@each_variant
def test_memory_order_does_not_matter(case, changes):
    inputs = case.inputs()
    same = assert_same_bits if case is LATTICE else assert_alike
    same(*(results(case.apply(**changes), inputs, make=make) for make in (strided, torch.clone)))


@pytest.mark.parametrize("classes", [1, 2, 16, 17, 21, 200])
@each_filter
def test_numbers_of_classes(case, classes):
    inputs = case.inputs(classes=classes)
    assert_close("K x", case.apply()(**inputs), case.apply_dense()(**inputs))


@every_dtype
@each_variant
def test_values_keep_their_dtype_and_are_summed_in_float32_at_least(case, changes, dtype):
    K, x = case.example(changes, torch.float32)
    x = x.to(dtype)
    assert K(x).dtype == dtype
    assert torch.equal(K(x), K(x if dtype == torch.float64 else x.float()).to(dtype))


@every_dtype
@pytest.mark.parametrize("other", [torch.float32, torch.float64])
@each_planned
def test_what_it_is_made_of_gets_its_gradient_in_its_own_dtype(case, other, dtype):
    inputs = case.inputs()
    values, learnt = inputs.pop("values").float(), [name for name in inputs if name != case.source]
    for source, rest in (dtype, other), (other, dtype) if learnt else (dtype, other):
        given = dict(zip(inputs, leaves(*(x.to(rest if name in learnt else source) for name, x in inputs.items()))))
        y = case.apply(**case.variants[case.pair[0]])(values, **given)
        (y * torch.randn_like(y)).sum().backward()
        for x in given.values():
            assert x.grad.dtype == x.dtype and x.grad.abs().max() > 0


@pytest.mark.parametrize("case, changes", variants_of([c for c in PLANNED if c.smooth]))
def test_float32_loses_only_rounding(case, changes):
    inputs = case.inputs((12, 13), batch=1, classes=4)
    found, truth = (results(case.apply(**changes), inputs, dtype=d) for d in (torch.float32, torch.float64))
    plain = results(case.apply_dense(**changes), inputs, dtype=torch.float32)
    for name, exact in truth.items():
        assert_close(name, found[name], exact, dtype=torch.float32)
        if exact.ndim:  # of one number it is chance which of two roundings is smaller
            assert_within_budget(name, found[name], exact, plain[name])


@each_variant
def test_the_same_bits_twice(case, changes):
    inputs = case.inputs((15, 20), 5, classes=21)
    assert_same_bits(*(results(case.apply(**changes), inputs, dtype=torch.float32) for _ in range(2)))


@each_filter
def test_inputs_are_left_as_they_were(case):
    for size in (1, 1), SIZE:
        inputs = case.inputs(size)
        before = {name: x.clone() for name, x in inputs.items()}
        case.apply()(**inputs).zero_()
        assert_same_bits(inputs, before)


# In the loop ------------------------------------------------------------------------------------------------------


IN_LOOPS = [pytest.param(c, options, id=f"{c.name}-{name}") for c in CATALOGUE for name, options in SETTINGS.items()]
IN_LOOPS += [
    pytest.param(p.values[0], dict(windows=p.values[1:], weight="class"), id=f"{p.id}-alone")
    for p in variants_of(CATALOGUE)
]


@pytest.mark.parametrize("case, options", IN_LOOPS)
def test_scores_and_every_gradient_of_the_loop_are_those_of_dense_matrices(case, options):
    setting = case.loop(**options)
    if not setting.iterations:
        assert torch.equal(setting.run(*setting.inputs), setting.logits)
        return
    wanted = [name for name in setting.names if case.smooth or not name.startswith("features")]
    found, expected = (setting.gradients(run, wanted) for run in (setting.run, setting.run_dense))
    for name, a, b in zip(("scores", *wanted), found, expected, strict=True):
        assert_close(name, a, b)


@pytest.mark.parametrize("name", ["matrix-costs", "two-mixed", "logarithms"])
@each_filter
def test_the_loop_takes_classes_that_are_ruled_out(case, name):
    """By a logit of minus infinity: no gradient reaches it, and all else is as with one far below the others."""
    setting, found = case.loop(**{**SETTINGS[name], "unary": "class", "strength": 1e-3}), []
    wanted = [name for name in setting.names if case.smooth or not name.startswith("features")]
    for logit in -math.inf, -1e5:
        setting.logits[:, 1, ..., ::2] = logit
        found.append(setting.gradients(functools.partial(setting.run, output="probabilities"), wanted))
    for what, a, b in zip(("Q", *wanted), *found, strict=True):
        assert_close(what, a, b)
    assert not found[0][0][:, 1, ..., ::2].any() and not found[0][1][:, 1, ..., ::2].any()


@pytest.mark.parametrize("order", [1, -1])
@each_filter
def test_the_loop_takes_it_beside_a_window(case, order):
    """And learns what both are made of."""
    inputs = {**case.inputs(), "other": random_features(SIZE), "matrix": torch.randn(3, 3, dtype=torch.float64),
              "number": torch.tensor(0.5, dtype=torch.float64)}  # fmt: skip
    changes, after = case.variants[case.pair[0]], {"normalization": "after"}

    def mixed(values, other, matrix, number, **made_of):
        filters = [case.filter(made_of.pop(case.source), **changes, **made_of), WINDOW.filter(other, **after)]
        return tc.mean_field(values, filters[::order], [matrix, number][::order], iterations=3, output="logits")

    def dense(values, other, matrix, number, **made_of):
        matrices = [case.matrix(made_of.pop(case.source), **changes, **made_of), WINDOW.matrix(other, **after)]
        return dense_scores(values, matrices, [matrix, number], iterations=3)

    wanted = ["values", *case.made_of, "other", "matrix", "number"]
    found, expected = (results(run, inputs, wanted) for run in (mixed, dense))
    for name in expected:
        assert_close(name, found[name], expected[name])


@pytest.mark.parametrize("weight", ["scalar", "matrix"])
@pytest.mark.parametrize("count", [1, 2])
@each_planned
def test_the_same_q_gives_the_same_answer_whoever_called_the_step_before(case, count, weight):
    assert_states_are_whole(case.loop(count, weight=weight, batch=2))


@pytest.mark.parametrize("weight", [0.5, torch.rand(3, 3)], ids=["scalar", "matrix"])
@each_planned
def test_only_a_filter_that_learns_does_the_work_of_its_gradient(case, weight, monkeypatch):
    """A position filter without learning theta beside an appearance filter with one."""
    position, color = (case.inputs(batch=1)[case.source].float() for _ in range(2))
    logits, color = leaves(torch.randn(1, 3, *SIZE), color)
    kind, asked = type(case.filter(position).operator(logits)), []
    gradients = kind.gradients
    monkeypatch.setattr(kind, "gradients", lambda self, *given: asked.append(self) or gradients(self, *given))

    def gradient(position):
        asked.clear()
        q = tc.mean_field(logits, [case.filter(position), case.filter(color)], [weight, weight], iterations=3)
        return torch.autograd.grad(q, [logits, color], torch.cos(q.detach()))

    alone = gradient(position)
    assert len(asked) == 3 and len(set(map(id, asked))) == 1
    both = gradient(position.requires_grad_())
    assert len(asked) == 6 and len(set(map(id, asked))) == 2
    for name, a, b in zip(("logits", "color"), alone, both):
        assert_close(name, a, b)
    asked.clear()
    prepared = case.filter(color.detach())
    for y in prepared(logits), tc.mean_field(logits, [prepared], [1.0]):
        torch.autograd.grad(y, logits, torch.randn_like(y))
    assert not asked


# Operators and compilers ------------------------------------------------------------------------------------------


def filter_inputs(case, variant, requires_grad):
    """What `tritoncrf::filter` takes: values, tensors, plan."""
    K, x = case.example(case.variants[variant], torch.float32, channels=2)
    tensors = [t.detach().clone().requires_grad_(requires_grad and t.is_floating_point()) for t in K.tensors]
    return x.requires_grad_(requires_grad), tensors, encode([K.resolved(x)])


@each_planned
def test_opcheck_filter(case):
    torch.library.opcheck(filter_apply.registered, filter_inputs(case, case.pair[0], False))
    for variant in {case.pair[0], [*case.variants][-1]}:
        torch.library.opcheck(filter_apply.registered, filter_inputs(case, variant, True))


@pytest.mark.parametrize(
    "case, needs", covering(PLANNED, [(True, True), (True, False), (False, True)], at_once=1, ids=shown)
)
def test_opcheck_filter_backward(case, needs):
    x, tensors, plan = filter_inputs(case, case.pair[0], False)
    torch.library.opcheck(filter_backward.registered, (x, torch.randn_like(x), tensors, plan, *needs))


@each_planned
def test_opcheck_mean_field(case):
    x, tensors, plan = filter_inputs(case, case.pair[1], True)
    a = torch.ones((), requires_grad=True)
    torch.library.opcheck(iterate.registered, (x, a, [a], tensors, plan, 2, "softmax", 0.0, True))


@each_planned
def test_opcheck_mean_field_backward(case):
    x, tensors, plan = filter_inputs(case, list(case.variants)[-1], False)
    loop = x, torch.ones(()), [torch.ones(3)], tensors
    scores, *states = iterate(*loop, plan, 2, "softmax", 0.0, True)
    arguments = (torch.randn_like(scores), *loop, states, plan, "softmax", 0.0, [True] * 4)
    torch.library.opcheck(iterate_backward.registered, arguments)


@each_planned
def test_plans_travel_as_text(case):
    f = case.inputs(channels=2)[case.source]
    options = [*case.variants.values(), {"precision": "fast"}]
    plans = tuple(case.filter(f, backend=b, **o).plan for o in options for b in ("auto", "torch"))
    assert decode(encode(plans)) == plans


class Sharpen(torch.nn.Module):
    """A filter made of an image inside, all that it learns, and the weight of its messages, in a loop."""

    def __init__(self, case, **changes):
        super().__init__()
        self.make, self.changes = case.make or case.kind, {**case.arguments, **changes}
        self.mixing = torch.nn.Parameter(torch.eye(3) + 0.1)
        self.learnt = torch.nn.ParameterDict({n: torch.tensor(v) for n, v in case.learnt.items()})
        self.weight = torch.nn.Parameter(torch.tensor(0.5))

    def forward(self, logits, image):
        features = torch.einsum("ed,bdyx->beyx", self.mixing, image)
        K = self.make(features, backend="torch", **{**self.changes, **dict(self.learnt.items())})
        return tc.mean_field(logits, [K], [self.weight], iterations=2)


def image_and_logits(size=(6, 7), batch=2):
    return torch.randn(batch, 3, *size), torch.rand(batch, 3, *size)


# torch's own, where a graph holds an autograd function.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize(
    "case, variant",
    [
        pytest.param(c, v, id=f"{c.name}-{v}", marks=[pytest.mark.slow] * (c in (WINDOW, GUIDED)))  # as layers compile
        for c, v in [*((c, c.pair[0]) for c in CATALOGUE), (GUIDED, "subsampled-constant")]
    ],
)
@pytest.mark.extras
def test_the_loop_compiles_whole_with_its_gradients(case, variant, fresh_compiler):
    """Blocks and vertices, which are data, have sizes that the graph does not know."""
    module = Sharpen(case, **case.variants[variant])
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for size in [(6, 7), (8, 5)][: 1 + bool(case.dynamic)]:
        inputs, cotangent = leaves(*image_and_logits(size)), torch.randn(2, 3, *size)
        wanted, outcomes = [*inputs, *module.parameters()], []
        for run in compiled, module:
            with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
                q = run(*inputs)
            outcomes.append([q.detach(), *torch.autograd.grad(q, wanted, cotangent, materialize_grads=True)])
        for n, (a, b) in enumerate(zip(*outcomes, strict=True)):
            assert_close(f"result {n}", a, b)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@each_filter
@pytest.mark.extras
def test_a_loop_over_a_prepared_filter_compiles_and_exports(case, fresh_compiler):
    K, logits = case.example(dtype=torch.float32)

    class Loop(torch.nn.Module):
        def forward(self, logits):
            return tc.mean_field(logits, [K], [0.5], iterations=2)

    with torch.no_grad():
        exported = torch.export.export(Loop(), (logits,)).module()
        compiled = torch.compile(Loop(), fullgraph=True, backend="aot_eager")
        for run in exported, compiled:
            assert_close("Q", run(logits), Loop()(logits))


@pytest.mark.extras
def test_a_guide_at_a_lower_resolution_exports():
    module, inputs = Sharpen(GUIDED, subsample=2), image_and_logits()
    with torch.no_grad():
        assert_close("Q", torch.export.export(module, inputs).module()(*inputs), module(*inputs))


@pytest.mark.parametrize(
    "case, changes",
    [
        pytest.param(c, c.variants[v], id=f"{c.name}-{v}", marks=[pytest.mark.slow] * ((c, v) != (GUIDED, "default")))
        for c in CATALOGUE
        for v in c.dynamic
    ],
)
@pytest.mark.extras
def test_exports_with_dynamic_sizes(case, changes):
    assert_exports_with_dynamic_sizes(Sharpen(case, **changes), image_and_logits)


@pytest.mark.parametrize("shape", [(2, 3, *SIZE), (0, 3, *SIZE)])
@pytest.mark.parametrize("case", [WINDOW, GUIDED, *FUNCTIONS], ids=named)
def test_fake_tensors_pass_through(case, shape):
    with torch._subclasses.FakeTensorMode():
        logits = torch.empty(shape, dtype=torch.bfloat16, requires_grad=True)
        q = tc.mean_field(logits, [case.filter(torch.empty(1, 2, *SIZE), **case.variants[case.pair[0]])], [1.0])
        assert q.shape == shape and q.dtype == torch.bfloat16


@each_planned_variant
def test_autocast_changes_nothing(case, changes):
    inputs = case.inputs()

    def outcome(enabled):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            return results(case.apply(**changes), inputs, dtype=torch.float32)

    assert_same_bits(outcome(True), outcome(False))


@each_planned
def test_a_copy_is_the_same_filter(case):
    K, x = case.example()
    for other in copy.copy(K), copy.deepcopy(K), pickle.loads(pickle.dumps(K)):
        assert torch.equal(other(x), K(x)) and repr(other) == repr(K)


@each_planned
def test_a_second_derivative_is_refused(case):
    inputs = case.inputs(batch=1)
    for name in inputs:
        given = dict(zip(inputs, leaves(*inputs.values())))
        y = case.apply()(**given)
        q = tc.mean_field(given["values"], [case.filter(inputs[case.source])], [1.0], iterations=2)
        for result in (y, q) if name == "values" else (y,):
            (first,) = torch.autograd.grad(result.square().sum(), given[name], create_graph=True)
            with pytest.raises(NotImplementedError, match="first derivatives only"):
                first.sum().backward()


REFUSED = "no forward-mode differentiation"


# torch's own, when forward mode is first used.
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
@each_filter
def test_forward_mode_is_refused(case):
    """PyTorch's operators would give zeros without a word."""
    inputs = case.inputs(batch=1)
    for name in inputs if case.planned else ["values"]:
        with forward_ad.dual_level(), pytest.raises(NotImplementedError, match=REFUSED):
            case.apply()(**{**inputs, name: forward_ad.make_dual(inputs[name], torch.ones_like(inputs[name]))})
    (K, x), w = case.example(), torch.ones((), dtype=torch.float64)
    for run in K, lambda x: tc.mean_field(x, [K], [w]):
        with pytest.raises(NotImplementedError, match=REFUSED):
            torch.func.jvp(run, (x,), (x,))
    with pytest.raises(NotImplementedError, match=REFUSED):
        torch.func.jvp(lambda w: tc.mean_field(x, [K], [w]), (w,), (w,))


@each_planned
def test_vmap_is_refused(case):
    K, x = case.example()
    for run in K, lambda x: tc.mean_field(x, [K], [1.0]):
        with pytest.raises(NotImplementedError, match="vmap"):
            torch.vmap(run)(torch.stack([x, x]))


# Functions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_adjoint", [False, True])
@pytest.mark.parametrize("beside", [False, True])
def test_a_function_is_the_filter_that_it_calls(beside, with_adjoint):
    inputs = {**WINDOW.inputs(), "other": random_features(SIZE)}

    def run(values, features, other, imitate):
        window = WINDOW.filter(features, normalization="after")
        adjoint = (lambda y: window.operator(y).adjoint(y)) if with_adjoint else None
        K = tc.filters.Function(window, adjoint) if imitate else window
        filters = [K, WINDOW.filter(other)] if beside else [K]
        return tc.mean_field(values, filters, [0.7, 0.3][: len(filters)], iterations=3, output="logits")

    wanted = ["values"] + ["features"] * (not with_adjoint) + ["other"] * beside
    found, expected = (results(lambda i=i, **x: run(**x, imitate=i), inputs, wanted) for i in (True, False))
    assert_alike(found, expected)


@pytest.mark.parametrize("case", FUNCTIONS, ids=named)
def test_trace_takes_functions(case):
    x, f = case.inputs().values()
    (q, found), (expected, records) = (
        tc.trace(x, [c.filter(f, normalization="after")], [0.7], iterations=2) for c in (case, WINDOW)
    )
    assert_close("Q", q, expected)
    assert [vars(r) for r in found] == [pytest.approx(vars(r), rel=1e-12) for r in records]


def test_a_function_is_called_without_autocast():
    x, matrix = torch.randn(1, 3, 4, 5), torch.randn(5, 5)
    K = tc.filters.Function(lambda x: x @ matrix, lambda y: y @ matrix.mT)
    expected = K(x), tc.mean_field(x, [K], [1.0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = K(x), tc.mean_field(x, [K], [1.0])
    assert all(torch.equal(a, b) for a, b in zip(found, expected))


X = torch.zeros(1, 2, 4, 5)


@pytest.mark.parametrize("arguments, error, message", [
    ((3,), TypeError, r"^apply: expected a function of values .*got 3 \(int\)"),
    ((None,), TypeError, "^apply: expected a function"),
    ((torch.clone, X), TypeError, "^adjoint: expected a function .*got a float32 tensor"),
    ((lambda x: x[..., 1:],), ValueError, r"^apply: expected it to return shape \[1, 2, 4, 5\], got \[1, 2, 4, 4\]"),
    ((lambda x: x.double(),), TypeError, "^apply: expected it to return a torch.float32 tensor, got a float64"),
    ((lambda x: x.numpy(),), TypeError, "^apply: expected it to return a torch.float32 tensor, got a ndarray"),
    ((lambda x: None,), TypeError, "^apply: expected it to return a torch.float32 tensor, got None"),
    ((torch.clone, lambda y: y[:, :1]), ValueError, r"^adjoint: expected it to return shape \[1, 2, 4, 5\], got \[1, 1"),
    ((torch.clone, lambda y: y.half()), TypeError, "^adjoint: expected it to return a torch.float32 tensor, got a float16"),
])  # fmt: skip
def test_a_function_that_is_none(arguments, error, message):
    for run in (lambda K, x: K(x)), (lambda K, x: tc.mean_field(x, [K], [1.0])):
        (x,) = leaves(X)
        with pytest.raises(error, match=message):
            y = run(tc.filters.Function(*arguments), x if len(arguments) > 1 else x.detach())
            torch.autograd.grad(y, x, torch.ones_like(y))


def test_adjoints_may_leave_autograd():
    """A function of NumPy, which autograd cannot see through."""
    shift = tc.filters.Function(
        lambda x: torch.from_numpy(np.roll(x.numpy(), 1, -1)), lambda y: torch.from_numpy(np.roll(y.numpy(), -1, -1))
    )
    rolled = tc.filters.Function(lambda x: x.roll(1, -1))
    (x,), cotangent = leaves(torch.randn(1, 3, 4, 5)), torch.randn(1, 3, 4, 5)
    found, expected = (tc.mean_field(x, [K], [2.0]) for K in (shift, rolled))
    assert_close("Q", found, expected)
    for name, a, b in zip(("logits",), *(torch.autograd.grad(q, x, cotangent) for q in (found, expected))):
        assert_close(name, a, b)


# Bad input, and how a filter is shown -----------------------------------------------------------------------------

F = torch.zeros(1, 2, 4, 5)


@pytest.mark.parametrize("value, error, message", [
    (F.numpy(), TypeError, "expected a floating.*ndarray.*torch.from_numpy"),
    ([[1.0]], TypeError, r"expected a floating.*got \[\[1.0\]\] \(list\)"),
    (F.int(), TypeError, "expected a floating.*got a int32 tensor"),
    (F.to(torch.uint8), TypeError, "expected a floating.*got a uint8 tensor"),
    (F.to(torch.complex64), TypeError, "expected a floating.*got a complex64 tensor"),
    (F[0, 0], ValueError, r"expected \[B, D, \*S\].*1, 2 or 3 spatial axes, got shape \[4, 5\]"),
    (F[..., None, None], ValueError, r"expected \[B, D, \*S\].*got shape \[1, 2, 4, 5, 1, 1\]"),
    (F[:, :0], ValueError, r"expected (at least one channel|1 to 8 channels).*\[1, 0, 4, 5\]"),
    (F[..., :0], ValueError, r"expected at least one pixel.*\[1, 2, 4, 0\]"),
    (F + math.nan, ValueError, "expected finite values, got 40 NaN or infinite of 40"),
    (F + math.inf, ValueError, "expected finite values, got 40"),
])  # fmt: skip
@each_planned
def test_what_no_filter_is_made_of(case, value, error, message):
    with pytest.raises(error, match=f"^{case.source}: {message}"):
        case.filter(value)


GAUSSIAN_ERRORS = [
    ({"include_self": 1}, TypeError, r"^include_self: expected True or False, got 1 \(int\)"),
    ({"normalization": "sym"}, ValueError, "^normalization: expected one of 'none', 'before', .* got 'sym'"),
    ({"normalization": None}, ValueError, "^normalization: expected one of .* got None"),
]
ERRORS = [
    ({"precision": "high"}, ValueError, "^precision: expected one of 'default', 'fast', got 'high'"),
    ({"backend": "cuda"}, ValueError, "^backend: expected one of 'auto', 'triton', 'torch', got 'cuda'"),
    (
        {"features": F.double(), "backend": "triton"},
        ValueError,
        "^backend: (expected 'torch' or 'auto' for float64|'triton' needs Triton)",
    ),
    ({"backend": "triton"}, ValueError, "^backend: 'triton' (runs on a GPU.*TRITON_INTERPRET=1|needs Triton)"),
]


@pytest.mark.parametrize("case, change, error, message", [
    (c, *row) for c in PLANNED for row in [*ERRORS, *GAUSSIAN_ERRORS * c.gaussian]
])  # fmt: skip
def test_bad_options(case, change, error, message):
    with pytest.raises(error, match=message):
        case.filter(**{"features": F, **change})


@pytest.mark.parametrize("values, error, message", [
    (np.zeros((3, 2, 4, 5)), TypeError, "expected a floating.*torch.from_numpy"),
    (None, TypeError, "expected a floating.*got None"),
    (torch.zeros(3, 2, 4, 5, dtype=torch.int64), TypeError, "expected a floating.*int64"),
    (torch.zeros(3, 2, 5, 4), ValueError, r"expected \[3, C, 4, 5\] as the filter's SOURCE, got \[3, 2, 5, 4\]"),
    (torch.zeros(3, 4, 5), ValueError, r"expected \[3, C, 4, 5\].*got \[3, 4, 5\]"),
    (torch.zeros(2, 2, 4, 5), ValueError, r"expected a batch of 3 as in the filter's SOURCE, got \[2, 2, 4, 5\]"),
    (torch.zeros(3, 2, 4, 5, device="meta"), ValueError, "expected the device of the filter's SOURCE, cpu, got meta"),
    (torch.full((3, 2, 4, 5), math.nan), ValueError, "expected finite values.*got 120"),
    (torch.full((3, 2, 4, 5), math.inf), ValueError, "expected finite values.*got 120"),
])  # fmt: skip
@each_planned
def test_bad_values(case, values, error, message):
    K, message = case.filter(F.expand(3, -1, -1, -1)), message.replace("SOURCE", case.source)
    for name, run in ("values", K), ("logits", lambda x: tc.mean_field(x, [K], [1.0])):
        with pytest.raises(error, match=f"^{name}: {message}"):
            run(values)


@pytest.mark.parametrize("case", FUNCTIONS, ids=named)
def test_bad_values_of_a_function(case):
    K = case.filter(F)
    for value, error in (None, TypeError), (F.int(), TypeError), (F + math.nan, ValueError):
        with pytest.raises(error, match="^values: expected"):
            K(value)


@each_planned_variant
def test_a_filter_shows_what_it_is(case, changes):
    K, _ = case.example(changes)
    assert repr(K).startswith(f"{case.name}(size=[5, 7], batch=2, precision='default', backend='torch'")
    assert all(f"{name}={getattr(K.plan, name)!r}" in repr(K) for name in changes)


def test_a_function_shows_what_it_calls():
    assert repr(tc.filters.Function(torch.clone)) == f"Function({torch.clone!r})"
    assert repr(tc.filters.Function(torch.clone, abs)) == f"Function({torch.clone!r}, adjoint={abs!r})"
    assert repr(tc.filters.Filter()) == "Filter()"
