"""Makes TI2I pictures from the rows of `curate split`: targets, references and templates.

    python triples.py SPLITS FLUENT EMOJIBASE OUT

This script takes the place of a text-to-image model. A phrase that contains its emoji's label
becomes that emoji on white, and a phrase about a background of one colour becomes the plain colour.
Other phrases get no picture and are counted. OUT gets `triples/` and `triples.jsonl`.
"""

import json
import re
import sys
from pathlib import Path

from PIL import Image
from prepare import COLOURS, SIZE_PX, emoji, on

from tarkit.artifacts.artifact import open_artifact

PROMPT = re.compile(r"a 3d (.+) on a (\w+) background")


def words(text: str) -> str:
    return " " + " ".join(re.findall(r"\w+", text.lower())) + " "


def reference(phrase: str, label: str, file: Path) -> Image.Image | None:
    if words(label) in words(phrase):
        return on(file, "white")
    colours = [name for name in COLOURS if f" {name} " in words(phrase)]
    if len(colours) == 1 and " background " in words(phrase):
        return Image.new("RGB", (SIZE_PX, SIZE_PX), COLOURS[colours[0]])
    return None


def main() -> None:
    splits, fluent, base, out = map(Path, sys.argv[1:])
    files = {label: file for label, _, file in emoji(fluent, base)}
    folder = out / "triples"
    folder.mkdir(parents=True, exist_ok=True)
    lines, without_picture = [], []
    artifact = open_artifact(splits, "prompts")
    for row in (row for name in artifact.shards for row in artifact.rows(name)):
        if row["status"] != "ok":
            continue
        match = PROMPT.fullmatch(row["prompt"])
        assert match, row["prompt"]
        label, colour = match.groups()
        reference_picture = reference(row["phrase"], label, files[label])
        if reference_picture is None:
            without_picture.append(row["phrase"])
            continue
        pictures = {"target": on(files[label], colour), "reference": reference_picture}
        for role, picture in pictures.items():
            name = f"{row['key']}_{role}.png"
            picture.save(folder / name)
            text = row["prompt"] if role == "target" else row["phrase"]
            line = {"image": name, "captions": [text], "group": row["key"], "role": role}
            if role == "target":
                line["template"] = row["template"]
            lines.append(json.dumps(line) + "\n")
    (out / "triples.jsonl").write_text("".join(lines))
    num_without = len(without_picture)
    print(
        f"{len(lines) // 2} triples; {num_without} phrases have no picture: {without_picture[:5]}"
    )


if __name__ == "__main__":
    main()
