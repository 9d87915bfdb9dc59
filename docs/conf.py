"""How `make docs` builds the pages: prose and notebooks from this folder, the reference from docstrings and from the
command line's parser, formulas as MathML, nothing from the network."""

import re
from collections.abc import Iterable, Iterator

from docutils import nodes
from latex2mathml.converter import convert

import tritoncrf

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

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_type_aliases = {}
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
    for module in ("", "densecrf.", "diagnostics.", "models.", "summary.", "types."):
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


def setup(app) -> None:
    app.add_html_math_renderer("mathml", (mathml, None), (mathml, None))
    app.connect("autodoc-process-docstring", mark_up, priority=400)  # before napoleon, which reads the sections
    app.connect("missing-reference", found_in_package)
