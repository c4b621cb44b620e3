"""Rendered emoji as pictures with captions, and prompts about them.

    python prepare.py FLUENT EMOJIBASE OUT

FLUENT is the unpacked npm package @lobehub/fluent-emoji-3d, EMOJIBASE emojibase-data. OUT gets the
folder `many` (two pictures of each emoji, on white and on a colour), `few` (300 others, whose
captions a language model will write anew), and `prompts.txt` of those 300 for it to split.
"""

import json
import random
import sys
from pathlib import Path

from PIL import Image

SIZE_PX = 64
FEW = 300
COLOURS = {
    "white": (255, 255, 255),
    "red": (222, 70, 62),
    "orange": (244, 160, 66),
    "yellow": (248, 220, 96),
    "green": (96, 176, 92),
    "blue": (76, 130, 220),
    "purple": (150, 98, 200),
    "pink": (244, 160, 190),
    "grey": (140, 140, 140),
}


def plain(hexcode: str) -> str:
    """A hexcode without variation selectors, which the two packages place differently."""
    return "-".join(part for part in hexcode.lower().split("-") if part != "fe0f")


def emoji(fluent: Path, base: Path) -> list[tuple[str, list[str], Path]]:
    """(label, tags, file) of every emoji that has a picture, skin tones apart."""
    files = {plain(file.stem): file for file in sorted((fluent / "assets").glob("*.webp"))}
    known = json.loads((base / "en" / "data.json").read_text(encoding="utf-8"))
    found = [(e["label"], e.get("tags", []), files.get(plain(e["hexcode"]))) for e in known]
    return [(label.lower(), tags, file) for label, tags, file in found if file]


def on(file: Path, colour: str) -> Image.Image:
    """The emoji on a ground of one colour, SIZE_PX x SIZE_PX."""
    ground = Image.new("RGBA", (SIZE_PX, SIZE_PX), COLOURS[colour])
    picture = Image.open(file).convert("RGBA")
    side = int(SIZE_PX * 0.84)
    picture = picture.resize((side, side), Image.Resampling.LANCZOS)
    ground.alpha_composite(picture, ((SIZE_PX - side) // 2,) * 2)
    return ground.convert("RGB")


def main() -> None:
    fluent, base, out = map(Path, sys.argv[1:])
    rng = random.Random(0)
    found = emoji(fluent, base)
    few = set(rng.sample(range(len(found)), FEW))
    words: dict[str, list[dict[str, object]]] = {"many": [], "few": []}
    prompts = []
    for number, (label, tags, file) in enumerate(found):
        folder = "few" if number in few else "many"
        (out / folder).mkdir(parents=True, exist_ok=True)
        colours = ["white", rng.choice([name for name in COLOURS if name != "white"])]
        for role, colour in zip(("target", "similar"), colours, strict=True):
            name = f"{number:05d}_{colour}.png"
            on(file, colour).save(out / folder / name)
            captions = [f"a 3d {label} on a {colour} background", label]
            if tags:
                captions.append(f"{label}: {', '.join(tags)}")
            row = {"image": name, "captions": captions, "group": f"emoji {number}", "role": role}
            words[folder].append(row)
        if number in few:
            prompts.append(f"a 3d {label} on a {colours[1]} background")
    for folder, rows in words.items():
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (out / f"{folder}.jsonl").write_text(lines)
    (out / "prompts.txt").write_text("\n".join(prompts) + "\n")
    print(f"{len(found)} emoji, {len(prompts)} of them apart")


if __name__ == "__main__":
    main()
