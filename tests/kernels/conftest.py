"""The kernels run on a GPU, as compiled code in the emulator, or in Triton's interpreter; always on NaN-filled memory."""

import os

import pytest
import torch

# The emulator sets TRITON_INTERPRET too, once Triton cannot see it: the package lets CPU tensors to its kernels by it.
if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
    raise pytest.UsageError(
        "tests/kernels need a GPU; or the emulator, `python tests/ptxemu.py pytest tests/kernels`; or Triton's "
        "interpreter, TRITON_INTERPRET=1 in the environment. `make test` runs the last two"
    )


@pytest.fixture(autouse=True)
def unwritten_memory_is_nan(nan_memory):
    pass
