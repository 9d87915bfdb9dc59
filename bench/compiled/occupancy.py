"""How many programs of a kernel a streaming multiprocessor holds at once, and what keeps it from holding more.

Registers are given out to whole warps, 256 at a time, and live in four files, one for each scheduler's warps; shared
memory is given out 128 bytes at a time, 1 KB of it to the system for each program (CUDA programming guide, compute
capabilities 8.0, 9.0 and 10.0).
"""

from dataclasses import dataclass

WARP = 32
REGISTER_UNIT = 256
REGISTER_FILES = 4
SHARED_UNIT = 128
SHARED_OF_SYSTEM = 1024


@dataclass(frozen=True)
class Multiprocessor:
    """What there is to share. `shared` in bytes; `registers` of 32 bits."""

    shared: int
    registers: int = 65536
    warps: int = 64
    programs: int = 32


MULTIPROCESSORS = {
    "sm_80": Multiprocessor(shared=164 << 10),
    "sm_90": Multiprocessor(shared=228 << 10),
    "sm_100": Multiprocessor(shared=228 << 10),
}


@dataclass(frozen=True)
class Occupancy:
    """Resident programs and warps, and the limits that allow no more: some of "registers", "shared", "warps" and
    "programs"."""

    programs: int
    warps: int
    limits: tuple[str, ...]


def occupancy(of: Multiprocessor, num_warps: int, registers: int, shared: int) -> Occupancy:
    """Of programs of `num_warps` warps with `registers` a thread and `shared` bytes a program."""
    per_warp = _rounded(registers * WARP, REGISTER_UNIT)
    per_program = _rounded(shared + SHARED_OF_SYSTEM, SHARED_UNIT)
    allowed = {
        "registers": REGISTER_FILES * (of.registers // REGISTER_FILES // per_warp) // num_warps,
        "shared": of.shared // per_program,
        "warps": of.warps // num_warps,
        "programs": of.programs,
    }
    fewest = min(allowed.values())
    return Occupancy(fewest, fewest * num_warps, tuple(name for name, count in allowed.items() if count == fewest))


def _rounded(amount: int, unit: int) -> int:
    return -(-amount // unit) * unit
