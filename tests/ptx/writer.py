"""What every instruction of a block's Python code needs: operands, results, and which threads run."""

import re

import numpy as np

from ptx.formats import NUMPY, VIEW, WIDTH, u32, u64
from ptx.program import Instruction, Program


class Writer:
    """Writes one basic block as Python. R: registers; A: which threads run, where not all; S: the run."""

    def __init__(self, program: Program, b: int, masked: bool):
        self.p, self.b, self.masked = program, b, masked
        self.lines: list[str] = []
        self.constants: dict = {}
        self.first = program.firsts[b]

    def number(self, text: str, kind: str) -> str:
        """An immediate as an array of one element of the view `kind`."""
        dtype = NUMPY[VIEW[kind]]
        if text.startswith("0f"):
            value = np.array([int(text[2:], 16)], u32).view(dtype)
        elif text.startswith("0d"):
            value = np.array([int(text[2:], 16)], u64).view(dtype)
        elif kind == "pred":
            value = np.array([int(text, 0) != 0])
        elif re.fullmatch(r"-?(0x[0-9a-fA-F]+|\d+)U?", text):
            bits = dtype().itemsize * 8
            value = np.array([int(text.rstrip("U"), 0) % (1 << bits)], NUMPY[f"u{bits}"]).view(dtype)
        elif text in self.p.symbols:
            value = np.array([self.p.symbols[text]], NUMPY[f"u{WIDTH[kind]}"]).view(dtype)
        elif text in self.p.local:
            value = np.array([0], NUMPY[f"u{WIDTH[kind]}"]).view(dtype)
        else:
            raise NotImplementedError(f"operand {text}")
        assert value.dtype == dtype, (text, kind)
        name = f"K{len(self.constants)}"
        self.constants[name] = value
        return name

    def read(self, text: str, kind: str) -> str:
        """An operand viewed as `kind`."""
        if text.startswith("!"):
            return f"(~{self.read(text[1:], kind)})"
        if text in self.p.registers:
            index, storage = self.p.registers[text]
            view = VIEW[kind]
            if view == storage:
                return f"R[{index}]"
            if NUMPY[view]().itemsize == NUMPY[storage]().itemsize:
                return f"R[{index}].view({view})"
            return f"R[{index}].astype(u{WIDTH[kind]}).view({view})"  # the low bits
        if re.fullmatch(r"%(tid|ntid|ctaid|nctaid)\.[xyz]|%laneid|%warpid", text):
            return f"S.special[{text!r}]" + (".astype(u64)" if WIDTH[kind] == 64 else "")
        return self.number(text, kind)

    def write(self, text: str, expression: str, kind: str, m: str):
        """The register `text` becomes `expression`, viewed as `kind`, in the threads of the mask m."""
        if text == "_":
            return
        index, storage = self.p.registers[text]
        if NUMPY[storage]().itemsize == (1 if kind == "pred" else max(2, WIDTH[kind] // 8)):
            view = f".view({storage})" if storage != "bool" else ""
        elif kind[0] == "s":
            wide = storage.replace("u", "i")
            view = f".astype({wide}).view({storage})"
        else:
            view = f".astype({storage})"
        if kind in ("b8", "u8", "s8"):
            view = f".astype({'i16' if kind == 's8' else 'u16'}).view({storage})"
        if m == "None":
            self.lines.append(f"R[{index}] = ({expression}){view}")
        else:
            self.lines.append(f"W(R, {index}, ({expression}){view}, {m})")

    def address(self, text: str) -> tuple[str, int]:
        """Register or name, and offset, of `[register + offset]`."""
        inside = text.strip()[1:-1].strip()
        match = re.fullmatch(r"(\S+?)\s*(?:\+\s*(-?\w+))?", inside)
        return match[1], int(match[2] or "0", 0)

    def mask(self, i: Instruction) -> str:
        """The threads that run an instruction: all ("None"), those of the block ("A"), or those of its guard too."""
        active = "A" if self.masked else "None"
        if i.guard is None:
            return active
        negated, register = i.guard
        p = f"R[{self.p.registers[register][0]}]"
        p = f"~{p}" if negated else p
        name = f"m{len(self.lines)}"
        self.lines.append(f"{name} = A & {p}" if self.masked else f"{name} = {p}")
        return name

    def vector(self, text: str) -> list[str]:
        """The registers of `{a, b}`, or one."""
        text = text.strip()
        return [n.strip() for n in text[1:-1].split(",")] if text.startswith("{") else [text]
