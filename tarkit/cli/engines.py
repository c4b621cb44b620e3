"""Runs one command as many tasks of an executor of datatrove: local, Slurm or Ray.

Each task is the same command with its own rank: a stage takes its share of the shards by RANK and
WORLD_SIZE, and skips finished shards. datatrove's record of finished tasks is not used
(`skip_completed`), because artifacts know which shards are missing, also after `--retry-failed`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from tarkit.cli.command import FAILED_ROWS
from tarkit.config import Config, load_config
from tarkit.errors import UserError


class EngineConfig(Config):
    """How the tasks run; `cpus`, `memory_gb` and `gpus` are for one task."""

    engine: Literal["local", "slurm", "ray"] = "local"
    tasks: int = Field(default=2, ge=1)
    """The number of parts that the shards are divided into; without a shard a task does nothing."""
    workers: int = Field(default=-1)
    """Tasks that run at the same time; -1: all."""
    logs: Path = Path("logs/engine")
    """The folder of the logs; for Slurm and Ray on a disk that all machines share."""
    cpus: int = Field(default=1, ge=1)
    memory_gb: int = Field(default=4, ge=1)
    gpus: int = Field(default=0, ge=0)
    time: str | None = None
    """For Slurm: the time limit of a task, such as 24:00:00."""
    partition: str | None = None
    setup: str | None = None
    """For Slurm: a shell command before each task, such as `source venv/bin/activate`."""
    sbatch: dict[str, str] = {}
    """For Slurm: further arguments of sbatch."""


def spread(config: Path, words: Sequence[str]) -> int:
    """Run `tarkit WORDS` as the tasks of an engine; returns the exit status.

    It is 3 when a task has failed rows, else 0; for Slurm 0, once the tasks are submitted. Raises
    UserError when a task fails, or the engine is not installed.
    """
    settings = load_config(EngineConfig, config)
    try:
        executor_of(settings, words).run()
    except ImportError as error:  # of datatrove at once, of ray when the tasks begin
        raise UserError(
            f"the engine {settings.engine} is not installed: {error}",
            hint="pip install 'tarkit[scale]'"
            + (" 'datatrove[ray]'" if settings.engine == "ray" else ""),
        ) from None
    except FileNotFoundError as error:
        if settings.engine != "slurm" or error.filename != "sbatch":
            raise
        raise UserError(
            "the engine slurm needs the program sbatch, which is not on this machine",
            hint='run it on a login node of the cluster, or set engine = "local"',
        ) from None
    except TaskFailed as error:
        raise UserError(str(error), hint=f"logs are in {settings.logs}") from None
    if settings.engine == "slurm":
        return 0
    return FAILED_ROWS if any(Path(settings.logs).glob(f"*{FAILED_MARK}")) else 0


FAILED_MARK = ".failed_rows"


class TaskFailed(Exception):
    """The command of a task failed."""


def executor_of(settings: EngineConfig, words: Sequence[str]) -> Any:
    """The executor of datatrove for these settings, before it runs.

    Raises UserError for Slurm without time or partition.
    """
    from datatrove import executor as executors

    settings.logs.mkdir(parents=True, exist_ok=True)
    for mark in settings.logs.glob(f"*{FAILED_MARK}"):
        mark.unlink()
    shared: dict[str, Any] = {
        "pipeline": [EngineTask(tuple(words), str(settings.logs.resolve()))],
        "tasks": settings.tasks,
        "workers": settings.workers,
        "logging_dir": str(settings.logs.resolve()),
        "skip_completed": False,
    }
    size = {"cpus_per_task": settings.cpus, "gpus_per_task": settings.gpus}
    size["mem_per_cpu_gb"] = -(-settings.memory_gb // settings.cpus)
    if settings.engine == "local":
        return executors.LocalPipelineExecutor(**shared, start_method="spawn")
    if settings.engine == "ray":
        return executors.RayPipelineExecutor(**shared, **size)
    if settings.time is None or settings.partition is None:
        raise UserError(
            "the engine slurm needs time and partition",
            hint='time = "24:00:00" and partition = "NAME" in the engine\'s TOML',
        )
    return executors.SlurmPipelineExecutor(
        **shared,
        **size,
        time=settings.time,
        partition=settings.partition,
        env_command=settings.setup,
        sbatch_args=dict(settings.sbatch),
        job_name="tarkit",
    )


class EngineTask:
    """A step of a datatrove pipeline: the command, with the rank that the engine gives it."""

    def __init__(self, words: tuple[str, ...], logs: str) -> None:
        self._words, self._logs = words, logs

    def __call__(self, data: Any, rank: int = 0, world_size: int = 1) -> Any:
        environment = os.environ | {"RANK": str(rank), "WORLD_SIZE": str(world_size)}
        log = Path(self._logs) / f"{rank:05d}.log"
        with log.open("w", encoding="utf-8") as file:
            code = subprocess.call(
                [sys.executable, "-m", "tarkit.cli", *self._words],
                env=environment,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        if code == FAILED_ROWS:
            log.with_suffix(FAILED_MARK).touch()
        elif code:
            lines = log.read_text(encoding="utf-8").strip().splitlines()
            last = "; ".join(lines[-2:])
            raise TaskFailed(f"task {rank} of {world_size} ended with {code}: {last}")
        return data
