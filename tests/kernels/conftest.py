"""The kernels run on a GPU or in Triton's interpreter, and always on NaN-filled memory."""

import os

import pytest
import torch

if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
    raise pytest.UsageError("tests/kernels need a GPU, or TRITON_INTERPRET=1 in the environment (`make test` sets it)")


@pytest.fixture(autouse=True)
def unwritten_memory_is_nan(nan_memory):
    pass
