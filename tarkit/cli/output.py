"""Prints the results of commands and returns their exit statuses; resolves --device and parts."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tarkit.cli.command import FAILED_ROWS
from tarkit.errors import UserError
from tarkit.terminal import print_note, print_result

if TYPE_CHECKING:
    from tarkit.artifacts.artifact import Artifact
    from tarkit.artifacts.plan import ShardPlan
    from tarkit.eval.outcome import Scored


def show(facts: Mapping[str, Any], text: str, as_json: bool) -> None:
    print_result(json.dumps(facts, ensure_ascii=False) if as_json else text)


def scored(done: "Scored", as_json: bool) -> int:
    facts = {"path": str(done.path), "failed": done.num_failed, "report": done.report}
    show(facts, f"{done.report.rstrip()}\n\n{done.path}", as_json)
    return FAILED_ROWS if done.num_failed else 0


def made(artifact: "Artifact", as_json: bool) -> int:
    from tarkit.artifacts.resume import num_failed

    failed = num_failed(artifact)
    left = len(artifact.missing())
    facts = {"path": str(artifact.path), "kind": artifact.kind, "shards": len(artifact.shards)}
    show({**facts, "shards_left": left, "failed": failed}, str(artifact.path), as_json)
    if failed:
        print_note(f"{failed} failed rows: tarkit inspect {artifact.path}")
    return FAILED_ROWS if failed else 0


def previewed(counts: Mapping[str, int], out: Path, as_json: bool) -> int:
    from tarkit.artifacts.resume import disk

    counts = {**counts, **disk(out, counts["shards_to_make"])}
    show(counts, "\n".join(f"{name}: {count}" for name, count in counts.items()), as_json)
    return 0


def preview_or_run(plan: "ShardPlan", *, dry_run: bool, as_json: bool) -> int:
    """Print what a plan would make, or make it and print where."""
    if dry_run:
        return previewed(plan.preview(), plan.out, as_json)
    return made(plan.run(), as_json)


def trained(path: Path, as_json: bool) -> int:
    show({"path": str(path)}, str(path), as_json)
    return 0


def part_of(named: Path, part: str) -> Path:
    from tarkit.checkpoints.hub import find_part

    return find_part(named, part)


def device_of(name: str) -> str:
    """The device that --device names; auto is this process's own GPU, where there is one.

    Of several processes on a machine, each has the GPU of its LOCAL_RANK, which torchrun sets.
    Raises UserError for a device that this machine does not have.
    """
    import torch

    if name != "auto":
        _require_device(name)
        return name
    if not torch.cuda.is_available():
        return "cpu"
    local = os.environ.get("LOCAL_RANK", "")
    return f"cuda:{int(local) % torch.cuda.device_count()}" if local.isdigit() else "cuda"


def _require_device(name: str) -> None:
    import torch

    accelerator = torch.accelerator.current_accelerator()
    present = ["cpu"]
    if accelerator is not None and torch.accelerator.is_available():
        count = torch.accelerator.device_count()
        present += [accelerator.type, *(f"{accelerator.type}:{n}" for n in range(count))]
    if name not in present:
        raise UserError(
            f"--device {name}: this machine has {', '.join(present)}",
            hint="the same command with --device auto",
        )
