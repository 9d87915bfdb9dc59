"""What the command lines share: one line and status 2 where a machine is too small."""

import errno
import warnings

import pytest
import torch

from tritoncrf.commands import Parser, run

CPU = (
    "[enforce fail at alloc_cpu.cpp:126] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 360000000 "
    "bytes. Error code 12 (Cannot allocate memory)"
)
GPU = "CUDA out of memory. Tried to allocate 20.00 GiB."
SHARED = "unable to write to file </torch_12_34_5>: No space left on device (28)"


def outcome(capsys, action):
    parser = Parser(prog="python -m tool")
    parser.set_defaults(run=action)
    status = run(parser, [])
    return status, capsys.readouterr().err


def raising(error):
    def action(options):
        raise error

    return action


@pytest.mark.parametrize(
    "error, message",
    [
        (MemoryError(), "out of memory"),
        (MemoryError("Unable to allocate 8.00 GiB"), "out of memory: Unable to allocate 8.00 GiB"),
        (RuntimeError(CPU), "out of memory: can't allocate memory: you tried to allocate 360000000 bytes"),
        (torch.OutOfMemoryError(GPU), f"out of memory: {GPU}"),
        (RuntimeError(SHARED), "unable to write to file </torch_12_34_5>: No space left on device"),
        (OSError(errno.ENOSPC, "No space left on device", "run/last.pt"), "No space left on device: 'run/last.pt'"),
        (ValueError("several\nlines"), "several lines"),
        (
            ModuleNotFoundError('tune needs Optuna: pip install "tritoncrf[tune]"'),
            'tune needs Optuna: pip install "tritoncrf[tune]"',
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_machine_that_is_too_small(capsys, error, message):
    status, said = outcome(capsys, raising(error))
    assert status == 2 and said.startswith("tool: error: ") and said.endswith(f"{message}\n") and said.count("\n") == 1


def test_torch_says_so_where_memory_is_really_short(capsys):
    status, said = outcome(capsys, lambda options: torch.empty(2**62, dtype=torch.uint8))
    assert status == 2 and said.startswith("tool: error: out of memory: ") and said.count("\n") == 1


@pytest.mark.parametrize(
    "error", [RuntimeError("a bug"), AssertionError(), KeyError("x"), ImportError("No module named 'x'", name="x")]
)
def test_a_bug_shows_its_traceback(capsys, error):
    with pytest.raises(type(error)):
        outcome(capsys, raising(error))


def test_a_status_of_its_own(capsys):
    assert outcome(capsys, lambda options: 1) == (1, "")
    assert outcome(capsys, lambda options: None) == (0, "")


def test_large_photos_do_not_warn(capsys):
    pillow = "Image size (90000000 pixels) exceeds limit of 89478485 pixels, could be decompression bomb DOS attack."

    def action(options):
        warnings.warn(pillow, stacklevel=1)

    assert outcome(capsys, action) == (0, "")


@pytest.mark.parametrize(
    "said, expected",
    [
        ("num_classes: expected 2, got 1", "--num-classes: expected 2, got 1"),
        ("mask: use foreground= or num_classes=3", "mask: use foreground= or --num-classes=3"),
        ("labels: expected 0, got -1; num_classes=-1", "labels: expected 0, got -1; --num-classes=-1"),
        ("num_classes, other: wrong", "--num-classes, other: wrong"),
        ("beside num_classes=, got a/num_classes=3", "beside --num-classes, got a/num_classes=3"),
    ],
)
def test_arguments_are_named_as_options(capsys, said, expected):
    parser = Parser(prog="python -m tool")
    parser.add_argument("--num-classes")
    parser.set_defaults(run=raising(ValueError(said)))
    assert run(parser, []) == 2 and capsys.readouterr().err == f"tool: error: {expected}\n"
