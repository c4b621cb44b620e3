"""Makes pictures with captions, and prompts, from rendered emoji.

    python prepare.py FLUENT EMOJIBASE OUT

FLUENT is the unpacked npm package @lobehub/fluent-emoji-3d, EMOJIBASE emojibase-data. OUT gets the
folder `many` (two pictures of each emoji, on white and on a colour), the folder `few` (the same for
300 other emoji, whose captions a language model will rewrite), and `prompts.txt` with a prompt for
each of those 300, which it will split.
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
    """(label, tags, file) of every emoji that has a picture, without variants of skin tone."""
    files = {plain(file.stem): file for file in sorted((fluent / "assets").glob("*.webp"))}
    known = json.loads((base / "en" / "data.json").read_text(encoding="utf-8"))
    rows = [(e["label"], e.get("tags", []), files.get(plain(e["hexcode"]))) for e in known]
    return [(label.lower(), tags, file) for label, tags, file in rows if file]


def on(file: Path, colour: str) -> Image.Image:
    """The emoji on a background of one colour, an RGB picture of SIZE_PX x SIZE_PX."""
    ground = Image.new("RGBA", (SIZE_PX, SIZE_PX), COLOURS[colour])
    picture = Image.open(file).convert("RGBA")
    side = int(SIZE_PX * 0.84)
    picture = picture.resize((side, side), Image.Resampling.LANCZOS)
    ground.alpha_composite(picture, ((SIZE_PX - side) // 2,) * 2)
    return ground.convert("RGB")


def main() -> None:
    fluent, base, out = map(Path, sys.argv[1:])
    rng = random.Random(0)
    all_emoji = emoji(fluent, base)
    few = set(rng.sample(range(len(all_emoji)), FEW))
    rows_of: dict[str, list[dict[str, object]]] = {"many": [], "few": []}
    prompts = []
    for number, (label, tags, file) in enumerate(all_emoji):
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
            rows_of[folder].append(row)
        if number in few:
            prompts.append(f"a 3d {label} on a {colours[1]} background")
    for folder, rows in rows_of.items():
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (out / f"{folder}.jsonl").write_text(lines)
    (out / "prompts.txt").write_text("\n".join(prompts) + "\n")
    print(f"{len(all_emoji)} emoji, {len(prompts)} of them apart")


if __name__ == "__main__":
    main()
