"""Self-reflect on the drawn world, end to end with the embedded model on few prompts."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from torch import Tensor

from tarkit.errors import UserError
from tarkit.eval import reflect, shapes_pools
from tarkit.eval.metrics.selection import ORACLE
from tarkit.inference.tar_model import Tar
from tarkit.scoring.scorers import Shown
from tarkit.scoring.statistics import TASKS
from tarkit.vocab import Scale

EXTERNAL = ("tests.eval.test_reflect:brightness", None)


class Brightness:
    columns = ("level",)

    def score(self, shown: Sequence[Shown]) -> list[dict[str, float]]:
        return [{"level": float(np.asarray(one.picture).mean())} for one in shown]


def brightness() -> Brightness:
    return Brightness()


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("reflect") / "out"
    return reflect.run(out=out, limit=12, batch_size=6, external=EXTERNAL).path


def results(out: Path) -> Any:
    return json.loads((out / "results.json").read_text())


def test_every_arm_has_every_budget_and_none_beats_the_oracle(done: Path) -> None:
    arms = json.loads((done / "results.json").read_text())["metrics"]["reflect@shapes"]["arms"]
    for name, budgets in arms.items():
        assert list(budgets) == ["1", "2", "4", "8"]
        if name != "edit-yes-codes":  # its pictures are none of the pool's
            assert budgets["1"]["value"] == arms["single"]["1"]["value"], name
            assert all(budgets[n]["value"] <= arms[ORACLE][n]["value"] for n in budgets)
    # A pool of eight is eight of one: a single picture is the mean of them all at every budget.
    assert arms["single"]["8"]["num_prompts"] == arms["oracle"]["8"]["num_prompts"]
    assert arms["best-yes-codes"]["8"]["tokens"] < arms["best-yes-pixels"]["8"]["tokens"]


def test_pixels_are_asked_about_at_the_scale_that_reads_and_counted_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tar = Tar.load("mini")
    assert (tar.default_scale, tar.read_scale) == (Scale.HALF, Scale.FULL)
    # The gain is of the 36 codes that were drawn, P(yes) of 144; each reads what it is counted for.
    cost = reflect._cost([{"codes": [0] * 36, "judge_tokens": 10}], tar)
    assert (cost.words, cost.pixels) == (36, 64)
    assert cost.judge == {
        "yes_codes": 36 + 10,
        "yes_pixels": 144 + 10,
        "gain_codes": 2 * 36 + 10,
        "gain_pixels": 2 * 36 + 10,
    }
    read: dict[str, int] = {}

    def judge(_tar: Tar, codes: Tensor, prompts: Sequence[str], by: str) -> list[float]:
        read[by] = codes.shape[1]
        return [0.0] * len(prompts)

    monkeypatch.setattr(shapes_pools, "judge", judge)
    maker = shapes_pools.PoolMaker(tmp_path, tar, Scale.HALF, tar.sampling, None, "")
    maker._judge_pixels([Image.new("RGB", (64, 64))], ["a photo of a ring"])
    assert read == {"yes": 144, "gain": 36}


def test_a_judge_beside_the_model_has_an_arm_and_a_rank(done: Path) -> None:
    found = results(done)["metrics"]["reflect@shapes"]
    assert "best-external-pixels" in found["arms"]
    judged = found["judge"]["external_pixels"]["all"]
    assert 0 <= judged["auroc"]["value"] <= 1 and "tpr" not in judged


def test_the_pictures_of_one_arm_are_files_with_their_verdicts(done: Path) -> None:
    rows = pq.read_table(done / "scores.parquet").to_pylist()
    arms = results(done)["metrics"]["reflect@shapes"]["arms"]
    six = [row for row in rows if row["task"] in TASKS]
    tasks = {row["task"] for row in six}
    means = [np.mean([r["correct"] for r in six if r["task"] == task]) for task in tasks]
    assert np.mean(means) == pytest.approx(arms["best-gain-pixels"]["8"]["value"])
    assert all((done / row["file"]).read_bytes().startswith(b"\x89PNG") for row in rows)


def test_a_run_that_was_killed_ends_in_the_same_results(done: Path, tmp_path: Path) -> None:
    report, found = (done / "report.md").read_text(), results(done)
    (done / "pools" / "00001.parquet").unlink()
    (done / "edits" / "00000.parquet").unlink()
    (done / "results.json").unlink()
    reflect.run(out=done, limit=12, batch_size=6, external=EXTERNAL)
    assert results(done) == found

    def but_seconds(text: str) -> str:
        return text.split("## Seconds")[0]

    assert but_seconds((done / "report.md").read_text()) == but_seconds(report)


@pytest.mark.parametrize("folder", ["pools", "edits", "renders"])
def test_no_changed_byte_and_no_other_file_is_taken_for_candidates(done: Path, folder: str) -> None:
    files = sorted((done / folder).glob("*.parquet"))
    whole = files[0].read_bytes()
    try:
        for place in (len(whole) // 2, len(whole) - 12):
            changed = bytearray(whole)
            changed[place] ^= 4
            files[0].write_bytes(changed)
            with pytest.raises(UserError, match=rf"{files[0].name} is damaged"):
                reflect.run(out=done, limit=12, batch_size=6, external=EXTERNAL)
        other = done / ("pools" if folder == "renders" else "renders") / files[0].name
        files[0].write_bytes(other.read_bytes())
        with pytest.raises(UserError, match=f"is no file of {folder}"):
            reflect.run(out=done, limit=12, batch_size=6, external=EXTERNAL)
        if folder == "pools":
            files[0].write_bytes(files[1].read_bytes())
            with pytest.raises(UserError, match="not those of this run's candidates"):
                reflect.run(out=done, limit=12, batch_size=6, external=EXTERNAL)
    finally:
        files[0].write_bytes(whole)


def test_seconds_of_a_killed_run_are_left_out(done: Path) -> None:
    before = shapes_pools.mean_seconds(done)
    text = (done / "seconds.jsonl").read_text()
    with (done / "seconds.jsonl").open("a") as file:
        file.write('null\n{"pictures": 3, "words": "x"}\n{"pictures": 6, "wor')
    assert shapes_pools.mean_seconds(done) == before
    (done / "seconds.jsonl").write_text(text)


def test_two_processes_share_the_work(
    done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    out = tmp_path / "two"
    monkeypatch.setenv("RANK", "1")
    assert (
        "are left to the other processes"
        in reflect.run(out=out, limit=12, batch_size=6, external=EXTERNAL).report
    )
    assert not (out / "results.json").exists()
    monkeypatch.setenv("RANK", "0")
    reflect.run(out=out, limit=12, batch_size=6, external=EXTERNAL)
    assert results(out) == results(done)


def test_other_settings_are_refused(done: Path) -> None:
    with pytest.raises(UserError, match="other settings"):
        reflect.run(out=done, limit=13, batch_size=6, external=EXTERNAL)
