"""The text of a kernel in PTX as basic blocks of instructions."""

import collections
import functools
import itertools
import re
from dataclasses import dataclass

from ptx.formats import STORAGE, WIDTH

STATEMENT = re.compile(r"^(?:@(!?)(%\w+)\s+)?([a-z][\w.:]*)\s*(.*)$", re.S)


@dataclass
class Instruction:
    op: str
    args: list[str]
    guard: tuple[bool, str] | None  # (negated, register)
    where: str  # line of the kernel's source
    text: str


def split_operands(text: str) -> list[str]:
    """The operands of an instruction; those in braces stay whole."""
    return [operand.strip() for operand in re.findall(r"(?:{[^}]*}|[^,{])+", text)]


class Program:
    """A kernel: parameters, registers, and basic blocks, of which a label or a barrier begins a new one."""

    def __init__(self, ptx: str, shared: int):
        self.ptx, self.shared = ptx, shared
        self.name = re.search(r"\.entry\s+(\w+)", ptx)[1]
        head, body = re.search(r"\.entry\s+\w+\s*\((.*?)\)(.*)", ptx, re.S).groups()
        parameters = re.findall(r"\.param\s+\.\w+\s+(?:\.ptr\s+\.\w+\s+\.align\s+\d+\s+)?(\w+)", head)
        self.parameters = {name: index for index, name in enumerate(parameters)}
        self.threads = int(re.search(r"\.(?:req|max)ntid\s+(\d+)", body)[1])
        self.local = {n: int(s) for n, s in re.findall(r"\.local\s+\.align\s+\d+\s+\.b8\s+(\w+)\[(\d+)\]", body)}
        self.symbols = {}  # offsets in shared memory
        offset = 0
        for name, size in re.findall(r"\.shared\s+\.align\s+\d+\s+\.b8\s+(\w+)\[(\d*)\]", ptx):
            self.symbols[name] = offset
            offset += int(size or 0)
        self.registers: dict[str, tuple[int, str]] = {}  # index, and what stores it
        self.blocks: list[list[Instruction]] = []
        self.labels: dict[str, int] = {}
        self.instructions: list[Instruction] = []
        self._parse(body)
        # The number of each block's first instruction.
        self.firsts = [0, *itertools.accumulate(map(len, self.blocks))]
        self.functions: dict = {}  # of the blocks, written when they first run
        widths = [WIDTH[i.op.split(".")[-1]] // 8 for i in self.instructions
                  if i.op.startswith(("ld.shared", "st.shared"))]  # fmt: skip
        if any(i.op.startswith("ldmatrix") and "trans" in i.op for i in self.instructions):
            widths.append(2)
        self.shared_cell = min([4, *widths])  # bytes that one access to shared memory cannot part
        self.counts = [collections.Counter(kind_of(i.op) for i in block) for block in self.blocks]

    def _parse(self, body: str):
        where, pending = "?", ""
        current: list[Instruction] = []

        def close():
            nonlocal current
            if current:
                self.blocks.append(current)
                current = []

        for line in body[body.index("{") + 1 :].splitlines():
            code, _, comment = line.partition("//")
            code = code.strip()
            if code.startswith(".loc"):
                where = comment.strip() or code
                continue
            if code.startswith(".section") or line.startswith("}") and code == "}" and not pending and self.blocks:
                break
            label = re.match(r"^(\$?[\w$]+):\s*(.*)$", code)
            if label:
                close()
                self.labels[label[1]] = len(self.blocks)
                code = label[2]
            if code.startswith(".reg"):
                self._declare(code)
            if not code or code.startswith("."):
                continue
            *statements, pending = f"{pending} {code}".strip().split(";")
            pending = pending.strip()
            for text in statements:
                statement = text.strip().lstrip("{").strip()
                if statement.startswith(".reg"):
                    self._declare(f"{statement};")
                elif statement:
                    instruction = self._instruction(statement, where)
                    current.append(instruction)
                    self.instructions.append(instruction)
                    head = instruction.op.split(".")[0]
                    if head in ("bra", "ret", "exit") or instruction.op.startswith(("bar.sync", "barrier")):
                        close()
            if pending in ("{", "}"):
                pending = ""
        close()

    @staticmethod
    def _instruction(statement: str, where: str) -> Instruction:
        match = STATEMENT.match(statement)
        if match is None:
            raise NotImplementedError(statement)
        negated, register, op, rest = match.groups()
        guard = (negated == "!", register) if register else None
        return Instruction(op, split_operands(rest), guard, where, statement)

    def _declare(self, code: str):
        kind, names = re.match(r"\.reg\s+\.(\w+)\s+(.*?);", code).groups()
        for name in map(str.strip, names.split(",")):
            count = re.match(r"(.*)<(\d+)>", name)
            for n in [f"{count[1]}{i}" for i in range(int(count[2]))] if count else [name]:
                self.registers[n] = (len(self.registers), STORAGE[WIDTH[kind]])


def space_of(parts: list[str]) -> str:
    """The memory that an instruction names."""
    for p in parts:
        if p.split("::")[0] in ("global", "shared", "param", "local", "const"):
            return p.split("::")[0]
    return "generic"


@functools.cache
def kind_of(op: str) -> str:
    """The kind of an instruction, for the counts."""
    parts = op.split(".")
    head = parts[0]
    if head in ("ld", "st", "atom", "red"):
        return f"{head}.{space_of(parts)}"
    if head in ("mma", "ldmatrix", "stmatrix", "shfl", "bra", "cvt", "mov", "setp", "selp", "prmt"):
        return head
    if head == "wgmma":
        return f"wgmma.{parts[1]}"
    if head in ("bar", "barrier"):
        return "bar.warp" if "warp" in parts else "bar"
    if head in ("ex2", "lg2", "rcp", "rsqrt", "sqrt", "sin", "cos", "tanh") or head == "div" and parts[-1][0] == "f":
        return f"{head}.{parts[-1]}"
    if parts[-1] in ("f32", "f64", "f16", "f16x2", "bf16", "f32x2"):
        return ("fma" if head == "fma" else "float") + f".{parts[-1]}"
    if head in ("ret", "exit"):
        return "ret"
    if head in ("div", "rem"):
        return "int.div"
    return "int"
