"""Runs of a benchmark: prepared, drawn or answered, scored, killed, shared, exported, collected."""

import io
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tarkit.artifacts.manifest import begin_directory, read_manifest
from tarkit.errors import UserError
from tarkit.eval import answer, collect, export, generate, prepare, score
from tarkit.eval.benchmarks import dpg as dpg_module
from tarkit.eval.benchmarks.mme import mme_correct
from tarkit.eval.run import BenchmarkItem, begin_run, open_run
from tarkit.images import read_picture
from tarkit.inference.tar_model import Tar
from tests.eval.benchmark_parts.test_mask2former import save_clip, save_detector

LIMIT, N = 6, 2


def drawn(out: Path, *, bench: str = "geneval", **more: Any) -> Path:
    prepare.run(bench, out=out, n=N, limit=LIMIT, **more)
    generate.run(out, batch_size=5)
    return out


@pytest.fixture(scope="module")
def geneval(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return drawn(tmp_path_factory.mktemp("geneval") / "run")


@pytest.fixture
def copy(geneval: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(geneval, tmp_path / "run"))


def results(folder: Path) -> Any:
    return json.loads((folder / "results.json").read_text())


def pictures(run: Path) -> list[bytes]:
    return [file.read_bytes() for file in sorted(run.glob("samples/*/samples/*.png"))]


# ---- GenEval ------------------------------------------------------------------------------------


def test_a_limit_takes_the_first_of_every_task(geneval: Path) -> None:
    run = open_run(geneval)
    tasks = ["single_object", "two_object", "counting", "colors", "position", "color_attr"]
    assert [item.tag for item in run.items] == tasks
    assert run.items[0].prompt == "a photo of a bench"
    first = json.loads(run.metadata_path(0).read_text())
    assert first["include"] == [{"class": "bench", "count": 1}]


def test_killed_and_begun_again_it_is_the_same_run(copy: Path, geneval: Path) -> None:
    before = score.run(copy, scorer="shapes")
    run = open_run(copy)
    run.picture_path(1, 0).unlink()
    run.picture_path(5, 1).unlink()
    with pytest.raises(UserError, match="has not been made"):
        score.run(copy, scorer="shapes")
    generate.run(copy, batch_size=5)
    assert pictures(copy) == pictures(geneval)
    assert score.run(copy, scorer="shapes").report == before.report


def test_two_processes_draw_what_one_does(
    geneval: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare.run("geneval", out=tmp_path / "two", n=N, limit=LIMIT)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        generate.run(tmp_path / "two", batch_size=5)
    assert pictures(tmp_path / "two") == pictures(geneval)


def test_mask2former_and_clip_score_a_run(copy: Path, tmp_path: Path) -> None:
    networks = save_detector(tmp_path / "m2f"), save_clip(tmp_path / "clip")
    with pytest.raises(UserError, match="hf-m2f needs a detector and CLIP"):
        score.run(copy, scorer="hf-m2f")
    done = score.run(copy, scorer="hf-m2f", model=str(networks[0]), clip=str(networks[1]))
    found = results(done.path)
    assert done.path.name == "geneval@hf-m2f" and list(found["metrics"]) == ["geneval@hf-m2f"]
    assert found["metrics"]["geneval@hf-m2f"]["num_pictures"] == LIMIT * N
    assert found["settings"]["samples"]["sampling"]["temperature"] > 0
    assert found["settings"]["scorer"]["detector"] == str(networks[0])
    # Random networks see little above .3: what a detections file would say is in the rows.
    rows = pq.read_table(done.path / "scores.parquet").to_pylist()
    assert all(json.loads(row["detections"]) is not None for row in rows)


def test_a_failed_picture_scores_0_and_must_be_allowed(copy: Path) -> None:
    broken = open_run(copy).picture_path(0, 0)
    broken.write_bytes(b"no picture")
    with pytest.raises(UserError, match="8.3% of"):  # 1 of 12
        score.run(copy, scorer="shapes")
    done = score.run(copy, scorer="shapes", allow_missing=True)
    assert done.num_failed == 1
    found = results(done.path)["metrics"]["geneval@shapes"]
    assert found["coverage"] == pytest.approx(11 / 12)


def test_a_truncated_picture_is_drawn_again_to_the_byte(copy: Path, geneval: Path) -> None:
    broken = open_run(copy).picture_path(3, 1)
    broken.write_bytes(broken.read_bytes()[:-40])
    generate.run(copy, batch_size=5)
    assert pictures(copy) != pictures(geneval)
    generate.run(copy, batch_size=5, retry_failed=True)
    assert pictures(copy) == pictures(geneval)


def test_an_export_comes_back_with_the_verdicts_of_another(copy: Path, tmp_path: Path) -> None:
    out = export.run(copy, out=tmp_path / "out", layout="geneval-dir")
    assert sorted(p.name for p in (out / "00003").iterdir()) == ["metadata.jsonl", "samples"]
    lines = [
        {"filename": f"{out}/{row:05d}/samples/{k:04d}.png", "correct": row < 3, "reason": ""}
        for row in range(LIMIT)
        for k in range(N)
    ]
    verdicts = tmp_path / "results.jsonl"
    verdicts.write_text("\n".join(map(json.dumps, lines)))
    folder = collect.run(copy, verdicts, scorer="official-mmdet")
    found = results(folder)["metrics"]["geneval@official-mmdet"]
    # single_object, two_object and counting are right, the others wrong: 3 of 6 tasks.
    assert found["overall"]["value"] == pytest.approx(0.5)
    verdicts.write_text("\n".join(map(json.dumps, lines[:-1])))
    with pytest.raises(UserError, match="no verdict on 00005/samples/0001.png"):
        collect.run(copy, verdicts)
    with pytest.raises(UserError, match="not exported as 'dpg-grid'"):
        export.run(copy, out=tmp_path / "grid", layout="dpg-grid")


def test_other_prompts_are_another_run(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="other settings"):
        prepare.run("geneval", out=copy, n=N, limit=LIMIT + 1)
    with pytest.raises(UserError, match="needs its data"):
        prepare.run("dpg", out=tmp_path / "dpg")
    with pytest.raises(UserError, match="no benchmark 'genval'"):
        prepare.run("genval", out=tmp_path / "no")


# ---- detections from a file ---------------------------------------------------------------------

GOLDEN = Path(__file__).with_name("golden_detections.jsonl")


def test_golden_detections_give_the_official_verdicts(tmp_path: Path) -> None:
    """Each line states a rule of the published `evaluate`, its detections and its verdict."""
    lines = [json.loads(line) for line in GOLDEN.read_text().splitlines()]
    data = tmp_path / "metadata.jsonl"
    data.write_text("\n".join(json.dumps(line["metadata"]) for line in lines))
    out = tmp_path / "run"
    prepare.run("geneval", out=out, data=data, n=1)
    run = open_run(out)
    for row in range(len(lines)):
        run.picture_path(row, 0).parent.mkdir(parents=True)
        Image.new("RGB", (100, 100)).save(run.picture_path(row, 0))
    found = tmp_path / "detections.jsonl"
    found.write_text(
        "\n".join(
            json.dumps({"filename": f"{n:05d}/samples/0000.png", "detections": line["detections"]})
            for n, line in enumerate(lines)
        )
    )
    done = score.run(out, scorer="detections", file=found)
    rows = pq.read_table(done.path / "scores.parquet").to_pylist()
    wrong = [
        (line["rule"], row["reason"])
        for line, row in zip(lines, rows, strict=True)
        if row["correct"] != line["correct"]
    ]
    assert not wrong and len(rows) >= 16
    found.write_text('{"filename": "a", "detections": [{"class": "cow", "box": [0, 0, 1]}]}')
    with pytest.raises(UserError, match="detections.jsonl:1 is not a line of detections"):
        score.run(out, scorer="detections", file=found)


# ---- DPG ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dpg(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dpg")
    head = "item_id,text,proposition_id,dependency,tuple,question_natural_language\n"
    rows = [
        "fox,a red circle,1,0,entity - whole (circle),is there a circle?\n",
        'fox,a red circle,2,1,"attribute - color (circle, red)",is the circle red?\n',
        "cup,a blue star,1,0,entity - whole (star),is there a star?\n",
    ]
    (folder / "q.csv").write_text(head + "".join(rows))
    prepare.run("dpg", out=folder / "run", data=folder / "q.csv", n=4)
    generate.run(folder / "run")
    return folder / "run"


def test_dpg_is_judged_by_tar_itself_or_by_answers(dpg: Path, tmp_path: Path) -> None:
    own = score.run(dpg, scorer="tar", as_published=True)
    found = results(own.path)["metrics"]
    assert set(found) == {"dpg@tar", "dpg@tar+as-published"}
    assert found["dpg@tar"]["num_questions"] == 3 and found["dpg@tar"]["coverage"] == 1.0
    # Answers of another model, or read at another scale, are not taken for this one's.
    settings = read_manifest(dpg / "scores/dpg@tar/answers")["settings"]
    mini = Tar.load("mini", dtok=None)
    assert (settings["model"], settings["read_scale"]) == (
        mini.fingerprints(),
        int(mini.read_scale),
    )
    assert found["dpg@tar+as-published"]["skipped"] == ["fox"]
    assert score.run(dpg, scorer="tar", as_published=True).report == own.report
    # The circle is there and red on half of the pictures, the star never: (.5 + 0) / 2.
    lines: list[dict[str, Any]] = [
        {"item": item, "sample": k, "question": q, "answer": text}
        for item, q, text in (("fox", 1, "yes"), ("fox", 2, "Yes."), ("cup", 1, "no"))
        for k in range(4)
    ]
    for line in lines:
        if line["item"] == "fox" and line["question"] == 1 and line["sample"] > 1:
            line["answer"] = "no"
    file = tmp_path / "mplug.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    given = score.run(dpg, scorer="answers", file=file)
    assert given.path.name == "dpg@mplug"
    assert results(given.path)["metrics"]["dpg@mplug"]["overall"]["value"] == pytest.approx(0.25)
    file.write_text("\n".join(map(json.dumps, lines[1:])))
    with pytest.raises(UserError, match="failed, and a failure scores 0"):
        score.run(dpg, scorer="answers", file=file)


class Judge:
    """Answers yes about every readable picture and keeps the questions; fails at that in `down`."""

    def __init__(self) -> None:
        self.questions: list[str] = []
        self.down = ""

    def __call__(self, pairs: Sequence[tuple[Path, str]]) -> list[str]:
        for file, _ in pairs:
            read_picture(file)
        if any(text == self.down for _, text in pairs):
            raise UserError("the judge is down")
        self.questions += [text for _, text in pairs]
        return ["yes" for _ in pairs]


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Judge:
    made = Judge()
    monkeypatch.setattr(dpg_module, "_judge", lambda *_: (made, {}))
    return made


@pytest.fixture
def judged(dpg: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(dpg, tmp_path / "run", ignore=shutil.ignore_patterns("scores")))


def test_a_picture_that_is_whole_again_is_judged_again(judged: Path, judge: Judge) -> None:
    broken = open_run(judged).picture_path(1, 0)  # the first of cup's four, one question each
    broken.write_bytes(b"no picture")
    with pytest.raises(UserError, match="8.3% of .*; the first with: .*0000.png") as error:  # 1/12
        score.run(judged, scorer="tar")
    again = f"tarkit eval score {judged} --scorer tar"
    assert error.value.hint == (
        f"tarkit eval generate {judged} --retry-failed, then {again} --retry-failed; "
        f"or {again} --allow-missing; each with the options it had"
    )
    generate.run(judged, retry_failed=True)
    assert len(judge.questions) == 11
    done = score.run(judged, scorer="tar")
    assert len(judge.questions) == 11 + 12  # 12 questions are one batch, which is asked whole
    assert results(done.path)["metrics"]["dpg@tar"]["coverage"] == 1.0
    score.run(judged, scorer="tar")
    assert len(judge.questions) == 11 + 12


def test_an_answer_about_another_picture_is_not_kept(judged: Path, judge: Judge) -> None:
    score.run(judged, scorer="tar")
    judge.questions.clear()
    Image.new("RGB", (64, 64)).save(open_run(judged).picture_path(0, 2))
    score.run(judged, scorer="tar")
    assert len(judge.questions) == 12


def test_a_judge_is_asked_again_what_it_failed_to_answer(judged: Path, judge: Judge) -> None:
    judge.down = "is the circle red?"
    with pytest.raises(UserError, match="33.3% of .* the first with: the judge is down"):  # 4/12
        score.run(judged, scorer="tar")
    judge.down = ""
    with pytest.raises(UserError, match="33.3%"):
        score.run(judged, scorer="tar")
    assert score.run(judged, scorer="tar", retry_failed=True).num_failed == 0
    answers = judged / "scores/dpg@tar/answers/00000.jsonl"
    answers.write_bytes(answers.read_bytes()[:-9])
    with pytest.raises(UserError, match="00000.jsonl:12 is not an answer") as error:
        score.run(judged, scorer="tar")
    assert error.value.hint == "--retry-failed with the command that made it"
    assert score.run(judged, scorer="tar", retry_failed=True).num_failed == 0


def test_the_command_that_mends_a_run_is_named(copy: Path, dpg: Path, tmp_path: Path) -> None:
    open_run(copy).picture_path(0, 0).write_bytes(b"no picture")
    with pytest.raises(UserError) as error:
        score.run(copy, scorer="shapes")
    again = f"tarkit eval score {copy} --scorer shapes"
    assert error.value.hint.startswith(f"tarkit eval generate {copy} --retry-failed, then {again};")
    (tmp_path / "mplug.jsonl").write_text("")
    with pytest.raises(UserError, match="the first with: mplug.jsonl has no answer") as error:
        score.run(dpg, scorer="answers", file=tmp_path / "mplug.jsonl")
    assert error.value.hint.startswith(f"complete {tmp_path / 'mplug.jsonl'}, then tarkit eval")


def test_a_grid_holds_the_four_pictures_of_a_prompt(dpg: Path, tmp_path: Path) -> None:
    out = export.run(dpg, out=tmp_path / "grid", layout="dpg-grid")
    sheet, run = Image.open(out / "fox.png"), open_run(dpg)
    first = Image.open(run.picture_path(0, 0))
    assert sheet.size == (2 * first.width, 2 * first.height)
    lower_left = sheet.crop((0, first.height, first.width, 2 * first.height))
    assert lower_left.tobytes() == Image.open(run.picture_path(0, 2)).convert("RGB").tobytes()


# ---- questions ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        noise = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{name}.png")
    return folder


def answered(out: Path, texts: dict[str, str]) -> Path:
    """A run whose answers are written by hand, as `tarkit eval answer` would."""
    answer.run(out, batch_size=2)
    run = open_run(out)
    for number in range(0, len(run.items), 2):
        lines = [
            json.dumps({"answer": texts[item.id], "error": None})
            for item in run.items[number : number + 2]
        ]
        (out / "answers" / f"{number // 2:05d}.jsonl").write_text("\n".join(lines) + "\n")
    return out


def test_pope_by_hand(tmp_path: Path, images: Path) -> None:
    rows = [
        {"question_id": n, "image": f"{name}.png", "text": "Is there a dog?", "label": label}
        for n, (name, label) in enumerate([("a", "yes"), ("a", "no"), ("b", "yes"), ("b", "no")])
    ]
    file = tmp_path / "coco_pope_random.json"
    file.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(UserError, match="names pictures by file"):
        prepare.run("pope", out=tmp_path / "run", data=file)
    prepare.run("pope", out=tmp_path / "run", data=file, images=images)
    texts = dict(zip((f"random-{n}" for n in range(4)), ("Yes", "No", "no", "yes"), strict=True))
    found = results(score.run(answered(tmp_path / "run", texts)).path)
    all_of_them = found["metrics"]["pope@official-parse"]["all"]
    assert all_of_them["accuracy"]["value"] == 0.5 and all_of_them["yes_share"] == 0.5
    assert found["settings"]["answers"]["decoding"] == "greedy"


def test_mme_by_hand(tmp_path: Path, images: Path) -> None:
    folder = tmp_path / "mme" / "count"
    folder.mkdir(parents=True)
    shutil.copy(images / "a.png", folder / "a.png")
    (folder / "a.txt").write_text(
        "Is there one? Please answer yes or no.\tYes\nAre there two? Please answer yes or no.\tNo\n"
    )
    prepare.run("mme", out=tmp_path / "run", data=tmp_path / "mme")
    assert open_run(tmp_path / "run").items[0].prompt.startswith("Is there one?\nAnswer the")
    out = answered(tmp_path / "run", {"count-a-0": "yes", "count-a-1": "yes"})
    found = results(score.run(out).path)["metrics"]["mme@official-parse"]
    assert found["tasks"]["count"]["value"] == pytest.approx(50) and found["perception"] is None


def test_choices_of_three_layouts(tmp_path: Path, images: Path) -> None:
    import base64

    blob = base64.b64encode((images / "a.png").read_bytes()).decode()
    tsv = tmp_path / "mmbench.tsv"
    tsv.write_text(
        "index\tquestion\thint\tA\tB\tanswer\tcategory\timage\n"
        f"7\tWhat is it?\tnan\ta fox\ta hen\tB\tanimals\t{blob}\n"
    )
    prepare.run("mmbench", out=tmp_path / "mmbench", data=tsv)
    (item,) = open_run(tmp_path / "mmbench").items
    assert item.prompt.startswith("What is it?\nA. a fox\nB. a hen\nAnswer with")
    assert item.picture is not None and Path(item.picture).parent == tmp_path / "mmbench/pictures"
    found = results(score.run(answered(tmp_path / "mmbench", {"7": "b."})).path)
    assert found["metrics"]["mmbench@first-letter"]["accuracy"]["value"] == 1.0

    rows = [
        {"id": "m1", "question": "<image 1> Which?", "options": "['x', 'y']", "answer": "B"},
        {"id": "m2", "question": "How many?", "options": "[]", "answer": "4"},
        {"id": "m3", "question": "Both?", "options": "['x', 'y']", "answer": "A", "image_2": "b"},
    ]
    file = tmp_path / "mmmu.jsonl"
    file.write_text("\n".join(json.dumps({"image_1": "a", **row}) for row in rows))
    prepare.run("mmmu", out=tmp_path / "mmmu", data=file, images=images)
    out = answered(tmp_path / "mmmu", {"m1": "The answer is (B).", "m2": "x = 4", "m3": "A"})
    found = results(score.run(out).path)["metrics"]["mmmu@official-parse"]
    assert found["accuracy"]["value"] == 1.0


def test_what_cannot_be_asked_counts_as_wrong(tmp_path: Path, images: Path) -> None:
    rows = [
        {"id": "one", "question": "What?", "answer": "fox", "imageId": "a"},
        {"id": "two", "question": "What?", "answer": "fox"},
    ]
    file = tmp_path / "gqa.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    prepare.run("gqa", out=tmp_path / "run", data=file, images=images)
    answer.run(tmp_path / "run")
    with pytest.raises(UserError, match="50.0% of") as error:
        score.run(tmp_path / "run")
    run = tmp_path / "run"
    assert error.value.hint.startswith(f"tarkit eval answer {run} --retry-failed, then tarkit eval")
    done = score.run(tmp_path / "run", allow_missing=True)
    assert results(done.path)["metrics"]["gqa@exact-match"]["coverage"] == 0.5
    errors = pq.read_table(done.path / "scores.parquet")["error"].to_pylist()
    assert errors == [None, "it names no picture"]


def test_a_damaged_file_of_questions_is_an_error_and_a_damaged_picture_is_a_row(
    tmp_path: Path,
) -> None:
    for name, text in (("a.json", "{"), ("b.parquet", "no"), ("c.jsonl", '{"id"')):
        (tmp_path / name).write_text(text)
        with pytest.raises(UserError, match=f"{name}.*(cannot be read|is not JSON)"):
            prepare.run("gqa", out=tmp_path / "none", data=tmp_path / name)
    tsv = tmp_path / "mmbench.tsv"
    blob = "AAAA" * 200  # base64 of zeros, which are no picture
    tsv.write_text(f"index\tquestion\tA\tB\tanswer\timage\n1\tWhat?\tx\ty\tA\t{blob}\n")
    prepare.run("mmbench", out=tmp_path / "run", data=tsv)
    (item,) = open_run(tmp_path / "run").items
    assert item.picture is None and "its picture is damaged" in str(item.meta)


def test_rows_of_mme_are_read_as_its_figures_are() -> None:
    item = BenchmarkItem("a", "count", "?", truth="yes")
    assert mme_correct(item, "*yes") and not mme_correct(item, "I say yes")


def test_a_picture_outside_its_folder_is_refused(tmp_path: Path, images: Path) -> None:
    file = tmp_path / "pope.json"
    row = {"image": "../../secret.png", "text": "?", "label": "yes"}
    file.write_text(json.dumps(row))
    with pytest.raises(UserError, match="is outside"):
        prepare.run("pope", out=tmp_path / "run", data=file, images=images)


def damage(folder: Path, **settings: Any) -> None:
    """Change settings in a manifest; None takes one out."""
    file = folder / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest["settings"] |= settings
    manifest["settings"] = {k: v for k, v in manifest["settings"].items() if v is not None}
    file.write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"n": None}, "n: Field required"),
        ({"n": 10**9}, "n: Input should be less than or equal to 10000"),
        ({"seed": "1"}, "seed: Input should be a valid integer"),
        ({"items_sha256": None}, "items_sha256: Field required"),
        ({"bench": ["geneval"]}, "bench: Input should be a valid string"),
    ],
)
def test_a_damaged_manifest_is_a_sentence(copy: Path, settings: dict[str, Any], why: str) -> None:
    damage(copy, **settings)
    with pytest.raises(UserError, match=re.escape(f"is not a manifest of this kind: {why}")):
        open_run(copy)


def test_damaged_items_are_a_sentence(copy: Path) -> None:
    file = copy / "items.parquet"
    whole = file.read_bytes()
    file.write_bytes(whole[:-20])
    with pytest.raises(UserError, match="items.parquet is damaged"):
        open_run(copy)
    pq.write_table(pq.read_table(io.BytesIO(whole)).drop_columns(["meta"]), file)
    with pytest.raises(UserError, match="has changed since the run was begun"):
        open_run(copy)


def test_damaged_settings_of_answers_are_a_sentence(tmp_path: Path) -> None:
    item = BenchmarkItem("a", "all", "What?", "a.png", "yes", {})
    run = begin_run(tmp_path / "run", "pope", [item], n=1, seed=0, settings={})
    begin_directory(run.path / "answers", "answers", settings={"batch_size": 4})
    damage(run.path / "answers", batch_size=0)
    with pytest.raises(UserError, match="batch_size: Input should be greater than 0"):
        run.answers()
    with pytest.raises(UserError, match="a prompt has at most 10000 pictures"):
        begin_run(tmp_path / "more", "geneval", [item], n=10_001, seed=0, settings={})


def test_a_text_that_is_not_unicode_is_a_sentence_and_begins_nothing(tmp_path: Path) -> None:
    item = BenchmarkItem(id="0", tag="t", prompt="a \ud800 ring")
    with pytest.raises(UserError, match="a text of geneval is not Unicode"):
        begin_run(tmp_path / "out", "geneval", [item], n=1, seed=0, settings={})
    assert not (tmp_path / "out").exists()
