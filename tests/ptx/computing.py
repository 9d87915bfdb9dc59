"""Moves and arithmetic, each as a line of Python."""

from ptx.formats import VIEW, WIDTH
from ptx.writer import Writer


class Computing(Writer):
    """`do_` and an instruction's first word: the instruction, its words, its mask, and its place in the program."""

    def do_mov(self, i, parts, m, at):
        kind, (d, a) = parts[-1], i.args
        if d.startswith("{"):
            names = self.vector(d)
            width = WIDTH[kind] // len(names)
            x = self.read(a, kind.replace("s", "u").replace("f", "u"))
            for k, n in enumerate(names):
                if n != "_":
                    self.write(n, f"({x} >> {x}.dtype.type({k * width})).astype(u{width})", f"b{width}", m)
        elif a.startswith("{"):
            names = self.vector(a)
            width = WIDTH[kind] // len(names)
            total = f"u{WIDTH[kind]}"
            terms = [
                f"({self.read(n, f'b{width}')}.astype({total}) << {total}({k * width}))" for k, n in enumerate(names)
            ]
            self.write(d, " | ".join(terms), kind, m)
        else:
            self.write(d, self.read(a, kind), kind, m)

    def do_cvta(self, i, parts, m, at):
        self.write(i.args[0], self.read(i.args[1], "u64"), "u64", m)

    def do_cvt(self, i, parts, m, at):
        to, of = parts[-2], parts[-1]
        mods = tuple(parts[1:-2])
        if to in ("f16x2", "bf16x2"):
            half = to[:-2]
            high, low = (f"C({self.read(a, of)}, {half!r}, {of!r}, {mods})" for a in i.args[1:3])
            view = ".view(u16)"
            self.write(i.args[0], f"({high}{view}.astype(u32) << u32(16)) | {low}{view}", "b32", m)
            return
        kind = {"bf16": "b16"}.get(of, of)
        x = self.read(i.args[1], kind)
        out = {"tf32": "b32", "bf16": "b16"}.get(to, to)
        self.write(i.args[0], f"C({x}, {to!r}, {of!r}, {mods})", out, m)

    def do_selp(self, i, parts, m, at):
        kind = parts[-1]
        d, a, b, p = i.args
        self.write(d, f"np.where({self.read(p, 'pred')}, {self.read(a, kind)}, {self.read(b, kind)})", kind, m)

    def do_setp(self, i, parts, m, at):
        kind = parts[-1]
        mods = [p for p in parts[2:-1] if p != "ftz"]
        result = f"compare({parts[1]!r}, {self.read(i.args[1], kind)}, {self.read(i.args[2], kind)})"
        targets = i.args[0].split("|")
        if mods:
            c = self.read(i.args[3], "pred")
            sign = {"and": "&", "or": "|", "xor": "^"}[mods[0]]
            outs = [f"({result}) {sign} {c}", f"(~({result})) {sign} {c}"]
        else:
            outs = [result, f"~({result})"]
        for t, out in zip(targets, outs):
            self.write(t.strip(), out, "pred", m)

    def binary(self, i, parts, m, integer, floating=None):
        kind = parts[-1]
        d, a, b, *third = i.args
        if third:  # the largest or smallest of three
            x, y, z = (self.read(v, kind) for v in i.args[1:])
            self.write(d, floating.format(a=floating.format(a=x, b=y), b=z), kind, m)
            return
        if parts[-2] == "f32":  # mixed: a half and a float
            half = self.read(a, {"bf16": "b16"}.get(kind, kind))
            self.write(d, integer.format(a=f"C({half}, 'f32', {kind!r}, ())", b=self.read(b, "f32")), "f32", m)
            return
        form = floating if kind[0] == "f" and floating else integer
        if kind == "f32x2":
            x, y = (f"pair64({self.read(v, 'b64')})" for v in (a, b))
            self.write(d, f"unpair64({form.format(a=x, b=y)})", "b64", m)
            return
        if kind in ("f16x2", "s16x2", "u16x2", "bf16x2"):
            half = kind[:-2]
            if half == "bf16":
                raise NotImplementedError(i.text)
            x, y = (f"pair({self.read(v, 'b32')}).view({VIEW[half]})" for v in (a, b))
            self.write(d, f"unpair({form.format(a=x, b=y)})", "b32", m)
            return
        self.write(d, form.format(a=self.read(a, kind), b=self.read(b, kind)), kind, m)

    def flushed(self, expression, parts):
        return f"ftz({expression})" if "ftz" in parts and parts[-1] == "f32" else expression

    def do_add(self, i, parts, m, at):
        self.binary(i, parts, m, "{a} + {b}")

    def do_sub(self, i, parts, m, at):
        self.binary(i, parts, m, "{a} - {b}")

    def do_mul(self, i, parts, m, at):
        kind = parts[-1]
        d, a, b = i.args
        if parts[1] == "wide":
            wide = f"{kind[0].replace('s', 'i')}{2 * WIDTH[kind]}"
            x, y = (f"{self.read(v, kind)}.astype({wide})" for v in (a, b))
            self.write(d, f"{x} * {y}", f"{kind[0]}{2 * WIDTH[kind]}", m)
        elif parts[1] == "hi":
            self.write(d, f"mulhi({self.read(a, kind)}, {self.read(b, kind)})", kind, m)
        else:
            self.binary(i, parts, m, "{a} * {b}")

    def do_mad(self, i, parts, m, at):
        kind = parts[-1]
        d, a, b, c = i.args
        x, y = self.read(a, kind), self.read(b, kind)
        if parts[1] == "wide":
            wide = f"{kind[0]}{2 * WIDTH[kind]}"
            t = wide.replace("s", "i")
            self.write(d, f"{x}.astype({t}) * {y}.astype({t}) + {self.read(c, wide)}", wide, m)
        elif parts[1] == "hi":
            self.write(d, f"mulhi({x}, {y}) + {self.read(c, kind)}", kind, m)
        else:
            self.write(d, f"{x} * {y} + {self.read(c, kind)}", kind, m)

    def do_fma(self, i, parts, m, at):
        kind = parts[-1]
        d, *abc = i.args
        if kind == "f32x2":
            x, y, z = (f"pair64({self.read(v, 'b64')})" for v in abc)
            self.write(d, f"unpair64(fma32({x}, {y}, {z}))", "b64", m)
            return
        x, y, z = (self.read(v, kind) for v in abc)
        if kind == "f32":
            self.write(d, f"fma32({x}, {y}, {z})", kind, m)
        elif kind == "f64":
            self.write(d, f"fma64({x}, {y}, {z})", kind, m)
        elif kind == "f16":
            self.write(d, f"({x}.astype(f64) * {y} + {z}).astype(f16)", kind, m)
        else:
            raise NotImplementedError(i.text)

    def do_div(self, i, parts, m, at):
        kind = parts[-1]
        d, a, b = i.args
        x, y = self.read(a, kind), self.read(b, kind)
        if kind[0] == "f":
            exact = f"{x} / {y}"
            self.write(d, f"S.approximate({exact}, 2.0)" if {"full", "approx"} & set(parts) else exact, kind, m)
        else:
            self.write(d, f"divide({x}, {y}, S, {at}, {m})", kind, m)

    def do_rem(self, i, parts, m, at):
        kind = parts[-1]
        d, a, b = i.args
        self.write(d, f"remainder({self.read(a, kind)}, {self.read(b, kind)}, S, {at}, {m})", kind, m)

    def do_min(self, i, parts, m, at):
        if "xorsign" in parts:
            self.write(i.args[0], f"xorsign({self.read(i.args[1], 'f32')}, {self.read(i.args[2], 'f32')})", "f32", m)
            return
        self.extreme(i, parts, m, "min")

    def do_max(self, i, parts, m, at):
        self.extreme(i, parts, m, "max")

    def extreme(self, i, parts, m, what):
        forms = [f"np.{what}imum({{a}}, {{b}})", f"np.f{what}({{a}}, {{b}})"]
        if "NaN" in parts:
            forms[1] = forms[0]
        if "relu" in parts:
            forms = [f"np.maximum({form}, 0)" for form in forms]
        self.binary(i, parts, m, *forms)

    def unary(self, i, parts, m, form):
        kind = parts[-1]
        self.write(i.args[0], form.format(a=self.read(i.args[1], kind)), kind, m)

    def do_abs(self, i, parts, m, at):
        self.unary(i, parts, m, "np.abs({a})")

    def do_neg(self, i, parts, m, at):
        self.unary(i, parts, m, "-{a}")

    def do_not(self, i, parts, m, at):
        self.unary(i, parts, m, "~{a}")

    def do_and(self, i, parts, m, at):
        self.binary(i, parts, m, "{a} & {b}")

    def do_or(self, i, parts, m, at):
        self.binary(i, parts, m, "{a} | {b}")

    def do_xor(self, i, parts, m, at):
        self.binary(i, parts, m, "{a} ^ {b}")

    def do_lop3(self, i, parts, m, at):
        d, a, b, c, table = i.args
        x, y, z = (self.read(v, "b32") for v in (a, b, c))
        table = int(table, 0)
        terms = [f"({'' if k & 4 else '~'}{x} & {'' if k & 2 else '~'}{y} & {'' if k & 1 else '~'}{z})"
                 for k in range(8) if table >> k & 1]  # fmt: skip
        self.write(d, " | ".join(terms) or f"{x} * u32(0)", "b32", m)

    def do_shl(self, i, parts, m, at):
        kind = parts[-1]
        d, a, n = i.args
        self.write(d, f"shl({self.read(a, kind)}, {self.read(n, 'u32')})", kind, m)

    def do_shr(self, i, parts, m, at):
        kind = parts[-1].replace("b", "u")
        d, a, n = i.args
        self.write(d, f"shr({self.read(a, kind)}, {self.read(n, 'u32')})", kind, m)

    def do_shf(self, i, parts, m, at):
        d, a, b, n = i.args
        pool = f"({self.read(a, 'b32')}.astype(u64) | ({self.read(b, 'b32')}.astype(u64) << u64(32)))"
        amount = self.read(n, "u32")
        amount = f"np.minimum({amount}, u32(32))" if "clamp" in parts else f"({amount} & u32(31))"
        if parts[1] == "l":
            self.write(d, f"(({pool} << {amount}.astype(u64)) >> u64(32)).astype(u32)", "b32", m)
        else:
            self.write(d, f"({pool} >> {amount}.astype(u64)).astype(u32)", "b32", m)

    def do_bfe(self, i, parts, m, at):
        kind = parts[-1]
        d, a, b, c = i.args
        self.write(d, f"bfe({self.read(a, kind)}, {self.read(b, 'u32')}, {self.read(c, 'u32')})", kind, m)

    def do_bfi(self, i, parts, m, at):
        d, a, b, pos, length = i.args
        x, y, p, n = self.read(a, "b32"), self.read(b, "b32"), self.read(pos, "u32"), self.read(length, "u32")
        keep = f"((shl(u32([1]) + u32(0) * {n}, {n}) - u32(1)) << {p})"
        self.write(d, f"({y} & ~{keep}) | (({x} << {p}) & {keep})", "b32", m)

    def do_prmt(self, i, parts, m, at):
        d, a, b, c = i.args
        self.write(d, f"prmt({self.read(a, 'b32')}, {self.read(b, 'b32')}, {self.read(c, 'b32')})", "b32", m)

    def do_popc(self, i, parts, m, at):
        self.write(i.args[0], f"popc({self.read(i.args[1], parts[-1])})", "u32", m)

    def do_clz(self, i, parts, m, at):
        self.write(i.args[0], f"clz({self.read(i.args[1], parts[-1])})", "u32", m)

    def do_brev(self, i, parts, m, at):
        self.write(i.args[0], f"brev({self.read(i.args[1], 'b32')})", "b32", m)

    def special(self, i, parts, m, form, ulp):
        kind = parts[-1]
        x = self.flushed(self.read(i.args[1], kind), parts)
        y = form.format(a=f"{x}.astype(f64)") + f".astype({VIEW[kind]})"
        y = f"S.approximate({y}, {ulp})" if kind == "f32" and "approx" in parts else y
        self.write(i.args[0], self.flushed(y, parts), kind, m)

    def do_ex2(self, i, parts, m, at):
        self.special(i, parts, m, "np.exp2({a})", 2.0)

    def do_lg2(self, i, parts, m, at):
        self.special(i, parts, m, "np.log2({a})", 1.0)

    def do_rcp(self, i, parts, m, at):
        self.special(i, parts, m, "(1.0 / {a})", 1.0)

    def do_sqrt(self, i, parts, m, at):
        self.special(i, parts, m, "np.sqrt({a})", 1.0)

    def do_rsqrt(self, i, parts, m, at):
        self.special(i, parts, m, "(1.0 / np.sqrt({a}))", 2.0)

    def do_sin(self, i, parts, m, at):
        self.special(i, parts, m, "np.sin({a})", 0)

    def do_cos(self, i, parts, m, at):
        self.special(i, parts, m, "np.cos({a})", 0)

    def do_tanh(self, i, parts, m, at):
        self.special(i, parts, m, "np.tanh({a})", 8.0)
