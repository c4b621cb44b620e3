"""Exports, read back as the published scorers read them; pictures and answers are made by hand."""

import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer.main
from PIL import Image

from tarkit.artifacts.manifest import begin_directory
from tarkit.cli.app import app
from tarkit.errors import UserError
from tarkit.eval import export, prepare, score
from tarkit.eval.benchmarks import LAYOUTS
from tarkit.eval.run import open_run

# ---- pictures -----------------------------------------------------------------------------------


@pytest.fixture
def drawn(tmp_path: Path) -> Path:
    """Two prompts of GenEval, two pictures each, every one a single grey of its own."""
    out = tmp_path / "run"
    prepare.run("geneval", out=out, n=2, limit=2)
    run = open_run(out)
    for one in run.pictures():
        level = 40 * one.row + 10 * one.sample
        grey(run.picture_path(one.row, one.sample), level)
    return out


def grey(file: Path, level: int, size: tuple[int, int] = (6, 4)) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (level, level, level)).save(file)


def test_adm_reads_one_array_of_prompts_one_after_the_other(drawn: Path, tmp_path: Path) -> None:
    out = export.run(drawn, out=tmp_path / "adm", layout="adm-npz")
    with np.load(out / "samples.npz") as found:
        assert found.files == ["arr_0"]
        array = found["arr_0"]
    assert array.dtype == np.uint8 and array.shape == (4, 4, 6, 3)
    assert [int(picture[3, 5, 2]) for picture in array] == [0, 10, 40, 50]
    assert all(np.ptp(picture) == 0 for picture in array)
    again = export.run(drawn, out=tmp_path / "again", layout="adm-npz")
    assert (again / "samples.npz").read_bytes() == (out / "samples.npz").read_bytes()


def test_pictures_of_two_sizes_make_no_array(drawn: Path, tmp_path: Path) -> None:
    grey(open_run(drawn).picture_path(1, 0), 7, size=(6, 5))
    with pytest.raises(UserError, match=r"00001/samples/0000.png is 6 x 5, the first is 6 x 4"):
        export.run(drawn, out=tmp_path / "adm", layout="adm-npz")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("layout", ["geneval-dir", "adm-npz"])
def test_a_picture_that_failed_leaves_no_half_of_an_export(
    drawn: Path, tmp_path: Path, layout: str
) -> None:
    file = open_run(drawn).picture_path(1, 1)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="samples/0001.png failed") as error:
        export.run(drawn, out=tmp_path / "out", layout=layout)
    assert error.value.hint == f"tarkit eval generate {drawn} --retry-failed"
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    file.write_bytes(whole)
    assert export.run(drawn, out=tmp_path / "out", layout=layout).is_dir()
    with pytest.raises(UserError, match="is not an empty folder"):
        export.run(drawn, out=tmp_path / "out", layout=layout)
    with pytest.raises(UserError, match="is not an empty folder"):
        export.run(drawn, out=drawn / "manifest.json", layout=layout)


def test_a_layout_of_another_benchmark_is_refused_with_those_of_this_one(
    drawn: Path, tmp_path: Path
) -> None:
    for wrong in ("mme-txt", "compbench"):
        with pytest.raises(UserError, match=f"geneval is not exported as '{wrong}'") as error:
            export.run(drawn, out=tmp_path / "out", layout=wrong)
        assert error.value.hint == "--format geneval-dir | adm-npz"


def test_the_page_and_the_help_name_every_layout() -> None:
    page = (Path(__file__).parents[2] / ".github" / "EVALUATION.md").read_text()
    assert [name for name in LAYOUTS if f"`{name}`" not in page] == []
    root: Any = typer.main.get_command(app)
    options = {each.name: each for each in root.commands["eval"].commands["export"].params}
    named = re.findall(r"[a-z0-9]+-[a-z]+", options["layout"].help)
    assert sorted(named) == sorted(LAYOUTS)


@pytest.mark.parametrize(
    ("item", "n", "fault"),
    [
        ("a.b", 4, "'a.b' cannot be the name"),
        ("fox", 9, "1 or 4 pictures, .* has 9"),
        ("fox", 4, ""),
    ],
)
def test_dpg_takes_an_item_up_to_a_dot_and_one_or_four_pictures(
    tmp_path: Path, item: str, n: int, fault: str
) -> None:
    table = tmp_path / "q.csv"
    table.write_text(
        "item_id,text,proposition_id,dependency,tuple,question_natural_language\n"
        f"{item},a fox,1,0,entity - whole (fox),is there a fox?\n"
    )
    out = tmp_path / "run"
    prepare.run("dpg", out=out, data=table, n=n)
    run = open_run(out)
    for one in run.pictures():
        grey(run.picture_path(one.row, one.sample), 20 * one.sample)
    if fault:
        with pytest.raises(UserError, match=fault):
            export.run(out, out=tmp_path / "grid", layout="dpg-grid")
        return
    sheet = Image.open(export.run(out, out=tmp_path / "grid", layout="dpg-grid") / "fox.png")
    # The scorer's tiles of a side r: (0, 0), (r, 0), (0, r), (r, r); these are 6 wide and 4 high.
    levels = [sheet.getpixel(place) for place in ((0, 0), (6, 0), (0, 4), (6, 4))]
    assert levels == [(level, level, level) for level in (0, 20, 40, 60)]
    grey(run.picture_path(0, 2), 40, size=(6, 5))
    with pytest.raises(UserError, match="is 6 x 5, the first is 6 x 4"):
        export.run(out, out=tmp_path / "other", layout="dpg-grid")


# ---- answers ------------------------------------------------------------------------------------


def answered(out: Path, texts: Mapping[str, str | None]) -> Path:
    """The run with these answers, None for one that failed."""
    begin_directory(out / "answers", "answers", settings={"batch_size": 100})
    lines = [
        json.dumps(
            {"answer": texts[item.id], "error": None if texts[item.id] is not None else "why"}
        )
        for item in open_run(out).items
    ]
    (out / "answers" / "00000.jsonl").write_text("\n".join(lines) + "\n")
    return out


def figures(run: Path, name: str) -> Any:
    return json.loads((score.run(run).path / "results.json").read_text())["metrics"][name]


def mme(tmp_path: Path, texts: Sequence[str | None]) -> Path:
    """Two pictures of `count`, the answer to the first question yes, to the second no."""
    folder = tmp_path / "mme" / "count"
    folder.mkdir(parents=True)
    for name in ("a", "b"):
        grey(folder / f"{name}.png", 9)
        (folder / f"{name}.txt").write_text(
            f"Is {name}\there? Please answer yes or no.\tYes\n"
            "Are there two? Please answer yes or no.\tNo\n"
        )
    prepare.run("mme", out=tmp_path / "run", data=tmp_path / "mme")
    ids = [f"count-{name}-{number}" for name in ("a", "b") for number in range(2)]
    return answered(tmp_path / "run", dict(zip(ids, texts, strict=True)))


def mme_as_published(file: Path) -> float:
    """`calculation.py`: lines by pairs, four cells each; 100 acc + 100 acc of whole pictures."""
    with file.open(encoding="utf-8") as lines:
        right = []
        for line in lines.readlines():
            _, _, truth, answer = line.split("\t")
            assert truth.lower() in ("yes", "no")
            start = answer.lower()[:4]
            read = "yes" if "yes" in start else "no" if "no" in start else "other"
            right.append(read == truth.lower())
    pairs = [a and b for a, b in zip(right[::2], right[1::2], strict=True)]
    return 100 * sum(right) / len(right) + 100 * sum(pairs) / len(pairs)


def test_mmes_tool_reads_the_answers_as_they_are_scored_here(tmp_path: Path) -> None:
    # The first picture is right twice, though its answers are long; of "a\n\nno" the first four
    # characters hold no "no". 100 * 3 / 4 + 100 * 1 / 2 = 125.
    run = mme(tmp_path, [" Yes,\tthere\nis one.", "no", "yes", "a\n\nno"])
    out = export.run(run, out=tmp_path / "out", layout="mme-txt")
    assert [path.name for path in out.iterdir()] == ["count.txt"]
    lines = (out / "count.txt").read_text().splitlines()
    assert lines[0] == "a.png\tIs a here? Please answer yes or no.\tYes\tYes, there is one."
    assert mme_as_published(out / "count.txt") == 125
    assert figures(run, "mme@official-parse")["tasks"]["count"]["value"] == 125


def test_half_a_pair_and_a_failed_answer_are_refused_by_mme(tmp_path: Path) -> None:
    run = mme(tmp_path, ["yes", "no", "yes", None])
    with pytest.raises(UserError, match="the answer to count-b-1 failed: why") as error:
        export.run(run, out=tmp_path / "out", layout="mme-txt")
    assert error.value.hint == f"tarkit eval answer {run} --retry-failed"
    prepare.run("mme", out=tmp_path / "three", data=tmp_path / "mme", limit=3)
    texts = {item.id: "yes" for item in open_run(tmp_path / "three").items}
    with pytest.raises(UserError, match="does not have two questions of every picture of count"):
        export.run(answered(tmp_path / "three", texts), out=tmp_path / "out", layout="mme-txt")
    assert not (tmp_path / "out").exists()


def pope_as_published(answers: Path, labels: Path) -> float:
    """Accuracy by `evaluate.py`: the first sentence without commas, no or not anywhere is no."""
    texts = [json.loads(line)["answer"] for line in answers.open()]
    truths = [json.loads(line)["label"] for line in labels.open()]
    read = [
        "no" if {"No", "not", "no"} & set(text.split(".")[0].replace(",", "").split(" ")) else "yes"
        for text in texts
    ]
    return sum(a == b for a, b in zip(read, truths, strict=True)) / len(truths)


def test_popes_program_pairs_each_answer_with_its_own_label(tmp_path: Path) -> None:
    folder = tmp_path / "pope"
    folder.mkdir()
    grey(tmp_path / "a.png", 9)
    for split in ("random", "popular"):
        rows = [
            {"question_id": n, "image": "a.png", "text": f"Is there a {thing}?", "label": label}
            for n, (thing, label) in enumerate([("fox", "yes"), ("hen", "no"), ("elk", "no")])
        ]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"coco_pope_{split}.json").write_text(lines)
    # Five of six: popular 0, random 0, popular 1, random 1, popular 2.
    prepare.run("pope", out=tmp_path / "run", data=folder, images=tmp_path, limit=5)
    texts: dict[str, str | None] = {
        **{"popular-0": "Yes, there is no doubt.", "popular-1": "No, \u00e4h.", "popular-2": "no"},
        **{"random-0": "yes", "random-1": "There is one. No."},
    }
    run = answered(tmp_path / "run", texts)
    out = export.run(run, out=tmp_path / "out", layout="pope-jsonl")
    names = [
        f"{split}_{kind}.jsonl" for split in ("popular", "random") for kind in ("answers", "labels")
    ]
    assert sorted(path.name for path in out.iterdir()) == names
    first = json.loads((out / "popular_answers.jsonl").read_text().splitlines()[0])
    assert first == {"question": "Is there a fox?", "answer": "Yes, there is no doubt."}
    label = json.loads((out / "random_labels.jsonl").read_text().splitlines()[1])
    assert label == {"image": "a.png", "text": "Is there a hen?", "label": "no"}
    # "no doubt" is read as no: 2 of 3. "There is one" is read as yes: 1 of 2.
    popular, random = (
        pope_as_published(out / f"{split}_answers.jsonl", out / f"{split}_labels.jsonl")
        for split in ("popular", "random")
    )
    assert (popular, random) == (pytest.approx(2 / 3), 0.5)
    kinds = figures(run, "pope@official-parse")["kinds"]
    assert kinds["popular"]["accuracy"]["value"] == pytest.approx(popular)
    texts["random-1"] = None
    other = tmp_path / "other"
    prepare.run("pope", out=other, data=folder, images=tmp_path, limit=5)
    with pytest.raises(UserError, match="the answer to random-1 failed"):
        export.run(answered(other, texts), out=tmp_path / "none", layout="pope-jsonl")


def test_mmmus_program_gets_letters_open_answers_and_every_question(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    grey(tmp_path / "a.png", 9)
    rows = [
        {"id": "validation_Art_1", "options": "['x', 'y']", "answer": "B"},
        {"id": "validation_Art_2", "options": "['x', 'y']", "answer": "A"},
        {"id": "validation_Art_Theory_7", "options": "[]", "answer": "4"},
        {"id": "validation_Art_3", "options": "['x', 'y']", "answer": "A", "image_2": "a"},
    ]
    file = tmp_path / "mmmu.jsonl"
    about = {"question": "Which?", "image_1": "a"}
    file.write_text("\n".join(json.dumps({**about, **row}) for row in rows))
    prepare.run("mmmu", out=tmp_path / "run", data=file, images=tmp_path)
    texts: dict[str, str | None] = {
        "validation_Art_1": "The answer is (B).",
        "validation_Art_2": "I cannot say",
        "validation_Art_Theory_7": "x = 4",
        "validation_Art_3": None,
    }
    with caplog.at_level(logging.WARNING, logger="tarkit"):
        run = answered(tmp_path / "run", texts)
        out = export.run(run, out=tmp_path / "out", layout="mmmu-json")
    assert json.loads((out / "total_val_output.json").read_text()) == {
        "validation_Art_1": "B",
        "validation_Art_2": "",
        "validation_Art_Theory_7": "x = 4",
        "validation_Art_3": "",
    }
    assert "1 of 4 questions cannot be asked and are wrong" in caplog.text


def test_mmmu_refuses_a_failed_answer_and_an_id_that_its_program_would_skip(tmp_path: Path) -> None:
    grey(tmp_path / "a.png", 9)
    file = tmp_path / "mmmu.jsonl"
    for number, (name, answer, fault) in enumerate(
        [
            ("validation_Art_1", None, "the answer to validation_Art_1 failed"),
            ("m1", "4", "'m1' out"),
        ]
    ):
        row = {"id": name, "question": "How many?", "answer": "4", "image_1": "a"}
        file.write_text(json.dumps(row))
        out = tmp_path / f"run-{number}"
        prepare.run("mmmu", out=out, data=file, images=tmp_path)
        with pytest.raises(UserError, match=fault):
            export.run(answered(out, {name: answer}), out=tmp_path / "out", layout="mmmu-json")


def test_a_run_without_answers_names_the_command_that_makes_them(tmp_path: Path) -> None:
    mme(tmp_path, ["yes", "no", "yes", "no"])
    prepare.run("mme", out=tmp_path / "fresh", data=tmp_path / "mme")
    with pytest.raises(UserError, match="has no answers yet") as error:
        export.run(tmp_path / "fresh", out=tmp_path / "out", layout="mme-txt")
    assert error.value.hint == f"tarkit eval answer {tmp_path / 'fresh'}"
