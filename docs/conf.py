"""The configuration of `make docs`: prose and notebooks from this folder, the reference from docstrings and the command
line's parser, formulas as MathML, nothing from the network."""

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from docutils import nodes
from latex2mathml.converter import convert
from numpy.typing import ArrayLike
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.typing import stringify_annotation

import tritoncrf
import tritoncrf.types

project = "tritoncrf"
release = tritoncrf.__version__

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "myst_nb", "sphinx_argparse_cli"]
exclude_patterns = ["_build", "gallery"]  # the folder `gallery` draws the pictures
html_math_renderer = "mathml"
myst_heading_anchors = 3
nb_execution_mode = "cache"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_merge_streams = True
highlight_language = "none"  # of formulas
default_role = "py:obj"  # `name` is a link where that name is documented
add_module_names = False
python_maximum_signature_line_length = 100
smartquotes = False

autodoc_mock_imports = ["torchmetrics"]  # the pages need no extras
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_use_param = False  # arguments that share a description stand together, as they do in the docstrings
napoleon_use_rtype = False

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_title = f"tritoncrf {release}"
html_show_copyright = False
html_copy_source = False


def marked_up(lines: Iterable[str]) -> Iterator[str]:
    """A docstring, which is plain text, as reStructuredText: what is set off is a formula, and * | _ are themselves."""
    before, depth, verbatim, code = "", 0, None, False
    for line in lines:
        indent = len(line) - len(line.lstrip())
        if line and verbatim is not None and indent <= verbatim:
            verbatim = None
        if line and verbatim is None:
            if indent > depth and not before:
                yield from (" " * depth + "::", "")
                verbatim = depth
            else:
                parts = line.split("`")
                for n, part in enumerate(parts):
                    if not code:
                        # The last of these: a line that ends in ": C." begins no list.
                        parts[n] = re.sub(r"(?<!\\)[*|]|_(?!\w)|(?<=: \w)\.$", r"\\\g<0>", part)
                    code = code != (n < len(parts) - 1)
                line = "`".join(parts)
                if line.strip() in (".. math::", "Example:"):
                    verbatim = indent
            depth = indent
        yield line
        before = line


# Files outside this folder, and the pages that show them.
DOCS = Path(__file__).parent
SHOWN = {
    DOCS.parent / "README.md": "index.md",
    DOCS.parent / "CONTRIBUTING.md": "contributing.md",
    DOCS.parent / "CHANGELOG.md": "changes.md",
    DOCS.parent / "bench/README.md": "benchmarks.md",
    DOCS.parent / "models/README.md": "models.md",
}


def included(app, name, source) -> None:
    """A page as it is, or what it includes; links that work on GitHub lead to pages, or to a copy of the file."""
    folder = DOCS
    if include := re.match(r"```\{include\} (\S+)\n", source[0]):
        path = (DOCS / include[1]).resolve()
        app.env.note_dependency(str(path))
        source[0], folder = path.read_text(), path.parent

    def link(found: re.Match) -> str:
        image, text, target, anchor = found.groups()
        path = (folder / target).resolve()
        if path in SHOWN:
            return f"[{text}]({SHOWN[path]}{anchor if folder == DOCS else ''})"
        if not path.exists() or (folder == path.parent == DOCS):
            return found[0]
        relative = Path(os.path.relpath(path, DOCS)).as_posix()
        if image or path.is_relative_to(DOCS):
            return f"{image}[{text}]({relative}{anchor})"
        return f"[{text}](path:{relative})" if path.is_file() else text

    source[0] = re.sub(r"(!?)\[([^\]]*)\]\(([^)#:\s]+)(#[^)\s]*|)\)", link, source[0])


def mark_up(app, what, name, obj, options, lines) -> None:
    lines[:] = marked_up(lines)


def named_types() -> list[tuple[re.Pattern, str]]:
    """The expanded forms of the type aliases, the longest first, each with its name."""
    aliases = {name: getattr(tritoncrf.types, name) for name in tritoncrf.types.__all__ if name != "RefineOptions"}
    expanded = {name: stringify_annotation(alias, "smart") for name, alias in aliases.items()}
    patterns = []
    for name, text in sorted(expanded.items(), key=lambda item: -len(item[1])):
        pattern = re.escape(text).replace(r"np\.ndarray", r"(?:np\.|\~numpy\.)ndarray")
        patterns.append((re.compile(pattern.replace(r"torch\.Tensor", r"\~?torch\.Tensor")), name))
    patterns.append((re.compile(re.escape(stringify_annotation(ArrayLike, "smart"))), "ArrayLike"))
    patterns.append(
        (re.compile(r"~numpy\.ndarray\[tuple\[~typing\.Any, \.\.\.\], ~numpy\.dtype\[(.*?)\]\]"), r"NDArray[\1]")
    )
    patterns.append((re.compile("<factory>"), "..."))  # of a dataclass
    return patterns


NAMED_TYPES = named_types()


def with_named_types(app, what, name, obj, options, signature, returns):
    """A signature in which type aliases have their names again."""
    for pattern, alias in NAMED_TYPES:
        signature = signature and pattern.sub(alias, signature)
        returns = returns and pattern.sub(alias, returns)
    return signature, returns


def found_in_package(app, env, node, contnode):
    """`filters.Window` is `tritoncrf.filters.Window`, and `Record` is in `tritoncrf.diagnostics`."""
    for module in ("", "densecrf.", "diagnostics.", "losses.", "models.", "summary.", "types."):
        place = env, node["refdoc"], app.builder, "obj", f"tritoncrf.{module}{node['reftarget']}", node, contnode
        if (found := env.get_domain("py").resolve_xref(*place)) is not None:
            return found
    return None


def mathml(translator, node) -> None:
    """A formula as MathML, which browsers draw by themselves."""
    block = isinstance(node, nodes.math_block)
    text = convert(node.astext(), display="block" if block else "inline")
    translator.body.append(f'<div class="math">{text}</div>' if block else text)
    raise nodes.SkipNode


def mark_short(app, doctree, name) -> None:
    """Mark options and names that must not be broken across lines (custom.css)."""
    for literal in doctree.findall(nodes.literal):
        if len(literal.astext()) <= 30:
            literal["classes"].append("short")


def setup(app) -> None:
    app.add_html_math_renderer("mathml", (mathml, None), (mathml, None))
    app.connect("source-read", included)
    app.connect("autodoc-process-docstring", mark_up, priority=400)  # before napoleon, which reads the sections
    app.connect("autodoc-process-signature", with_named_types)
    app.connect("missing-reference", found_in_package)
    app.connect("doctree-resolved", mark_short)
    # `refine` has 19 overloads for type checkers: readers get its own signature.
    analyzer = ModuleAnalyzer.for_module("tritoncrf.refine")
    analyzer.analyze()
    analyzer.overloads.clear()
