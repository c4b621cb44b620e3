"""Every command that writes, killed at a file operation or an instant, and run again.

Run by hand: KILLS=200 pytest -m slow tests/test_kills.py -s
Afterwards the output is that of a run that nobody killed, and no temporary file is left.
"""

import os
import random
import shlex
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import typer.core
import typer.main

from tarkit.cli.app import app
from tests.fuzz import cases as made
from tests.fuzz.cases import OUT, Case
from tests.fuzz.trial import CRASHED, count_operations, killed_command
from tests.fuzz.world import World

NUM_KILLS = int(os.environ.get("KILLS", "200"))
SEED = int(os.environ.get("SEED", "0"))
SIGNALS = ("SIGKILL", "SIGTERM", "SIGINT")
REFUSALS = (
    *("already holds a model", "is not empty", "is not an empty folder"),
    "is there already, and is not written over",
)

MODEL = "--model tar --device cpu"
DRAWN = "--model mini --device cpu"  # its pictures are as large as the shapes detector wants
IMAGES = f"--images pictures --out {OUT}"
COMMANDS = {
    "render": f"curate render --set count=6 --set shard_size=3 --out {OUT}",
    "ingest": made.INGEST.format("raw --set shard_size=2"),
    "prompts": made.PROMPTS.format("prompts.txt --set shard_size=3"),
    "download": made.DOWNLOAD,
    "download again": made.DOWNLOAD + " --retry-failed",
    "caption": "curate caption pictures --llm m --server SERVER --examples examples.txt "
    f"--out {OUT}",
    "split": f"curate split prompts --llm m --server SERVER --out {OUT}",
    "synthesize": made.SYNTHESIZE,
    "score": f"curate score pictures --scorer pixels --out {OUT}",
    "judge": f"curate judge pictures --llm m --server SERVER --out {OUT}",
    "chats": made.CHATS,
    "text": f"curate chats --text text.txt --out {OUT}",
    "encode": made.ENCODE,
    "encode again": made.ENCODE + " --retry-failed",
    "train mllm": made.TRAIN,
    "finetune": f"train mllm finetune.toml --chats chats --tokenizer models/tokenizer "
    f"--lm models/mllm --out {OUT}",
    "train grpo": "train grpo grpo.toml --prompts few.txt --scorer tests.train.test_grpo:Bright "
    f"{MODEL} --out {OUT}",
    "train ar-dtok": made.DTOK + " --set checkpoint_every=1",
    "train dif-dtok": "train dif-dtok dif_dtok.toml --tokenizer models/tokenizer "
    f"--sana models/sana {IMAGES}",
    "train vqvae": made.VQVAE + " --set checkpoint_every=1",
    "train encoder": f"train encoder encoder.toml {IMAGES}",
    "train tokenizer": "train tokenizer tokenizer.toml --encoder models/encoder --lm models/lm "
    + IMAGES,
    "assemble": made.ASSEMBLE,
    "assemble half": made.ASSEMBLE + " --half",
    "export": made.EXPORT,
    "convert": f"models convert others/vq.pt --out {OUT}",
    "generate": made.GENERATE,
    "generate many": f"generate --prompts few.txt --n 2 --out {OUT} {MODEL}",
    "reconstruct": f"reconstruct raw/00.png --out {OUT}/sheet.png {MODEL}",
    "eval rfid": f"eval rfid raw raw --model tar --out {OUT}",
    "eval gfid": f"eval gfid raw reference.npz --model tar --out {OUT}",
    "eval shapes": f"eval shapes --suite geneval --suite pope --limit 2 --out {OUT} {DRAWN}",
    "eval reflect": f"eval reflect --limit 1 --out {OUT} {DRAWN}",
    "eval prepare": f"eval prepare mmbench {made.data_of('mmbench')} --out {OUT}",
    "eval generate": f"eval generate {OUT} {DRAWN}",
    "eval answer": f"eval answer {OUT} {MODEL}",
    "eval score": f"eval score {OUT} --scorer shapes",
    "eval collect": f"eval collect {OUT} verdicts.jsonl",
    "eval export": f"eval export drawn --format geneval-dir --out {OUT}",
    "eval export npz": f"eval export drawn --format adm-npz --out {OUT}",
    "eval lmms": f"eval lmms --tasks colours,more --out {OUT} {MODEL}",
    "eval geneval": f"eval geneval {made.data_of('geneval')} --n 1 --scorer shapes "
    f"--out {OUT} {DRAWN}",
    "eval geneval2": f"eval geneval2 {made.data_of('geneval2')} --n 1 --scorer-model models/seer "
    f"--out {OUT} {MODEL}",
    "eval dpg": f"eval dpg {made.data_of('dpg')} --n 1 --scorer-model tar --out {OUT} {MODEL}",
    **{
        f"eval {name}": f"eval {name} {made.data_of(name)} --out {OUT} {MODEL}"
        for name in ("pope", "mme", "mmbench", "seed", "gqa", "mmmu", "mmvp")
    },
    "prepare": f"finetune tar --images raw --captions captions.csv --prepare --out {OUT}",
    "compare": f"compare sketched sketched --images pictures --features-of tar --out {OUT}",
    "verify": f"verify {OUT} --repair",
    "report": made.REPORT,
    "dialect": made.DIALECT,
    "cp": f"cp smoke {OUT}",
    "inspect": f"inspect pictures --out {OUT}/sheet.png",
}
STARTS = {
    "download again": "downloaded",
    "encode again": "tokens",
    "eval generate": "prepared",
    "eval answer": "asked",
    "eval score": "drawn",
    "eval collect": "drawn",
    "verify": "torn",
}
"""The folder of which --out is a copy when the command begins."""
NOT_KILLED = {
    "plan": "writes nothing",
    "version": "writes nothing",
    "bench": "writes nothing",
    "cat": "writes nothing",
    "demo": "writes nothing",
    "doctor": "writes nothing",
    "ls": "writes nothing",
    "describe": "writes nothing",
    "eval selftest": "writes nothing",
    "models fetch": "the hub's client writes into its own cache",
    "models push": "writes on the hub alone",
}


def commands_of(command: Any, *words: str) -> Iterator[tuple[str, Any]]:
    """Every command of the command line by its words, without the groups."""
    if isinstance(command, typer.core.TyperGroup):
        for name, below in command.commands.items():
            yield from commands_of(below, *words, name)
    else:
        yield " ".join(words), command


def test_every_command_that_writes_has_a_kill() -> None:
    known = dict(commands_of(typer.main.get_command(app)))
    without = {
        name
        for name in known
        if not any(f"{line} ".startswith(f"{name} ") for line in COMMANDS.values())
    }
    assert without == set(NOT_KILLED)
    for name, why in NOT_KILLED.items():
        options = {word for option in known[name].params for word in option.opts}
        assert "--out" not in options, f"{name}: {why}"


class Kills:
    """Kills commands in a world, and says what was wrong afterwards."""

    def __init__(self, world: World, rng: random.Random) -> None:
        self.world = world
        self.rng = rng
        self.operations: dict[str, int] = {}
        self.landed: Counter[str] = Counter()

    def kill(self, name: str) -> str | None:
        """One kill of a command and its second run; None where all is as it should be."""
        world, command = self.world, COMMANDS[name]
        words = shlex.split(command.replace("SERVER", world.url))
        asks = "SERVER" in command
        file = f"{name}.http" if asks else "raw/00.png"
        kind = "server answer" if asks else name
        case = Case(kind, file, (command,), start=STARTS.get(name))
        expected = world.undamaged(case, command)
        if name not in self.operations:
            world.start(case)
            count = world.log.with_name("count")
            self.operations[name] = count_operations(words, world.folder, world.log, count)
        world.start(case)
        number = self.rng.randint(1, self.operations[name])
        seconds = world.results[case.start, command][0].seconds
        after_s = self.rng.uniform(0.0, 1.1) * seconds if self.rng.random() < 0.4 else None
        sent = self.rng.choice(SIGNALS)
        place = f"{name}: {sent} at {f'{after_s:.2f} s' if after_s else f'operation {number}'}"
        first = killed_command(
            words, world.folder, world.log, number=number, name=sent, after_s=after_s
        )
        self.landed[name] += first.status not in (0, 3)
        if first.status == CRASHED or "Traceback (most recent" in first.output:
            return f"{place}: {first.fault()}"
        second, files = world.run(command)
        if fault := second.fault():
            return f"{place}: then {fault}"
        if second.status not in (0, 3) and not any(text in second.output for text in REFUSALS):
            return f"{place}: then {second.output[-300:]}"
        differing = [k for k, digest in expected.items() if files.get(k) != digest]
        if differing:
            return f"{place}: another {differing}"
        more = files.keys() - world.results[case.start, command][1].keys()
        if more := {path for path in more if not path.startswith("tensorboard/")}:
            return f"{place}: more than a whole run, {more}"
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
