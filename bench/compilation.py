"""Compile what is launched, for GPUs this machine does not have, and read what came out.

`launches_of` runs a configuration of the public API with recorded launches that do not run; `compile_launch`
specialises a launch as Triton would have (with Triton's own binder) and compiles it for a named target; `Binary`
holds registers, stack, shared memory and the instruction mix, read with the tools of Triton's wheel.
"""

import contextlib
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.driver import driver
from triton.runtime.jit import create_function_from_signature

import tritoncrf as tc
from tritoncrf.kernels.common import Launch, record_launches

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}

# Columns of the instruction mix: what a line of SASS does, by its opcode before the first dot.
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

    @property
    def spills(self) -> bool:
        """Whether registers go to memory. LLVM leaves a stack frame for booleans that never use it."""
        framed = bool(self.stack or self.local)
        return framed and (TARGETS[self.target].backend == "hip" or self.mix["local"] > 0)

    @property
    def options(self) -> str:
        """The constants that say something: strides and pointers that became constants are left out."""
        return " ".join(f"{name}={value}" for name, value in self.constants.items() if name.isupper())

    @cached_property
    def mix(self) -> Counter:
        """Instructions by column of `MIX`; empty on AMD. Disassembling takes longer than compiling, so on demand."""
        return Counter() if TARGETS[self.target].backend == "hip" else instruction_mix(_cuobjdump("-sass", self.code))

    def __str__(self):
        return (
            f"{self.kernel}({self.options}) warps={self.num_warps} on {self.target}: {self.registers} registers, "
            f"stack {self.stack}, local {self.local}"
        )


def options_of(launch: Launch, backend: str = "cuda") -> dict:
    """What `common.launch` asks of Triton besides the arguments."""
    options = {"num_warps": launch.num_warps, "num_stages": launch.num_stages, "enable_fp_fusion": launch.fp_fusion}
    if launch.registers is not None and backend == "cuda":
        options["maxnreg"] = launch.registers
    return options


def specialise(launch: Launch, target: GPUTarget):
    """The source and options Triton would compile for this launch: 1 and None become constants, and so on."""
    backend = make_backend(target)
    kernel, keywords = launch.kernel, options_of(launch, target.backend)
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialization, _ = bind(**launch.arguments, **keywords)
    options, signature, constants, attributes = kernel._pack_args(backend, keywords, bound, specialization, keywords)
    return ASTSource(kernel, signature, constants, attributes), options


def identity(launch: Launch) -> tuple:
    """Equal for two launches that Triton would serve with one binary."""
    source, _ = specialise(launch, TARGETS["sm_90"])
    return source.hash(), *options_of(launch).items()


def unique(launches: Iterable[Launch]) -> list[Launch]:
    """The first launch of each specialisation, in order."""
    seen = {}
    for launch in launches:
        seen.setdefault(identity(launch), launch)
    return list(seen.values())


class _Pretended:
    """The driver of a GPU that is not there: kernels that ask for their target hear the right one."""

    def __init__(self, target: GPUTarget):
        self.target = target

    def get_current_target(self) -> GPUTarget:
        return self.target


@contextlib.contextmanager
def pretended(target: GPUTarget):
    """For all threads alike: one target at a time."""
    before = driver._active
    driver.set_active(_Pretended(target))
    try:
        yield
    finally:
        driver._active = before


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


def compile_all(launches: Iterable[Launch], target: str, workers: int | None = None) -> list[Binary]:
    """Compile every launch; Triton lets go of the interpreter lock while LLVM and ptxas run."""
    with pretended(TARGETS[target]), ThreadPoolExecutor(workers) as pool:
        return list(pool.map(lambda launch: _compile(launch, target), launches))


def _read_nvidia(compiled) -> dict:
    usage = _cuobjdump("-res-usage", compiled.asm["cubin"])
    fields = {name.lower(): int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    return {"registers": fields.pop("reg"), "code": compiled.asm["cubin"], **fields}


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
    return Counter(_COLUMN.get(opcode, "other") for opcode in opcodes)


# What is launched ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Configuration:
    """One way to use a filter and the loop. `weights`: "scalar", "class", "matrix" or "compatibility". A guided filter
    is alone in its loop; `features` are its guide's channels."""

    kind: str = "window"
    classes: int = 21
    window_size: int = 7
    radius: int = 3
    box: str = "count"
    size: tuple = (37, 41)  # no multiples of 16, so nothing may be assumed of strides
    filters: int = 2
    weights: str = "scalar"
    normalization: str = "none"
    blur: int = 1
    dilation: int = 1
    include_self: bool = True
    features: int = 3
    batch: int = 1
    precision: str = "default"

    def run(self, device) -> None:
        """A filter alone and a loop of three steps, forward and backward to everything."""
        scores = torch.rand(self.batch, self.classes, *self.size, device=device, requires_grad=True)
        features = [
            torch.rand(b, d, *self.size, device=device, requires_grad=True) for b, d in self._batches_and_channels()
        ]
        shape = {"scalar": (), "class": (self.classes,), "matrix": (self.classes, self.classes)}
        shape["compatibility"] = ()
        weights = [torch.rand(shape[self.weights], device=device, requires_grad=True) for _ in features]
        compatibility, learnt = "potts", [scores, *weights, *features]
        if self.weights == "compatibility":
            compatibility = torch.rand(self.classes, self.classes, device=device, requires_grad=True)
            learnt.append(compatibility)
        filters = [self._filter(f) for f in features]
        messages = self._filter(features[0])(scores)
        torch.autograd.grad(messages, [scores, features[0]], torch.rand_like(messages))
        refined = tc.mean_field(scores, filters, weights, compatibility, iterations=3, output="logits")
        torch.autograd.grad(refined, learnt, torch.rand_like(refined))

    def _batches_and_channels(self) -> list[tuple[int, int]]:
        """Of each filter's features. The first filter's serve the whole batch, as positions do."""
        own = self.batch, self.features
        return [own] if self.kind == "guided" else [(1, len(self.size)), own][: self.filters]

    def _filter(self, features):
        if self.kind == "guided":
            return tc.filters.Guided(features, self.radius, 1.0, self.box, precision=self.precision, backend="triton")
        shared = self.include_self, self.normalization
        if self.kind == "exact":
            return tc.filters.Exact(features, *shared, precision=self.precision, backend="triton")
        if self.kind == "lattice":
            return tc.filters.Lattice(features, *shared, self.precision, backend="triton")
        window = self.window_size, self.dilation, self.blur
        return tc.filters.Window(features, *window, *shared, self.precision, backend="triton")


def configurations(thorough: bool = False) -> list[Configuration]:
    """What is launched, as far as registers can tell: everything varied one at a time.

    Classes, weights and the number of filters decide which sums a kernel holds and how its tile is cut, so
    `thorough` takes all their combinations, each with every variation: hundreds of kernels, many minutes. How many
    vertices a lattice has is nothing that a kernel is compiled for.
    """
    sums = [(c, "scalar", 2) for c in (2, 21, 64, 150, 256)]
    sums += [(21, "class", 2), (21, "matrix", 2), (64, "matrix", 2), (256, "class", 2), (21, "scalar", 1)]
    variations = [
        {"precision": "fast"},
        {"normalization": "symmetric"},
        {"size": (48, 64), "batch": 2, "blur": 2},
        {"size": (48, 64), "blur": 16, "window_size": 3},  # the largest blur that fuses
        {"size": (9, 10, 11), "window_size": 5},
        {"window_size": 11},
        {"window_size": 31},
        {"dilation": 2, "include_self": False},
        {"features": 16},
        {"size": (301,)},
    ]
    lattices = [(c, w, f) for c, w, f in sums if (c, w) != (150, "scalar")] + [(300, "scalar", 2)]
    lattices = [Configuration("lattice", c, weights=w, filters=f, features=5) for c, w, f in lattices]
    lattices += [
        Configuration("lattice", **v)
        for v in (
            {"size": (48, 64), "batch": 2, "features": 5, "normalization": "symmetric"},
            {"size": (301,), "features": 1, "normalization": "after"},
            {"size": (9, 10, 11), "features": 4},
            {"features": 8},
            {"features": 16},
            {"weights": "matrix", "precision": "fast"},
        )
    ]
    exacts = [Configuration("exact", classes=c, features=5) for c in (2, 21, 64, 150)]
    exacts += [
        Configuration("exact", **v)
        for v in (
            {"size": (48, 64), "batch": 2, "normalization": "symmetric"},  # 64 x 48 pixels: whole tiles
            {"size": (301,), "features": 9, "normalization": "after"},
            {"features": 32, "include_self": False},
            {"features": 64, "classes": 64},
            {"features": 65, "classes": 64},  # too many for products of features
            {"features": 5, "precision": "fast"},
        )
    ]
    guideds = [(c, "scalar") for c in (1, 2, 21, 64, 150, 256)]
    guideds += [(21, "class"), (21, "matrix"), (64, "matrix"), (300, "scalar")]
    guideds = [Configuration("guided", c, weights=w) for c, w in guideds]
    guideds += [
        Configuration("guided", **v)
        for v in (
            {"radius": 1},
            {"radius": 5},
            {"radius": 8},  # the first to be summed along one axis after the other
            {"radius": 16, "box": "constant"},
            {"radius": 64, "size": (131, 133)},
            {"radius": 200, "size": (401, 403), "classes": 2},
            {"features": 1},
            {"features": 8, "box": "constant"},
            {"features": 8, "radius": 16},
            {"size": (9, 10, 11), "features": 1},
            {"size": (18, 19, 20), "radius": 8},
            {"size": (301,)},
            {"size": (301,), "radius": 16},
            {"size": (48, 64), "batch": 2},
            {"size": (48, 64), "batch": 2, "radius": 16},
            {"weights": "matrix", "precision": "fast"},
        )
    ]
    if not thorough:
        windows = [Configuration(classes=c, weights=w, filters=f) for c, w, f in sums]
        # As at 500 x 512: of sizes and strides that are multiples of 16 Triton makes other kernels.
        aligned = [*windows, Configuration(window_size=11), *lattices[: len(sums)], *exacts[:5], *guideds[: len(sums)]]
        aligned += [Configuration("guided", radius=16), Configuration("guided", features=8)]
        aligned = [replace(c, size=(36, 64)) for c in aligned]
        return windows + [Configuration(**v) for v in variations] + lattices + exacts + guideds + aligned
    variations += [
        {},
        {"window_size": 3},
        {"blur": 4},
        {"normalization": "before"},
        {"normalization": "after"},
        {"size": (8, 16, 32), "window_size": 3, "blur": 2},
    ]
    classes, weights = (1, 2, 21, 33, 64, 100, 150, 256, 300), ("scalar", "class", "matrix", "compatibility")
    windows = product(classes, weights, (1, 2), variations)
    lattices = product(classes, weights, (1, 2), (1, 2, 3, 5, 8, 16, 31))
    exacts = product(classes, (1, 8, 9, 32, 64, 65), (True, False), ("default", "fast"))
    guideds = product(classes, weights, (3, 8, 32), (1, 3, 8))
    found = [Configuration(classes=c, weights=w, filters=f, **v) for c, w, f, v in windows]
    found += [Configuration("lattice", c, weights=w, filters=f, features=d) for c, w, f, d in lattices]
    found += [Configuration("guided", c, weights=w, radius=r, features=d) for c, w, r, d in guideds]
    return found + [Configuration("exact", c, features=d, include_self=s, precision=p) for c, d, s, p in exacts]


def launches_of(configuration: Configuration) -> list[Launch]:
    with record_launches(run=False) as launches:
        configuration.run("cpu")
    return launches


def sweep(thorough: bool = False) -> list[Launch]:
    """Every distinct launch of `configurations`."""
    return unique(launch for c in configurations(thorough) for launch in launches_of(c))
