"""What ptxas made of a kernel's PTX, instruction by instruction, and how often each block of it runs.

A `.loc` before every statement of the PTX (`marked`) makes its own numbers the lines of the source, which ptxas keeps
through all that it does and nvdisasm prints: each SASS instruction tells the statement that it comes from. Code is the
same with other lines. So what the statements' blocks were seen to run, in the emulator, becomes what the blocks of SASS
run (`weights`), though ptxas moves instructions out of loops, drops and doubles them.
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
# Statements that SASS has one instruction for, which is neither dropped nor moved out of a loop.
KEPT = re.compile(r"(?:ld|st|red|atom)\.(?:volatile\.|relaxed\.|acquire\.|gpu\.)*(?:global|shared)|bar\.sync|mma")
OPCODES = {"LDG", "STG", "LDS", "STS", "RED", "ATOM", "ATOMG", "REDG", "BAR", "HMMA"}


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
        """Of each natural loop, by its header: its blocks, and those that go back."""
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


def weights(sass: Sass, program: Program, executed: list[int]) -> list[float]:
    """How many warps run each block of SASS, where `executed` says it of the blocks of `program`, from marked PTX.

    A block of SASS runs as often as that block of PTX from which most of its instructions come, of those blocks that
    stand in the same loop: what was moved there out of deeper loops says nothing. A loop of SASS is that of PTX whose
    jump back it has. Where ptxas unrolled a loop, its copies share what the loop of PTX runs.
    """
    graph = graph_of(program)
    block_of = {int(i.where): b for b, block in enumerate(program.blocks) for i in block}
    kept = {int(i.where) for block in program.blocks for i in block if KEPT.match(i.op)}
    inside = [graph.innermost(b) for b in range(len(program.blocks))]
    places = [sass.graph.innermost(b) for b in range(len(sass.blocks))]
    loop_of = {None: None} | {header: _loop(sass, header, places, inside, block_of) for header in sass.graph.loops}

    found: list[float | None] = [0.0] * len(sass.blocks)
    largest_first = sorted(sass.graph.loops, key=lambda header: -len(sass.graph.loops[header][0]))
    of_loop = {None: [None]}
    for header in largest_first:
        of_loop.setdefault(loop_of[header], []).append(header)
    for loop, headers in of_loop.items():
        members = [b for b in sorted(sass.graph.reached) if places[b] in headers]
        for b in members:
            votes = Counter(
                block_of[i.line] for i in sass.blocks[b] if i.line in block_of and inside[block_of[i.line]] == loop
            )
            most = max(votes.values(), default=0)
            found[b] = max((executed[p] for p, n in votes.items() if n == most), default=None)
        _fill(sass, found, members)
        if loop is not None:
            share = _share(sass, found, members, executed, kept, block_of, inside, loop)
            for b in members:
                found[b] *= share
    return found


def _loop(sass, header, places, inside, block_of) -> int | None:
    """The loop of PTX that a loop of SASS is."""
    blocks, latches = sass.graph.loops[header]
    back = [sass.blocks[b][-1] for b in latches]
    own = [i for b in blocks if places[b] == header for i in sass.blocks[b]]
    for some in back, own:
        votes = Counter(inside[block_of[i.line]] for i in some if i.line in block_of)
        votes.pop(None, None)
        if votes:
            return votes.most_common(1)[0][0]
    return None


def _fill(sass, found, members):
    """Blocks that ptxas made run as often as what comes before them."""
    for _ in members:
        for b in members:
            if found[b] is None:
                before = [found[a] for a in sass.graph.before[b] if a in sass.graph.reached and found[a] is not None]
                found[b] = max(before, default=None)
    for b in members:
        found[b] = found[b] or 0.0


def _share(sass, found, members, executed, kept, block_of, inside, loop) -> float:
    """What part of the trips of a loop of PTX each of its copies takes; copies outside loops take theirs first."""
    shares = {}
    for lines, opcodes in (kept, OPCODES), (block_of.keys(), None):
        seen, outside = Counter(), Counter()
        for b in sass.graph.reached:
            for i in sass.blocks[b]:
                if i.line in lines and inside[block_of[i.line]] == loop and (opcodes is None or i.opcode in opcodes):
                    if b in members:
                        seen[i.line] += 1
                    elif opcodes:
                        outside[i.line] += found[b] or 0.0
        shares = {
            line: (1 - outside[line] / executed[block_of[line]]) / n
            for line, n in seen.items()
            if executed[block_of[line]]
        }
        if shares:
            break
    return max(0.0, median(shares.values())) if shares else 1.0
