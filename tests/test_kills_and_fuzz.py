"""Slow: stages killed at random instants, and pictures and rows that are broken in every way.

Run by hand: pytest -m slow tests/test_kills_and_fuzz.py -s
"""

import csv
import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tarkit.artifacts.artifact import open_artifact
from tests import parts
from tests.llm.stub_server import said, serving

ROOT = Path(__file__).resolve().parents[1]
NUM_KILLS = int(os.environ.get("KILLS", "200"))
NUM_FUZZED = int(os.environ.get("FUZZED", "10000"))
LOGS = ("answers.jsonl", "commands.jsonl")
SMALL = ("--set", "shard_size=8")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


def words_of(*words: object) -> list[str]:
    return [sys.executable, "-m", "tarkit.cli", *map(str, words)]


def finished(*words: object) -> float:
    """Seconds that a command took; it may end with failed rows."""
    start = time.monotonic()
    done = subprocess.run(words_of(*words), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode in (0, 3), done.stderr[-2000:]
    return time.monotonic() - start


def shards_of(folder: Path) -> dict[str, bytes]:
    """Everything but the logs: what answers cost, to which each try adds, and the commands."""
    files = sorted(path for path in folder.iterdir() if path.name not in LOGS)
    return {path.name: path.read_bytes() for path in files}


def answer(body: dict[str, Any]) -> Any:
    """What a model might say, by the question alone: a split, a caption or a verdict."""
    content = body["messages"][-1]["content"]
    if isinstance(content, list):
        asked = "".join(part.get("text", "") for part in content)
        return said("no, it is empty." if "Begin with" in asked else f"picture {len(asked)}")
    prompt = content.rsplit("\n\n", 1)[1]
    phrase = " ".join(prompt.split()[-2:])
    return said(json.dumps({"prompt": prompt.replace(phrase, "<image>"), "<image>": phrase}))


def stages_of(folder: Path, url: str) -> dict[str, tuple[object, ...]]:
    """The commands of a small curation into `folder/whole`, each without its --out."""
    raw, whole = folder / "raw", folder / "whole"
    raw.mkdir()
    for number in range(60):
        pixels = np.random.default_rng(number).integers(0, 256, (64, 64, 3), np.uint8)
        Image.fromarray(pixels).save(raw / f"{number:03d}.png")
        (raw / f"{number:03d}.txt").write_text(f"a photo of {number} red rings")
    lines = [f"a painting of {number} old boats" for number in range(60)]
    (folder / "prompts.txt").write_text("\n".join(lines))
    (folder / "examples.txt").write_text("\n".join(lines[:5]))
    asked = ("--llm", "m", "--server", url)
    examples = ("--examples", folder / "examples.txt")
    pictures = whole / "pictures"
    return {
        "pictures": ("curate", "ingest", raw, *SMALL),
        "prompts": ("curate", "prompts", folder / "prompts.txt", *SMALL),
        "captions": ("curate", "caption", pictures, *asked, *examples),
        "splits": ("curate", "split", whole / "prompts", *asked),
        "scores": ("curate", "score", pictures, "--scorer", "pixels"),
        "judged": ("curate", "judge", pictures, *asked),
        "tokens": ("encode", pictures, "--tokenizer", "mini"),
        "chats": ("curate", "chats", whole / "tokens", "--captions", whole / "captions"),
    }


def test_two_workers_make_the_bytes_of_one(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    with serving(answer) as server:
        for name, words in stages_of(tmp_path, server.url).items():
            finished(*words, "--out", whole / name)
            out = whole / f"{name}_by_two"  # beside it: inputs are named by relative paths
            workers = [
                subprocess.Popen(
                    words_of(*words, "--out", out),
                    cwd=ROOT,
                    env={**os.environ, "RANK": str(rank), "WORLD_SIZE": "2"},
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
                for rank in (0, 1)
            ]
            assert [worker.wait() in (0, 3) for worker in workers] == [True, True], name
            assert shards_of(out) == shards_of(whole / name), name


def test_kills_at_random_instants_leave_the_same_bytes(tmp_path: Path) -> None:
    rng = random.Random(0)
    whole = tmp_path / "whole"
    with serving(answer) as server:
        stages = stages_of(tmp_path, server.url)
        seconds = {name: finished(*words, "--out", whole / name) for name, words in stages.items()}
        kills = begun = 0
        while kills < NUM_KILLS:
            for name, words in stages.items():
                out = whole / f"{name}_{kills}"  # beside it: inputs are named by relative paths
                for _ in range(3):
                    process = subprocess.Popen(
                        words_of(*words, "--out", out),
                        cwd=ROOT,
                        stdout=subprocess.DEVNULL,
                        stderr=subprocess.DEVNULL,
                        start_new_session=True,
                    )
                    try:
                        process.wait(rng.uniform(0.3, 1.0) * seconds[name])
                    except subprocess.TimeoutExpired:
                        os.killpg(process.pid, signal.SIGKILL)
                        process.wait()
                        kills += 1
                begun += out.exists()
                finished(*words, "--out", out)
                assert shards_of(out) == shards_of(whole / name), name
    print(f"{kills} kills, {begun} runs that had begun to write: the same bytes")


# ---- broken pictures and rows -------------------------------------------------------------------

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")


def broken(rng: np.random.Generator, kind: str, size: tuple[int, int]) -> bytes:
    """A picture, most often with bytes changed, cut, repeated or put in another's place."""
    buffer = io.BytesIO()
    pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, kind)
    blob = bytearray(buffer.getvalue())
    way = int(rng.integers(6))
    if way == 0:
        for at in rng.integers(0, len(blob), int(rng.integers(1, 40))):
            blob[at] = int(rng.integers(256))
    elif way == 1:
        del blob[int(rng.integers(len(blob))) :]
    elif way == 2:  # in the header, where sizes are
        for at in rng.integers(0, min(64, len(blob)), 3):
            blob[at] = int(rng.integers(256))
    elif way == 3:
        start, stop = sorted(rng.integers(0, len(blob), 2).tolist())
        blob[start:stop] = blob[start:stop][::-1]
    elif way == 4:
        blob = bytearray(rng.bytes(int(rng.integers(0, 4000))))
    return bytes(blob)


def fuzzed_captions(path: Path, names: list[str], rng: np.random.Generator) -> None:
    odd = ["", " ", "<image>", "a\x00b", "\ufeff", "𝔘𝔫𝔦", "x" * 5_000, '"', "a,b\nc", "--ar 1:1"]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "caption"])
        for name in names:
            writer.writerow([name, odd[int(rng.integers(len(odd)))]])
        for number in range(50):
            writer.writerow([f"../outside_{number}.png", "a"])


def peak_mib(output: str) -> int:
    return int(re.findall(r"peak (\d+)", output)[-1])


def measured(*words: object) -> int:
    """Peak memory of a command in MiB; it may end with failed rows, in no other way."""
    code = (
        "import resource, subprocess, sys\n"
        "code = subprocess.call(sys.argv[1:])\n"
        "print('peak', resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024)\n"
        "sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words_of(*words)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode in (0, 3), done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    return peak_mib(done.stdout)


def peaks_of(folder: Path, num_files: int) -> dict[str, int]:
    """Peak MiB of each stage over `num_files` broken pictures, every one of which is a row."""
    rng = np.random.default_rng(7)
    raw = folder / "raw"
    raw.mkdir(parents=True)
    names = []
    for number in range(num_files):
        kind = FORMATS[int(rng.integers(len(FORMATS)))]
        size = (int(rng.integers(1, 80)), int(rng.integers(1, 80)))
        names.append(f"{number:05d}.{kind.lower()}")
        (raw / names[-1]).write_bytes(broken(rng, kind, size))
    fuzzed_captions(folder / "captions.csv", names, rng)
    (folder / "examples.txt").write_text("one ship\ntwo ships\nthree ships\n")
    out = folder / "out"
    peaks = {}
    # Damaged headers claim huge pictures: the limit keeps one of them from being the whole peak.
    peaks["ingest"] = measured(
        *("curate", "ingest", raw, "--captions", folder / "captions.csv"),
        *("--set", "shard_size=500", "--set", "max_pixels=1000000", "--out", out / "pictures"),
    )
    pictures = open_artifact(out / "pictures", "images")
    counts = parts.status_counts(pictures)
    assert sum(counts.values()) == num_files + 50, "a file is a row, and so is a name without one"
    with serving(answer) as server:
        peaks["caption"] = measured(
            *("curate", "caption", out / "pictures", "--llm", "m", "--server", server.url),
            *("--examples", folder / "examples.txt", "--set", "assistant.batch_size=16"),
            *("--out", out / "captions"),
        )
    peaks["encode"] = measured(
        "encode", out / "pictures", "--tokenizer", "mini", "--out", out / "tokens"
    )
    for name in ("captions", "tokens"):
        assert parts.status_counts(open_artifact(out / name)) == counts
    print(f"{num_files} files: {counts}; peak MiB {peaks}")
    return peaks


def test_broken_pictures_are_rows_with_reasons_and_memory_is_flat(tmp_path: Path) -> None:
    few = peaks_of(tmp_path / "few", NUM_FUZZED // 10)
    many = peaks_of(tmp_path / "many", NUM_FUZZED)
    # Of 1,000 and 10,000 files: ingest 133 and 136 MiB, caption 332 and 331, encode 538 and 562.
    assert all(many[stage] < few[stage] + 60 for stage in few), f"{few} grew to {many}"
