"""Sphinx's settings for the site, and the one thing that we add to Sphinx: formulas as MathML, whose tags are links."""

import re
from html import escape

from docutils import nodes
from latex2mathml.converter import convert

project = "Recurrent image captioning, from scratch"
html_title = "Image captioning from scratch"
extensions = ["myst_parser"]
myst_enable_extensions = ["dollarmath", "colon_fence", "attrs_block"]
myst_heading_anchors = 3
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = ["site.js"]
html_show_sphinx = False
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}
html_math_renderer = "mathml"
suppress_warnings = ["myst.header"]  # the pages of code begin in the middle of a text
copyright = ""
language = "en"

TAG = re.compile(r"\\qquad\s*\\text\{\(([A-Z]+-\d+)\)\}\s*$")


def inline(self, node):
    """A formula in a line, as MathML."""
    self.body.append(convert(node.astext()))
    raise nodes.SkipNode


def display(self, node):
    """A formula on its own; its tag leads to the line of code that computes it, and back."""
    text = node.astext().strip()
    found = TAG.search(text)
    formula = convert(TAG.sub("", text), display="block")
    if found is None:
        self.body.append(f'<div class="equation">{formula}</div>')
        raise nodes.SkipNode
    tag, pages = found.group(1), self.builder.config.tag_pages[found.group(1)]
    page = pages["lesson" if self.builder.current_docname == pages["code"] else "code"]
    where = "the page" if page == pages["lesson"] else "the code"
    link = f'<a class="tag" href="{page}.html#{tag}" aria-label="{tag}: to {where}">({escape(tag)})</a>'
    self.body.append(f'<div class="equation" id="{tag}" data-tag="{tag}">{formula}{link}</div>')
    raise nodes.SkipNode


def setup(app):
    app.add_config_value("tag_pages", {}, "html")
    app.add_html_math_renderer("mathml", (inline, None), (display, None))
