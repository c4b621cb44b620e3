"""`tarkit compare`: pictures that two models drew of the same captions, next to the true pictures.

Two figures, fixed before any picture was drawn, say how far a drawn picture is from the true one:
  features   1 - cosine of the features of a tokenizer's encoder, averaged over its grid: what is
             in the picture. 0 is the same, 1 unrelated, 2 the opposite.
  colours    half of the sum of absolute differences of two colour histograms (4 x 4 x 4 bins of
             RGB): which colours, and how much of each. 0 is the same, 1 nothing in common.
Both are lower for the better model. Differences are paired by caption; their 95 % intervals come
from redrawing captions.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tarkit.artifacts.artifact import Artifact, open_artifact
from tarkit.artifacts.files import write_whole
from tarkit.artifacts.prompt_files import captioned_pictures
from tarkit.artifacts.samples import SAMPLE_RECORDS, is_samples
from tarkit.artifacts.tables import read_json_lines
from tarkit.errors import UserError
from tarkit.eval.metrics.features import FeatureExtractor, load_extractor
from tarkit.eval.metrics.similarity import cosines
from tarkit.images import decode, read_picture
from tarkit.report.blocks import (
    Card,
    CardGrid,
    CommandLines,
    Page,
    PageTable,
    Paragraph,
    Section,
    data_uri,
)
from tarkit.report.html import render
from tarkit.scoring.statistics import Paired, paired

INDEX, RESULTS = "index.html", "results.json"
SIDE_PX = 128
"""Of each picture on the page, and of those whose colours are counted."""
BINS = 4
BATCH_SIZE = 32
FIGURES = {
    "features": "1 - cosine of features",
    "colours": "distance of colour histograms",
}
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class _Drawn:
    """A folder of `tarkit generate --prompts`: the first picture of each prompt."""

    path: Path
    prompts: list[str]
    pictures: list[Image.Image]


def run(
    before: Path,
    after: Path,
    *,
    images: Path,
    out: Path,
    split: str | None = None,
    features_of: str = "mini",
    device: str = "cpu",
) -> tuple[Path, Mapping[str, Any]]:
    """Write the page of both folders and the figures; returns the page and the figures.

    `before` and `after` were drawn from the captions of `images` (of its pictures of `split`), by
    `tarkit generate --prompts`. `features_of` names the model whose tokenizer gives the features.
    Raises UserError where a folder was drawn from other captions.
    """
    artifact = open_artifact(images, "images")
    captions = captioned_pictures(artifact, split=split)
    if not captions:
        which = f" of the split {split!r}" if split else ""
        raise UserError(f"{images} has no picture{which} with a caption")
    prompts = [caption.strip() for _, caption in captions]
    drawn = [_read_drawn(path, images, prompts) for path in (before, after)]
    true = _true_pictures(artifact, [key for key, _ in captions])
    extractor = load_extractor("tatok", model=features_of, device=device)
    distances = [_distances(true, each.pictures, extractor) for each in drawn]
    facts: dict[str, Any] = {
        "num_pictures": len(true),
        "before": str(before),
        "after": str(after),
        "extractor": extractor.identity(),
    }
    differences = {}
    for name in FIGURES:
        one, two = (each[name] for each in distances)
        difference = paired(one, two, clusters=prompts)
        differences[name] = difference
        facts[name] = {
            "before": float(one.mean()),
            "after": float(two.mean()),
            "difference": difference._asdict(),
        }
    words = ["tarkit", "compare", str(before), str(after), "--images", str(images)]
    words += ["--split", split] if split else []
    words += ["--features-of", features_of, "--out", str(out)]
    page = Page(
        "Before and after",
        f"{len(true)} captions, drawn once by each model",
        [
            Section("How far from the true pictures", _figures(facts, differences), "figures"),
            Section(
                "Pictures",
                [CardGrid(_cards(prompts, true, drawn, distances))],
                "pictures",
                lead="From left to right: the true picture, before, after. Of every caption the "
                "first picture is shown; none was chosen.",
            ),
            Section("Repeat", [CommandLines(shlex.join(words))], "repeat"),
        ],
    )
    write_whole(out / RESULTS, (json.dumps(facts, indent=1) + "\n").encode())
    write_whole(out / INDEX, render(page).encode())
    return out / INDEX, facts


def in_words(facts: Mapping[str, Any]) -> str:
    """A line for each figure."""
    return "\n".join(
        f"{title}: {facts[name]['before']:.3f} before, {facts[name]['after']:.3f} after "
        f"({_interval(Paired(**facts[name]['difference']))})"
        for name, title in FIGURES.items()
    )


def _read_drawn(path: Path, images: Path, prompts: Sequence[str]) -> _Drawn:
    again = f"tarkit generate --prompts {images} --model MODEL --out ANOTHER"
    if not is_samples(path) or not (path / SAMPLE_RECORDS).exists():
        raise UserError(f"{path} is no finished folder of `tarkit generate --prompts`", hint=again)
    records = [record.require() for record in read_json_lines(path / SAMPLE_RECORDS)]
    first = [record for record in records if record.get("sample") == 0]
    if [record.get("prompt") for record in first] != list(prompts):
        raise UserError(f"{path} was drawn from other captions than those of {images}", hint=again)
    files = [path / f"{row:05d}" / "0000.png" for row in range(len(first))]
    return _Drawn(path, list(prompts), [read_picture(file) for file in files])


def _true_pictures(artifact: Artifact, keys: Sequence[str]) -> list[Image.Image]:
    wanted = set(keys)
    return [
        decode(blob, max_pixels=artifact.max_pixels)
        for name in artifact.shards
        for row, blob in artifact.read_images(name)
        if row["key"] in wanted and blob is not None
    ]


def _distances(
    true: Sequence[Image.Image], drawn: Sequence[Image.Image], extractor: FeatureExtractor
) -> Mapping[str, Floats]:
    """The distance of each picture to the true one, by the figures."""
    features = [_features(pictures, extractor) for pictures in (true, drawn)]
    pairs = zip(map(colour_shares, true), map(colour_shares, drawn), strict=True)
    return {
        "features": 1 - cosines(*features),
        "colours": np.array([np.abs(a - b).sum() / 2 for a, b in pairs]),
    }


def _features(pictures: Sequence[Image.Image], extractor: FeatureExtractor) -> NDArray[np.float32]:
    starts = range(0, len(pictures), BATCH_SIZE)
    return np.concatenate([extractor.extract(pictures[at : at + BATCH_SIZE]) for at in starts])


def colour_shares(picture: Image.Image) -> Floats:
    """(BINS^3,) shares of the pixels of an RGB picture in each bin of colours; they sum to 1."""
    small = picture.convert("RGB").resize((SIDE_PX, SIDE_PX), Image.Resampling.BICUBIC)
    levels = np.asarray(small, np.int64).reshape(-1, 3) * BINS // 256
    codes = (levels * (BINS**2, BINS, 1)).sum(axis=1)
    counts: Floats = np.bincount(codes, minlength=BINS**3) / len(codes)
    return counts


# ---- the page -----------------------------------------------------------------------------------


def _figures(
    facts: Mapping[str, Any], differences: Mapping[str, Paired]
) -> list[PageTable | Paragraph]:
    rows = [
        [
            title,
            f"{facts[name]['before']:.3f}",
            f"{facts[name]['after']:.3f}",
            _interval(differences[name]),
            f"{differences[name].worse} of {differences[name].num_clusters}",
        ]
        for name, title in FIGURES.items()
    ]
    header = ["distance", "before", "after", "difference [95 % interval]", "captions nearer after"]
    note = (
        "Lower is nearer, 0 is the same. Features are those of the encoder of the tokenizer of "
        f"sha256 {facts['extractor']['tokenizer_sha256'][:12]}, averaged over the picture; colour "
        f"histograms have {BINS} levels of red, green and blue. Intervals come from redrawing "
        "captions, paired. A caption may leave much of its picture open, so that no model reaches "
        "0."
    )
    return [PageTable(header, rows), Paragraph(note, "note")]


def _interval(difference: Paired) -> str:
    return f"{difference.delta:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]"


def _cards(
    prompts: Sequence[str],
    true: Sequence[Image.Image],
    drawn: Sequence[_Drawn],
    distances: Sequence[Mapping[str, Floats]],
) -> list[Card]:
    cards = []
    for row, prompt in enumerate(prompts):
        strip = Image.new("RGB", (3 * SIDE_PX, SIDE_PX))
        for column, picture in enumerate([true[row], *(each.pictures[row] for each in drawn)]):
            small = picture.convert("RGB").resize((SIDE_PX, SIDE_PX), Image.Resampling.BICUBIC)
            strip.paste(small, (column * SIDE_PX, 0))
        one, two = (float(each["features"][row]) for each in distances)
        cards.append(
            Card(
                uri=data_uri(strip, side_px=3 * SIDE_PX),
                prompt=prompt,
                verdict="nearer after" if two < one else "not nearer",
                good=two < one,
                aside=f"features {one:.2f}, then {two:.2f}",
            )
        )
    return cards
