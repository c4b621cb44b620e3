"""`tarkit eval lmms`: the tasks of lmms-eval, run by lmms-eval itself with Tar as its model.

This builds the command, runs it, and reads its samples. `out` holds `lmms/` (lmms-eval's files
and the command in `command.json`), `answers.parquet` (one row a question), `results.json` and
`report.md` with lmms-eval's own figures: those of a task are named TASK@lmms-eval-VERSION, each
metric with its filter after a comma.

The same command again reads finished samples; an interrupted run starts from the beginning, because
lmms-eval writes nothing before its end.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import io
import json
import math
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tarkit.artifacts.digests import file_sha256
from tarkit.artifacts.files import read_object, write_whole
from tarkit.artifacts.manifest import begin_directory
from tarkit.artifacts.tables import read_json
from tarkit.checkpoints.hub import EMBEDDED, find
from tarkit.errors import UserError
from tarkit.eval.outcome import write_outcome
from tarkit.eval.result_tables import Table, show

INSTALL = "pip install 'tarkit[lmms]'"
COMMAND = "command.json"
STDERR_FD = 2
LAST_LINES = 6

ANSWERS = pa.schema(
    [
        ("task", pa.string()),
        ("doc_id", pa.int64()),
        ("question", pa.string()),
        ("answer", pa.string()),
        ("target", pa.string()),
        ("metrics", pa.string()),
    ]
)
# The fields of a sample that are not metrics; every other field is one.
NO_METRICS = {"doc_id", "doc_hash", "target", "input", "input_media", "token_counts"}
NO_METRICS |= {"resps", "filtered_resps", "doc", "arguments"}
NOT_AS_WRITTEN = (
    *(ArithmeticError, AttributeError, LookupError, OSError, RecursionError),
    *(TypeError, ValueError, pa.ArrowException),
)


@dataclass(frozen=True)
class LmmsResults:
    """A finished run of lmms-eval: its results, and the samples of each task."""

    results: Mapping[str, Any]
    samples: Mapping[str, Sequence[Mapping[str, Any]]]


def run(
    *,
    tasks: Sequence[str],
    out: Path,
    model: str = "mini",
    include: Path | None = None,
    scale: int | None = None,
    limit: int | None = None,
    batch_size: int = 16,
    device: str = "cpu",
    offline: bool = False,
    simple: bool = False,
) -> Path:
    """Evaluate a model on tasks of lmms-eval; returns `out`, which holds answers and figures.

    `include` is a folder of further tasks, `limit` the number of documents of each; `offline` opens
    no connection, `simple` reads each task as lmms-eval's simple models do. Raises UserError.
    """
    names = [name for given in tasks for name in given.replace(",", " ").split()]
    if not names:
        raise UserError("no task is named", hint="python -m lmms_eval tasks list")
    if include is not None and not include.is_dir():
        raise UserError(f"--include {include} is not a folder of tasks")
    version = _version()
    # Imported here, so that importing this module does not load torch.
    from tarkit.checkpoints.tar_config import fingerprints

    settings = {
        "lmms_eval": version,
        "tasks": names,
        "include": _files_of(include) if include else None,
        "scale": scale,
        "limit": limit,
        "batch_size": batch_size,
        "simple": simple,
        "model": fingerprints(find(model, dtok=None)),
    }
    begin_directory(out, "results", settings=settings)
    folder = out / "lmms"
    finished = read_finished(folder)
    if finished is None:
        command = command_of(
            names,
            folder,
            model=model,
            include=include,
            scale=scale,
            limit=limit,
            batch_size=batch_size,
            device=device,
            simple=simple,
        )
        write_whole(folder / COMMAND, (json.dumps(command, indent=1) + "\n").encode())
        output = _call(command, offline)
        finished = read_finished(folder)
        if finished is None:
            raise UserError(f"lmms-eval wrote no results to {folder}; its last lines:\n{output}")
    settings["command"] = _require_finite(read_json(folder / COMMAND), folder / COMMAND)
    _write(out, finished, settings, version)
    return out


def _require_finite(value: Any, file: Path) -> Any:
    """What a JSON file holds; UserError for a number that JSON does not have, such as Infinity."""
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        raise UserError(
            f"{file} holds a number that is not finite", hint="evaluate again with another --out"
        ) from None
    return value


def command_of(
    tasks: Sequence[str],
    folder: Path,
    *,
    model: str = "mini",
    include: Path | None = None,
    scale: int | None = None,
    limit: int | None = None,
    batch_size: int = 16,
    device: str = "cpu",
    simple: bool = False,
) -> list[str]:
    """lmms-eval's command line; its results and samples go into `folder`."""
    # Absolute, because lmms-eval turns a name that looks like a number into a number.
    named = model if model in EMBEDDED or not Path(model).exists() else str(Path(model).resolve())
    place = str(folder.resolve())
    for value in (named, place):
        if re.search(r"""[,"'{}\[\]]""", value):
            raise UserError(f"{value}: lmms-eval accepts no name with commas, quotes or brackets")
    arguments = f"model={named}" + (f",scale={scale}" if scale is not None else "")
    command = [sys.executable, "-m", "lmms_eval", "--model", "tar", "--model_args", arguments]
    command += ["--tasks", ",".join(tasks), "--batch_size", str(batch_size), "--device", device]
    command += ["--include_path", str(include.resolve())] if include else []
    command += ["--limit", str(limit)] if limit is not None else []
    command += ["--force_simple"] if simple else []
    return [*command, "--log_samples", "--output_path", place]


def read_finished(folder: Path) -> LmmsResults | None:
    """The newest run of lmms-eval in `folder`, if every sample of every task is there."""
    newest = max(folder.glob("*/*_results.json"), key=lambda path: path.name, default=None)
    if newest is None:
        return None
    results = read_object(newest, hint=_again(folder))
    samples = {}
    with _explained(folder):
        for task, count in results["n-samples"].items():
            file = newest.with_name(newest.name.replace("_results.json", f"_samples_{task}.jsonl"))
            # Not splitlines, which also splits at U+2028, a character that JSON may contain.
            lines = file.read_text(encoding="utf-8").split("\n") if file.exists() else [""]
            # lmms-eval writes line by line, and continues after a line that it could not write.
            if len(lines) != count["effective"] + 1 or lines[-1]:
                return None
            samples[task] = [json.loads(line) for line in lines[:-1]]
    return LmmsResults(results, samples)


def _again(folder: Path) -> str:
    return f"rm -r {shlex.quote(str(folder))}, and run the same command again"


@contextlib.contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Another program's files that are not as it writes them raise UserError."""
    try:
        yield
    except NOT_AS_WRITTEN as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(
            f"lmms-eval's files in {folder} cannot be read: {why}", hint=_again(folder)
        ) from None


def answer_row(task: str, sample: Mapping[str, Any]) -> dict[str, Any]:
    """A row of answers.parquet, without the pictures that lmms-eval wrote into the sample."""
    answer = sample["filtered_resps"]
    while isinstance(answer, list) and len(answer) == 1:
        answer = answer[0]
    metrics = {key: value for key, value in sample.items() if key not in NO_METRICS}
    question = sample.get("input")
    return {
        "task": task,
        "doc_id": int(sample["doc_id"]),
        "question": question if isinstance(question, str) else _json(_without_media(question)),
        "answer": answer if isinstance(answer, str) else _json(answer),
        "target": sample["target"],
        "metrics": _json(_without_media(metrics)),
    }


def _version() -> str:
    """The version of lmms-eval, which is not imported, because that takes many seconds."""
    try:
        if importlib.util.find_spec("lmms_eval"):
            return importlib.metadata.version("lmms-eval")
    except importlib.metadata.PackageNotFoundError:
        pass
    raise UserError("lmms-eval is not installed", hint=INSTALL)


def _files_of(include: Path) -> dict[str, str]:
    """sha256 of the Python and YAML files of a folder of tasks."""
    files = (path for path in sorted(include.rglob("*")) if path.suffix in (".py", ".yaml", ".yml"))
    return {path.relative_to(include).as_posix(): file_sha256(path) for path in files}


def _call(command: Sequence[str], offline: bool) -> str:
    """Run lmms-eval with all its output on stderr; returns the last lines of its stderr.

    Raises UserError for an exit status other than 0. After most failures the status is 0, so only
    its results prove success.
    """
    environment = dict(os.environ)
    if offline:
        environment |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
        # With a token lmms-eval asks the hub for the owner's name.
        environment.pop("HF_TOKEN", None)
    tail = b""
    with subprocess.Popen(
        command, env=environment, stdout=STDERR_FD, stderr=subprocess.PIPE
    ) as process:
        assert process.stderr is not None
        while chunk := os.read(process.stderr.fileno(), 1 << 16):
            os.write(STDERR_FD, chunk)
            tail = (tail + chunk)[-(1 << 14) :]
    lines = re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;]*m", "", tail.decode(errors="replace")))
    last = "\n".join([line for line in lines if line.strip()][-LAST_LINES:]) or "(no output)"
    if process.returncode:
        raise UserError(f"lmms-eval ended with {process.returncode}:\n{last}")
    return last


def _write(out: Path, finished: LmmsResults, settings: Mapping[str, Any], version: str) -> None:
    with _explained(out / "lmms"):
        rows = [answer_row(task, one) for task, some in finished.samples.items() for one in some]
        answers = pa.Table.from_pylist(rows, schema=ANSWERS)
        metrics = metrics_of(finished, version)
        table = _table(metrics)
    sink = io.BytesIO()
    pq.write_table(answers, sink, compression="zstd")
    write_whole(out / "answers.parquet", sink.getvalue())
    show([table])
    report = f"# tarkit eval lmms\n\n{table.markdown()}"
    write_outcome(out, metrics, settings=settings, report=report, versions={"lmms-eval": version})


def metrics_of(finished: LmmsResults, version: str) -> dict[str, dict[str, Any]]:
    """TASK@lmms-eval-VERSION -> lmms-eval's figures, for each task and group."""
    versions = finished.results.get("versions", {})
    metrics = {}
    for task, figures in finished.results["results"].items():
        metrics[f"{task}@lmms-eval-{version}"] = {
            **{name: _finite(value) for name, value in figures.items() if name != "alias"},
            "task_version": versions.get(task),
            "num_questions": len(finished.samples[task]) if task in finished.samples else None,
        }
    return metrics


def _table(metrics: Mapping[str, Mapping[str, Any]]) -> Table:
    rows = [
        [task, name, _figure(value), _figure(error), _figure(figures["num_questions"])]
        for task, figures in metrics.items()
        for name, value, error in _with_errors(figures)
    ]
    note = "Figures, their names and their standard errors are lmms-eval's own."
    return Table(
        "lmms-eval", ["task", "metric", "value", "standard error", "questions"], rows, note
    )


def _with_errors(figures: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """(name, value, standard error) of `acc,none` and `acc_stderr,none`."""
    for name, value in figures.items():
        metric, comma, variant = name.partition(",")
        if comma and "_stderr" not in metric:
            yield name, value, figures.get(f"{metric}_stderr,{variant}")


def _figure(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    return "-" if value is None or value in ("N/A", []) else str(value)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _without_media(value: Any) -> Any:
    """`value` with None in place of embedded files and of numbers that are not finite."""
    if isinstance(value, Mapping):
        return {key: _without_media(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_without_media(each) for each in value]
    embedded = isinstance(value, str) and re.match(r"data:[\w.+-]+/[\w.+-]+;base64,", value)
    return None if embedded else _finite(value)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
