"""Text from runs, made safe for HTML, for markdown and for a terminal.

Prompts, answers, settings and names of files come from strangers. Every one passes through here
before it is shown: markup is escaped, and characters that steer a terminal or change the direction
of text become U+FFFD.
"""

from __future__ import annotations

import html
import re

from markupsafe import Markup
from markupsafe import escape as escape_markup

# C0 and C1 controls but newline and tab, halves of surrogate pairs, and overrides of direction.
_STEERING = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
_MARKDOWN = re.compile(r"([\\`*_\[\]!|#~])")


def printable(text: str) -> str:
    """The text with U+FFFD for each character that would steer what shows it."""
    return _STEERING.sub("\ufffd", text)


def escape(text: str) -> Markup:
    """HTML that shows the text, in an element or a quoted attribute."""
    return escape_markup(printable(text))


def escape_markdown(text: str) -> str:
    """One line of markdown that shows the text, in a paragraph or a table's cell."""
    one_line = " ".join(printable(text).split())
    return _MARKDOWN.sub(r"\\\1", html.escape(one_line, quote=False))


def shorten(text: str, length: int) -> str:
    """At most `length` characters of the text, and the number of characters that were cut."""
    num_cut = len(text) - length
    return text if num_cut <= 0 else f"{text[:length]} … ({num_cut} more)"
