"""Writes prompts for `tarkit train grpo`: prompts of training pictures, hard tasks more often.

    python asked.py PICTURES OUT.txt

Prompts of the training split have no held-out composition, so neither have these. GenEval's task
of a single object is left out, because the model always draws it right.
"""

import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

from tarkit.artifacts.artifact import open_artifact
from tarkit.errors import UserError
from tarkit.shapes.prompts import clauses_of

# The number of prompts of each task.
SHARE = {
    "position": 900,
    "color_position": 600,
    "color_attr": 900,
    "two_object": 600,
    "counting": 500,
    "colors": 300,
}


def task_of(prompt: str) -> str | None:
    """GenEval's task of a prompt, or None for one of another form."""
    try:
        conditions = clauses_of(prompt)
    except UserError:
        return None
    if not prompt.startswith("a photo of") or "background" in conditions:
        return None
    clauses = conditions["include"]
    coloured = sum("color" in clause for clause in clauses)
    if len(clauses) == 1:
        return "counting" if clauses[0]["count"] > 1 else "colors" if coloured else None
    if len(clauses) > 2 or coloured == 1:
        return None
    if any("position" in clause for clause in clauses):
        return "color_position" if coloured else "position"
    return "color_attr" if coloured else "two_object"


def main(pictures: str, out: str) -> None:
    source = open_artifact(Path(pictures), "images")
    prompts_of = defaultdict(set)
    for name in source.shards:
        for row in source.rows(name, ["prompt", "role", "split"]):
            if row["role"] == "target" and row["split"] == "train":
                prompts_of[task_of(row["prompt"])].add(row["prompt"])
    rng = np.random.default_rng(0)
    prompts: list[str] = []
    for task, count in SHARE.items():
        known = sorted(prompts_of[task])
        prompts += rng.choice(known, count, replace=len(known) < count).tolist()
    rng.shuffle(prompts)
    Path(out).write_text("\n".join(prompts) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
