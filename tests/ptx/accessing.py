"""Memory, threads together and matrix products, each as a call of the run (`memory`, `warps`, `matrices`)."""

import re

from ptx.formats import VIEW, WIDTH
from ptx.program import space_of
from ptx.writer import Writer


class Accessing(Writer):
    """`do_` and an instruction's first word: the instruction, its words, its mask, and its place in the program."""

    def pointer(self, base: str, space: str) -> str:
        """A register as an address; shared memory has short ones too."""
        _, storage = self.p.registers.get(base, (None, None))
        return self.read(base, "u64" if space != "shared" or storage == "u64" else "u32")

    def do_ld(self, i, parts, m, at):
        kind, space = parts[-1], space_of(parts)
        names = self.vector(i.args[0])
        base, offset = self.address(i.args[1])
        if space == "param":
            self.write(names[0], f"S.parameter({self.p.parameters[base]}, {VIEW[kind]}, {offset})", kind, m)
            return
        a = self.pointer(base, space)
        size = WIDTH[kind] // 8
        name = f"t{len(self.lines)}"
        self.lines.append(f"{name} = S.load({space!r}, {a}, {offset}, {m}, {size}, {len(names)})")
        for k, n in enumerate(names):
            self.write(n, f"{name}[{k}].view({VIEW[kind]})", kind, m)

    def do_st(self, i, parts, m, at):
        kind, space = parts[-1], space_of(parts)
        base, offset = self.address(i.args[0])
        a = self.pointer(base, space)
        values = ", ".join(self.read(n, kind.replace("s", "u").replace("f", "u").replace("b", "u"))
                           for n in self.vector(i.args[1]))  # fmt: skip
        self.lines.append(f"S.store({space!r}, {a}, {offset}, {m}, {WIDTH[kind] // 8}, ({values},))")

    def atomic(self, i, parts, m, target, rest):
        kind, space = parts[-1], space_of(parts)
        operation = next(p for p in parts if p in ("add", "min", "max", "and", "or", "xor", "exch", "cas", "inc"))
        base, offset = self.address(rest[0])
        a = self.pointer(base, space)
        targets = self.vector(target) if target else None
        operands = [self.vector(v) for v in rest[1:]]
        for k in range(len(operands[0])):  # of vectors one after the other
            values = ", ".join(self.read(v[k], kind) for v in operands)
            place = offset + k * WIDTH[kind] // 8
            call = f"S.atomic({space!r}, {operation!r}, {a}, {place}, {m}, {VIEW[kind]}, ({values},))"
            if targets is None:
                self.lines.append(call)
            else:
                self.write(targets[k], call, kind, m)

    def do_atom(self, i, parts, m, at):
        self.atomic(i, parts, m, i.args[0], i.args[1:])

    def do_red(self, i, parts, m, at):
        self.atomic(i, parts, m, None, i.args)

    def do_ldmatrix(self, i, parts, m, at):
        names = self.vector(i.args[0])
        base, offset = self.address(i.args[1])
        name = f"t{len(self.lines)}"
        self.lines.append(
            f"{name} = S.ldmatrix({self.read(base, 'u32')}, {offset}, {m}, {len(names)}, {'trans' in parts})"
        )
        for k, n in enumerate(names):
            self.write(n, f"{name}[{k}]", "b32", m)

    def do_stmatrix(self, i, parts, m, at):
        base, offset = self.address(i.args[0])
        values = ", ".join(self.read(n, "b32") for n in self.vector(i.args[1]))
        self.lines.append(f"S.stmatrix({self.read(base, 'u32')}, {offset}, {m}, ({values},), {'trans' in parts})")

    def do_shfl(self, i, parts, m, at):
        d, a, b, c, members = i.args
        d, *p = d.split("|")
        name = f"t{len(self.lines)}"
        fixed = not any(v in self.p.registers for v in (b, c))
        self.lines.append(
            f"{name} = S.shuffle({parts[2]!r}, {self.read(a, 'b32')}, {self.read(b, 'u32')}, {self.read(c, 'u32')}, "
            f"{m}, {fixed})"
        )
        self.write(d.strip(), f"{name}[0]", "b32", m)
        if p:
            self.write(p[0].strip(), f"np.broadcast_to({name}[1], (S.L // 32, 32)).reshape(-1)", "pred", m)

    def do_vote(self, i, parts, m, at):
        mode = parts[2]
        kind = "b32" if mode == "ballot" else "pred"
        self.write(i.args[0], f"S.vote({mode!r}, {self.read(i.args[1], 'pred')}, {m})", kind, m)

    def do_redux(self, i, parts, m, at):
        kind = parts[-1]
        call = f"S.reduced({parts[2]!r}, {self.read(i.args[1], kind)}, {self.read(i.args[2], 'u32')}, {m})"
        self.write(i.args[0], call, kind, m)

    def do_activemask(self, i, parts, m, at):
        self.write(i.args[0], "S.vote('ballot', np.ones(1, bool), A)", "b32", m)

    def do_bar(self, i, parts, m, at):
        self.lines.append(f"S.warp_barrier({m})")

    def do_mma(self, i, parts, m, at):
        shape = re.fullmatch(r"m(\d+)n(\d+)k(\d+)", parts[3]).groups()
        d, a, b, c = (self.vector(v) for v in i.args[:4])
        types = parts[6:10]
        name = f"t{len(self.lines)}"
        lists = ["[" + ", ".join(self.read(r, kind) for r in rs) + "]"
                 for rs, kind in ((a, "b32"), (b, "b32"), (c, "f32"))]  # fmt: skip
        if types[0] != "f32" or types[3] != "f32":
            raise NotImplementedError(i.text)
        self.lines.append(f"{name} = S.mma({', '.join(lists)}, {tuple(map(int, shape))}, {types[1]!r}, {m})")
        for k, n in enumerate(d):
            self.write(n, f"{name}[{k}]", "f32", m)

    def do_wgmma(self, i, parts, m, at):
        if parts[1] != "mma_async":
            self.lines.append(f"S.together({m}, 'wgmma')")
            return
        shape = tuple(map(int, re.fullmatch(r"m(\d+)n(\d+)k(\d+)", parts[4]).groups()))
        kind = parts[6]
        if parts[5] != "f32":
            raise NotImplementedError(i.text)
        d = self.vector(i.args[0])
        a, b, scale_d, *rest = i.args[1:]
        signs = [int(v) for v in rest[:2]]
        transposed = [int(v) for v in rest[2:]]
        from_registers = a.startswith("{")
        ta, tb = (0, *transposed, 0)[:2] if from_registers else (*transposed, 0, 0)[:2]
        old = "[" + ", ".join(self.read(r, "f32") for r in d) + "]"
        first = (
            ("[" + ", ".join(self.read(r, "b32") for r in self.vector(a)) + "]")
            if from_registers
            else self.read(a, "u64")
        )
        keep = self.read(scale_d, "pred")
        name = f"t{len(self.lines)}"
        self.lines.append(
            f"{name} = S.wgmma({old}, {first}, {self.read(b, 'u64')}, {keep}, {shape}, {kind!r}, {signs}, "
            f"{ta}, {tb}, {m})"
        )
        for k, n in enumerate(d):
            self.write(n, f"{name}[{k}]", "f32", m)

    def do_nothing(self, i, parts, m, at):
        """What orders memory or gives hints: here everything happens at once."""

    do_fence = do_membar = do_prefetch = do_griddepcontrol = do_nanosleep = do_nothing

    def do_cp(self, i, parts, m, at):
        if parts[1] == "async" and ("commit_group" in parts or "wait_group" in parts or "wait_all" in parts):
            return
        if parts[1] != "async" or "bulk" in parts:
            raise NotImplementedError(i.text)
        to, to_offset = self.address(i.args[0])
        of, of_offset = self.address(i.args[1])
        size = int(i.args[2], 0)
        length = self.read(i.args[3], "u32") if len(i.args) > 3 else "None"
        self.lines.append(
            f"S.copy({self.read(to, 'u32')}, {to_offset}, {self.read(of, 'u64')}, {of_offset}, {m}, {size}, {length})"
        )

    def do_trap(self, i, parts, m, at):
        self.lines.append(f"S.trap({m})")
