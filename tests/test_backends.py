"""Which backend computes, decided without a GPU: by the device, the dtype, the version of Triton and its driver."""

import sys
import types
import warnings

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import tritoncrf as tc
from tritoncrf import backends

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")
CACHED = "_triton_version", "_driver_refusal", "_device_refusal", "_announce"


class Runtime:
    """Triton's, whose driver starts or fails."""

    def __init__(self, failure: Exception | None):
        self.driver, self.failure, self.asked = self, failure, 0

    @property
    def active(self):
        self.asked += 1
        if self.failure is not None:
            raise self.failure


@pytest.fixture
def installed(monkeypatch):
    """Makes Triton of some version the one that is installed, None for no Triton; and a GPU the one that is here: of a
    compute capability, or AMD's by the name of its architecture."""

    monkeypatch.setenv("CC", "cc")  # there is a compiler, whether or not this machine has one

    def install(version: str | None, gpu="H200", capability=(9, 0), architecture=None, failure=None) -> Runtime:
        module, runtime = types.ModuleType("triton") if version else None, Runtime(failure)
        if module is not None:
            module.__version__, module.__spec__ = version, types.SimpleNamespace(name="triton")
        monkeypatch.setitem(sys.modules, "triton", module)
        monkeypatch.setitem(sys.modules, "triton.runtime", runtime)
        if module is None:
            monkeypatch.setattr(backends.importlib.util, "find_spec", lambda name: None)
        properties = types.SimpleNamespace(name=gpu, major=capability[0], minor=capability[1], gcnArchName=architecture)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
        monkeypatch.setattr(torch.version, "hip", architecture)
        forget()
        return runtime

    def forget() -> None:
        for name in CACHED:
            getattr(backends, name).cache_clear()

    yield install
    monkeypatch.undo()
    forget()


@pytest.mark.parametrize("version", ["3.6.0", "3.10.1", "4.0.0+git1234"])
def test_auto_takes_triton_on_a_gpu_alone(version, installed):
    installed(version)
    assert backends.resolve("auto", GPU, torch.float32) == "triton"
    assert backends.resolve("auto", GPU, torch.float16) == "triton"
    assert backends.resolve("auto", GPU, torch.float64) == "torch"
    assert backends.resolve("auto", CPU, torch.float32) == "torch"


def test_an_old_triton_is_passed_over_with_one_warning(installed):
    installed("3.5.1")
    with pytest.warns(UserWarning, match=r"PyTorch: .*Triton from 3\.6 on, and 3\.5\.1 is installed") as warned:
        found = [backends.resolve("auto", GPU, torch.float32) for _ in range(3)]
    assert found == ["torch"] * 3 and len(warned) == 1
    with pytest.raises(ValueError, match=r"^backend: 'triton' needs Triton from 3\.6 on, and 3\.5\.1 is installed"):
        backends.resolve("triton", GPU, torch.float32)


def test_without_triton_auto_is_pytorch_without_a_word(installed):
    installed(None)
    assert backends.resolve("auto", GPU, torch.float32) == "torch"
    with pytest.raises(ValueError, match="^backend: 'triton' needs Triton from 3.6 on, and it is not installed here"):
        backends.resolve("triton", GPU, torch.float32)


def test_on_a_cpu_triton_is_not_even_imported(installed, monkeypatch):
    monkeypatch.setattr(backends, "_triton_refusal", lambda: pytest.fail("asked for Triton"))
    assert backends.resolve("auto", CPU, torch.float32) == "torch"
    assert backends.resolve("torch", GPU, torch.float32) == "torch"


@pytest.mark.parametrize(
    "gpu, taken",
    [
        ({"capability": (8, 0)}, True),
        ({"capability": (8, 9)}, True),
        ({"capability": (12, 0)}, True),
        ({"gpu": "Tesla T4", "capability": (7, 5)}, False),
        ({"gpu": "Tesla V100", "capability": (7, 0)}, False),
        ({"architecture": "gfx942:sramecc+:xnack-"}, True),
        ({"gpu": "Radeon", "architecture": "gfx1100"}, False),
    ],
)
def test_auto_takes_triton_on_the_gpus_that_it_is_tested_for(gpu, taken, installed):
    installed("3.7.1", **gpu)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        found = {backends.resolve("auto", GPU, torch.float32) for _ in range(3)}
    assert found == {"triton" if taken else "torch"}
    assert [gpu["gpu"] in str(w.message) for w in warned] == ([] if taken else [True])
    assert backends.resolve("triton", GPU, torch.float32) == "triton"  # by name, on any GPU


NO_COMPILER = RuntimeError("Failed to find C compiler.\nPlease specify via CC environment variable")


def test_where_tritons_driver_cannot_start_auto_is_pytorch_with_one_warning(installed):
    runtime = installed("3.7.1", failure=NO_COMPILER)
    with pytest.warns(UserWarning, match=r"PyTorch: .*cannot start \(RuntimeError: Failed to find C") as warned:
        found = {backends.resolve("auto", torch.device("cuda", n), torch.float32) for n in (0, 1, 0)}
    assert found == {"torch"} and len(warned) == 1 and "\n" not in str(warned[0].message)
    with pytest.raises(ValueError, match=r"^backend: 'triton' cannot start \(RuntimeError: .*; use 'auto'$"):
        backends.resolve("triton", GPU, torch.float32)
    assert runtime.asked == 1


@pytest.mark.parametrize(
    "version, compiler, taken", [("3.6.1", None, False), ("3.6.1", "gcc", True), ("3.7.0", None, True)]
)
def test_a_driver_that_was_built_before_needs_no_compiler_from_3_7_on(version, compiler, taken, installed, monkeypatch):
    installed(version)
    monkeypatch.setattr(backends.shutil, "which", lambda name: compiler)
    monkeypatch.delenv("CC", raising=False)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        assert backends.resolve("auto", GPU, torch.float32) == ("triton" if taken else "torch")
    assert ["C compiler" in str(w.message) for w in warned] == ([] if taken else [True])


def test_the_driver_is_not_asked_for_on_a_cpu_nor_for_float64(installed, monkeypatch):
    runtime = installed("3.7.1", failure=NO_COMPILER)
    monkeypatch.setattr(backends, "INTERPRETED", True)
    assert backends.resolve("triton", CPU, torch.float32) == "triton"
    assert backends.resolve("auto", GPU, torch.float64) == "torch"
    assert runtime.asked == 0


def test_a_compiler_of_graphs_takes_the_backend_as_it_is(monkeypatch, fresh_compiler):
    monkeypatch.setattr(backends, "_triton_version", lambda: "3.7.1")
    monkeypatch.setattr(backends, "_device_refusal", lambda device: f"is not for {device}, a Tesla T4")

    def one_or_two(x):
        return x + (1 if backends.resolve("auto", GPU, torch.float32) == "torch" else 2)

    with pytest.warns(UserWarning, match="Tesla T4") as warned:
        assert torch.compile(one_or_two, fullgraph=True, backend="eager")(torch.zeros(())) == 1
    assert len(warned) == 1


# What a user's switches must not reach ----------------------------------------------------------------------------


class Seen(TorchDispatchMode):
    """The operators that run inside, with the dtype of their first argument."""

    def __init__(self):
        super().__init__()
        self.found = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        first = next((a for a in args if isinstance(a, torch.Tensor)), None)
        self.found.add((func.overloadpacket.__name__, None if first is None else first.dtype))
        return func(*args, **(kwargs or {}))


# What PyTorch's deterministic mode refuses on a GPU (torch.use_deterministic_algorithms), of what a filter might call.
REFUSED = {
    "adaptive_avg_pool2d_backward", "adaptive_avg_pool3d_backward", "avg_pool3d_backward", "bincount", "grid_sampler_2d",
    "histc", "kthvalue", "max_pool3d_with_indices_backward", "max_unpool2d", "median", "put_", "reflection_pad1d_backward",
    "replication_pad1d_backward", "replication_pad2d_backward", "upsample_bicubic2d_backward",
    "upsample_bilinear2d_backward", "upsample_linear1d_backward", "upsample_trilinear3d_backward",
}  # fmt: skip
FILTERS = {
    "window": lambda f: tc.filters.Window(f, 3, normalization="symmetric"),
    "blurred": lambda f: tc.filters.Window(f, 3, blur=2),
    "lattice": lambda f: tc.filters.Lattice(f, normalization="symmetric"),
    "exact": lambda f: tc.filters.Exact(f, normalization="symmetric"),
    "guided": lambda f: tc.filters.Guided(f, 2, 0.1),
    "subsampled": lambda f: tc.filters.Guided(f, 2, 0.1, subsample=2),
}


@pytest.mark.parametrize("size", [(20,), (9, 16), (5, 6, 7)], ids=["1d", "2d", "3d"])
@pytest.mark.parametrize("name", FILTERS)
def test_filters_call_nothing_that_deterministic_mode_refuses(name, size):
    scores, features = (torch.rand(1, c, *size, requires_grad=True) for c in (3, 2))
    with Seen() as seen:
        refined = tc.mean_field(scores, [FILTERS[name](features)], [1.0], iterations=2)
        torch.autograd.grad(refined, [scores, features], torch.rand_like(refined))
    names = {op for op, _ in seen.found}
    assert not names & REFUSED
    assert not {dtype for op, dtype in seen.found if op in ("cumsum", "cumsum_") and dtype.is_floating_point}
    assert "mul" in names  # it was looked


@pytest.mark.parametrize("filters", [1, 2])
def test_products_of_matrices_in_gradients_are_out_of_reach_of_tf32(filters):
    learnt = [torch.rand(s, requires_grad=True) for s in ((1, 3, 9, 11), (3, 3), (3, 3), (1, 2, 9, 11))]
    logits, weights, compatibility, features = learnt
    windows = [tc.filters.Window(features, 3, blur=b) for b in (1, 3)][:filters]
    with Seen() as seen:
        scores = tc.mean_field(logits, windows, [weights] * filters, compatibility, iterations=2)
        torch.autograd.grad(scores, learnt, torch.rand_like(scores))
    assert {dtype for op, dtype in seen.found if op in ("mm", "bmm", "addmm", "baddbmm")} == {torch.float64}
