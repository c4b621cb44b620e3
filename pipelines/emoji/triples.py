"""What `curate split` cut out of the prompts, as pictures: targets, references and templates.

    python triples.py SPLITS FLUENT EMOJIBASE OUT

In place of a text-to-image model: a phrase that has an emoji's label is that emoji on white, one
that has a colour and no label the plain colour. A phrase that is neither has no picture here and is
counted. OUT gets `triples/` and `triples.jsonl`.
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
    lines, unseen = [], []
    artifact = open_artifact(splits, "prompts")
    for row in (row for name in artifact.shards for row in artifact.rows(name)):
        if row["status"] != "ok":
            continue
        found = PROMPT.fullmatch(row["prompt"])
        assert found, row["prompt"]
        label, colour = found.groups()
        shown = reference(row["phrase"], label, files[label])
        if shown is None:
            unseen.append(row["phrase"])
            continue
        named = {"target": on(files[label], colour), "reference": shown}
        for role, picture in named.items():
            name = f"{row['key']}_{role}.png"
            picture.save(folder / name)
            text = row["prompt"] if role == "target" else row["phrase"]
            line = {"image": name, "captions": [text], "group": row["key"], "role": role}
            if role == "target":
                line["template"] = row["template"]
            lines.append(json.dumps(line) + "\n")
    (out / "triples.jsonl").write_text("".join(lines))
    print(f"{len(lines) // 2} triples; {len(unseen)} phrases have no picture: {unseen[:5]}")


if __name__ == "__main__":
    main()
