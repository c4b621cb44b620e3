"""Slow: files of every kind that tarkit reads, damaged at random, and the commands that read them.

Run by hand: DAMAGED=10000 pytest -m slow tests/test_damaged_files.py -s
Every trial is a process under limits of time and memory. SEED and KIND choose other damage.
"""

import hashlib
import importlib
import os
import pkgutil
import random
import shlex
import shutil
import time
from collections import Counter
from pathlib import Path

import pytest

import tarkit
from tests.fuzz.damage import damaged
from tests.fuzz.trial import Ending, run_command, run_forked
from tests.fuzz.world import CASES, OUT, Case, build

NUM_DAMAGED = int(os.environ.get("DAMAGED", "10000"))
SEED = int(os.environ.get("SEED", "0"))
KIND = os.environ.get("KIND", "")
LOGS = ("commands.jsonl", "manifest.json")
ROW_COUNTS = ".row_counts.json"
SPOKEN = ("warning", "damaged", "left out", "cannot be", "failed", "is not", "error")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(36_000)]


class World:
    """The folder of `build` and what its undamaged files lead to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "world"
        self.folder.mkdir()
        self.log = folder / "log"
        for module in pkgutil.walk_packages(tarkit.__path__, "tarkit."):
            if "__main__" not in module.name and "lmms" not in module.name:
                importlib.import_module(module.name)
        for name in ("qwen2", "llama"):
            importlib.import_module(f"transformers.models.{name}.modeling_{name}")
        built = run_forked(lambda: build(self.folder), self.folder, self.log)
        assert built.status == 0, built.output
        shards = self.folder / "half/state/step-0000004"
        self.shard = next(path.name for path in shards.glob("*.safetensors"))
        self.kept = folder / "kept"
        shutil.copytree(self.folder, self.kept, copy_function=shutil.copy2)
        self.before = _listing(self.folder)
        self.results: dict[tuple[str | None, str], tuple[Ending, dict[str, str]]] = {}
        self.unsteady: dict[tuple[str | None, str], set[str]] = {}

    def file(self, case: Case) -> Path:
        return self.folder / case.file.replace("SHARD", self.shard)

    def start(self, case: Case) -> None:
        shutil.rmtree(self.folder / "trial", ignore_errors=True)
        (self.folder / OUT).parent.mkdir()
        if case.start:
            shutil.copytree(self.folder / case.start, self.folder / OUT)

    def run(self, command: str) -> tuple[Ending, dict[str, str]]:
        ending = run_command(shlex.split(command), self.folder, self.log)
        return ending, _digests(self.folder / OUT)

    def undamaged(self, case: Case, command: str) -> dict[str, str]:
        """The files that a command makes, but for those that differ from run to run."""
        key = (case.start, command)
        if key not in self.results:
            runs = []
            for _ in range(2):
                self.start(case)
                runs.append(self.run(command))
                assert runs[-1][0].status in (0, 3), f"{command}\n{runs[-1][0].output}"
            one, two = (files for _, files in runs)
            self.unsteady[key] = {name for name in one if one[name] != two.get(name)}
            self.results[key] = runs[0]
        unsteady = self.unsteady[key]
        return {k: v for k, v in self.results[key][1].items() if k not in unsteady}

    def changed(self) -> list[str]:
        """Files that a trial wrote or removed outside of its folder; they are put back."""
        now = _listing(self.folder)
        names = {k for k in now.keys() | self.before.keys() if now.get(k) != self.before.get(k)}
        if names:
            shutil.rmtree(self.folder)
            shutil.copytree(self.kept, self.folder, copy_function=shutil.copy2)
        return sorted(names)

    def trial(self, case: Case, command: str, rng: random.Random) -> str | None:
        """What is wrong about a command with a damaged file; None where it did as it should."""
        expected = self.undamaged(case, command)
        self.start(case)
        file = self.file(case)
        whole, status = file.read_bytes(), file.stat()
        suffix = {".pt": ".pth", ".gz": ".tar"}.get(file.suffix, file.suffix)
        others = [path.read_bytes() for path in sorted((self.kept / "swaps").glob(f"*{suffix}"))]
        file.write_bytes(damaged(rng, file.name, whole, others))
        ending, files = self.run(command)
        if not case.start:
            file.write_bytes(whole)
            os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
        outside = self.changed()
        if fault := ending.fault():
            return fault
        if outside:
            return f"wrote outside of its folder: {outside}"
        files = {name: files.get(name, "") for name in expected}
        quiet = not any(word in ending.output.lower() for word in SPOKEN)
        if case.recorded and ending.status == 0 and quiet and files != expected:
            return f"a silent difference in {[n for n in expected if files[n] != expected[n]]}"
        return None


def _listing(folder: Path) -> dict[str, tuple[int, int]]:
    found = {}
    for root, _, names in os.walk(folder):
        if root.startswith(f"{folder}/trial"):
            continue
        for name in names:
            if name == ROW_COUNTS:  # kept where the rows are
                continue
            status = os.lstat(f"{root}/{name}")
            found[os.path.relpath(f"{root}/{name}", folder)] = (status.st_size, status.st_mtime_ns)
    return found


def _digests(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name not in LOGS)
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def test_no_damaged_file_is_more_than_a_sentence_or_a_failed_row(tmp_path: Path) -> None:
    world = World(tmp_path)
    cases = [case for case in CASES if KIND in f"{case.kind} {case.file}"]
    numbers: Counter[str] = Counter()
    faults: list[str] = []
    start = time.monotonic()
    for case in cases:
        for command in case.commands:
            world.undamaged(case, command)
    print(f"{len(cases)} files, {len(world.results)} commands: {time.monotonic() - start:.0f} s")
    for number in range(NUM_DAMAGED):
        case = cases[number % len(cases)]
        rng = random.Random(f"{SEED} {case.file} {number}")
        command = case.commands[number // len(cases) % len(case.commands)]
        numbers[case.kind] += 1
        if fault := world.trial(case, command, rng):
            faults.append(f"{number} {case.file}: {command}: {fault}")
            print(faults[-1], flush=True)
    kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(numbers.items()))
    print(f"{sum(numbers.values())} damaged files in {time.monotonic() - start:.0f} s: {kinds}")
    assert not faults, f"{len(faults)} faults:\n" + "\n".join(faults)
