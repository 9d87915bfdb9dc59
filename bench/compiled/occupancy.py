"""The number of programs of a kernel that a streaming multiprocessor holds at once, and its limit.

Registers are allocated per warp in units of 256, in four files, one for each scheduler; shared memory is allocated in
units of 128 bytes, and the system takes 1 KB per program (CUDA programming guide, compute capabilities 8.0, 9.0 and
10.0).
"""

from dataclasses import dataclass

WARP = 32
REGISTER_UNIT = 256
REGISTER_FILES = 4
SHARED_UNIT = 128
SHARED_OF_SYSTEM = 1024


@dataclass(frozen=True)
class Multiprocessor:
    """The resources of a multiprocessor. `shared` in bytes; `registers` of 32 bits."""

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
    """Resident programs and warps, and the limiting resources: some of "registers", "shared", "warps" and
    "programs"."""

    programs: int
    warps: int
    limits: tuple[str, ...]


def occupancy(of: Multiprocessor, num_warps: int, registers: int, shared: int) -> Occupancy:
    """The occupancy for programs of `num_warps` warps with `registers` per thread and `shared` bytes per program."""
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
