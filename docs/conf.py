"""How Sphinx builds these pages: sphinx-build -W docs docs/_build."""

import re
from typing import Any

from docutils.nodes import Element, SkipNode, math_block
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

from mar_snn import __version__

project = "mar-snn"
author = "The mar-snn authors"
project_copyright = "2026, The mar-snn authors"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
nitpicky = False

myst_enable_extensions = ["amsmath", "deflist", "dollarmath"]
myst_heading_anchors = 3

# docstrings are written in Markdown's `code`, which reST knows as its default role
default_role = "code"

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
# what a base class says of its own is said in its own documentation
autodoc_inherit_docstrings = False
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = f"mar-snn {release}"
# written at build time, drawn by the browser itself: no script, no network
html_math_renderer = "mathml"
html_static_path = ["_static"]
html_css_files = ["formulas.css"]


def write_formula(writer: HTML5Translator, node: Element) -> None:
    """Write MathML for a formula in a line or, in a block of its own, by itself."""
    block = isinstance(node, math_block)
    formula = tex2mathml(node.astext(), as_block=block)
    # browsers draw nothing for it, and log q is no logq
    formula = formula.replace("<mo>&ApplyFunction;</mo>", '<mspace width="0.17em"/>')
    writer.body.append(f'<div class="formula">{formula}</div>' if block else formula)
    raise SkipNode


def read_as_markdown(
    _app: Sphinx, _what: str, _name: str, _obj: Any, _options: Any, lines: list[str]
) -> None:
    """Make indented blocks literal and |h| no substitution, before reST reads them."""
    text = "\n".join(lines)
    text, *sections = re.split(r"(?m)^(?=(?:Args|Raises|Returns):$)", text)
    text = re.sub(r"\n\n(?=    \S)", "\n\n::\n\n", text)
    text = re.sub(r"(?m)^(?! {4}).*", lambda m: m[0].replace("|", r"\|"), text)
    sections = [section.replace("|", r"\|") for section in sections]
    lines[:] = "".join([text, *sections]).split("\n")


def setup(app: Sphinx) -> None:
    """Draw formulas; come before napoleon, which listens at priority 500."""
    app.add_html_math_renderer("mathml", (write_formula, None), (write_formula, None))
    app.connect("autodoc-process-docstring", read_as_markdown, priority=400)
