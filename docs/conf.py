"""Sphinx's settings: how the pages of docs/ become a site.

    make docs

The pages are Markdown (MyST), the theme is furo. Warnings are errors, so that no link is dead.
"""

from importlib import metadata
from typing import Any

project = "tvlars-probe"
author = "The developers of tvlars-probe"
copyright = author  # noqa: A001  (Sphinx's name)
release = metadata.version("tvlars-probe")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["_build"]

myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 4

html_theme = "furo"
html_title = "tvlars-probe"
copybutton_prompt_text = "$ "
# A console block holds commands alone, and some go on in the next line.
copybutton_only_copy_prompt_lines = False

autodoc_typehints = "description"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
# Single backticks in docstrings are names.
default_role = "code"


def _escape_bars(_app: Any, _what: str, _name: str, _object: Any, _options: Any, lines: list[str]) -> None:
    """Norms and absolute values are written with bars, which reStructuredText takes for substitutions."""
    lines[:] = [line.replace("|", r"\|") for line in lines]


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", _escape_bars)
