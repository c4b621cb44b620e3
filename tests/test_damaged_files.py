"""Slow: files of every kind that tarkit reads, damaged at random, and the commands that read them.

Run by hand: DAMAGED=10000 pytest -m slow tests/test_damaged_files.py -s
Every trial is a process under limits of time and memory. SEED and KIND choose other damage.
"""

import os
import random
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.fuzz.cases import CASES, OUT, Case
from tests.fuzz.damage import damaged
from tests.fuzz.world import World

NUM_DAMAGED = int(os.environ.get("DAMAGED", "10000"))
SEED = int(os.environ.get("SEED", "0"))
KIND = os.environ.get("KIND", "")
SPOKEN = ("warning", "damaged", "left out", "cannot be", "failed", "is not", "error")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(36_000)]


def trial(world: World, case: Case, command: str, rng: random.Random) -> str | None:
    """What is wrong about a command with a damaged file; None where it did as it should."""
    expected = world.undamaged(case, command)
    world.start(case)
    file = world.file(case)
    whole, status = file.read_bytes(), file.stat()
    suffix = {".pt": ".pth", ".gz": ".tar"}.get(file.suffix, file.suffix)
    others = [path.read_bytes() for path in sorted((world.kept / "swaps").glob(f"*{suffix}"))]
    file.write_bytes(damaged(rng, file.name, whole, others))
    ending, files = world.run(command)
    if not case.file.startswith(OUT):
        file.write_bytes(whole)
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    outside = world.changed()
    if fault := ending.fault():
        return fault
    if outside:
        return f"wrote outside of its folder: {outside}"
    own = case.file.removeprefix(f"{OUT}/")  # what is damaged differs itself
    expected = {name: digest for name, digest in expected.items() if name != own}
    files = {name: files.get(name, "") for name in expected}
    quiet = not any(word in ending.output.lower() for word in SPOKEN)
    if case.recorded and ending.status == 0 and quiet and files != expected:
        return f"a silent difference in {[n for n in expected if files[n] != expected[n]]}"
    return None


def test_no_damaged_file_is_more_than_a_sentence_or_a_failed_row(tmp_path: Path) -> None:
    world = World(tmp_path)
    cases = [case for case in CASES if KIND in f"{case.kind} {case.file}"]
    numbers: Counter[str] = Counter()
    faults: list[str] = []
    start = time.monotonic()
    print(f"{len(cases)} files, {sum(len(case.commands) for case in cases)} uses", flush=True)
    for number in range(NUM_DAMAGED):
        case = cases[number % len(cases)]
        rng = random.Random(f"{SEED} {case.file} {number}")
        command = case.commands[number // len(cases) % len(case.commands)]
        numbers[case.kind] += 1
        if number and number % 100 == 0:
            print(f"{number} so far, {len(faults)} faults", flush=True)
        if fault := trial(world, case, command, rng):
            faults.append(f"{number} {case.file}: {command}: {fault}")
            print(faults[-1], flush=True)
    kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(numbers.items()))
    print(f"{sum(numbers.values())} damaged files in {time.monotonic() - start:.0f} s: {kinds}")
    assert not faults, f"{len(faults)} faults:\n" + "\n".join(faults)
