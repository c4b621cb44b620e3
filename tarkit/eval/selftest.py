"""`tarkit eval selftest`: check that the scorers give the published figures.

Checks that need a benchmark's files read them from `data`, laid out as their owners name them:
`geneval/evaluation_metadata.jsonl`, `dsg/*_dsg.csv`, `mmmu/*.json`, `pope/coco_pope_*.json`.
A check whose file is missing is reported as not run. The other checks need no files.
"""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tarkit.errors import UserError
from tarkit.eval.benchmark_parts.dsg import (
    GraphAnswers,
    GraphQuestion,
    SceneGraph,
    graph_results,
    question_of,
)
from tarkit.eval.benchmarks.mmmu import open_correct
from tarkit.eval.metrics.frechet import frechet_distance, gaussian_of
from tarkit.eval.metrics.yes_no import parse_yes_no, score_yes_no
from tarkit.eval.shapes_proof import prove
from tarkit.scoring.geneval_prompts import geneval_jsonl
from tarkit.scoring.statistics import per_prompt

Outcome = Literal["passed", "failed", "not run"]

# The score of each judge's released answers on SD2.1's pictures; DSG prints PaLI's as 80.5.
DSG = {"pali17b": 80.54, "mplug": 83.13, "instructblip": 87.00}
DSG_GENERATOR = "sd2dot1"
# The scores of MMMU's released outputs; its own program prints 0.367 and 0.361.
MMMU = {"llava1.5_13b_total_val_output": 0.3667, "qwen_vl_total_val_output": 0.3611}
POPE_SPLITS = ("random", "popular", "adversarial")
POPE_CASES = {
    "Yes": True,
    "No, there is not.": False,
    "There is not a snowboard.": False,
    "Yes. No other is there": True,
    "NO": True,
    "": True,
}
WORLD_PROMPTS_A_TASK = 40
NOT_AS_PUBLISHED = (
    *(ArithmeticError, AttributeError, LookupError, OSError, RecursionError),
    *(TypeError, ValueError, csv.Error, UserError),
)


@dataclass(frozen=True)
class Check:
    """One check: the value found and the one expected, as text, or what its data lack."""

    name: str
    outcome: Outcome
    found: str
    wanted: str = ""


@dataclass(frozen=True)
class Selftest:
    """All checks, of which some may not have run."""

    checks: tuple[Check, ...]

    def count(self, outcome: Outcome) -> int:
        return sum(check.outcome == outcome for check in self.checks)

    def facts(self) -> list[dict[str, str]]:
        return [asdict(check) for check in self.checks]

    def text(self) -> str:
        width = max(len(check.name) for check in self.checks)
        lines = [
            f"{check.outcome:8} {check.name:{width}}  {check.found}"
            + (f"  (wanted {check.wanted})" if check.wanted else "")
            for check in self.checks
        ]
        counts = ", ".join(f"{self.count(o)} {o}" for o in ("passed", "failed", "not run"))
        return "\n".join([*lines, counts])


def run(*, data: Path | None = None, seed: int | None = None) -> Selftest:
    """Run every check; `seed` is that of the drawn world's scenes, None for a random one."""
    if data is not None and not data.is_dir():
        raise UserError(f"{data} is not a folder", hint="tarkit eval selftest --data DIR")
    scene_seed = int(np.random.SeedSequence().generate_state(1)[0]) if seed is None else seed
    checks = [*_dpg_cases(), _pope_cases(), *_frechet(scene_seed), _world(scene_seed)]
    checks.append(_with(data, "geneval/evaluation_metadata.jsonl", "GenEval's prompts", _geneval))
    for judge, published in DSG.items():
        name = f"DSG, answers of {judge}"
        checks.append(_with(data, f"dsg/{judge}_dsg.csv", name, _dsg(published)))
    for model, published in MMMU.items():
        name = f"MMMU, {model.split('_total')[0]}"
        checks.append(_with(data, f"mmmu/{model}.json", name, _mmmu(published)))
    for split in POPE_SPLITS:
        name = f"POPE, {split} split"
        checks.append(_with(data, f"pope/coco_pope_{split}.json", name, _pope))
    return Selftest(tuple(checks))


def _equal(name: str, found: Any, wanted: Any) -> Check:
    return Check(name, "passed" if found == wanted else "failed", str(found), str(wanted))


def _with(data: Path | None, file: str, name: str, check: Callable[[str, Path], Check]) -> Check:
    if data is None:
        return Check(name, "not run", f"no --data, in which {file} would be")
    if not (data / file).is_file():
        return Check(name, "not run", f"{data / file} is not there")
    try:
        return check(name, data / file)
    except NOT_AS_PUBLISHED as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())[:120]
        return Check(name, "failed", f"{data / file} cannot be read: {why}")


# ---- without data -------------------------------------------------------------------------------


def _dpg_cases() -> list[Check]:
    """Two cases by hand, each of which shows one of the published scorer's faults."""
    whole, spatial = "entity - whole", "relation - spatial"
    animal, hat = GraphQuestion(1, "", (), whole), GraphQuestion(2, "", (1,), spatial)
    fox, cup = SceneGraph("fox", "", (animal, hat)), SceneGraph("cup", "", (animal,))
    yes: GraphAnswers = {1: True, 2: True}
    lost: dict[str, Sequence[GraphAnswers]] = {"fox": [yes], "cup": [{1: False}]}
    tiles: dict[str, Sequence[GraphAnswers]] = {
        "cup": [{1: True}] * 2,
        "fox": [yes, {1: False, 2: True}],
    }

    def overall(published: bool) -> float:
        return graph_results([fox, cup], lost, as_published=published)["overall"]["value"]

    def spatially(published: bool) -> float:
        results = graph_results([cup, fox], tiles, as_published=published)
        return results["categories"]["relation"]["value"]

    return [
        # Fox 1, cup 0; as published the fox is skipped, because its first question is lost.
        _equal("DPG, the csv's first row, correct", overall(False), 0.5),
        _equal("DPG, the csv's first row, as published", overall(True), 0.0),
        # The hat without a fox counts as no; as published only that picture counts, as a yes.
        _equal("DPG, categories, correct", spatially(False), 0.5),
        _equal("DPG, categories, as published", spatially(True), 1.0),
    ]


def _pope_cases() -> Check:
    wrong = [answer for answer, yes in POPE_CASES.items() if parse_yes_no(answer) is not yes]
    return _equal(f"POPE, {len(POPE_CASES)} answers read", f"wrong: {wrong}", "wrong: []")


def _frechet(seed: int) -> list[Check]:
    """Against the closed form of Gaussians with diagonal covariance, and against scipy's root."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(4096, 6)) * np.arange(1, 7)
    one, other = gaussian_of(rows), gaussian_of(rows * 2 + 1)
    spread, grown = (np.diag(np.diag(each.covariance)) for each in (one, other))
    plain, wide = one._replace(covariance=spread), other._replace(covariance=grown)
    offset = float(((one.mean - other.mean) ** 2).sum())
    closed = offset + float(((np.sqrt(np.diag(spread)) - np.sqrt(np.diag(grown))) ** 2).sum())
    checks = [_near("Frechet distance, closed form", frechet_distance(plain, wide).value, closed)]
    name = "Frechet distance, scipy's matrix root"
    try:
        from scipy.linalg import sqrtm
    except ImportError:
        missing = "scipy is not installed: pip install 'tarkit[eval]'"
        return [*checks, Check(name, "not run", missing)]
    mixed = gaussian_of(rows @ rng.normal(size=(6, 6)))
    root = sqrtm(one.covariance @ mixed.covariance).real
    wanted = float(((one.mean - mixed.mean) ** 2).sum())
    wanted += float(np.trace(one.covariance + mixed.covariance - 2 * root))
    return [*checks, _near(name, frechet_distance(one, mixed).value, wanted)]


def _near(name: str, found: float, wanted: float) -> Check:
    near = abs(found - wanted) <= 1e-9 * max(abs(wanted), 1.0)
    return Check(name, "passed" if near else "failed", f"{found:.9g}", f"{wanted:.9g}")


def _world(seed: int) -> Check:
    proof = prove(a_task=WORLD_PROMPTS_A_TASK, seed=seed)
    name = f"drawn world, {proof.num_truths} prompts and {proof.tried.total()} corruptions"
    found = f"{proof.refused_truths} truths refused, {proof.accepted.total()} corruptions accepted"
    return _equal(f"{name}, seed {seed}", found, "0 truths refused, 0 corruptions accepted")


# ---- with data ----------------------------------------------------------------------------------


def _geneval(name: str, file: Path) -> Check:
    made, theirs = geneval_jsonl(), file.read_text(encoding="utf-8")
    same = sum(a == b for a, b in zip(made.splitlines(), theirs.splitlines(), strict=False))
    outcome: Outcome = "passed" if made == theirs else "failed"
    return Check(name, outcome, f"{same} lines equal", f"{len(theirs.splitlines())} and no other")


def _dsg(published: float) -> Callable[[str, Path], Check]:
    def check(name: str, file: Path) -> Check:
        questions: dict[str, list[GraphQuestion]] = defaultdict(list)
        answers: dict[str, dict[int, bool | None]] = defaultdict(dict)
        with file.open(encoding="utf-8", newline="") as lines:
            for row in csv.DictReader(lines):
                if row["t2i_model"] == DSG_GENERATOR:
                    one = question_of(row["question_id"], row["question"], row["dependency_id"])
                    questions[row["item_id"]].append(one)
                    answers[row["item_id"]][one.id] = row["answer"].strip().lower() == "yes"
        graphs = [SceneGraph(item, "", tuple(rows)) for item, rows in questions.items()]
        results = graph_results(graphs, {item: [one] for item, one in answers.items()})
        score = f"{100 * results['overall']['value']:.2f}"
        text = f"{score} over {len(graphs)} prompts, {len(results['malformed'])} malformed cells"
        outcome: Outcome = "passed" if score == f"{published:.2f}" else "failed"
        return Check(name, outcome, text, f"{published:.2f}")

    return check


def _mmmu(published: float) -> Callable[[str, Path], Check]:
    def check(name: str, file: Path) -> Check:
        key = file.with_name("answer_dict_val.json")
        if not key.is_file():
            return Check(name, "not run", f"{key} is not there")
        truths = json.loads(key.read_text(encoding="utf-8"))
        outputs = json.loads(file.read_text(encoding="utf-8"))
        right = []
        for item, truth in truths.items():
            answer, correct = str(outputs.get(item, "")), truth["ground_truth"]
            if truth["question_type"] == "multiple-choice":
                right.append(answer == correct)
            else:
                right.append(open_correct(answer, correct))
        score = f"{float(per_prompt(np.array(right)[:, None]).mean()):.4f}"
        outcome: Outcome = "passed" if score == f"{published:.4f}" else "failed"
        return Check(name, outcome, f"{score} over {len(right)} questions", f"{published:.4f}")

    return check


def _pope(name: str, file: Path) -> Check:
    lines = file.read_text(encoding="utf-8").splitlines()
    labels = [json.loads(line)["label"] == "yes" for line in lines if line.strip()]
    always = score_yes_no(["yes"] * len(labels), labels)
    found = (
        f"{len(labels)} questions, always yes: accuracy {always.accuracy:.3f}, F1 {always.f1:.3f}"
    )
    return _equal(name, found, "3000 questions, always yes: accuracy 0.500, F1 0.667")
