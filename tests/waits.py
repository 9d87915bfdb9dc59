"""Operations for which the host waits on a GPU, or whose results' sizes it waits for."""

import contextlib

import torch
from torch._library import custom_ops
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
WAITS = {
    aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal, aten._unique2, aten.unique_consecutive,
    aten.unique_dim, aten.bincount, aten.repeat_interleave, aten.lift_fresh,
}  # fmt: skip
READS = {torch.Tensor.tolist, torch.Tensor.cpu, torch.Tensor.numpy}  # on a CPU no operations


class Operations(TorchDispatchMode):
    """Names of the operations that it sees, in this library's operators too: all of them, and those that wait."""

    def __init__(self):
        super().__init__()
        self.seen, self.waits = set(), []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name.split("::")[1]
        self.seen.add(name)
        if function.namespace == "tritoncrf":
            with Reads(self.waits), self:  # an operator is a function, inside which the mode for functions is off
                return custom_ops.OPDEFS[function._schema.name]._init_fn(*args, **(kwargs or {}))
        indexes = args[1] if function.overloadpacket in (aten.index, aten.index_put, aten.index_put_) else ()
        if function.overloadpacket in WAITS or any(i is not None and i.dtype == torch.bool for i in indexes):
            self.waits.append(name)
        return function(*args, **(kwargs or {}))


class Reads(TorchFunctionMode):
    """Adds the names of `READS` to a list."""

    def __init__(self, waits: list):
        super().__init__()
        self.waits = waits

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in READS:
            self.waits.append(function.__name__)
        return function(*args, **(kwargs or {}))


@contextlib.contextmanager
def watched():
    """The `Operations` of the block, whose `waits` have the reads in them."""
    operations = Operations()
    with Reads(operations.waits), operations:
        yield operations
