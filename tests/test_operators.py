"""The library inside PyTorch's machinery: operators, compilation, export, autocast, and the one derivative."""

import math
import shutil
import subprocess
import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import tritoncrf as tc
from assertions import assert_close
from cases import Setting, assert_exports_with_dynamic_sizes, leaves, random_features
from tritoncrf import checks
from tritoncrf.filters.plan import encode
from tritoncrf.mean_field import iterate, iterate_backward

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="needs a C++ compiler"
)
Window = tc.filters.Window
pytestmark = pytest.mark.usefixtures("fresh_compiler")


# Operators --------------------------------------------------------------------------------------------------------


def loop_inputs(requires_grad: bool):
    """What the loop's operators share: unary, unary_weight, mixing, tensors, plans."""
    case = Setting((4, 5), [{"window_size": 3}, {"window_size": 5, "normalization": "symmetric", "blur": 2}], batch=2,
                   weight=["class", "matrix"])  # fmt: skip
    filters = [Window(f.float(), **w) for f, w in zip(case.features, case.windows)]
    unary, a, *mixing = (
        x.float().requires_grad_(requires_grad) for x in (case.logits, case.unary_weight, *case.weights)
    )
    tensors = [t.detach().requires_grad_(requires_grad) for f in filters for t in f.tensors]
    return unary, a, mixing, tensors, encode([f.resolved(unary) for f in filters])


@pytest.mark.parametrize("initial, damping", [("softmax", 0.0), ("log_softmax", 0.0), ("softmax", 0.5)])
@pytest.mark.parametrize("keep", [False, True])
def test_opcheck_mean_field(keep, initial, damping):
    torch.library.opcheck(iterate.registered, (*loop_inputs(keep), 2, initial, damping, keep))


@pytest.mark.parametrize("damping", [0.0, 0.5])
@pytest.mark.parametrize("needs", [[True] * 5, [False, True, False, True, False], [True, False, True, False, False]])
def test_opcheck_mean_field_backward(needs, damping):
    *inputs, plans = loop_inputs(False)
    scores, *states = iterate(*inputs, plans, 2, "softmax", damping, True)
    states += [scores] if damping else []
    arguments = (torch.randn_like(scores), *inputs, states, plans, "softmax", damping, needs)
    torch.library.opcheck(iterate_backward.registered, arguments)


def test_opcheck_of_inputs_in_any_memory_order():
    """The fake operators promise contiguous results, whatever came in."""
    unary, a, mixing, tensors, plans = loop_inputs(False)
    unary = unary.to(memory_format=torch.channels_last)
    mixing = [w.mT.contiguous().mT if w.ndim == 2 else w for w in mixing]
    scores, *states = iterate(unary, a, mixing, tensors, plans, 2, "softmax", 0.0, True)
    torch.library.opcheck(iterate.registered, (unary, a, mixing, tensors, plans, 2, "softmax", 0.0, True))
    cotangent = torch.randn_like(scores)
    arguments = (cotangent, unary, a, mixing, tensors, states, plans, "softmax", 0.0, [True] * 5)
    torch.library.opcheck(iterate_backward.registered, arguments)


# Compilation and export -------------------------------------------------------------------------------------------


class Sharpen(torch.nn.Module):
    """Two windows, with features made inside; parameters in every place that takes one."""

    def __init__(self, blur=1):
        super().__init__()
        self.blur = blur
        self.thetas = torch.nn.Parameter(torch.tensor([3.0, 80.0, 13.0]))
        self.weights = torch.nn.Parameter(torch.tensor([0.4, 0.7]))
        self.mu = torch.nn.Parameter(1 - torch.eye(3))

    def forward(self, logits, image):
        space, far, color = self.thetas.unbind()
        near = tc.features.spatial(image.shape[2:], space)
        filters = [
            Window(near, 3, blur=self.blur, normalization="symmetric"),
            Window(tc.features.bilateral(image, far, color), 3, blur=self.blur),
        ]
        return tc.mean_field(logits, filters, [*self.weights], self.mu, iterations=2)


def image_and_logits(size=(6, 7), batch=2):
    return torch.randn(batch, 3, *size), torch.rand(batch, 3, *size)


def outcome(function, module, size=(6, 7)):
    """Q, and the gradients of logits and of every parameter, by a random cotangent."""
    torch.manual_seed(3)
    logits, image = image_and_logits(size)
    cotangent, inputs = torch.randn_like(logits), [logits.requires_grad_(), *module.parameters()]
    q = function(logits, image)
    return [q.detach(), *torch.autograd.grad(q, inputs, cotangent)]


@pytest.mark.parametrize("backend, blur", [
    ("aot_eager", 1), pytest.param("aot_eager", 2, marks=pytest.mark.slow),
    pytest.param("inductor", 1, marks=needs_compiler),
    pytest.param("inductor", 2, marks=[needs_compiler, pytest.mark.slow]),
])  # fmt: skip
@pytest.mark.extras
def test_compiles_whole_with_its_gradients(backend, blur):
    module = Sharpen(blur)
    compiled = torch.compile(module, fullgraph=True, backend=backend)
    for size in (6, 7), (8, 5):
        for name, found, expected in zip(
            ("Q", "logits", "thetas", "weights", "mu"), outcome(compiled, module, size), outcome(module, module, size)
        ):
            assert_close(name, found, expected)


def test_a_filter_compiles_whole():
    f, x = random_features((5, 6), dtype=torch.float32), torch.randn(1, 3, 5, 6)

    def apply(f, x):
        return Window(f, 3, normalization="after", blur=2)(x)

    compiled = torch.compile(apply, fullgraph=True, backend="aot_eager")
    results = []
    for function in apply, compiled:
        inputs = leaves(f, x)
        results.append(torch.autograd.grad(function(*inputs), inputs, torch.ones_like(x) + x))
    for name, found, expected in zip(("f", "x"), *reversed(results)):
        assert_close(name, found, expected)


def test_values_are_not_looked_at_while_compiling():
    logits, image = image_and_logits()
    compiled = torch.compile(Sharpen(), fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert compiled(logits * math.nan, image).isnan().all()


@pytest.mark.extras
def test_a_compiled_call_still_checks_shapes():
    logits, image = image_and_logits()
    compiled = torch.compile(Sharpen(), backend="aot_eager")
    with torch.no_grad(), pytest.raises(Exception, match="logits: expected"):
        compiled(logits[..., :-1], image)


def test_exports():
    module, inputs = Sharpen(), image_and_logits()
    with torch.no_grad():
        exported = torch.export.export(module, inputs).module()
        assert_close("Q", exported(*inputs), module(*inputs))


def test_exports_with_dynamic_sizes():
    assert_exports_with_dynamic_sizes(Sharpen(), image_and_logits)


# Autocast ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", ["class", "matrix"])
def test_autocast_changes_nothing_but_the_scores_it_made(weight):
    """A product under autocast gives bfloat16 scores; from there on all is float32, forward and backward."""
    case = Setting((5, 6), [{"window_size": 3}, {"window_size": 3, "blur": 2, "normalization": "after"}],
                   weight=weight, compatibility=True)  # fmt: skip
    _, *rest = (x.float() for x in case.inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = (torch.randn(30, 3) @ torch.randn(3, 3)).T.reshape(1, 3, 5, 6)
    assert scores.dtype == torch.bfloat16
    cotangent = torch.randn(scores.shape).bfloat16()

    def outcome(logits, enabled):
        inputs = leaves(logits, *rest)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            result = case.run(*inputs)
        return [result.detach(), *torch.autograd.grad(result, inputs, cotangent.to(result.dtype))]

    found, expected = outcome(scores, enabled=True), outcome(scores.float(), enabled=False)
    for name, a, b in zip(("scores", *case.names), found, expected, strict=True):
        assert a.dtype == (torch.bfloat16 if name in ("scores", "logits") else torch.float32)
        assert_close(name, a, b.to(a.dtype))


# Looking at values ------------------------------------------------------------------------------------------------


class OnGpu(torch.Tensor):
    """A tensor that says it is on a GPU."""

    device = property(lambda self: torch.device("cuda", 0))


@pytest.fixture
def on_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    return torch.zeros(3).as_subclass(OnGpu)


def test_values_on_a_gpu_are_looked_at_on_request_only(on_gpu):
    assert not checks.values_checked(on_gpu)
    with tc.check_values(True):
        assert checks.values_checked(on_gpu)
        with tc.check_values(False):
            assert not checks.values_checked(on_gpu)
        assert checks.values_checked(on_gpu)
    assert not checks.values_checked(on_gpu)


def test_values_are_not_looked_at_while_a_graph_is_captured(on_gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with tc.check_values(True):
        assert not checks.values_checked(on_gpu)


def test_check_values_may_be_called_without_a_block(on_gpu):
    before = tc.check_values(True)
    try:
        assert checks.values_checked(on_gpu)
    finally:
        before.__exit__()
    assert not checks.values_checked(on_gpu)


def test_values_on_the_cpu_are_always_looked_at():
    f = torch.full((1, 2, 4, 5), math.nan)
    for enabled in (True, False):
        with tc.check_values(enabled), pytest.raises(ValueError, match="^features: expected finite"):
            Window(f, 3)


def test_values_without_memory_are_not_looked_at():
    assert not checks.values_checked(torch.empty(3, device="meta"))
    with torch._subclasses.FakeTensorMode():
        assert not checks.values_checked(torch.empty(3))


CALL = """
import sys
import numpy as np
import tritoncrf as tc
p = np.random.default_rng(0).dirichlet(np.ones(3), (9, 11)).transpose(2, 0, 1)
for method in "lattice", "guided":
    tc.refine(np.zeros((9, 11, 3), np.uint8), probabilities=p, method=method)
brought = [name for name in ("torch._dynamo", "torch._inductor", "sympy") if name in sys.modules]
assert not brought, brought
"""


@pytest.mark.processes
def test_refine_brings_no_compiler():
    """Which the first call of an operator imports."""
    done = subprocess.run([sys.executable, "-c", CALL], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_operators_are_registered_once_watched():
    x, features = torch.rand(1, 2, 4, 5), torch.rand(1, 2, 4, 5)
    K = Window(features, 3)
    seen = []

    class Watching(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(function._schema.name)
            return function(*args, **(kwargs or {}))

    with Watching():
        watched = K(x)
    assert "tritoncrf::filter" in seen and torch.equal(watched, K(x))
    wanted = x.clone().requires_grad_()
    assert K(wanted).requires_grad and torch.equal(K(wanted), K(x))
    with torch.no_grad():
        assert not K(wanted).requires_grad
