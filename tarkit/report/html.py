"""Renders a page of blocks as one HTML file that stands alone, by the template `page.html.j2`.

The page has no script and loads nothing: its style sheet and its pictures are inside it, and its
own policy (`default-src 'none'`) forbids the rest. The template escapes every text, a name that it
does not know is an error, and text that looks like template syntax stays text.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from tarkit.report.blocks import Page
from tarkit.report.escaping import printable

TEMPLATE = "page.html.j2"


def render(page: Page) -> str:
    """The HTML of the page."""
    return _environment().get_template(TEMPLATE).render(page=page)


def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_printable_value,
        keep_trailing_newline=True,
    )


def _printable_value(value: Any) -> Any:
    """Text without steering characters; markup, made by svg and by macros, has none left."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return printable(value)
    return value
