"""Every command that writes, killed at a file operation or an instant, and run again.

Run by hand: KILLS=200 pytest -m slow tests/test_kills.py -s
Afterwards the output is that of a run that nobody killed, and no temporary file is left.
"""

import os
import random
import shlex
from collections import Counter
from pathlib import Path

import pytest

from tests.fuzz import world as made
from tests.fuzz.trial import CRASHED, count_operations, killed_command
from tests.fuzz.world import OUT, Case, World

NUM_KILLS = int(os.environ.get("KILLS", "200"))
SEED = int(os.environ.get("SEED", "0"))
SIGNALS = ("SIGKILL", "SIGTERM", "SIGINT")
REFUSALS = ("already holds a model", "is not empty")

COMMANDS = {
    "render": f"curate render --set count=6 --set shard_size=3 --out {OUT}",
    "ingest": made.INGEST.format("raw --set shard_size=2"),
    "prompts": made.PROMPTS.format("prompts.txt --set shard_size=3"),
    "chats": made.CHATS,
    "text": f"curate chats --text text.txt --out {OUT}",
    "encode": made.ENCODE,
    "train mllm": made.TRAIN,
    "train ar-dtok": made.DTOK + " --set checkpoint_every=1",
    "train vqvae": made.VQVAE + " --set checkpoint_every=1",
    "assemble": made.ASSEMBLE,
    "assemble half": made.ASSEMBLE + " --half",
    "export": made.EXPORT,
    "convert": f"models convert others/vq.pt --out {OUT}",
    "generate": made.GENERATE,
    "generate many": f"generate --prompts few.txt --n 2 --model tar --out {OUT} --device cpu",
    "reconstruct": f"reconstruct raw/00.png --model tar --out {OUT}/sheet.png --device cpu",
    "eval rfid": f"eval rfid raw raw --model tar --out {OUT}",
    "report": made.REPORT,
    "inspect": f"inspect pictures --out {OUT}/sheet.png",
}


class Kills:
    """Kills commands in a world, and says what was wrong afterwards."""

    def __init__(self, world: World, rng: random.Random) -> None:
        self.world = world
        self.rng = rng
        self.operations: dict[str, int] = {}
        self.landed: Counter[str] = Counter()

    def kill(self, name: str) -> str | None:
        """One kill of a command and its second run; None where all is as it should be."""
        world, words = self.world, shlex.split(COMMANDS[name])
        case = Case(name, "raw/00.png", (COMMANDS[name],))
        expected = world.undamaged(case, COMMANDS[name])
        if name not in self.operations:
            world.start(case)
            count = world.log.with_name("count")
            self.operations[name] = count_operations(words, world.folder, world.log, count)
        world.start(case)
        number = self.rng.randint(1, self.operations[name])
        seconds = world.results[None, COMMANDS[name]][0].seconds
        after_s = self.rng.uniform(0.0, 1.1) * seconds if self.rng.random() < 0.4 else None
        sent = self.rng.choice(SIGNALS)
        place = f"{name}: {sent} at {f'{after_s:.2f} s' if after_s else f'operation {number}'}"
        first = killed_command(
            words, world.folder, world.log, number=number, name=sent, after_s=after_s
        )
        self.landed[name] += first.status not in (0, 3)
        if first.status == CRASHED or "Traceback (most recent" in first.output:
            return f"{place}: {first.fault()}"
        second, files = world.run(COMMANDS[name])
        if fault := second.fault():
            return f"{place}: then {fault}"
        if second.status not in (0, 3) and not any(text in second.output for text in REFUSALS):
            return f"{place}: then {second.output[-300:]}"
        differing = [k for k, digest in expected.items() if files.get(k) != digest]
        if differing:
            return f"{place}: another {differing}"
        trial = world.folder / "trial"
        left = [str(p.relative_to(trial)) for p in trial.rglob("*") if p.name.endswith(".tmp")]
        outside = world.changed()
        return f"{place}: left {left} {outside}" if left or outside else None


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_a_killed_command_run_again_ends_as_one_that_was_not_killed(tmp_path: Path) -> None:
    kills = Kills(World(tmp_path), random.Random(SEED))
    names = sorted(COMMANDS)
    faults: list[str] = []
    for number in range(NUM_KILLS):
        if number and number % 20 == 0:
            print(f"{number} kills so far, {len(faults)} faults", flush=True)
        if fault := kills.kill(names[number % len(names)]):
            faults.append(fault)
            print(fault, flush=True)
    landed = ", ".join(f"{name} {count}" for name, count in sorted(kills.landed.items()))
    print(f"{NUM_KILLS} kills, {kills.landed.total()} before the end: {landed}")
    assert not faults, f"{len(faults)} faults:\n" + "\n".join(faults)
