"""Compile launches for GPUs that this machine does not have, and read the binaries.

`compile_launch` specialises a launch as Triton would (with Triton's own binder) and compiles it for a named
target; `Binary` holds registers, stack, shared memory and the instruction mix, read with the tools of Triton's wheel.
"""

import contextlib
import re
import subprocess
import tempfile
import threading
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from unittest import mock

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.driver import driver
from triton.runtime.jit import JITCallable, create_function_from_signature

from bench.compiled.sass import marked
from ptx.program import Program
from tritoncrf.kernels.common import Launch

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}

# Columns of the instruction mix: the kind of a SASS instruction by its opcode before the first dot.
MIX = {
    "matrix": {"HMMA", "HGMMA", "QGMMA", "IMMA", "UTCHMMA", "UTCQMMA"},
    "ffma": {"FFMA", "FFMA2"},
    "fp32": {"FADD", "FMUL", "FADD2", "FMUL2", "FMNMX", "FSETP", "FSEL", "FSET", "FCHK"},
    "mufu": {"MUFU"},
    "int": {"IMAD", "IADD3", "IADD", "LEA", "LOP3", "ISETP", "SHF", "IABS", "IMNMX", "VIADD", "VIMNMX", "SEL"},
    "convert": {"F2F", "F2FP", "F2I", "I2F", "I2FP", "PRMT", "HADD2", "HFMA2", "HMUL2"},
    "move": {"MOV", "CS2R"},
    "ldg": {"LDG", "LDGSTS"},
    "stg": {"STG", "RED", "REDG", "ATOMG", "ATOM"},
    "lds": {"LDS", "LDSM"},
    "sts": {"STS", "STSM"},
    "local": {"LDL", "STL"},
    "shfl": {"SHFL"},
    "bar": {"BAR", "WARPSYNC", "DEPBAR", "SYNCS"},
}
_COLUMN = {opcode: column for column, opcodes in MIX.items() for opcode in opcodes}


def column(opcode: str) -> str:
    """The column of `MIX`, or "other"."""
    return _COLUMN.get(opcode, "other")


@dataclass(frozen=True)
class Binary:
    """One compiled kernel. `stack` and `local` in bytes per thread; `shared` in bytes per program.

    Spilled registers live on the stack. On AMD, `registers` are vector registers and `stack` is scratch.
    """

    kernel: str
    target: str
    constants: dict
    num_warps: int
    registers: int
    stack: int
    local: int
    shared: int
    code: bytes = field(repr=False)
    ptx: str = field(repr=False, default="")

    @property
    def spills(self) -> bool:
        """Whether registers go to memory. LLVM leaves a stack frame for booleans that never use it."""
        framed = bool(self.stack or self.local)
        return framed and (TARGETS[self.target].backend == "hip" or self.mix["local"] > 0)

    @property
    def options(self) -> str:
        """The informative constants; strides and pointers that became constants are left out."""
        return " ".join(f"{name}={value}" for name, value in self.constants.items() if name.isupper())

    @cached_property
    def mix(self) -> Counter:
        """Instructions by column of `MIX`; empty on AMD. Disassembling takes longer than compiling, so on demand."""
        return Counter() if TARGETS[self.target].backend == "hip" else instruction_mix(_cuobjdump("-sass", self.code))

    @cached_property
    def program(self) -> Program:
        """The PTX for the emulator, in which the line of each statement is its number."""
        return Program(self.ptx, self.shared)

    def __str__(self):
        return (
            f"{self.kernel}({self.options}) warps={self.num_warps} on {self.target}: {self.registers} registers, "
            f"stack {self.stack}, local {self.local}"
        )


def specialise(launch: Launch, target: GPUTarget):
    """The source and options Triton would compile for this launch: 1 and None become constants, and so on."""
    backend = make_backend(target)
    kernel, keywords = launch.kernel, launch.options(target)
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialization, _ = bind(**launch.arguments, **keywords)
    options, signature, constants, attributes = kernel._pack_args(backend, keywords, bound, specialization, keywords)
    return ASTSource(kernel, signature, constants, attributes), options


def signature(launch: Launch, target: str) -> dict:
    """The types of its arguments by their names, as Triton compiles it for this target."""
    return specialise(launch, TARGETS[target])[0].signature


def identity(launch: Launch) -> tuple:
    """Equal for two launches for which Triton would use one binary."""
    source, _ = specialise(launch, TARGETS["sm_90"])
    return source.hash(), *launch.options(TARGETS["sm_80"]).items(), *launch.options(TARGETS["sm_90"]).items()


def unique(launches: Iterable[Launch]) -> list[Launch]:
    """The first launch of each specialisation, in order."""
    seen = {}
    for launch in launches:
        seen.setdefault(identity(launch), launch)
    return list(seen.values())


class _Pretended:
    """The driver of an absent GPU, which gives kernels the right target."""

    def __init__(self, target: GPUTarget):
        self.target = target

    def get_current_target(self) -> GPUTarget:
        return self.target


@contextlib.contextmanager
def pretended(target: GPUTarget):
    """Pretend to have a GPU, for all threads, one target at a time. Code compiled inside has the numbers of its PTX
    statements as lines."""
    before, hook = driver._active, triton.knobs.runtime.add_stages_inspection_hook
    driver.set_active(_Pretended(target))
    triton.knobs.runtime.add_stages_inspection_hook = _marking
    try:
        yield
    finally:
        driver._active = before
        triton.knobs.runtime.add_stages_inspection_hook = hook


def _marking(*arguments):
    """Triton's hook for compilation stages: a name for its cache, and `marked` between PTX and ptxas."""
    if not arguments:
        return "marked", "marked"
    stages = arguments[1]
    if "ptx" in stages:
        make = stages["ptx"]
        stages["ptx"] = lambda source, metadata: marked(make(source, metadata))


def compile_launch(launch: Launch, target: str) -> Binary:
    with pretended(TARGETS[target]):
        return _compile(launch, target)


def _compile(launch: Launch, target: str) -> Binary:
    source, options = specialise(launch, TARGETS[target])
    compiled = triton.compile(source, target=TARGETS[target], options=dict(options.__dict__))
    read = _read_amd if TARGETS[target].backend == "hip" else _read_nvidia
    return Binary(
        kernel=source.name,
        target=target,
        constants={_named(launch, path): value for path, value in source.constants.items()},
        num_warps=launch.num_warps,
        shared=compiled.metadata.shared,
        **read(compiled),
    )


def _named(launch: Launch, path: tuple[int, ...]) -> str:
    """The argument at this path, or the element of an argument that is a tuple."""
    return launch.kernel.arg_names[path[0]] + "".join(f"[{n}]" for n in path[1:])


def _one_at_a_time(parse):
    """Python 3.11 miscounts the parser's depth if several threads parse, and raises a SystemError."""
    lock = threading.Lock()

    def locked(self):
        with lock:
            return parse(self)

    return locked


def compile_all(launches: Iterable[Launch], target: str, mixes: bool = False) -> list[Binary]:
    """Compile every launch, and with `mixes` disassemble it as well; Triton releases the interpreter lock while LLVM
    and ptxas run, and so do the tools."""
    parsing = mock.patch.object(JITCallable, "parse", _one_at_a_time(JITCallable.parse))
    with pretended(TARGETS[target]), parsing, ThreadPoolExecutor() as pool:
        compiled = list(pool.map(lambda launch: _compile(launch, target), launches))
        if mixes:
            list(pool.map(lambda binary: binary.mix, compiled))  # cached for reports, which read them one by one
    return compiled


def _read_nvidia(compiled) -> dict:
    usage = _cuobjdump("-res-usage", compiled.asm["cubin"])
    fields = {name.lower(): int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    return {"registers": fields.pop("reg"), "code": compiled.asm["cubin"], "ptx": compiled.asm["ptx"], **fields}


def _read_amd(compiled) -> dict:
    text = compiled.asm["amdgcn"]
    registers, scratch = (
        int(re.search(rf"^\s+\.{name}:\s+(\d+)", text, re.MULTILINE)[1])
        for name in ("vgpr_count", "private_segment_fixed_size")
    )
    return {"registers": registers, "stack": scratch, "local": 0, "code": compiled.asm["hsaco"]}


def _cuobjdump(option: str, cubin: bytes) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, option, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def instruction_mix(sass: str) -> Counter:
    """Instructions per column of `MIX`, and "other"."""
    opcodes = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z]\w*)", sass, re.MULTILINE)
    return Counter(map(column, opcodes))
