"""What a reader of the built documentation sees without a network."""

import re
import shutil
import warnings
from pathlib import Path

import pytest
from sphinx.application import Sphinx

DOCS = Path(__file__).parent.parent / "docs"


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The text of every page that is no list of functions, as HTML."""
    folder = tmp_path_factory.mktemp("docs")
    others = shutil.ignore_patterns("_build", "api.md", "reports")
    source = shutil.copytree(DOCS, folder / "source", ignore=others)
    html = folder / "html"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # extensions and Sphinx's next version
        Sphinx(
            source, DOCS, html, folder / "trees", "html", status=None, warning=None
        ).build()
    built = {page: html / f"{page.stem}.html" for page in source.glob("*.md")}
    return {
        page.stem: (page.read_text("utf-8"), text.read_text("utf-8"))
        for page, text in built.items()
    }


def test_every_formula_is_drawn_by_the_browser_and_none_is_left_as_latex(pages):
    formulas = 0
    for name, (markdown, html) in pages.items():
        prose = re.sub(r"(?s)```.*?```|`[^`]*`", "", markdown)
        written = re.findall(r"(?s)\$\$.+?\$\$|\$[^$]+\$", prose)
        assert html.count("<math ") == len(written), name
        formulas += len(written)
        text = re.sub(r"(?s)<(pre|code|script).*?</\1>|<[^>]*>", "", html)
        assert not re.search(r"[$\\]", text), name
    assert formulas > 100


def test_no_page_asks_the_network_for_anything(pages):
    for _, html in pages.values():
        assert not re.search(r"<(?:script|img)[^>]*src=\"https?:", html)
        assert not re.search(r"<link[^>]*stylesheet[^>]*href=\"https?:", html)


def test_the_lines_of_a_formula_are_aligned(pages):
    _, html = pages["neurons"]
    assert html.count('<mtable class="ams-align">') == 1
    style = re.search(r'href="(_static/formulas.css)', html)[1]
    assert "mtable.ams-align" in (DOCS / style).read_text()
