"""Text on the terminal: what comes from files and arguments is shown there, never obeyed.

A file name, a prompt or a server's answer can hold control characters. A terminal that gets them
as they are changes its title, its colours or text that is already there, and a bidirectional
override makes a name look like another one.
"""

import logging
import re
import sys

# Control characters but tab and line feed, bidirectional overrides, embeddings and isolates, and
# lone surrogates, which cannot be written at all.
UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    r"""The text with every unsafe character as `\uXXXX`; within JSON that means the same."""
    return UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def print_result(text: str) -> None:
    """Print the result of a command on stdout."""
    print(printable(text), flush=True)


def print_note(text: str) -> None:
    """Print a line for a person on stderr."""
    print(printable(text), file=sys.stderr, flush=True)


def print_warnings() -> None:
    """Let the warnings that are logged appear on stderr, as printable text."""
    handler = logging.StreamHandler()
    handler.setFormatter(_PrintableFormatter("%(message)s"))
    handler.setLevel(logging.WARNING)
    logging.getLogger("tarkit").addHandler(handler)
    logging.getLogger("tarkit").propagate = False


class _PrintableFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))
