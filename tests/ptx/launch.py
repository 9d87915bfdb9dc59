"""Triton's launches, compiled for a GPU that need not be here and run on the CPU."""

import collections
import contextlib
import ctypes

import numpy as np
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction, create_function_from_signature

from ptx.checks import Fault, KernelFault
from ptx.formats import f16, f32, f64, i8, i16, i32, i64, u8, u16, u32, u64
from ptx.memory import Allocation
from ptx.profile import Profile
from ptx.program import Program
from ptx.run import Run

# Of arguments that are no pointers.
SCALARS = {
    "i1": i8, "i8": i8, "i16": i16, "i32": i32, "i64": i64, "u1": u8, "u8": u8, "u16": u16, "u32": u32, "u64": u64,
    "fp16": f16, "fp32": f32, "fp64": f64,
}  # fmt: skip


def until_ptx(*arguments):
    """Triton's hook on its stages of compilation: a name for its cache, and ptxas, which takes long, left out."""
    if not arguments:
        return "ptx", "ptx"
    stages = arguments[1]
    stages["cubin"] = lambda source, metadata: b""


class Emulator:
    """Takes the place of Triton's launches, and of its driver.

    `profile` counts traffic; `noise` is the part of the errors that PTX allows approximate functions which they have;
    `stop` raises a launch's faults. `launches`: a profile of each; `notes`: (kernel, what, where) -> (times, most).
    """

    def __init__(self, target: str = "sm_90", profile: bool = False, noise: float = 0.0, stop: bool = True):
        self.target = GPUTarget("cuda", int(target.split("_")[1]), 32)
        self.profiled, self.noise, self.stop = profile, noise, stop
        self.launches: list[Profile] = []
        self.faults: list[Fault] = []
        self.notes: dict[tuple[str, str, str], tuple[int, int]] = {}
        self.programs: dict = {}
        self._binders: dict = {}

    # What Triton asks of a driver.

    def get_current_target(self):
        return self.target

    def get_current_device(self):
        return 0

    def get_current_stream(self, device=None):
        return 0

    def get_active_torch_device(self):
        return torch.device("cpu")

    def is_active(self):
        return True

    def compiled(self, kernel, args, kwargs):
        """(program, signature, arguments by name), specialised as for a GPU."""
        backend = make_backend(self.target)
        if kernel not in self._binders:
            self._binders[kernel] = create_function_from_signature(kernel.signature, kernel.params, backend)
        bound, specialization, options = self._binders[kernel](*args, **kwargs)
        key = (kernel, str(specialization), str(sorted((k, str(v)) for k, v in options.items())))
        if key not in self.programs:
            options, signature, constants, attributes = kernel._pack_args(
                backend, kwargs, bound, specialization, options
            )
            source = ASTSource(kernel, signature, constants, attributes)
            binary = triton.compile(source, target=self.target, options=dict(options.__dict__))
            self.programs[key] = Program(binary.asm["ptx"], binary.metadata.shared), signature
        return (*self.programs[key], bound)

    def launch(self, kernel, args, grid, kwargs):
        program, signature, bound = self.compiled(kernel, args, kwargs)
        if callable(grid):
            grid = grid(bound)
        grid = (*map(int, grid), 1, 1)[:3]
        if 0 in grid:
            return
        arguments = [part for name, kind in signature.items() for part in flat(name, kind, bound[name])]
        allocations = allocated(arguments, program.threads)
        parameters = packed(arguments, allocations, program)
        run = Run(program, grid, parameters, list(allocations.values()), self.profiled, self.noise)
        run.go()
        self.launches.append(run.profile)
        for (what, where), (count, most) in run.notes.items():
            key = program.name, what, where
            before = self.notes.get(key, (0, 0))
            self.notes[key] = before[0] + count, max(before[1], most)
        self.faults += run.faults
        if run.faults and self.stop:
            raise KernelFault(run.faults)

    def report(self, target: str):
        """Lines of text: what ran, and what was found."""
        seconds = sum(p.seconds for p in self.launches)
        instructions = sum(p.warps.total() for p in self.launches)
        kernels = collections.Counter(p.kernel for p in self.launches)
        yield (f"ptxemu {target}: {len(self.launches)} launches of {len(kernels)} kernels, {len(self.programs)} binaries, "
               f"{instructions:.3g} warp instructions in {seconds:.0f} s, {len(self.faults)} faults")  # fmt: skip
        for name, count in kernels.most_common():
            yield f"  {count:6d} {name}"
        for (kernel, what, where), (count, most) in sorted(self.notes.items(), key=lambda note: -note[1][0])[:40]:
            bits = f", bits by up to {most}" if most else ""
            yield f"  note: {kernel} at {where}: {what}: {count} times{bits}"
        for fault in self.faults:
            yield f"  FAULT: {fault}"


def flat(name, kind, value):
    """The parameters that one argument is compiled to: a tuple's elements in order, none for what is constant."""
    if isinstance(kind, tuple):
        for n, (element_kind, element) in enumerate(zip(kind, value, strict=True)):
            yield from flat(f"{name}[{n}]", element_kind, element)
    elif kind != "constexpr":
        yield name, kind, value


def packed(arguments, allocations, program):
    """What a program finds where its parameters are, as bytes: those of `flat` arguments, and zeros for its own."""
    parameters = []
    for _, kind, value in arguments:
        if kind[0] == "*":
            storage = value.untyped_storage().data_ptr()
            parameters.append(u64(allocations[storage].base + value.data_ptr() - storage).tobytes())
        else:
            parameters.append(SCALARS[kind](value).tobytes())
    return parameters + [bytes(8)] * (len(program.parameters) - len(parameters))


def allocated(arguments, threads: int) -> dict[int, Allocation]:
    """The tensors' storages by their pointers, far from each other in the kernel's addresses."""
    users: dict[int, list] = {}
    for name, kind, value in arguments:
        if kind[0] == "*":
            if not isinstance(value, torch.Tensor):
                raise NotImplementedError(f"pointer argument {name}: {type(value)}")
            users.setdefault(value.untyped_storage().data_ptr(), []).append((name, value))
    found = {}
    for n, (pointer, named) in enumerate(users.items(), 1):
        names, tensors = zip(*named)
        size = tensors[0].untyped_storage().nbytes()
        data = np.frombuffer((ctypes.c_uint8 * size).from_address(pointer), u8) if size else np.zeros(0, u8)
        cell = min(4, *(t.element_size() for t in tensors))
        base = (n << 36) + pointer % 512  # aligned as the tensor is
        found[pointer] = Allocation("/".join(names), base, data, threads, cell, tensors[0].is_floating_point())
    return found


@contextlib.contextmanager
def poisoned():
    """Inside, torch.empty and its kin are filled with bytes 0xff, which `Memory` knows when it reads them."""
    names = [(torch, "empty"), (torch, "empty_like"), (torch, "empty_strided"), (torch.Tensor, "new_empty")]
    before = [(where, name, getattr(where, name)) for where, name in names]

    def filling(function):
        def filled(*args, **kwargs):
            out = function(*args, **kwargs)
            if out.device.type == "cpu" and out.layout == torch.strided and out.untyped_storage().nbytes():
                ctypes.memset(out.untyped_storage().data_ptr(), 0xFF, out.untyped_storage().nbytes())
            return out

        return filled

    for where, name, function in before:
        setattr(where, name, filling(function))
    try:
        yield
    finally:
        for where, name, function in before:
            setattr(where, name, function)


@contextlib.contextmanager
def emulated(target: str = "sm_90", **options):
    """Every launch inside goes through an `Emulator`, which it gives."""
    emulator = Emulator(target, **options)

    def run(self, *args, grid, warmup=False, **kwargs):
        if not warmup:
            emulator.launch(self, args, grid, kwargs)

    launch, active, hook = JITFunction.run, driver._active, triton.knobs.runtime.add_stages_inspection_hook
    JITFunction.run = run
    driver.set_active(emulator)
    triton.knobs.runtime.add_stages_inspection_hook = until_ptx
    try:
        with poisoned():
            yield emulator
    finally:
        JITFunction.run = launch
        driver._active = active
        triton.knobs.runtime.add_stages_inspection_hook = hook
