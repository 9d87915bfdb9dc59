"""Which backend computes, decided without a GPU: by the device, the dtype and the version of Triton."""

import sys
import types

import pytest
import torch

from tritoncrf import backends

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")


@pytest.fixture
def installed(monkeypatch):
    """Makes Triton of some version the one that is installed; None for no Triton."""

    def install(version: str | None) -> None:
        module = types.ModuleType("triton") if version else None
        if module is not None:
            module.__version__, module.__spec__ = version, types.SimpleNamespace(name="triton")
        monkeypatch.setitem(sys.modules, "triton", module)
        if module is None:
            monkeypatch.setattr(backends.importlib.util, "find_spec", lambda name: None)
        forget()

    def forget() -> None:
        backends._triton_version.cache_clear()
        backends._triton_serves.cache_clear()

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
