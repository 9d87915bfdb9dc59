"""Memory that shows when nobody wrote it, and how much of it is written."""

import contextlib

import torch
from torch.utils._python_dispatch import TorchDispatchMode


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


class Work(TorchDispatchMode):
    """How many numbers the operators inside wrote, and the most in one memory that any of them gave back."""

    written = largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for x in result if isinstance(result, (list, tuple)) else [result]:
            if isinstance(x, torch.Tensor):
                self.largest = max(self.largest, x.untyped_storage().nbytes() // x.element_size())
                self.written += 0 if function.is_view else x.numel()
        return result
