"""How `make docs` builds these pages: Sphinx reads the Markdown as it is, a broken link fails, nothing is fetched."""

from __future__ import annotations

from pathlib import Path

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx

project = "metazoo"
copyright = "the authors of metazoo"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_heading_anchors = 3
default_role = "code"
autodoc_member_order = "bysource"

html_theme = "furo"
html_title = "metazoo"
html_copy_source = False
html_show_sphinx = False


def links_into_the_repository(app: Sphinx, page: nodes.document) -> None:
    """What a site of the repository shows and these pages do not: the README is `getting_started`, folders are text."""
    here = Path(app.env.doc2path(app.env.docname)).parent
    for link in list(page.findall(addnodes.pending_xref)):
        target = link["reftarget"]
        if target == str(app.srcdir.parent / "README"):
            link["reftarget"] = "getting_started"
        elif link.get("refdomain") is None and any((base / target).is_dir() for base in (here, app.srcdir.parent)):
            link.replace_self(link.children)


def setup(app: Sphinx) -> None:
    app.connect("doctree-read", links_into_the_repository)
