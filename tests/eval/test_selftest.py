"""The checks of the scorers: what runs without data, and what missing or wrong data are."""

import json
from pathlib import Path

import pytest

from tarkit.errors import UserError
from tarkit.eval import selftest
from tarkit.scoring.geneval_prompts import geneval_jsonl


def outcomes(data: Path | None) -> dict[str, str]:
    return {check.name: check.outcome for check in selftest.run(data=data, seed=3).checks}


@pytest.fixture(autouse=True)
def _few_scenes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "WORLD_PROMPTS_A_TASK", 2)


def test_without_data_the_made_cases_pass_and_the_rest_is_not_run() -> None:
    found = outcomes(None)
    assert {name for name, outcome in found.items() if outcome == "not run"} == {
        "GenEval's prompts",
        *(f"DSG, answers of {judge}" for judge in selftest.DSG),
        *("MMMU, llava1.5_13b", "MMMU, qwen_vl"),
        *(f"POPE, {split} split" for split in selftest.POPE_SPLITS),
    }
    assert "failed" not in found.values()
    assert list(found.values()).count("passed") == len(found) - 9


def test_the_published_prompts_pass_and_one_changed_byte_fails(tmp_path: Path) -> None:
    file = tmp_path / "geneval" / "evaluation_metadata.jsonl"
    file.parent.mkdir()
    file.write_text(geneval_jsonl())
    assert outcomes(tmp_path)["GenEval's prompts"] == "passed"
    file.write_text(geneval_jsonl().replace("a bench", "a  bench", 1))
    assert outcomes(tmp_path)["GenEval's prompts"] == "failed"


def test_other_answers_than_the_published_fail(tmp_path: Path) -> None:
    (tmp_path / "dsg").mkdir()
    head = "t2i_model,item_id,question,question_id,dependency_id,answer\n"
    (tmp_path / "dsg" / "mplug_dsg.csv").write_text(
        head + "sd2dot1,a,?,1,0,yes\nsd2dot1,a,?,2,1,no\nother,b,?,1,0,no\n"
    )
    (tmp_path / "pope").mkdir()
    lines = [json.dumps({"label": label}) for label in ("yes", "no", "no")]
    (tmp_path / "pope" / "coco_pope_random.json").write_text("\n".join(lines))
    checks = {check.name: check for check in selftest.run(data=tmp_path, seed=3).checks}
    mplug = checks["DSG, answers of mplug"]
    assert (mplug.outcome, mplug.found) == ("failed", "50.00 over 1 prompts, 0 malformed cells")
    assert checks["POPE, random split"].outcome == "failed"


@pytest.mark.parametrize("text", ["[1]", "{", "[" * 100_000, '"x"', "\0", '{"label": 1}\nnull'])
def test_a_damaged_file_fails_its_own_check_alone(text: str, tmp_path: Path) -> None:
    for file in ("pope/coco_pope_random.json", "mmmu/answer_dict_val.json"):
        (tmp_path / file).parent.mkdir()
        (tmp_path / file).write_text(text)
    (tmp_path / "mmmu/qwen_vl_total_val_output.json").write_text("{}")
    found = outcomes(tmp_path)
    assert found["POPE, random split"] == found["MMMU, qwen_vl"] == "failed"
    assert list(found.values()).count("failed") == 2


def test_mmmu_needs_its_key_beside_the_outputs(tmp_path: Path) -> None:
    (tmp_path / "mmmu").mkdir()
    (tmp_path / "mmmu" / "qwen_vl_total_val_output.json").write_text("{}")
    assert outcomes(tmp_path)["MMMU, qwen_vl"] == "not run"


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a folder"):
        selftest.run(data=tmp_path / "none")
