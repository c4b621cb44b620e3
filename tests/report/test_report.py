"""`tarkit report` on runs made by hand: figures, deltas, hostile files, and a real browser."""

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tarkit.artifacts.commands import append_command
from tarkit.cli.app import app
from tarkit.errors import UserError
from tarkit.report import report
from tarkit.report.run_section import half_and_half
from tarkit.report.runs import read_run
from tests.report.browser import find_browser, open_browser
from tests.report.sample_runs import FIRST, OTHER, Reader, make_run, picture_metrics


def page_of(*runs: Path, out: Path, **options: Any) -> Reader:
    """The page of the runs, which must be sound whatever is in them."""
    page = report.run(runs, out=out, **options)
    reader = Reader(page.read_text(encoding="utf-8"))
    assert not reader.faults
    return reader


# ---- figures ------------------------------------------------------------------------------------


def test_the_page_shows_the_figures_of_results_json(tmp_path: Path) -> None:
    run = make_run(tmp_path / "one")
    page = page_of(run, out=tmp_path / "out")
    metric = json.loads((run / "results.json").read_text())["metrics"]["geneval@shapes"]
    colours = metric["tasks"]["colors"]
    assert colours["value"] == 0.5  # 2 of 4
    shown = f"0.500 [{colours['low']:.3f}, {colours['high']:.3f}] (4)"
    assert page.row("colors", shown)[2:] == [shown, "0.125"]  # all, seen, chance
    # the overall: (2 / 4 + 0 / 2) / 2, and that it is over two of the six tasks
    overall = metric["overall"]
    text = f"0.250 [{overall['low']:.3f}, {overall['high']:.3f}] (6) over 2 tasks"
    assert page.row("geneval@shapes overall") == ["geneval@shapes overall", text]
    assert "coverage 1.000" in page.text


def test_the_markdown_holds_the_same_tables(tmp_path: Path) -> None:
    run = make_run(tmp_path / "one")
    report.run([run], out=tmp_path / "out", title="A *title*")
    text = (tmp_path / "out" / "report.md").read_text()
    assert text.startswith("# A \\*title\\*\n")
    assert "\n| geneval@shapes overall | 0.250 \\[" in text
    assert "| a photo of a c circle | colors · seen | wrong | found 0 |" in text


def test_two_variants_of_a_metric_are_two_rows(tmp_path: Path) -> None:
    one = make_run(tmp_path / "one", metrics={"geneval@shapes": picture_metrics(FIRST)})
    two = make_run(tmp_path / "two", metrics={"geneval@published": picture_metrics(OTHER)})
    page = page_of(one, two, out=tmp_path / "out")
    shapes, published = (page.row(f"geneval@{name} overall") for name in ("shapes", "published"))
    assert shapes[1].startswith("0.250") and shapes[2] == "–"
    assert published[1] == "–" and published[2].startswith("0.625")


def test_what_is_unknown_is_shown_as_it_is(tmp_path: Path) -> None:
    metrics = {
        "rfid@ours": {"value": 4.5, "low": 4.25, "high": 4.75, "num_prompts": 50, "split": "test"},
        "odd@one": {"by kind": {"a": {"hits": 3}, "b": {"hits": 4}}, "said": "so", "none": None},
    }
    run = tmp_path / "one"
    run.mkdir()
    (run / "results.json").write_text(json.dumps({"metrics": metrics}))
    page = page_of(run, out=tmp_path / "out")
    assert page.row("rfid@ours") == ["rfid@ours", "4.500 [4.250, 4.750] (50)"]
    assert page.row("value") == ["value", "4.500", "[4.250, 4.750]", "50", "test"]
    assert (page.row("a"), page.row("b")) == (["a", "3"], ["b", "4"])
    assert (page.row("said"), page.row("none")) == (["said", "so"], ["none", "–"])


def test_a_known_name_of_another_form_is_shown_as_it_is(tmp_path: Path) -> None:
    run = make_run(tmp_path / "one", metrics={"geneval@shapes": {"strange": 0.5}})
    assert page_of(run, out=tmp_path / "out").row("strange") == ["strange", "0.500"]


def test_best_of_n_is_drawn_and_its_costs_are_listed(tmp_path: Path) -> None:
    def point(value: float, tokens: float) -> dict[str, float]:
        ends = {"low": value - 0.125, "high": value + 0.125, "num_prompts": 40}
        return {"value": value, "tokens": tokens, "seconds": tokens / 64, **ends}

    arms = {
        arm: {str(n): point(base, 36.0 * n) for n in (1, 2, 10)}
        for arm, base in (("best-of-self", 0.5), ("random", 0.25))
    }
    judge = {"agreement": 0.75, "num_pairs": 12}
    run = make_run(tmp_path / "one", metrics={"reflect@mini": {"arms": arms, "judge": judge}})
    page = page_of(run, out=tmp_path / "out")
    shown = ["best-of-self", "10", "0.500", "[0.375, 0.625]", "40", "360.0", "5.625"]
    assert page.row("best-of-self", "10") == shown
    # 1, 2, 10 and not the 1, 10, 2 of text
    assert [row[1] for row in page.rows if row[0] == "random"] == ["1", "2", "10"]
    assert page.row("agreement") == ["agreement", "0.750"]
    assert "random, 2: 0.25 [0.125, 0.375]" in page.text  # a point's title
    assert page.row("reflect@mini arms · best-of-self · 10")[1].startswith("0.500")


# ---- coverage -----------------------------------------------------------------------------------


def test_missing_samples_are_refused_unless_they_are_allowed(tmp_path: Path) -> None:
    metrics = {"geneval@shapes": picture_metrics(FIRST) | {"coverage": 0.75}}
    run = make_run(tmp_path / "one", metrics=metrics)
    with pytest.raises(UserError, match=r"geneval@shapes has a coverage of 0\.750"):
        report.run([run], out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    page = page_of(run, out=tmp_path / "out", allow_missing=True)
    assert "one: geneval@shapes has a coverage of 0.750. Samples that failed count as" in page.text


def test_coverage_is_looked_for_at_every_depth_and_nan_is_not_whole(tmp_path: Path) -> None:
    metrics = {"reflect@mini": {"parts": {"a": {"coverage": float("nan")}}}}
    run = make_run(tmp_path / "one", metrics=metrics)
    with pytest.raises(UserError, match="coverage of nan"):
        report.run([run], out=tmp_path / "out")


# ---- comparison ---------------------------------------------------------------------------------


def test_deltas_are_those_of_the_same_items(tmp_path: Path) -> None:
    one, two = make_run(tmp_path / "one"), make_run(tmp_path / "two", OTHER)
    page = page_of(one, two, out=tmp_path / "out")
    # colours 2 / 4 -> 3 / 4: one prompt rose, none fell; of one toss p is 2 * 1 / 2 = 1
    colours = page.row("colors", "0.500", "0.750")
    assert colours[3].startswith("+0.250 [0.000, +")
    assert colours[4:] == ["1", "0", "1.000", "4", "4"]
    # pairs 0 / 2 -> 1 / 2: redraws hold the risen prompt 0, 1 or 2 times of two, each end 1/4
    pairs = page.row("two_object", "0.000", "0.500")
    assert pairs[3:] == ["+0.500 [0.000, +1.000]", "1", "0", "1.000", "2", "2"]
    # overall (.25 + .5) / 2 = .375; two rose, p = 2 * 1 / 4
    overall = page.row("overall over 2 tasks", "0.250", "0.625")
    assert overall[3].startswith("+0.375 [")
    assert overall[4:] == ["2", "0", "0.500", "6", "6"]
    assert "6 shared items." in page.text


def test_items_of_one_run_or_of_other_prompts_are_left_out_and_counted(tmp_path: Path) -> None:
    one = make_run(tmp_path / "one")
    two = make_run(tmp_path / "two", OTHER, item="c9")  # its c0 is called c9
    text = page_of(one, two, out=tmp_path / "out").text
    assert "5 shared items; 2 that only one run has are left out." in text
    assert "geneval@shapes †" in text and "scored on different items" in text
    three = make_run(tmp_path / "three", OTHER, prompt="a photo of a ring")
    text = page_of(one, three, out=tmp_path / "out").text
    assert "5 shared items; 1 of one name but other prompts are left out." in text
    four = make_run(tmp_path / "four", OTHER)
    rows = pq.read_table(four / "scores.parquet").to_pylist()
    table = pq.read_table(four / "scores.parquet")
    names = table.column_names.index("suite")
    renamed = table.set_column(names, "suite", [["dpg"] * len(rows)])
    pq.write_table(renamed, four / "scores.parquet")
    text = page_of(one, four, out=tmp_path / "out").text
    assert "four shares no judged item with one: nothing is compared." in text


def test_samples_of_an_item_are_its_mean_and_questions_of_a_picture_one_cluster(
    tmp_path: Path,
) -> None:
    def with_rows(path: Path, verdicts: dict[tuple[str, int], int]) -> Path:
        run = make_run(path)
        table = pq.read_table(run / "scores.parquet")
        base = table.to_pylist()[0] | {"suite": "pope", "task": "random", "file": None}
        rows = [
            base | {"item": item, "seed": seed, "prompt": f"{item}?", "correct": bool(verdict)}
            for (item, seed), verdict in verdicts.items()
        ]
        pq.write_table(table.from_pylist(rows, schema=table.schema), run / "scores.parquet")
        return run

    # pictures 7 and 8 with two questions each; both of 7 rise, those of 8 cancel out
    one = with_rows(tmp_path / "one", {("a", 7): 0, ("b", 7): 0, ("c", 8): 0, ("d", 8): 1})
    two = with_rows(tmp_path / "two", {("a", 7): 1, ("b", 7): 1, ("c", 8): 1, ("d", 8): 0})
    row = page_of(one, two, out=tmp_path / "out").row("all", "0.250", "0.750")
    assert row[3:] == ["+0.500 [0.000, +1.000]", "1", "0", "1.000", "4", "2"]


def test_differing_settings_are_listed_and_equal_ones_are_not(tmp_path: Path) -> None:
    alike = {"scale": 2, "sampling": {"temperature": 0.5, "top_k": 0}}
    one = make_run(tmp_path / "one", settings=alike)
    changed = {"scale": 2, "sampling": {"temperature": 1.0, "top_k": 0}}
    two = make_run(tmp_path / "two", OTHER, settings=changed)
    page = page_of(one, two, out=tmp_path / "out")
    assert page.row("sampling.temperature", "0.5", "1.0")
    assert not [row for row in page.rows if row[0] == "scale" and len(row) == 3]


def test_a_run_is_not_compared_with_itself(tmp_path: Path) -> None:
    run = make_run(tmp_path / "one")
    with pytest.raises(UserError, match="named twice"):
        report.run([run, run / ".." / "one"], out=tmp_path / "out")


# ---- pictures -----------------------------------------------------------------------------------


def test_the_sheet_is_half_correct_and_half_wrong_and_fills_up() -> None:
    correct = [True] * 10 + [False] * 3
    for count, good in ((4, 2), (5, 2), (8, 5), (13, 10), (20, 10)):
        chosen = half_and_half(correct, count, seed=0)
        # 5: the odd one is wrong; 8: only 3 wrong, so 5 correct; 20: there are but 13
        assert sum(correct[place] for place in chosen) == good
        assert len(set(chosen)) == min(count, 13)
        assert chosen == sorted(chosen)
    assert half_and_half(correct, 4, seed=0) == half_and_half(correct, 4, seed=0)
    assert half_and_half(correct, 4, seed=0) != half_and_half(correct, 4, seed=1)


def test_pictures_are_inside_the_page_with_verdict_and_reason(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path / "one"), out=tmp_path / "out", pictures=4)
    assert len(page.images) == 4
    assert "Correct: 2 of 2" in page.text and "Wrong: 2 of 4" in page.text
    assert "found 0" in page.text
    assert page_of(make_run(tmp_path / "two"), out=tmp_path / "out", pictures=0).images == []


@pytest.mark.parametrize(
    "file",
    ["../../etc/passwd", "/etc/passwd", "../secret.png", "link.png", "\x00", "x" * 5000, "samples"],
)
def test_a_picture_outside_the_run_is_not_read(tmp_path: Path, file: str) -> None:
    secret = tmp_path / "secret.png"
    Image.new("RGB", (8, 8), "red").save(secret)
    run = make_run(tmp_path / "one", file=file)
    (run / "link.png").symlink_to(secret)
    page = page_of(run, out=tmp_path / "out")
    assert len(page.images) == 5  # of six samples
    assert (
        "leaves the run's folder" in page.text
        or "is not there" in page.text
        or ("name cannot be read" in page.text)
    )


def test_a_torn_picture_says_so(tmp_path: Path) -> None:
    run = make_run(tmp_path / "one")
    place = run / "samples" / "00000" / "0000.png"
    place.write_bytes(place.read_bytes()[:200])
    page = page_of(run, out=tmp_path / "out")
    assert len(page.images) == 5
    assert "cannot be read" in page.text and str(tmp_path) not in page.text.split("Repeat")[0]


# ---- hostile text -------------------------------------------------------------------------------

HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(1)>\ud800\u202e'


def test_hostile_text_is_shown_and_does_nothing(tmp_path: Path) -> None:
    value = {"value": 0.5, "low": 0.25, "high": 0.75}
    tasks = {"tasks": {HOSTILE: value, "b": value}, HOSTILE: HOSTILE}
    metrics = {f"{HOSTILE}@{HOSTILE}": tasks, "reflect@x": {"arms": {HOSTILE: {"1": value}}}}
    safe = HOSTILE.replace("\ud800", "")
    run = make_run(
        tmp_path / "<b>one",
        metrics=metrics,
        settings={HOSTILE: {HOSTILE: HOSTILE}},
        prompt=safe,
        reason=safe,
        task=safe,
        column=safe,
    )
    append_command(run, ["tarkit", safe])
    other = make_run(tmp_path / "<b>two", OTHER, prompt=safe, task=safe)
    page = page_of(run, other, out=tmp_path / "out", title=HOSTILE)
    assert "<script>alert(1)</script>" in page.text  # as text
    raw = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert "<script" not in raw and "\u202e" not in raw and "onerror=alert(1)>" not in raw
    markdown = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    outside = [line for line in markdown.splitlines() if not line.startswith("    ")]
    assert "<" not in "\n".join(outside)


def test_nothing_on_a_page_comes_from_elsewhere(tmp_path: Path) -> None:
    run = make_run(tmp_path / "one")
    page_of(run, out=tmp_path / "out")
    raw = (tmp_path / "out" / "index.html").read_text()
    assert "://" not in raw
    assert "default-src 'none'" in raw


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "one")
    cases: dict[str, tuple[str, bytes]] = {
        "is not JSON": ("results.json", b'{"metrics": '),
        "holds a list": ("results.json", b"[]"),
        "holds no metrics": ("results.json", b'{"metrics": 3}'),
        "cannot be read": ("results.json", b"\xff\xfe"),
        "nested|to a depth of 64": ("results.json", b"[" * 100_000),
        "to a depth of 64": ("results.json", b'{"a":' * 99 + b"1" + b"}" * 99),
        "as judged samples": ("scores.parquet", b"PAR1 and no more"),
    }
    for message, (name, content) in cases.items():
        kept = (run / name).read_bytes()
        (run / name).write_bytes(content)
        with pytest.raises(UserError, match=message):
            report.run([run], out=tmp_path / "out")
        (run / name).write_bytes(kept)
    empty = tmp_path / "empty"
    empty.mkdir()
    for path, why in ((empty, "neither results.json nor"), (tmp_path / "no", "no such folder")):
        with pytest.raises(UserError, match=why):
            report.run([path], out=tmp_path / "out")
    with pytest.raises(UserError, match="no run is named"):
        report.run([], out=tmp_path / "out")


def test_scores_of_other_columns_are_read_and_of_other_types_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "one")
    table = pq.read_table(run / "scores.parquet")
    pq.write_table(table.select(["suite", "item", "correct"]), run / "scores.parquet")
    assert page_of(run, out=tmp_path / "out").images == []
    texts = [["not so"] * len(table)]
    odd = table.set_column(table.column_names.index("correct"), "correct", texts)
    pq.write_table(odd, run / "scores.parquet")
    with pytest.raises(UserError, match="as judged samples"):
        report.run([run], out=tmp_path / "out")


def test_odd_values_everywhere_are_shown_and_break_nothing(tmp_path: Path) -> None:
    odd: list[Any] = [10**400, -(10**400), float("nan"), 1e308, [], {}, [[]], [{}], "", None, True]
    for place, value in enumerate(odd):
        point = {"value": value, "low": value, "high": value}
        names = ("geneval", "pope", "caption", "ceiling_truth", "codes")
        metrics = {f"{name}@shapes": {"tasks": {"a": value, "b": point}} for name in names}
        metrics |= {"x@y": value, "curves@y": {"arms": {"a": {"1": point, "2": point}}}}
        settings = {"suites": [value], "sampling": {"top_k": value}, "stage": value, "n": value}
        run = make_run(tmp_path / f"run{place}", metrics=metrics, settings=settings)
        document = json.loads((run / "results.json").read_text()) | {"versions": {"tarkit": value}}
        (run / "results.json").write_text(json.dumps(document))
        row = {"step": 1, "loss": value, "scale": value}
        log = make_training(tmp_path / f"log{place}", [json.dumps(row), json.dumps({"step": 2})])
        (log / "config.json").write_text(json.dumps({"figures": {"a": value}}))
        page_of(run, log, out=tmp_path / "out")


# ---- trainings ----------------------------------------------------------------------------------


def make_training(path: Path, lines: list[str]) -> Path:
    path.mkdir()
    (path / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    manifest = {"kind": "model", "tarkit": "0.1.0", "settings": {"stage": "tokenizer", "steps": 40}}
    parents = {"images": {"path": "../pictures", "kind": "images"}}
    (path / "manifest.json").write_text(json.dumps(manifest | {"parents": parents}))
    return path


def test_a_training_has_its_loss_and_its_codebook(tmp_path: Path) -> None:
    rows = [
        {"step": step, "loss": 100 / step, "perplexity": 2.0 * step, "rate": 0.5, "scale": scale}
        for step, scale in ((10, 1), (20, 2), (30, 1), (40, 2))
    ]
    run = make_training(tmp_path / "ta_tok", [json.dumps(row) for row in rows])
    config = {"figures": {"scale_1": {"used": 60, "dead": 4}, "scale_2": {"used": 50, "dead": 14}}}
    (run / "config.json").write_text(json.dumps(config))
    page = page_of(run, out=tmp_path / "out")
    titles = ["loss", "codebook: perplexity", "rate"]
    assert [word for word in page.words if word in titles][:3] == titles
    # a line each scale: 100 / 30 is the second point of scale 1
    assert "scale 1, 30: 3.333" in page.text and "scale 2, 40: 2.5" in page.text
    assert page.row("scale_2") == ["scale_2", "50", "14"]


def test_figures_of_groups_and_of_the_machine_have_plots_of_their_own(tmp_path: Path) -> None:
    rows = [
        {"step": step, "loss": 2.0, "scale": scale, f"loss_by_scale/{scale}": 2.0}
        | {"cosine_by_source/web": step / 40, "cosine_by_source/art": 0.25, "usage": 0.5}
        | {"step_s": 3.0, "data_wait_s": 1.0, "mfu": step / 100, "rows_per_s": 4.0}
        for step, scale in ((10, 1), (20, 2), (30, 1), (40, 2))
    ]
    run = make_training(tmp_path / "ta_tok", [json.dumps(row) for row in rows])
    bad = {"step": 25, "reason": "loss of step 25 is nan", "loss": None, "key": "7"}
    (run / "bad_rows.jsonl").write_text(2 * f"{json.dumps(bad)}\n")
    page = page_of(run, out=tmp_path / "out")
    titles = ["loss", "cosine by source", "codebook: usage", "step_s and data_wait_s"]
    titles += ["mfu", "rows_per_s"]
    assert [word for word in dict.fromkeys(page.words) if word in titles] == titles
    # A source has a line each scale; the machine has one line for all rows.
    assert "web, scale 1, 30: 0.75" in page.text and "art, scale 2, 40: 0.25" in page.text
    assert "mfu, 20: 0.2" in page.text and "data_wait_s, 30: 1" in page.text
    assert "loss by scale" not in page.text  # that is what the plot of the loss shows
    assert "2 rows of 1 bad steps; the last: loss of step 25 is nan." in page.text


def test_lines_that_tell_nothing_are_counted(tmp_path: Path) -> None:
    lines = ['{"step": 1, "loss": 2.0}', '{"step": 2, "loss": NaN}', '{"step": 3, "lo', "7"]
    page = page_of(make_training(tmp_path / "lm", lines), out=tmp_path / "out")
    assert "2 lines of metrics.jsonl are no rows" in page.text
    assert "1 values are no finite numbers" in page.text


# ---- repeating ----------------------------------------------------------------------------------


def test_the_same_runs_give_the_same_bytes(tmp_path: Path) -> None:
    run = make_run(tmp_path / "one")
    pages = [report.run([run], out=tmp_path / "out").read_bytes() for _ in range(2)]
    assert pages[0] == pages[1]


def test_recorded_commands_are_shown_and_never_guessed(tmp_path: Path) -> None:
    settings = {"suites": ["geneval"], "sampling": {"temperature": 0.5}, "seed": 7}
    run = make_run(tmp_path / "one", settings=settings)
    first = ["tarkit", "eval", "shapes", "--model", "my model", "--out", "work/one"]
    append_command(run, first)
    append_command(run, [*first, "--retry-failed"])
    page = page_of(run, make_run(tmp_path / "two", settings=settings), out=tmp_path / "out")
    command = "tarkit eval shapes --model 'my model' --out work/one"
    assert f"{command}\n{command} --retry-failed" in page.words
    # The second run records none: its settings stand where its commands would.
    at = next(n for n, word in enumerate(page.words) if word.startswith("No command is recorded"))
    after = " ".join(" ".join(page.words[at + 1 : at + 30]).split())
    assert after.startswith("settings name value suites")
    assert page.text.count("tarkit eval shapes") == 2
    markdown = (tmp_path / "out" / "report.md").read_text()
    assert f"    {command}\n    {command} --retry-failed\n" in markdown


def test_scores_of_a_run_are_shown_with_the_commands_of_the_run(tmp_path: Path) -> None:
    home = tmp_path / "geneval"
    scores = make_run(home / "scores" / "geneval@published")
    (home / "manifest.json").write_text('{"kind": "run", "settings": {}}')
    append_command(scores, ["tarkit", "eval", "score", "geneval"])
    append_command(home, ["tarkit", "eval", "generate", "geneval"])
    assert read_run(scores).commands == [
        ["tarkit", "eval", "generate", "geneval"],
        ["tarkit", "eval", "score", "geneval"],
    ]


def test_the_page_says_the_command_that_makes_it(tmp_path: Path) -> None:
    import typer.main

    run = make_run(tmp_path / "one run", metrics={"x@y": {"coverage": 0.5, "score": 1.0}})
    options: dict[str, Any] = {"title": "A 'title'", "pictures": 4, "seed": 7}
    page = page_of(run, out=tmp_path / "out", allow_missing=True, **options)
    command = next(word for word in page.words if word.startswith("tarkit report"))
    verb = typer.main.get_command(app).commands["report"]  # type: ignore[attr-defined]
    given = verb.make_context("report", shlex.split(command)[2:]).params
    options |= {"runs": [run], "out": tmp_path / "out", "allow_missing": True}
    assert {name: given[name] for name in options} == options


# ---- a browser ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(find_browser() is None, reason="no Chromium on the path and no CHROME_BIN")
def test_a_browser_shows_the_page_and_requests_nothing(tmp_path: Path) -> None:
    one, two = make_run(tmp_path / "one"), make_run(tmp_path / "two", OTHER)
    page = report.run([one, two], out=tmp_path / "out")
    # The same page with a picture from elsewhere requests it, which shows that this test can fail;
    # the page's own policy blocks the request.
    text = page.read_text().replace("<main>", '<main><img src="http://127.0.0.1:9/x.png">')
    blocked, leaky = tmp_path / "blocked.html", tmp_path / "leaky.html"
    blocked.write_text(text)
    policy = text[text.index("<meta http-equiv") : text.index('<meta name="viewport"')]
    leaky.write_text(text.replace(policy, ""))
    with open_browser(str(find_browser()), tmp_path / "profile") as browser:
        for width_px, dark in ((1200, False), (1200, True), (375, False)):
            shown = browser.show(page, width_px=width_px, dark=dark)
            assert shown.requests == []
            assert shown.width_px == width_px  # nothing reaches over the side
            colours = shown.pixels.reshape(-1, 3)
            # Paper is most of it, light or dark; text, bars and pictures are the rest.
            paper = np.median(colours, axis=0)
            assert paper.mean() < 60 if dark else paper.mean() > 230
            ink = (np.abs(colours.astype(int) - paper).sum(axis=-1) > 60).mean()
            assert 0.02 < ink < 0.5
            assert len(np.unique(colours[::7], axis=0)) > 200
        assert browser.show(leaky, width_px=1200, dark=False).requests == [
            "http://127.0.0.1:9/x.png"
        ]
        assert browser.show(blocked, width_px=1200, dark=False).requests == []
