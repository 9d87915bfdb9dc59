"""Memory that shows when nobody wrote it."""

import contextlib

import torch


@contextlib.contextmanager
def nan_filled():
    """Inside, `torch.empty` and its kin give NaN, integers their largest value.

    torch fills so in deterministic mode; warn_only keeps the mode from refusing anything.
    """
    mode = torch.get_deterministic_debug_mode()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(mode)
        torch.utils.deterministic.fill_uninitialized_memory = fill
