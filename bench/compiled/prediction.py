"""The least time of a launch, from what it executes: predictions, never measurements.

A launch keeps each part of the machine busy for some time; the longest of these times is the prediction. It assumes
that no program waits for another or for memory, and that all multiprocessors are busy all the time.
"""

import re
from collections import Counter
from dataclasses import dataclass

from bench import floors
from bench.compiled.compilation import MIX
from bench.compiled.executed import WARP, Executed

# Instructions by the unit that executes them; hence FADD is not with FMNMX.
FMA = {"FFMA", "FFMA2", "FADD", "FMUL", "FADD2", "FMUL2", "IMAD", "HFMA2", "HADD2", "HMUL2"}
SPECIAL = {"MUFU", "F2I", "I2F", "F2F", "FRND", "POPC", "FLO", "BREV"}
ALU = (MIX["fp32"] | MIX["int"] | MIX["convert"] | {"MOV", "PLOP3", "VIADDMNMX", "IADD32I"}) - FMA - SPECIAL


@dataclass(frozen=True)
class Machine:
    """Multiprocessors, their clock in Hz, and what one of them executes per clock: warp instructions in total and for
    each unit, and wavefronts of the L1 cache (128 bytes; including shared memory and shuffles)."""

    name: str
    multiprocessors: int
    clock: float
    rates: floors.Rates
    issued: float = 4
    fma: float = 4
    alu: float = 2
    special: float = 0.5
    wavefronts: float = 1

    def __str__(self):
        lanes = {name: f"{getattr(self, name) * WARP:g}" for name in ("fma", "alu", "special")}
        return (
            f"{self.name}: {self.multiprocessors} multiprocessors at {self.clock / 1e9:g} GHz, each of which issues "
            f"{self.issued:g} warp instructions a clock, {lanes['fma']} lanes of FMA, {lanes['alu']} of integers, "
            f"comparisons and moves, {lanes['special']} of special functions, and one wavefront of 128 bytes of its L1 "
            f"cache; {self.rates.bytes / 1e12:g} TB/s of memory, {self.rates.products / 1e12:g} TFLOP/s of matrix units"
        )


# The H200 as in floors.py, the A100 from the vendor's data; rates per clock from the CUDA programming guide.
MACHINES = {
    "sm_80": Machine("A100", 108, 1.41e9, floors.Rates(2.0e12, 19.5e12, 2.4e12, 312e12), fma=2),
    "sm_90": Machine("H200", 132, 1.9e9, floors.H200),
}


@dataclass(frozen=True)
class Prediction:
    """Seconds that each part of a machine is busy."""

    times: dict[str, float]

    @property
    def seconds(self) -> float:
        return max(self.times.values())

    @property
    def bound(self) -> str:
        return max(self.times, key=self.times.get)


def predicted(executed: Executed, moved: int, machine: Machine) -> Prediction:
    """The prediction; `moved` is the bytes of the launch's tensors, each once."""
    units = Counter()
    for opcode, count in executed.opcodes.items():
        head = opcode.split(".")[0]
        unit = "fma" if head in FMA else "special" if head in SPECIAL else "alu" if head in ALU else "other"
        units[unit] += count
        units["wavefronts"] += count * (head == "SHFL")
        units["products"] += count * product_operations(opcode)
    clocks = {
        "issue": executed.instructions / machine.issued,
        "fma": units["fma"] / machine.fma,
        "int": units["alu"] / machine.alu,
        "mufu": units["special"] / machine.special,
        "L1": (executed.wavefronts + units["wavefronts"]) / machine.wavefronts,
    }
    times = {name: count / (machine.multiprocessors * machine.clock) for name, count in clocks.items()}
    times["matrix"] = units["products"] / machine.rates.products
    times["bytes"] = moved / machine.rates.bytes
    return Prediction(times)


def product_operations(opcode: str) -> int:
    """Operations of one warp's matrix instruction, by the shape in its name: HMMA.16816 multiplies 16 x 16 by 16 x 8,
    a quarter of HGMMA.64x32x16 belongs to each of its four warps."""
    if match := re.match(r"HMMA\.(16)(8)(\d+)", opcode):
        m, n, k = map(int, match.groups())
        return 2 * m * n * k
    if match := re.match(r"\w*GMMA\.(\d+)x(\d+)x(\d+)", opcode):
        m, n, k = map(int, match.groups())
        return 2 * m * n * k // 4
    return 0
