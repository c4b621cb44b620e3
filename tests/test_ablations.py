"""The script of pipelines/ablations: every command as bash writes it, and an arm for every finding.

A `tarkit` that only notes its words and makes its `--out` stands in for the program.
"""

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tarkit.config import Config, load_config
from tarkit.report.findings import FindingsConfig
from tests.test_docs import NUMBERS, understood

FOLDER = Path(__file__).resolve().parents[1] / "pipelines" / "ablations"
FINDINGS = load_config(FindingsConfig, FOLDER / "findings.toml")

STAND_IN = r"""#!/bin/sh
printf '%s\037' "$@" '
' >> "$NOTES"
for word; do
    if [ "$before" = --out ]; then
        mkdir -p "$word"
        case $1 in
            train) touch "$word/metrics.jsonl" "$word/model.safetensors" ;;
            eval) touch "$word/results.json" ;;
        esac
    fi
    before=$word
done
"""
# Stands in for encoder_of.py as well, and for the question where the embedded model lies.
PYTHON = """#!/bin/sh
if [ "$1" = -c ]; then echo "$BASE_PARTS"; else mkdir -p "$3"; touch "$3/model.safetensors"; fi
"""


def commands_of(work: Path, folder: Path) -> list[tuple[str, ...]]:
    """The words of every `tarkit` that the script calls."""
    programs, base = folder / "bin", folder / "base"
    for name, text in (("tarkit", STAND_IN), ("python", PYTHON)):
        programs.mkdir(exist_ok=True)
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    for part in ("ta_tok", "ar_dtok"):
        (base / part).mkdir(parents=True, exist_ok=True)
    (work / "corpus").mkdir(parents=True, exist_ok=True)
    (work / "corpus" / "glosses.txt").write_text("a gloss\n")
    notes = folder / "notes"
    notes.write_text("")
    path = f"{programs}:{os.environ['PATH']}"
    given = {"PATH": path, "NOTES": str(notes), "BASE_PARTS": str(base), "STEPS": "40"}
    done = subprocess.run(
        [FOLDER / "run.sh", work], env=os.environ | given, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    lines = [line.strip("\n\x1f") for line in notes.read_text().split("\n\x1f")]
    return [tuple(line.split("\x1f")) for line in lines if line]


@pytest.fixture(scope="module")
def called(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[str, ...]]]:
    folder = tmp_path_factory.mktemp("ablations")
    return folder, commands_of(folder / "work", folder)


def test_every_command_is_accepted_with_its_settings(
    called: Any, config_class: Callable[[str], type[Config]]
) -> None:
    _, commands = called
    # Seeds differ in nothing else: the first speaks for all.
    for words in [words for words in commands if not re.search(r"-[12]$", words[-1])]:
        path, arguments = understood(words)
        if path in NUMBERS:
            overrides = arguments.get("overrides") or ()
            load_config(config_class(NUMBERS[path]), arguments.get("config"), overrides)


def test_each_arm_is_trained_with_three_seeds_and_one_budget(called: Any) -> None:
    _, commands = called
    arms: dict[str, list[str]] = {}
    for words in commands:
        name, _, seed = Path(words[-1]).name.rpartition("-")
        if words[:2] == ("train", "mllm") and name:
            assert f"seed={seed}" in words
            steps = [word for word in words if word.startswith("steps=")][-1]
            alone = name.endswith("_alone") and name != "t2i_alone"
            assert steps == f"steps={160 if name == 'tables' else 20 if alone else 40}"
            arms.setdefault(name, []).append(seed)
    assert len(arms) > 20 and all(seeds == ["0", "1", "2"] for seeds in arms.values())


def test_each_arm_of_a_finding_is_scored_for_three_seeds(called: Any) -> None:
    folder, _ = called
    scored = {path.name for path in (folder / "work" / "results").iterdir()}
    arms = {arm.name for table in FINDINGS.tables for arm in table.arms}
    arms |= {arm for each in FINDINGS.figures for curve in each.curves for arm in curve.arms}
    assert scored == {f"{arm}-{seed}" for arm in arms for seed in range(3)}


def test_a_finished_pipeline_only_writes_its_page_again(called: Any) -> None:
    folder, first = called
    again = commands_of(folder / "work", folder)
    # Artifacts skip what is finished by themselves.
    assert {words[0] for words in again} == {"curate", "encode", "report"}
    assert again[-1] == first[-1] and again[-1][0] == "report"
    runs = [word for word in again[-1] if word.startswith(str(folder / "work"))][:-1]
    assert {"codebook-0", "lm", "ta_tok_lm"} <= {Path(run).name for run in runs}
    # A run of results and one of a training for each arm and seed.
    assert len([run for run in runs if Path(run).name == "random-1"]) == 2


def test_no_finding_has_both_arms_the_same() -> None:
    for table in FINDINGS.tables:
        assert all(finding.arm != finding.than for finding in table.findings)
