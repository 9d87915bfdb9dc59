"""The architecture, held by reading the sources: who may import whom, and what no file may contain."""

import ast
import functools
import io
import re
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "tritoncrf"
LAZY = {"tritoncrf.graph", "tritoncrf.kernels", "tritoncrf.reference"}  # packages whose modules are used as attributes

# What each module or folder of the package may import; a folder may always import its own files. Those of its files
# that may import more have places of their own.
# Arrows never turn back: each may import only what stands above it in this table.
MAY_IMPORT = {
    "types": set(),
    "lazy": set(),
    "options": {"types"},
    "checks": {"types"},
    "devices": {"checks"},
    "step": set(),
    "commands": set(),
    "replay": set(),
    "kernels": {"step"},
    "reference": {"step"},
    "graph": {"step", "reference"},
    "backends": {"graph", "kernels", "reference"},
    "features": {"types", "checks", "devices"},
    "filters": {"types", "checks", "devices", "step", "kernels", "reference", "backends", "features", "replay"},
    "mean_field": {"types", "checks", "step", "backends", "filters"},
    "diagnostics": {"types", "checks", "step", "backends", "filters", "mean_field"},
    "losses": {"types", "checks", "backends", "features", "filters", "mean_field"},
    "summary": {"diagnostics"},
    "published": {"types", "checks", "options"},
    "scores": {"types", "checks", "options"},
    "layers": {"types", "checks", "devices", "graph", "backends", "features", "filters", "mean_field", "published"},
    "levels": {"types", "checks"},
    "images": {"types", "checks", "options", "scores"},
    "problem": {
        "types",
        "scores",
        "levels",
        "images",
        "step",
        "checks",
        "devices",
        "options",
        "features",
        "filters",
        "mean_field",
        "diagnostics",
        "replay",
    },
    "figures": {"checks", "diagnostics"},
    "files": {"figures"},
    "locks": {"files"},
    "streaming": {
        "types",
        "checks",
        "devices",
        "step",
        "reference",
        "backends",
        "filters",
        "mean_field",
        "options",
        "levels",
        "images",
        "problem",
        "scores",
        "files",
        "locks",
    },
    "refine": {"types", "checks", "streaming", "problem", "scores", "diagnostics", "summary"},
    "densecrf": {"types", "checks", "devices", "filters", "mean_field"},
    "synthetic": {"checks"},
    "readers": {"scores", "commands", "files", "options"},
    "reports": {"files"},
    "datasets": {
        "types",
        "checks",
        "devices",
        "options",
        "filters",
        "problem",
        "scores",
        "commands",
        "figures",
        "files",
        "locks",
        "readers",
    },
    "demo": {"types", "checks", "options", "refine", "synthetic"},
    "__init__": {
        "lazy",
        "types",
        "checks",
        "options",
        "features",
        "filters",
        "mean_field",
        "diagnostics",
        "losses",
        "published",
        "layers",
        "refine",
        "datasets",
        "densecrf",
        "synthetic",
        "figures",
        "files",
    },
    "actions": {
        "__init__",
        "checks",
        "backends",
        "devices",
        "options",
        "features",
        "diagnostics",
        "refine",
        "scores",
        "commands",
        "figures",
        "files",
        "readers",
        "demo",
    },
    "datasets.evaluation": {"__init__", "options", "files", "datasets"},
    "datasets.file_stages": {
        "types",
        "checks",
        "options",
        "problem",
        "scores",
        "files",
        "datasets",
        "datasets.evaluation",
    },
    "datasets.run": {"options", "files", "datasets", "datasets.evaluation", "datasets.file_stages"},
    "datasets.command": {
        "__init__",
        "checks",
        "devices",
        "options",
        "problem",
        "refine",
        "scores",
        "commands",
        "files",
        "datasets",
        "actions",
        "datasets.evaluation",
        "datasets.file_stages",
        "datasets.run",
    },
    "rasters": {
        "commands",
        "figures",
        "files",
        "options",
        "readers",
        "scores",
    },
    "rasters.streamed": {"__init__", "commands", "files", "refine", "streaming", "rasters"},
    "rasters.command": {
        "commands",
        "devices",
        "figures",
        "files",
        "options",
        "refine",
        "summary",
        "actions",
        "rasters",
        "rasters.streamed",
    },
    "session": {
        "types",
        "checks",
        "devices",
        "options",
        "refine",
        "scores",
        "summary",
        "commands",
        "files",
        "readers",
        "demo",
        "actions",
    },
    "app": {"options", "commands", "figures", "demo", "actions", "session"},
    "cli": {
        "__init__",
        "options",
        "commands",
        "files",
        "actions",
        "datasets",
        "datasets.command",
        "rasters.command",
        "app",
    },
    "__main__": {"cli"},
}

# Libraries that each may import besides the standard library; torch alone where nothing is said.
LIBRARIES = {
    "types": {"torch", "numpy", "PIL"},  # for type checkers
    "lazy": set(),
    "options": set(),
    "commands": set(),
    "kernels": {"torch", "triton"},
    "backends": {"torch", "triton"},
    "published": {"torch", "numpy"},
    "images": {"torch", "numpy"},
    "levels": {"torch", "numpy"},
    "problem": {"torch", "numpy"},
    "streaming": {"torch", "numpy", "tqdm"},
    "refine": {"torch", "numpy", "PIL", "typing_extensions"},
    "scores": {"torch", "numpy", "PIL"},
    "datasets": {"torch", "numpy", "PIL", "ray", "typing_extensions", "h5py", "zarr"},
    "datasets.evaluation": {"numpy"},
    "datasets.file_stages": {"torch", "numpy"},
    "datasets.run": {"numpy", "tqdm"},
    "datasets.command": {"torch", "numpy"},
    "densecrf": {"torch", "numpy"},
    "synthetic": {"torch", "numpy"},
    "figures": {"torch", "numpy", "matplotlib", "PIL"},
    "files": {"numpy", "matplotlib", "PIL", "upath"},
    "readers": {"numpy"},
    "locks": set(),
    "reports": {"torch", "matplotlib"},
    "demo": {"torch", "numpy", "matplotlib", "PIL"},
    "actions": {"torch", "numpy", "matplotlib", "PIL", "tqdm"},
    "session": {"torch", "numpy"},
    "app": {"numpy", "gradio", "fastapi", "uvicorn"},
    "rasters": {"numpy", "PIL", "rasterio", "nibabel", "tifffile", "zarr"},
    "rasters.streamed": {"torch"},
    "rasters.command": {"torch", "numpy"},
    "cli": set(),
}


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def place_of(path: Path) -> str:
    """The module or folder of the package that a file is in, a key of MAY_IMPORT."""
    return place_among(list(path.relative_to(PACKAGE).with_suffix("").parts))


def place_among(parts: list[str]) -> str:
    """The key of a module's names below the package: its own, or its folder's."""
    own = ".".join(parts[:2])
    return own if own in MAY_IMPORT else parts[0]


def dotted(path: Path) -> str:
    """`tritoncrf.filters.window` for its file, `tritoncrf.filters` for its folder's __init__."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(source: str, package: str) -> set[str]:
    """Absolute dotted names of all that `source`, a module of `package`, imports at any depth of its code: under
    TYPE_CHECKING, in functions, and as attributes of a package that imports lazily (`kernels.window`)."""
    found = set()
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1]) if node.level else ""
            base = ".".join(part for part in (base, node.module) if part)
            found |= {f"{base}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "importlib.import_module":
            found |= {argument.value for argument in node.args if isinstance(argument, ast.Constant)}
    packages = {name.rpartition(".")[2]: name for name in found}
    attributes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    found |= {
        f"{packages[node.value.id]}.{node.attr}"
        for node in attributes
        if isinstance(node.value, ast.Name) and packages.get(node.value.id) in LAZY
    }
    return found


@functools.cache
def imports_of(path: Path) -> set[str]:
    return imports(path.read_text(), ".".join(path.relative_to(ROOT).parent.parts))


def imported_place(name: str) -> str | None:
    """The key of MAY_IMPORT that an import of `name` belongs to: filters, for `tritoncrf.filters.window.Window`."""
    parts = name.split(".")
    if parts[0] != "tritoncrf":
        return None
    known = len(parts) > 1 and ((PACKAGE / parts[1]).is_dir() or (PACKAGE / f"{parts[1]}.py").is_file())
    return place_among(parts[1:]) if known else "__init__"


def graph() -> dict[str, set[str]]:
    """Which modules of the package each module imports. A package's lazy attributes are arrows of who asks for them,
    and `modules(backend)` is an arrow to both packages, which `backends` draws."""
    files = {dotted(path): path for path in sources("tritoncrf")}

    def module(name: str) -> str | None:
        while name and name not in files:
            name = name.rpartition(".")[0]
        return name or None

    return {name: {module(i) for i in imports_of(path)} - {None, name} for name, path in files.items()}


# Imports --------------------------------------------------------------------------------------------------------


def test_imports_are_read_whatever_their_form():
    source = """
        import torch.nn.functional as F
        from . import checks
        from .. import kernels
        from ..kernels import window as w
        def lazily():
            from tritoncrf.reference.window import messages
            return importlib.import_module("tritoncrf.kernels.blur"), kernels.box.MAX_RADIUS
    """
    assert imports(re.sub("^        ", "", source, flags=re.MULTILINE), "tritoncrf.filters") == {
        "torch.nn.functional",
        "tritoncrf.filters.checks",
        "tritoncrf.kernels",
        "tritoncrf.kernels.window",
        "tritoncrf.kernels.blur",
        "tritoncrf.kernels.box",
        "tritoncrf.reference.window.messages",
    }


def test_the_table_itself_has_no_arrow_back():
    order = list(MAY_IMPORT)
    for place, others in MAY_IMPORT.items():
        assert all(order.index(other) < order.index(place) for other in others), place


@pytest.mark.parametrize("path", sources("tritoncrf"), ids=named)
def test_arrows_never_turn_back(path):
    place = place_of(path)
    assert place in MAY_IMPORT, f"{named(path)}: new; give it its place in MAY_IMPORT"
    found = {imported_place(name) for name in imports_of(path)} - {None, place}
    assert found <= MAY_IMPORT[place], f"{named(path)} imports {sorted(found - MAY_IMPORT[place])}"


def circle(arrows: dict[str, set[str]]) -> list[str]:
    """Modules that import each other in a circle; empty where there is none."""
    done: set[str] = set()

    def visit(name: str, above: list[str]) -> list[str]:
        if name in above:
            return [*above[above.index(name) :], name]
        if name not in done:
            for other in sorted(arrows[name]):
                if found := visit(other, [*above, name]):
                    return found
            done.add(name)
        return []

    return next((found for name in sorted(arrows) if (found := visit(name, []))), [])


def test_a_circle_is_found():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_no_imports_in_circles():
    assert not circle(graph()), " -> ".join(circle(graph()))


@pytest.mark.parametrize("path", sources("tritoncrf"), ids=named)
def test_modules_import_only_their_libraries(path):
    allowed = LIBRARIES.get(place_of(path), {"torch"}) | set(sys.stdlib_module_names) | {"tritoncrf"}
    libraries = {name.split(".")[0] for name in imports_of(path)}
    assert libraries <= allowed, f"{named(path)} imports {sorted(libraries - allowed)}"


@pytest.mark.parametrize("path", sources("models", "docs/gallery"), ids=named)
def test_models_and_the_gallery_use_what_users_use(path):
    names = {name for name in imports_of(path) if not name.startswith("tritoncrf.models")}
    hidden = {imported_place(name) for name in names} & {"kernels", "reference", "cli"}
    assert not hidden, f"{named(path)} imports {sorted(hidden)}"


def run_python(code: str) -> None:
    """Runs `code` in a fresh interpreter; its failure is the test's."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_importing_opens_neither_a_kernel_nor_a_drawing_library():
    run_python("""
import sys
import tritoncrf
from tritoncrf import checks, densecrf, features, filters, layers, mean_field, refine, trace
heavy = {"matplotlib", "PIL", "triton", "tritoncrf.kernels.common", "tritoncrf.cli", "tritoncrf.figures"}
heavy &= set(sys.modules)
assert not heavy, f"the parts of tritoncrf also import {sorted(heavy)}"
""")


def test_without_triton_the_package_imports_and_runs():
    run_python("""
import sys

sys.modules["triton"] = None  # as where it is not installed: nothing finds it, importing it raises
import torch
import tritoncrf as tc

f = tc.features.spatial((5, 6), theta=2.0)
q = tc.mean_field(torch.randn(1, 3, 5, 6), [tc.filters.Window(f, 3)], weights=[1.0], iterations=2)
torch.testing.assert_close(q.sum(1), torch.ones(1, 5, 6))
""")


# Words that no file contains ------------------------------------------------------------------------------------

# (pattern, where it is banned, why)
BANS = [
    (r"device\s*=\s*['\"]cuda|\.cuda\(|\.to\(\s*['\"]cuda", "tests", "take the `device` fixture"),
    (r"(?<!def )\ballclose\(", "tests", "use assertions.assert_close: it says where, and NaN never passes"),
    (r"\.xfail\b|flaky|--reruns", "tests", "a test passes or fails"),
    (r"make_block_ptr|tl\.advance", "tritoncrf", "block pointers are deprecated; write the offsets"),
    (r"\b([Rr]ooms?|[Hh]ears?)\b", "tritoncrf models bench docs", "say module, package, receive"),
    (r"#\s*(TODO|FIXME|XXX)", "tritoncrf models bench docs tests", "finish it or leave it out"),
]


@pytest.mark.parametrize("pattern, folders, reason", BANS, ids=[ban[2] for ban in BANS])
def test_banned_words(pattern, folders, reason):
    hits = [
        f"{named(path)}:{number}: {line.strip()}"
        for path in sources(*folders.split())
        if path != Path(__file__)
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(pattern, line)
    ]
    assert not hits, "\n".join([reason, *hits])


def looks_like_code(comment: str) -> bool:
    """Whether a comment is a statement rather than a sentence, a shape or a formula.

    Formulas may assign and call (`q = softmax(s)`), so only what mathematics does not write counts: imports,
    asserts, returns, deletions, and calls by dotted names.
    """
    text = comment.lstrip("#").strip()
    if re.match(r"(def|class|for|while|with|if|elif|else|try|except)\b.*:$", text):
        return True
    try:
        body = ast.parse(text).body
    except (SyntaxError, ValueError):
        return False
    for node in body:
        if isinstance(node, (ast.Import, ast.ImportFrom, ast.Assert, ast.Delete, ast.Raise)):
            return True
        if isinstance(node, ast.Return) and node.value is not None:
            return True
        value = getattr(node, "value", None)
        if isinstance(value, ast.Call):
            dotted = isinstance(value.func, ast.Attribute)
            printing = isinstance(value.func, ast.Name) and value.func.id in {"print", "breakpoint"}
            if dotted or printing:
                return True
    return False


@pytest.mark.parametrize(
    "comment, code",
    [
        ("# import torch", True),
        ("# x = torch.empty(3)", True),
        ("# print(x)", True),
        ("# for i in range(3):", True),
        ("# tl.store(out_ptr, q)", True),
        ("# return q", True),
        ("# [B, C, N]", False),
        ("# q = softmax(u - mu m)", False),
        ("# q = softmax(s)", False),
        ("# for every pixel the row of its class: see above", False),
        ("# one", False),
        ("# noqa: F401", False),
    ],
)
def test_code_in_comments_is_recognised(comment, code):
    assert looks_like_code(comment) is code


@pytest.mark.parametrize("path", sources("tritoncrf", "models", "bench", "docs", "tests"), ids=named)
def test_no_code_is_commented_out(path):
    tokens = tokenize.generate_tokens(io.StringIO(path.read_text()).readline)
    hits = [
        f"{named(path)}:{token.start[0]}: {token.string}"
        for token in tokens
        if token.type == tokenize.COMMENT and token.line.lstrip().startswith("#") and looks_like_code(token.string)
    ]
    assert not hits, "\n".join(hits)


# Folders of one machine; written in halves, so that this file does not contain them.
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:" + "wo" + r"rk|ro" + r"ot|ho" + r"me|Us" + r"ers)/\w")
TEXT = {".py", ".toml", ".txt", ".md", ".json", ".csv", ".cfg", ".yml", ".yaml", ""}


def test_no_file_names_a_folder_of_one_machine():
    folders = ["tritoncrf", "models", "bench", "tests", ".ci", "docs", "examples"]
    paths = [path for path in ROOT.iterdir() if path.is_file()]
    paths += [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    hits = [
        f"{named(path)}:{number}: {line.strip()[:120]}"
        for path in paths
        if path.suffix in TEXT and "__pycache__" not in path.parts
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if MACHINE_PATH.search(line)
    ]
    assert not hits, "\n".join(hits)
