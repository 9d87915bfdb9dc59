"""The SASS that ptxas makes from a kernel's PTX, instruction by instruction, and how often each block of it runs.

A `.loc` before every statement of the PTX (`marked`) makes its number the source line, which ptxas preserves and
nvdisasm prints, so each SASS instruction names the statement that it comes from. The generated code does not depend on
the lines. So the counts of the statements' blocks in the emulator give those of the blocks of SASS (`weights`),
although ptxas moves, drops and duplicates instructions.
"""

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from statistics import median

import triton

from ptx.program import Program

LINE = re.compile(r"\s*\.loc\s")
STATEMENT = re.compile(r"\s*(@!?%\w+\s+)?[a-z][\w.:]*\s")
INSTRUCTION = re.compile(r"\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?(U?P\w+)\s+)?([A-Z][A-Z0-9]*)([\w.]*)\s*(.*?);")
TARGET = re.compile(r"`\((\.L[\w]*)\)")
# Statements with exactly one SASS instruction, which is neither dropped nor moved out of a loop: if a loop has none of
# the first, the second are used, and then any.
KEPT = [
    (re.compile(r"(ld|st|red|atom)\.(\w+\.)*(global|shared)|bar\.sync|mma"),
     {"LDG", "STG", "LDS", "STS", "RED", "ATOM", "ATOMG", "REDG", "BAR", "HMMA"}),
    (re.compile(r"(fma|add|sub|mul|ex2)\.(\w+\.)*f32"), {"FFMA", "FADD", "FMUL", "MUFU"}),
    (re.compile(""), None),
]  # fmt: skip


def marked(ptx: str) -> str:
    """The PTX with the number of each statement as its line."""
    lines, number, open_ = [], 0, False
    body = ptx.index("{", ptx.index(".entry"))
    for line in ptx[body:].splitlines():
        code = line.split("//")[0].strip()
        if LINE.match(code):
            continue
        if not open_ and STATEMENT.match(line):
            number += 1
            lines.append(f".loc 1 {number} 0 // {number}")
        lines.append(line)
        if code:
            open_ = code[-1] not in ";{}:" and not code.startswith(".")
    head = "\n".join(line for line in ptx[:body].splitlines() if not LINE.match(line))
    return f"{head}\n" + "\n".join(lines) + "\n"


@dataclass(frozen=True)
class Instruction:
    opcode: str  # to the first dot
    suffix: str
    predicated: bool
    operands: str
    line: int  # of the marked PTX: the number of the statement


class Graph:
    """Blocks by number, the first of them the entry; `edges[b]`: where b may go on."""

    def __init__(self, edges: list[list[int]], roots=(0,)):
        self.edges = edges
        before = [[] for _ in edges]
        for a, to in enumerate(edges):
            for b in to:
                before[b].append(a)
        self.before, self.roots = before, roots
        self.reached = self._reached()
        self.loops = self._loops()

    def _reached(self) -> set[int]:
        found, left = set(), [*self.roots]
        while left:
            b = left.pop()
            if b not in found:
                found.add(b)
                left += self.edges[b]
        return found

    def _dominators(self) -> dict[int, set[int]]:
        found = {b: set(self.reached) for b in self.reached} | {r: {r} for r in self.roots}
        changed = True
        while changed:
            changed = False
            for b in sorted(self.reached - set(self.roots)):
                new = set.intersection(*(found[a] for a in self.before[b] if a in found)) | {b}
                changed, found[b] = changed or new != found[b], new
        return found

    def _loops(self) -> dict[int, tuple[set[int], set[int]]]:
        """For each natural loop, by its header: its blocks, and those that jump back."""
        dominators, found = self._dominators(), {}
        for a in self.reached:
            for header in self.edges[a]:
                if header in dominators[a]:
                    blocks, latches = found.setdefault(header, ({header}, set()))
                    latches.add(a)
                    left = [a]
                    while left:
                        b = left.pop()
                        if b not in blocks:
                            blocks.add(b)
                            left += [c for c in self.before[b] if c in self.reached]
        return found

    def innermost(self, b: int) -> int | None:
        """The header of the smallest loop around block b."""
        around = [(len(blocks), header) for header, (blocks, _) in self.loops.items() if b in blocks]
        return min(around)[1] if around else None


def graph_of(program: Program) -> Graph:
    """The blocks of PTX."""
    edges = []
    for b, block in enumerate(program.blocks):
        last = block[-1]
        head, to = last.op.split(".")[0], []
        if head == "bra":
            to.append(program.labels[last.args[0]])
        if head not in ("bra", "ret", "exit") or last.guard:
            to.append(b + 1)
        edges.append([t for t in to if t < len(program.blocks)])
    return Graph(edges)


class Sass:
    """`blocks` of instructions and their `graph`."""

    def __init__(self, text: str):
        labels, blocks, fresh, line = {}, [], True, 0
        for row in text.splitlines():
            if match := re.match(r'\s*//## File ".*?", line (\d+)', row):
                line = int(match[1])
            elif match := re.match(r"(\.L\w*):", row):
                labels[match[1]], fresh = len(blocks), True
            elif match := INSTRUCTION.match(row):
                _, predicate, opcode, suffix, operands = match.groups()
                if fresh:
                    blocks.append([])
                blocks[-1].append(Instruction(opcode, suffix, predicate is not None, operands, line))
                fresh = opcode in ("BRA", "EXIT", "RET", "CALL", "BSYNC", "BRX", "JMP")
                if fresh:
                    # Labels that follow belong to the next block.
                    continue
            else:
                continue
        self.blocks, starts = blocks, labels
        edges, roots, joins = [], [0], {}
        for b, block in enumerate(blocks):
            last, to = block[-1], []
            for i in block:
                if i.opcode == "BSSY":
                    joins[i.operands.split(",")[0]] = starts[TARGET.search(i.operands)[1]]
            target = TARGET.search(last.operands)
            where = starts.get(target[1]) if target else None
            if last.opcode == "BRA" and where is not None:
                to.append(where)
            elif last.opcode == "CALL" and where is not None:
                roots.append(where)
            elif last.opcode == "BSYNC":
                to.append(joins[last.operands.strip()])
            conditional = last.predicated or last.opcode == "BRA" and "," in last.operands.split("`")[0]
            if last.opcode not in ("BRA", "EXIT", "RET", "BSYNC") or conditional:
                to.append(b + 1)
            edges.append(sorted({t for t in to if t < len(blocks)}))
        self.graph = Graph(edges, (*dict.fromkeys(roots),))


def disassembled(cubin: bytes) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.nvdisasm.path, "-g", "-c", file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def weights(sass: Sass, program: Program, executed: list[float]) -> list[float]:
    """The number of warps that run each block of SASS, from the numbers `executed` for the blocks of `program`, marked
    PTX.

    A block of SASS runs as often as the block of PTX in the same loop from which most of its instructions come;
    instructions that were moved there from deeper loops do not count. A loop of SASS corresponds to the loop of PTX
    whose back jump it contains. If ptxas unrolled a loop, its copies share the count of the loop of PTX.
    """
    return _Weights(sass, program, executed).found


class _Weights:
    def __init__(self, sass: Sass, program: Program, executed: list[float]):
        self.sass, self.executed = sass, executed
        graph = graph_of(program)
        inside = [graph.innermost(b) for b in range(len(program.blocks))]
        statements = [(i, b) for b, block in enumerate(program.blocks) for i in block]
        self.block_of = {int(i.where): b for i, b in statements}  # of PTX, by line
        self.loop_of = {line: inside[b] for line, b in self.block_of.items()}
        self.kept = [({int(i.where) for i, _ in statements if kept.match(i.op)}, some) for kept, some in KEPT]
        self.places = [sass.graph.innermost(b) for b in range(len(sass.blocks))]
        self.found = [0.0] * len(sass.blocks)
        self.filled: set[int] = set()

        loops = {None: [None]}  # from loops of PTX to loops of SASS, outer ones first
        for header in sorted(sass.graph.loops, key=lambda header: -len(sass.graph.loops[header][0])):
            loops.setdefault(self._loop(header), []).append(header)
        for loop, headers in loops.items():
            members = [b for b in sorted(sass.graph.reached) if self.places[b] in headers]
            self._vote(loop, members)
            if loop is not None:
                self._share(loop, members)

    def _loop(self, header: int) -> int | None:
        """The loop of PTX that corresponds to a loop of SASS."""
        blocks, latches = self.sass.graph.loops[header]
        back = [self.sass.blocks[b][-1] for b in latches]
        own = [i for b in blocks if self.places[b] == header for i in self.sass.blocks[b]]
        for some in back, own:
            votes = Counter(self.loop_of[i.line] for i in some if i.line in self.loop_of)
            votes.pop(None, None)
            if votes:
                return votes.most_common(1)[0][0]
        return None

    def _vote(self, loop: int | None, members: list[int]):
        """The counts of the blocks of a loop that is not unrolled. Blocks that ptxas added, or that are copies of a
        deeper loop, run as often as their predecessors."""
        silent = set()
        for b in members:
            lines = [i.line for i in self.sass.blocks[b] if i.line in self.block_of]
            votes = Counter(self.block_of[line] for line in lines if self.loop_of[line] == loop)
            if votes:
                most = max(votes.values())
                self.found[b] = max(self.executed[p] for p, n in votes.items() if n == most)
            else:
                silent.add(b)
        self.filled |= silent
        while silent:
            ready = {b for b in silent if set(self.sass.graph.before[b]) - silent} or silent
            for b in ready:
                self.found[b] = max((self.found[a] for a in self.sass.graph.before[b]), default=0.0)
            silent -= ready

    def _share(self, loop: int, members: list[int]):
        """The share of a PTX loop's iterations that each of its copies executes. Copies that ptxas put outside loops,
        for the remainder of the unrolled iterations, come first, as far as there are enough iterations."""
        for lines, opcodes in self.kept:
            inner, outer = Counter(), Counter()
            for b in self.sass.graph.reached:
                for i in self.sass.blocks[b]:
                    if i.line in lines and self.loop_of[i.line] == loop and (not opcodes or i.opcode in opcodes):
                        if b in members:
                            inner[i.line] += 1
                        elif opcodes:
                            outer[i.line] += (
                                self.found[b] / self.executed[self.block_of[i.line]] if self.found[b] else 0
                            )
            if inner:
                taken = median(outer[line] for line in inner)
                if taken > 1:
                    for b in self.filled - {*members}:
                        if any(self.loop_of.get(i.line) == loop for i in self.sass.blocks[b]):
                            self.found[b] /= taken
                for b in members:
                    self.found[b] *= max(0.0, 1 - taken) / median(inner.values())
                return
