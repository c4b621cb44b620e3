"""Prints the report of the emoji pipeline as Markdown.

python report.py WORK > WORK/report.md
"""

import collections
import json
import sys
from pathlib import Path

from tarkit.artifacts.artifact import open_artifact
from tarkit.artifacts.map_rows import kind_of

SHOWN = 8


def outcomes(folder: Path, columns: tuple[str, ...]) -> list[str]:
    """The number of accepted rows, the cost in tokens, the reasons of failures, the first rows."""
    artifact = open_artifact(folder)
    rows = [row for name in artifact.shards for row in artifact.rows(name)]
    accepted = [row for row in rows if row["status"] == "ok"]
    reasons = collections.Counter(kind_of(row["error"]) for row in rows if row["status"] != "ok")
    log = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
    tries, tokens = (sum(line[name] for line in log) for name in ("tries", "tokens"))
    lines = [f"{len(accepted)} of {len(rows)} taken; {tries} answers, {tokens} tokens written.", ""]
    lines += [f"- refused {count}: {reason}" for reason, count in reasons.most_common()]
    lines += ["", " | ".join(columns), " | ".join("---" for _ in columns)]
    lines += [" | ".join(str(row[column]) for column in columns) for row in accepted[:SHOWN]]
    return [*lines, ""]


def main() -> None:
    work = Path(sys.argv[1])
    lines = ["# Emoji: the whole chain on real pictures", "", "## Captions worded anew", ""]
    lines += outcomes(work / "few_captions", ("key", "prompt"))
    lines += ["## Prompts split", ""]
    lines += outcomes(work / "splits", ("prompt", "template", "phrase"))
    lines += ["## Drawn from words", "", "![from pipelines/emoji/prompts.txt](drawn/sheet.png)", ""]
    lines += ["## Drawn from a picture and `<image> on a blue background`", ""]
    edited = sorted(work.glob("edited-*.png"))
    lines += [" ".join(f"![{number}]({file.name})" for number, file in enumerate(edited))]
    lines += ["", "Said of the picture: " + (work / "described.txt").read_text().strip(), ""]
    lines += ["## Parts", ""]
    for part in ("vqvae", "ar_dtok"):
        samples = sorted((work / part / "samples").glob("*.png"))
        lines += [f"![{part}: originals, then decoded]({part}/samples/{samples[-1].name})", ""]
    for part in ("many", "triples", "many_chats"):
        lines += ["```", (work / f"{part}.txt").read_text().strip(), "```", ""]
    print("\n".join(lines))


if __name__ == "__main__":
    main()
