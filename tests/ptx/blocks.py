"""A basic block as a Python function, and how it ends."""

import numpy as np

from ptx import arithmetic
from ptx.accessing import Accessing
from ptx.computing import Computing
from ptx.formats import NUMPY
from ptx.program import Instruction, Program

EXIT = 1 << 30  # the block of threads that are done


def write_some(R, index, new, m):
    """A register's new numbers, in the threads of the mask m alone."""
    if m.shape[0] == 1:
        if m[0]:
            R[index] = new
        return
    R[index] = np.where(m, new, R[index])


# What the functions of blocks see.
SCOPE = dict(
    np=np, W=write_some, C=arithmetic.convert, ftz=arithmetic.flush, **NUMPY,
    **{name: getattr(arithmetic, name) for name in (
        "compare", "fma32", "fma64", "divide", "remainder", "mulhi", "shl", "shr", "bfe", "prmt", "popc", "clz", "brev",
        "xorsign", "pair", "unpair", "pair64", "unpair64",
    )},
)  # fmt: skip


def block(program: Program, b: int, masked: bool):
    """(function, end) of a block, for all threads or for those of a mask."""
    key = (b, masked)
    if key not in program.functions:
        program.functions[key] = BlockWriter(program, b, masked).function()
    return program.functions[key]


class BlockWriter(Computing, Accessing):
    def function(self):
        """`run(R, A, S)` and one of ("jump", block), ("branch", register, negated, block if so, block if not) and
        ("barrier", next block)."""
        end = ("jump", self.b + 1)
        for at, i in enumerate(self.p.blocks[self.b], self.first):
            head = i.op.split(".")[0]
            if head == "bra":
                target = self.p.labels[i.args[0]]
                end = self.jump(i, target if target < len(self.p.blocks) else EXIT)
            elif head in ("ret", "exit"):
                end = self.jump(i, EXIT)
            elif head == "bar" and "warp" not in i.op or head == "barrier":
                if i.args != ["0"]:
                    raise NotImplementedError(i.text)
                end = ("barrier", self.b + 1)
                self.lines.append(f"S.barrier_reached({at}, {'A' if self.masked else 'None'})")
            else:
                self.instruction(i, at)
        source = "def run(R, A, S):\n" + "".join(f"    {line}\n" for line in self.lines or ["pass"])
        scope = {**SCOPE, **self.constants}
        exec(compile(source, f"<{self.p.name} block {self.b}{' masked' if self.masked else ''}>", "exec"), scope)
        return scope["run"], end

    def jump(self, i: Instruction, target: int):
        if i.guard is None:
            return "jump", target
        negated, register = i.guard
        return "branch", self.p.registers[register][0], negated, target, self.b + 1

    def instruction(self, i: Instruction, at: int):
        m = self.mask(i)
        parts = i.op.split(".")
        method = getattr(self, f"do_{parts[0]}", None)
        if method is None:
            raise NotImplementedError(i.text)
        first = len(self.lines)
        method(i, parts, m, at)
        if any("S." in line for line in self.lines[first:]):  # what the run checks, it reports by its place
            self.lines.insert(first, f"S.at = {at}")
