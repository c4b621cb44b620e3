"""The card of a model directory: what the model is, and what it was trained on.

A card is Markdown behind a header of YAML, as the hub reads it. Its section "Trained on" names the
inputs in the manifest of the directory, and theirs, or says again what the card of a part says.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from tarkit.artifacts.files import read_text
from tarkit.artifacts.manifest import MANIFEST, read_manifest

CARD = "card.md"
PAPER = (
    "Jiaming Han et al.: Vision as a Dialect: Unifying Visual Understanding and Generation via "
    "Text-Aligned Representations, 2025, https://arxiv.org/abs/2506.18898"
)
TRAINED_ON = "\n## Trained on\n"
NOT_KNOWN = "not known here: the card of who published it says so"


def write_card(header: object, text: str, data: Sequence[str]) -> str:
    """A card of its YAML header, its text, and the lines of its section "Trained on".

    A line that begins with spaces is an item below the one before it.
    """
    items = "\n".join(f"{line[: len(line) - len(line.lstrip())]}- {line.lstrip()}" for line in data)
    return f"---\n{header}\n---\n\n{text.strip()}\n{TRAINED_ON}\n{items}\n\n## Paper\n\n{PAPER}\n"


def own_text(card: str) -> str:
    """A card's text without the sections that `write_card` adds."""
    text, found, rest = card.partition(TRAINED_ON)
    if not found:
        return card.strip()
    # Sections of somebody else that follow stay.
    later = [part for part in rest.split("\n## ")[1:] if not part.startswith("Paper\n")]
    return "\n\n## ".join(part.strip() for part in (text, *later))


def trained_on(folder: Path) -> list[str]:
    """What the model in a directory was trained on, as lines for `write_card`.

    They are those of its card, else the inputs in its manifest, else those of the card of the
    model that it is a part of. Without any of these there are none.
    """
    places = [folder]
    if (folder.parent / "config.json").is_file():
        places.append(folder.parent)
    for place in places:
        if (place / CARD).is_file():
            return _section(read_text(place / CARD))
        if (place / MANIFEST).exists():
            return list(_inputs(place))
    return []


def _section(card: str) -> list[str]:
    section = card.partition(TRAINED_ON)[2].partition("\n## ")[0]
    lines = [line.rstrip() for line in section.splitlines()]
    return [line.replace("- ", "", 1) for line in lines if line.lstrip().startswith("- ")]


def _inputs(folder: Path, depth: int = 0, seen: set[Path] | None = None) -> Iterator[str]:
    """A line for every input in the manifest of `folder`, and for theirs, indented below them.

    Paths are not given away, only the names of folders and files.
    """
    seen = set() if seen is None else seen
    indent = "  " * depth
    for name, parent in sorted(read_manifest(folder).get("parents", {}).items()):
        place = (folder / parent["path"]).resolve()
        sha256 = parent["manifest_sha256"][:12]
        facts = f"{parent['kind']}, sha256 {sha256}" if sha256 else parent["kind"]
        yield f"{indent}{name}: `{place.name}` ({facts})"
        if place in seen:
            continue
        seen.add(place)
        if (place / MANIFEST).exists():
            yield from _inputs(place, depth + 1, seen)
        elif place.is_dir():
            yield from (f"{indent}  {line}" for line in trained_on(place))
