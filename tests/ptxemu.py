"""Run the PTX that Triton compiles, on a CPU, and check every access: evidence about a GPU's code without a GPU.

    python tests/ptxemu.py [--target sm_80] [--profile FILE] pytest tests/kernels     # or any script.py and its arguments

or, from Python, `with ptxemu.emulated("sm_90") as run: ...`, inside which every launch of a Triton kernel on CPU
tensors is compiled for that target, as for a GPU (same specialisation, same options), and its PTX is executed here.

How. All threads of many programs go through one instruction at a time: a register is a NumPy array with a number for
each thread. Threads that take different branches are masked; the block of instructions that is first in the text runs
first, so they meet again. Thus an instruction costs a few microseconds for thousands of threads.

Checked, each with the line of the kernel's source:
  bounds      every global access lies inside a tensor of the launch, every shared one inside what was asked for;
              accesses are aligned; nothing is divided by zero
  races       two threads touch the same bytes, one of them writes, and no barrier stands between them: bar.sync for
              threads of a program, bar.warp.sync within a warp, none for two programs. Shared and global memory
  convergence barriers, shuffles and matrix instructions find all their threads
  unwritten   shared memory that is read before it was written; global memory that still holds what `torch.empty`
              was filled with here (bytes 0xff: NaN in every floating-point type, -1 in integers). Noted, no fault:
              what is read and then masked is harmless, what is used shows as NaN
  several     threads of a warp that write different values to one element by one instruction: which one stays, PTX
              does not say. Noted; a fault where warps do

Counted (`--profile`): instructions of each kind by warps, 32-byte sectors of global reads and writes per instruction
and different ones in all, wavefronts (bank conflicts) of shared memory; per launch, and per line of the source. They
are PTX's instructions, not SASS's; the same numbers every time.

Not modelled: ptxas (which may fuse a product and a sum that PTX leaves apart, unless fp_fusion is off), time, caches;
the order of the hardware's sums in matrix instructions (here: exact products, one rounding); approximations (ex2.approx
and their kin are rounded correctly here; `--noise 1` spreads them, and full divisions, over the errors that PTX allows,
`--noise 0.5` over half of them). Asynchronous matrix instructions and copies happen at once. Clusters, TMA and sm_100's
tcgen05 are not there; an unknown instruction stops with its name.

Targets: sm_75, sm_80, sm_89, sm_90, sm_120. Written for triton 3.7.1, and tried with 3.9.0: it speaks to private parts.
"""

import argparse
import json
import os
import runpy
import sys

import pytest
import triton

from ptx.checks import KernelFault
from ptx.launch import emulated
from ptx.profile import table
from ptx.program import Program

__all__ = ["KernelFault", "Program", "emulated", "main", "prepare"]


def prepare():
    """Before tritoncrf is imported, which lets CPU tensors to its kernels only if TRITON_INTERPRET=1 is set: Triton
    itself shall compile them."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise RuntimeError("what Triton interprets it does not compile: unset TRITON_INTERPRET")
    triton.knobs.runtime.interpret = False
    os.environ["TRITON_INTERPRET"] = "1"


class Report:
    """pytest's plugin that prints the emulator's report ahead of pytest's closing lines."""

    def __init__(self, lines):
        self.lines = lines

    def pytest_terminal_summary(self, terminalreporter):
        terminalreporter.section("compiled kernels")
        for line in self.lines:
            terminalreporter.write_line(line)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--target", default="sm_90")
    parser.add_argument("--profile", help="a file for one JSON line per launch, with counts")
    parser.add_argument("--noise", type=float, default=0.0, help="of the errors that PTX allows: 0 none, 1 all")
    parser.add_argument("--keep-going", action="store_true", help="faults are listed at the end, and raise nothing")
    parser.add_argument("program", nargs=argparse.REMAINDER, help="pytest and its arguments, or a script and its own")
    options = parser.parse_args()
    if not options.program:
        parser.error("what shall run? pytest and its arguments, or a script and its own")
    prepare()

    with emulated(options.target, profile=bool(options.profile), noise=options.noise,
                  stop=not options.keep_going) as emulator:  # fmt: skip

        def report():
            yield from emulator.report(options.target)
            if options.profile:
                yield from table(emulator.launches)

        try:
            if options.program[0] == "pytest":
                status = pytest.main(options.program[1:], plugins=[Report(report())])
            else:
                sys.argv = options.program
                sys.path.insert(0, os.path.dirname(os.path.abspath(options.program[0])))
                runpy.run_path(options.program[0], run_name="__main__")
                status = 0
                print("\n".join(report()))
        finally:
            if options.profile:
                with open(options.profile, "w") as file:
                    file.writelines(json.dumps(vars(launch)) + "\n" for launch in emulator.launches)
    sys.exit(status or bool(emulator.faults))


if __name__ == "__main__":
    main()
