"""What a launch did, counted: instructions, and the traffic of global and shared memory."""

import collections
from dataclasses import dataclass, field


def counter():
    return field(default_factory=collections.Counter)


@dataclass
class Profile:
    """Of one launch. Traffic is counted only where it is asked for."""

    kernel: str
    programs: int
    threads: int
    seconds: float = 0.0
    warps: collections.Counter = counter()  # instructions executed by warps, of each kind
    global_instructions: collections.Counter = counter()  # read, written, atomic: by warps
    sectors: collections.Counter = counter()  # read, written, atomic: of each instruction
    distinct: collections.Counter = counter()  # read, written: different ones of the launch
    shared_wavefronts: int = 0
    shared_ideal: int = 0  # without bank conflicts
    lines: dict = field(default_factory=dict)  # of the source: see `line`

    def line(self, where: str) -> list[int]:
        """Warp instructions, those of global memory, their sectors, wavefronts."""
        return self.lines.setdefault(where, [0, 0, 0, 0])


def table(launches: list[Profile]):
    """Per kernel: what its launches did together, and the lines of the source that most of it is for."""
    for name in dict.fromkeys(p.kernel for p in launches):
        profiles = [p for p in launches if p.kernel == name]
        total = sum((p.warps for p in profiles), collections.Counter())
        sectors = sum(p.sectors.total() for p in profiles)
        instructions = sum(p.global_instructions.total() for p in profiles)
        wavefronts, ideal = sum(p.shared_wavefronts for p in profiles), sum(p.shared_ideal for p in profiles)
        kinds = ", ".join(f"{kind} {n / total.total():.0%}" for kind, n in total.most_common(6))
        yield (f"  {name}: {total.total()} warp instructions ({kinds}); {sectors} sectors, "
              f"{sectors / max(1, instructions):.1f} an access; {wavefronts} shared wavefronts, "
              f"{wavefronts / max(1, ideal):.2f} x the least")  # fmt: skip
        lines: dict[str, list] = {}
        for p in profiles:
            for where, counts in p.lines.items():
                lines[where] = [a + b for a, b in zip(lines.get(where, [0] * 4), counts)]
        for where, (n, accesses, touched, turns) in sorted(lines.items(), key=lambda i: -sum(i[1]))[:4]:
            yield (f"      {where}: {n} instructions, {accesses} accesses of {touched / max(1, accesses):.1f} sectors, "
                  f"{turns} shared wavefronts")  # fmt: skip
