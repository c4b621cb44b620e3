"""What a stage of run.sh came to, as a line of JSON.

    python result.py stage STAGE WORK SECONDS STATUS
    python result.py gpu                                 the name that `tarkit plan --gpu` knows

Figures are those of the last row of the training's metrics.jsonl, the plan's those of the JSON that
`tarkit plan` printed. Where a GPU is unknown, or there is none, the plan is one for an H100.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from tarkit.train.gpus import GPUS, gpu_named

MEASURED = (
    *("step", "loss", "step_s", "data_wait_s", "rows_per_s", "tokens_per_s", "pictures_per_s"),
    *("supervised_tokens_per_s", "flops_per_s", "mfu"),
    *("peak_gpu_memory_gb", "peak_process_memory_gb"),
)
END = 600  # characters of what a failed stage printed last


def device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def gpu() -> str:
    known = gpu_named(device_name())
    return next((name for name, one in GPUS.items() if one is known), "h100")


def planned(file: Path) -> dict[str, Any]:
    """Peak memory, and the speed at the share of the peak that the plan takes for granted."""
    plan = json.loads(file.read_text())
    step_s = 3600 * plan["hours"] / plan["steps"]
    return {
        "gpu": plan["gpu"],
        "peak_memory_gb": round(plan["memory"]["peak"] / 1e9, 3),
        "memory_gb": {part: round(size / 1e9, 3) for part, size in plan["memory"].items()},
        "mfu": plan["mfu"],
        "step_s": round(step_s, 4),
        "rows_per_s": round(plan["batch_size"] / step_s, 2),
        "tokens_per_s": round(plan["tokens_per_step"] / step_s, 2),
        "flops_per_step": plan["flops_per_step"] + plan["frozen_flops_per_step"],
    }


def result(stage: str, work: Path, seconds: int, status: int) -> dict[str, Any]:
    log = work / "logs" / f"{stage}.txt"
    line: dict[str, Any] = {
        "stage": stage,
        "status": status,  # 124: its time was over
        "seconds": seconds,
        "device": device_name(),
        "torch": torch.__version__,
        "tiny": os.environ.get("TINY") == "1",
    }
    metrics, plan = work / stage / "metrics.jsonl", work / f"{stage}.plan.json"
    if metrics.exists() and (rows := metrics.read_text().splitlines()):
        last = json.loads(rows[-1])
        line["measured"] = {name: last[name] for name in MEASURED if name in last}
    if plan.exists() and plan.stat().st_size:
        line["plan"] = planned(plan)
    if stage == "versions" and not status:
        line["versions"] = json.loads(log.read_text().rpartition("}")[0] + "}")
    if status:
        line["end_of_log"] = log.read_text(errors="replace")[-END:]
    return line


def main(words: list[str]) -> None:
    if words == ["gpu"]:
        print(gpu())
        return
    _, stage, work, seconds, status = words
    print(json.dumps(result(stage, Path(work), int(seconds), int(status))))


if __name__ == "__main__":
    main(sys.argv[1:])
