"""What tests of reports share: runs made by hand, and a reader that trusts no page."""

import json
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tarkit.eval.metrics.summaries import PictureScores, picture_results
from tarkit.eval.outcome import SCORES
from tarkit.images import png_bytes
from tarkit.shapes.render import render
from tarkit.shapes.sampling import sample_scene

# Four prompts of colours and two of pairs: their ids, tasks and prompts.
ITEMS = [
    *((f"c{n}", "colors", f"a photo of a {colour} circle") for n, colour in enumerate("abcd")),
    *(
        (f"t{n}", "two_object", f"a photo of a circle and a {shape}")
        for n, shape in enumerate("xy")
    ),
]
FIRST = (1, 1, 0, 0, 0, 0)  # colours 2 / 4, pairs 0 / 2: overall (.5 + 0) / 2 = .25
OTHER = (1, 1, 1, 0, 1, 0)  # colours 3 / 4, pairs 1 / 2: overall (.75 + .5) / 2 = .625


def make_run(
    path: Path,
    correct: Sequence[int] = FIRST,
    *,
    settings: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
    **changed: Any,
) -> Path:
    """Results with a drawn picture a prompt; `changed` are columns of the first row."""
    path.mkdir(parents=True)
    rows = []
    for place, ((item, task, prompt), verdict) in enumerate(zip(ITEMS, correct, strict=True)):
        file = f"samples/{place:05}/0000.png"
        (path / file).parent.mkdir(parents=True)
        rng = np.random.default_rng(place)
        (path / file).write_bytes(png_bytes(render(sample_scene(rng), rng)))
        row = dict.fromkeys(SCORES.names) | {"suite": "geneval", "column": "seen", "sample": 0}
        row |= {"task": task, "item": item, "seed": place, "prompt": prompt, "file": file}
        row |= {"correct": bool(verdict), "reason": "as it is" if verdict else "found 0"}
        rows.append(row | (changed if place == 0 else {}))
    pq.write_table(pa.Table.from_pylist(rows, schema=SCORES), path / "scores.parquet")
    if metrics is None:
        metrics = {"geneval@shapes": picture_metrics(correct)}
    document = {"metrics": metrics, "settings": settings or {}, "versions": {"tarkit": "0.1.0"}}
    (path / "results.json").write_text(json.dumps(document))
    return path


def picture_metrics(correct: Sequence[int]) -> dict[str, Any]:
    verdicts = np.array(correct, dtype=bool)[:, None]
    return picture_results(
        PictureScores(
            tasks=[task for _, task, _ in ITEMS],
            columns=["seen"] * len(ITEMS),
            correct=verdicts,
            failed=np.zeros_like(verdicts),
            chance=np.full(len(ITEMS), 0.125),
        )
    )


VOID = {"meta", "link", "img", "br", "hr"}
# What could run, reach out or hand on; none of it has a place on a page.
FORBIDDEN = {
    "script",
    "iframe",
    "object",
    "embed",
    "base",
    "form",
    "video",
    "audio",
    "use",
    "image",
}


class Reader(HTMLParser):
    """Reads a page and notes what is wrong with it, its tables and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.faults: list[str] = []
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.images: list[str] = []
        self.words: list[str] = []
        self.feed(page)
        self.close()
        self.faults += [f"{tag} is left open" for tag in self.open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._check(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._check(tag, attrs)

    def _check(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in FORBIDDEN:
            self.faults.append(f"<{tag}>")
        for name, value in attrs:
            text = value or ""
            if name.startswith("on") or name in ("srcset", "style", "action", "srcdoc"):
                self.faults.append(f"{tag} {name}={text}")
            if name == "src":
                self.images.append(text)
                if not text.startswith("data:image/png;base64,"):
                    self.faults.append(f"{tag} src={text}")
            if name.endswith("href") and not text.startswith("#") and text != "data:,":
                self.faults.append(f"{tag} href={text}")

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.faults.append(f"</{tag}> closes nothing")

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            if "url(" in data or "@import" in data:
                self.faults.append("the style sheet reaches out")
            return
        self.words.append(data)
        if self.rows and {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data

    @property
    def text(self) -> str:
        return " ".join(self.words)

    def row(self, *begins: str) -> list[str]:
        """The one row that begins with these cells."""
        found = [row for row in self.rows if row[: len(begins)] == list(begins)]
        assert len(found) == 1, f"{len(found)} rows begin {begins}"
        return found[0]
