"""Findings of a paper beside one's own runs: verdicts follow from intervals, never from words."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from tarkit.cli.app import app
from tarkit.config import load_config
from tarkit.errors import UserError
from tarkit.eval.outcome import SCORES
from tarkit.report import report
from tarkit.report.findings import FindingsConfig, verdict
from tarkit.scoring.statistics import Estimate
from tests.report.sample_runs import Reader

TOML = """
note = "Small models."
same_within = 0.05

[measures]
understanding = { suite = "pope", chance = 0.5 }

[[tables]]
title = "Table 3"
arms = [
    { name = "codebook", label = "TA-Tok", paper = { understanding = "92.9" } },
    { name = "random", label = "random", paper = { understanding = "91.1" } },
    { name = "pre_align", label = "pre-align", paper = { understanding = "89.8" } },
]
findings = [
    { claim = "The codebook helps", arm = "codebook", than = "random", measure = "understanding", difference = "higher" },
    { claim = "Pre-alignment is worse", arm = "pre_align", than = "codebook", measure = "understanding", difference = "lower" },
]

[[figures]]
title = "Figure 5"
measure = "understanding"
x_name = "steps"
x = [1, 2]
curves = [{ label = "TA-Tok", arms = ["random", "codebook"] }]
"""  # noqa: E501

NUM_QUESTIONS = 40


def config(text: str, folder: Path) -> Path:
    file = folder / "findings.toml"
    file.write_text(text)
    return file


def results(folder: Path, correct: "np.ndarray[Any, Any]") -> Path:
    """The results of questions, of which as many are answered right as `correct` says."""
    folder.mkdir(parents=True)
    rows = []
    for place, is_right in enumerate(correct.tolist()):
        row = dict.fromkeys(SCORES.names) | {"suite": "pope", "task": "random", "column": "seen"}
        row |= {"item": f"q{place}", "seed": place // 2, "prompt": f"is there {place}?"}
        row |= {"sample": 0, "answer": "yes", "label": "yes", "correct": is_right}
        rows.append(row)
    pq.write_table(pa.Table.from_pylist(rows, schema=SCORES), folder / "scores.parquet")
    document = {"metrics": {"pope@shapes": {}}, "settings": {"n": 1}, "versions": {}}
    (folder / "results.json").write_text(json.dumps(document))
    return folder


def training(folder: Path, seed: int) -> Path:
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text('{"step": 40, "loss": 2.5}\n')
    settings = {"stage": "mllm", "steps": 40, "seed": seed, "batch_size": 8}
    manifest = {"kind": "mllm", "settings": settings, "tarkit": "0.1.0"}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture
def arms(tmp_path: Path) -> Callable[..., list[Path]]:
    """Results and trainings of three seeds; `shares` are those of right answers by arm."""

    def made(**shares: float) -> list[Path]:
        folders: list[Path] = []
        for arm, share in shares.items():
            for seed in range(3):
                rng = np.random.default_rng([seed, len(folders)])
                correct = rng.random(NUM_QUESTIONS) < share
                folders.append(results(tmp_path / "results" / f"{arm}-{seed}", correct))
                folders.append(training(tmp_path / "trainings" / f"{arm}-{seed}", seed))
        return folders

    return made


def row_of(page: Path, *begins: str) -> list[str]:
    return Reader(page.read_text()).row(*begins)


@pytest.mark.parametrize(
    ("codebook", "random", "expected"),
    [
        (0.95, 0.3, "appears"),
        (0.3, 0.95, "does not appear"),
        (0.6, 0.6, "cannot be told"),
    ],
)
def test_a_verdict_follows_the_runs(
    tmp_path: Path, arms: Any, codebook: float, random: float, expected: str
) -> None:
    runs = arms(codebook=codebook, random=random)
    page = report.run(runs, out=tmp_path / "page", findings=config(TOML, tmp_path))
    about = "Table 3, understanding:"
    first = row_of(page, f"The codebook helps {about} 92.9 against 91.1", "+1.8")
    assert first[2].endswith(" 3 seeds") and first[3] == expected
    worse = row_of(page, f"Pre-alignment is worse {about} 89.8 against 92.9", "−3.1")
    assert worse[2:] == ["–", "not run"]
    assert not Reader(page.read_text()).faults
    arm = row_of(page, "random", "91.1")
    assert arm[2].startswith("0.") and arm[3] == "3"
    assert row_of(page, "pre-align", "89.8")[2:] == ["not run", "0"]


def test_the_page_has_every_training_with_its_seed(tmp_path: Path, arms: Any) -> None:
    runs = arms(codebook=0.9, random=0.5)
    page = report.run(runs, out=tmp_path / "page", findings=config(TOML, tmp_path))
    assert row_of(page, "training") == ["training", "at step", "loss", "seed"]
    assert row_of(page, "random-2") == ["random-2", "40", "2.500", "2"]
    shared = (page.parent / "report.md").read_text().partition("## Repeat")[0]
    assert "batch_size" not in shared  # the same for all, and so folded
    text = page.read_text()
    assert "Small models." in text and "redrawing seeds and prompts" in text
    assert "--findings" in text and "0.05" in text
    assert (page.parent / "report.md").read_text().count("not run") == 2


@pytest.mark.parametrize(
    ("expected", "ends", "word"),
    [
        ("higher", (0.01, 0.2), "appears"),
        ("higher", (-0.2, -0.01), "does not appear"),
        ("higher", (-0.01, 0.2), "cannot be told"),
        ("higher", (0.0, 0.2), "cannot be told"),
        ("lower", (-0.2, -0.01), "appears"),
        ("lower", (0.01, 0.2), "does not appear"),
        ("same", (-0.02, 0.03), "appears"),
        ("same", (0.031, 0.2), "does not appear"),
        ("same", (-0.2, -0.031), "does not appear"),
        ("same", (-0.02, 0.04), "cannot be told"),
    ],
)
def test_the_rule(expected: str, ends: tuple[float, float], word: str) -> None:
    settings = FindingsConfig(measures={})
    difference = Estimate(sum(ends) / 2, *ends, 40)
    assert verdict(difference, expected, num_seeds=3, config=settings) == word
    assert verdict(difference, expected, num_seeds=2, config=settings) == "cannot be told"


def test_seeds_that_only_one_arm_has_are_left_out(tmp_path: Path, arms: Any) -> None:
    runs = [run for run in arms(codebook=0.95, random=0.3) if run.name != "random-1"]
    page = report.run(runs, out=tmp_path / "page", findings=config(TOML, tmp_path))
    first = row_of(page, "The codebook helps Table 3, understanding: 92.9 against 91.1")
    assert first[2].endswith(" 2 seeds") and first[3] == "cannot be told"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('than = "random"', 'than = "randon"', "Table 3: no arm is named randon"),
        ('"91.1"', '"did not converge"', "the paper's figures give no difference"),
        ("understanding = {", "reading = {", "no measure understanding"),
        ('difference = "higher"', 'difference = "more"', "difference"),
        ('than = "random"', 'than = "codebook"', "codebook does not compare with itself"),
        ("x = [1, 2]", "x = [1]", "TA-Tok has 2 arms for 1 x"),
        ('label = "random"', 'lable = "random"', "lable"),
    ],
)
def test_a_wrong_file_of_findings_is_a_sentence(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    file = config(TOML.replace(old, new), tmp_path)
    with pytest.raises(UserError, match=message):
        load_config(FindingsConfig, file)


def test_two_results_of_one_arm_and_seed_are_refused(tmp_path: Path, arms: Any) -> None:
    runs = arms(codebook=0.9)
    runs.append(results(tmp_path / "again" / "codebook-0", np.ones(NUM_QUESTIONS, bool)))
    with pytest.raises(UserError, match=r"both seed 0 of the arm codebook"):
        report.run(runs, out=tmp_path / "page", findings=config(TOML, tmp_path))


def test_the_command_writes_the_page(tmp_path: Path, arms: Any) -> None:
    runs = arms(codebook=0.9, random=0.5)
    words = ["report", *map(str, runs), "--findings", str(config(TOML, tmp_path))]
    done = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "page")])
    assert done.exit_code == 0, done.output
    again = report.run(runs, out=tmp_path / "again", findings=tmp_path / "findings.toml")
    assert again.exists()


def test_results_of_no_arm_are_named(tmp_path: Path, arms: Any) -> None:
    runs = arms(codebook=0.9, random=0.5, randon=0.5)
    runs.append(results(tmp_path / "alone", np.ones(NUM_QUESTIONS, bool)))
    page = report.run(runs, out=tmp_path / "page", findings=config(TOML, tmp_path))
    assert "results of no arm of the findings: randon, alone." in Reader(page.read_text()).text
    without = report.run(runs[:-7], out=tmp_path / "without", findings=tmp_path / "findings.toml")
    assert "no arm of the findings" not in without.read_text()
