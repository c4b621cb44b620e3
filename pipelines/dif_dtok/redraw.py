"""Pictures drawn again from their own codes, by both de-tokenizers, and how many are still right.

    python redraw.py PICTURES MODEL OUT

PICTURES is an images artifact of the drawn world, MODEL an assembled model with a Dif-DTok. OUT
gets `sheet.png` (originals, then each way of drawing) and `scores.json`: of each way the share of
pictures that show their prompt, by the scorer `shapes`.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tarkit import Tar
from tarkit.artifacts.artifact import open_artifact
from tarkit.images import contact_sheet
from tarkit.inference.dif_detokenizer import DifDetokenizer
from tarkit.models.pixel_range import from_unit, to_signed
from tarkit.scoring.scorers import Shown
from tarkit.scoring.shapes_scorer import ShapesScorer
from tarkit.train.streams import picture_stream
from tarkit.vocab import Scale

SHOWN, BATCH, SCALE = 8, 16, Scale.HALF


def through_vae(tar: Tar, pictures: list[Image.Image]) -> list[Image.Image]:
    """Pictures to SANA's latents and back: what the best Dif-DTok could draw."""
    assert isinstance(tar.dtok, DifDetokenizer)
    vae = tar.dtok.pipeline.vae
    with torch.no_grad():
        decoded = vae(to_signed([np.asarray(picture) for picture in pictures])).sample
    return [Image.fromarray(a) for a in from_unit((decoded * 0.5 + 0.5).clamp(0, 1))]


def main(pictures: Path, model: Path, out: Path) -> None:
    stream = picture_stream(open_artifact(pictures, "images"), seed=0, split=None)
    rows = [stream[i] for i in range(stream.total)]
    originals = [Image.fromarray(row.pixels()) for row in rows]
    dif, ar = Tar.load(model, dtok="dif"), Tar.load(model)
    drawn: dict[str, list[Image.Image]] = {"original": originals, "VAE": [], "AR": [], "Dif": []}
    for first in range(0, len(rows), BATCH):
        some = originals[first : first + BATCH]
        codes = dif.encode(some, [SCALE])[SCALE]
        seeds = range(first, first + len(some))
        drawn["VAE"] += through_vae(dif, some)
        for name, tar in (("AR", ar), ("Dif", dif)):
            drawn[name] += tar.draw(codes, seeds=seeds, sampling=tar.sampling)
        print(f"redraw: {first + len(some)}/{len(rows)}", file=sys.stderr)
    scorer, shares = ShapesScorer(), {}
    for name, cells in drawn.items():
        shown = [Shown(cell, row["prompt"]) for cell, row in zip(cells, rows, strict=True)]
        scores = [score["correct"] for score in scorer.score(shown) if not isinstance(score, str)]
        shares[name] = {"correct": sum(scores) / len(scores), "pictures": len(scores)}
    out.mkdir(parents=True, exist_ok=True)
    cells = [cell for part in drawn.values() for cell in part[:SHOWN]]
    captions = [name for name in drawn for _ in range(SHOWN)]
    contact_sheet(cells, captions, columns=SHOWN, cell_px=128).save(out / "sheet.png")
    (out / "scores.json").write_text(json.dumps(shares, indent=1) + "\n")
    print(json.dumps(shares, indent=1))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
