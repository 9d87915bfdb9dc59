"""How `make docs` builds the pages: prose from this folder, the reference from docstrings, nothing from the network."""

import re
from collections.abc import Iterable, Iterator

import tritoncrf

project = "tritoncrf"
release = tritoncrf.__version__

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax", "myst_parser"]
exclude_patterns = ["_build", "gallery"]  # the folder `gallery` draws the pictures
highlight_language = "none"  # of formulas
default_role = "py:obj"  # `name` is a link where that name is documented
add_module_names = False
python_maximum_signature_line_length = 100
smartquotes = False

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings say shapes and units as well, and signatures stay short
napoleon_use_param = False  # arguments that share a description stand together, as they do in the docstrings
napoleon_use_rtype = False

html_theme = "furo"
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


def mark_up(app, what, name, obj, options, lines) -> None:
    lines[:] = marked_up(lines)


def found_in_package(app, env, node, contnode):
    """`filters.Window` is `tritoncrf.filters.Window`, and `Record` is in `tritoncrf.diagnostics`."""
    for module in ("", "densecrf.", "diagnostics.", "losses.", "models.", "summary.", "types."):
        place = env, node["refdoc"], app.builder, "obj", f"tritoncrf.{module}{node['reftarget']}", node, contnode
        if (found := env.get_domain("py").resolve_xref(*place)) is not None:
            return found
    return None


def setup(app) -> None:
    app.connect("autodoc-process-docstring", mark_up, priority=400)  # before napoleon, which reads the sections
    app.connect("missing-reference", found_in_package)
