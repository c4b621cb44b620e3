"""The command line: arguments reach their verbs, exit codes, what is on stdout and on stderr."""

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock, create_autospec

import pytest
from typer.testing import CliRunner, Result

from tarkit.artifacts.artifact import Artifact, begin_artifact
from tarkit.artifacts.commands import COMMANDS, read_commands
from tarkit.cli.app import app
from tarkit.curate.render import RenderPlan
from tarkit.encode import EncodePlan
from tarkit.errors import UserError
from tarkit.inference.self_reflect import Reflection
from tarkit.shapes.regions import regions_of

ROOT = Path(__file__).resolve().parents[2]


def tarkit(*words: str) -> Result:
    return CliRunner().invoke(app, list(words))


def pretend(monkeypatch: pytest.MonkeyPatch, verb: str, answer: Any) -> Mock:
    """Replace a verb's `run` by one that takes the same arguments, answers, and remembers."""
    module = importlib.import_module(verb)
    run = create_autospec(module.run)
    if isinstance(answer, BaseException):
        run.side_effect = answer
    else:
        run.return_value = answer
    monkeypatch.setattr(module, "run", run)
    return run


def pretend_plan(monkeypatch: pytest.MonkeyPatch, verb: str, name: str, answer: Any) -> Mock:
    """Replace a verb's plan by one that takes the same arguments, whose `run` answers."""
    module = importlib.import_module(verb)
    plan = create_autospec(getattr(module, name))
    run = plan.return_value.run
    if isinstance(answer, BaseException):
        run.side_effect = answer
    else:
        run.return_value = answer
    monkeypatch.setattr(module, name, plan)
    return plan


@pytest.fixture
def config(tmp_path: Path) -> str:
    (tmp_path / "c.toml").write_text("")
    return str(tmp_path / "c.toml")


@pytest.fixture
def chats(tmp_path: Path) -> Artifact:
    artifact = begin_artifact(tmp_path / "chats", "chats", settings={}, shards=["00000"])
    row: dict[str, Any] = {"key": "0", "task": "text", "split": None, "messages": [], "images": []}
    artifact.write("00000", [row | {"status": "ok", "error": None}])
    return artifact


PARTS = ["--tokenizer", "t", "--vqvae", "v"]


@pytest.mark.parametrize(
    ("verb", "words", "wanted"),
    [
        ("vqvae", ["--images", "i"], {"images": [Path("i")], "start": None, "lpips": ()}),
        (
            "vqvae",
            ["--images", "i", "--start", "s", "--lpips", "vgg", "--lpips", "heads"],
            {
                "images": [Path("i")],
                "start": Path("s"),
                "lpips": [Path("vgg"), Path("heads")],
            },
        ),
        (
            "dif-dtok",
            ["--tokens", "a", "--tokens", "b", "--tokenizer", "t", "--sana", "owner/sana"],
            {
                "images": (),
                "tokens": [Path("a"), Path("b")],
                "tokenizer": Path("t"),
                "sana": "owner/sana",
            },
        ),
        (
            "dif-dtok",
            ["--images", "i", "--tokenizer", "t", "--sana", "s"],
            {"images": [Path("i")], "tokens": (), "tokenizer": Path("t"), "sana": "s"},
        ),
        ("encoder", ["--images", "i"], {"images": [Path("i")], "regions_of": regions_of}),
        (
            "tokenizer",
            ["--images", "i", "--images", "j", "--encoder", "e", "--lm", "l"],
            {"images": [Path("i"), Path("j")], "encoder": Path("e"), "lm": Path("l")},
        ),
        (
            "ar-dtok",
            ["--images", "i", "--start", "s", *PARTS],
            {
                "images": [Path("i")],
                "tokens": (),
                "tokenizer": Path("t"),
                "vqvae": Path("v"),
                "start": Path("s"),
            },
        ),
        (
            "ar-dtok",
            ["--tokens", "a", "--tokens", "b", *PARTS],
            {
                "images": (),
                "tokens": [Path("a"), Path("b")],
                "tokenizer": Path("t"),
                "vqvae": Path("v"),
                "start": None,
            },
        ),
        (
            "grpo",
            ["--prompts", "p", "--scorer", "clip", "--scorer-model", "m", "--column", "cosine"]
            + ["--device", "cpu"],
            {
                "model": "mini",
                "prompts": Path("p"),
                "scorer": "clip",
                "scorer_model": "m",
                "column": "cosine",
                "chats": (),
                "device": "cpu",
            },
        ),
        (
            "mllm",
            ["--chats", "a", "--chats", "b", "--lm", "l"],
            {
                "chats": [Path("a"), Path("b")],
                "tokenizer": None,
                "lm": Path("l"),
                "ar_dtok": None,
                "vqvae": None,
                "encoder": None,
                "images": (),
            },
        ),
    ],
)
def test_a_training_gets_its_own_arguments_and_no_others(
    monkeypatch: pytest.MonkeyPatch, config: str, verb: str, words: list[str], wanted: dict
) -> None:
    run = pretend(monkeypatch, f"tarkit.train.{verb.replace('-', '_')}", Path("o"))
    done = tarkit("train", verb, config, *words, "--out", "o", "--set", "steps=2", "--set", "a.b=1")
    assert (done.exit_code, done.stdout) == (0, "o\n"), done.stderr
    run.assert_called_once_with(
        Path(config), **wanted, out=Path("o"), overrides=["steps=2", "a.b=1"]
    )


@pytest.mark.parametrize(("vqvae", "sana"), [(None, None), (Path("v"), "owner/sana")])
def test_encode_gets_its_arguments(
    monkeypatch: pytest.MonkeyPatch, chats: Artifact, vqvae: Path | None, sana: str | None
) -> None:
    plan = pretend_plan(monkeypatch, "tarkit.encode", "EncodePlan", chats)
    words = ["--tokenizer", "t", "--out", "o", "--limit", "3", "--retry-failed", "--device", "cpu"]
    words += ["--vqvae", str(vqvae)] if vqvae else []
    words += ["--sana", sana] if sana else []
    assert tarkit("encode", "pictures", *words).exit_code == 0
    plan.assert_called_once_with(
        Path("pictures"),
        tokenizer=Path("t"),
        vqvae=vqvae,
        sana=sana,
        out=Path("o"),
        config=None,
        overrides=(),
        limit=3,
        retry_failed=True,
        device="cpu",
    )


def test_download_gets_its_arguments(monkeypatch: pytest.MonkeyPatch, chats: Artifact) -> None:
    plan = pretend_plan(monkeypatch, "tarkit.curate.download", "DownloadPlan", chats)
    words = ["--out", "o", "--img2dataset", "d/bin/img2dataset", "--allow-private"]
    assert tarkit("curate", "download", "u.txt", *words, "--retry-failed").exit_code == 0
    plan.assert_called_once_with(
        Path("u.txt"),
        out=Path("o"),
        img2dataset="d/bin/img2dataset",
        config=None,
        overrides=(),
        limit=None,
        retry_failed=True,
        allow_private=True,
    )


def test_generate_passes_on_what_was_given_and_leaves_the_rest_to_the_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = pretend(monkeypatch, "tarkit.inference.generate", [Path("a.png"), Path("b.png")])
    words = ["a ring", "--out", "a.png", "--n", "2", "--top-k", "9", "--guidance", "1.5"]
    done = tarkit("generate", *words, "--device", "cpu")
    assert (done.exit_code, done.stdout) == (0, "a.png\nb.png\n")
    run.assert_called_once_with(
        "a ring",
        out=Path("a.png"),
        model="mini",
        images=(),
        n=2,
        seed=0,
        scale=None,
        sampling={"top_k": 9, "guidance": 1.5},
        reflection=None,
        device="cpu",
        size_px=None,
        dtok="ar",
        precision="float32",
        c2pa=None,
        server=None,
        draft=None,
    )


@pytest.mark.parametrize(
    ("words", "reflection"),
    [
        (["--best-of", "4"], Reflection(4, "gain", "pixels", until_yes=False)),
        (["--reflect", "3"], Reflection(3, "yes", "pixels", until_yes=True)),
        (
            ["--reflect", "3", "--judge", "gain", "--judge-on", "codes"],
            Reflection(3, "gain", "codes", until_yes=True),
        ),
    ],
)
def test_generate_makes_a_reflection_of_its_options(
    monkeypatch: pytest.MonkeyPatch, words: list[str], reflection: Reflection
) -> None:
    run = pretend(monkeypatch, "tarkit.inference.generate", [Path("a.png")])
    done = tarkit("generate", "a ring", "--out", "a.png", *words, "--device", "cpu")
    assert done.exit_code == 0, done.stderr
    assert run.call_args.kwargs["reflection"] == reflection


def test_eval_gets_its_arguments_and_prints_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = SimpleNamespace(path=Path("o"), report="overall 0.81\n", num_failed=0)
    run = pretend(monkeypatch, "tarkit.eval.shapes", answer)
    words = ["--suite", "pope", "--validation", "--limit", "9", "--top-p", "0.5", "--device", "cpu"]
    done = tarkit("eval", "shapes", "--out", "o", *words)
    assert (done.exit_code, done.stdout) == (0, "overall 0.81\n\no\n")
    run.assert_called_once_with(
        out=Path("o"),
        model="mini",
        suites=["pope"],
        n=1,
        seed=0,
        scale=None,
        limit=9,
        split="validation",
        batch_size=16,
        sampling={"top_p": 0.5},
        retry_failed=False,
        device="cpu",
    )


def test_retry_failed_reaches_what_draws_answers_and_judges(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done = SimpleNamespace(path=Path("o"), report="", num_failed=0)
    verbs = {
        name: pretend(monkeypatch, f"tarkit.eval.{name}", done)
        for name in ("prepare", "generate", "answer", "score")
    }
    for words, reached in (
        (["score", "o"], ["score"]),
        (["dpg", "--out", "o"], ["generate", "score"]),
        (["geneval", "--out", "o"], ["generate"]),
        (["pope", "--out", "o"], ["answer"]),
    ):
        for flag in (True, False):
            more = ["--device", "cpu", *(["--retry-failed"] if flag else [])]
            assert tarkit("eval", *words, *more).exit_code == 0
            assert [verbs[name].call_args.kwargs["retry_failed"] for name in reached] == [
                flag for _ in reached
            ]


def test_eval_lmms_gets_its_arguments_and_prints_the_path(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = pretend(monkeypatch, "tarkit.eval.lmms", Path("o"))
    words = ["--tasks", "mme,pope", "--tasks", "gqa", "--include", str(tmp_path), "--scale", "2"]
    words += ["--limit", "9", "--simple", "--offline", "--device", "cpu"]
    done = tarkit("eval", "lmms", "--out", "o", *words)
    assert (done.exit_code, done.stdout) == (0, "o\n")
    run.assert_called_once_with(
        tasks=["mme,pope", "gqa"],
        out=Path("o"),
        model="mini",
        include=tmp_path,
        scale=2,
        limit=9,
        batch_size=16,
        device="cpu",
        offline=True,
        simple=True,
    )


def test_json_is_one_object_on_stdout(monkeypatch: pytest.MonkeyPatch, chats: Artifact) -> None:
    pretend_plan(monkeypatch, "tarkit.curate.chats", "ChatsPlan", chats)
    done = tarkit("curate", "chats", "tokens", "--out", "chats", "--json")
    assert json.loads(done.stdout) == {
        "path": str(chats.path),
        "kind": "chats",
        "shards": 1,
        "shards_left": 0,
        "failed": 0,
    }
    pretend(monkeypatch, "tarkit.inference.describe", 'a "red" ring')
    done = tarkit("describe", "a.png", "What is it?", "--device", "cpu", "--json")
    assert json.loads(done.stdout) == {
        "image": "a.png",
        "question": "What is it?",
        "answer": 'a "red" ring',
    }


def test_failed_rows_are_exit_code_3_and_the_path_is_printed_all_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    artifact = begin_artifact(tmp_path / "chats", "chats", settings={}, shards=["00000"])
    failed = [artifact.failed_row(key, "torn", messages=[], images=[]) for key in ("0", "1")]
    artifact.write("00000", failed)
    pretend_plan(monkeypatch, "tarkit.curate.chats", "ChatsPlan", artifact)
    done = tarkit("curate", "chats", "tokens", "--out", "chats")
    assert (done.exit_code, done.stdout) == (3, f"{artifact.path}\n")
    assert done.stderr == f"2 failed rows: tarkit inspect {artifact.path}\n"


def test_reconstruct_lists_what_failed_and_exits_3(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = SimpleNamespace(path=Path("s.png"), num_pictures=1, failed={"b.png": "truncated"})
    pretend(monkeypatch, "tarkit.inference.reconstruct", answer)
    done = tarkit("reconstruct", "a.png", "b.png", "--out", "s.png", "--device", "cpu")
    assert (done.exit_code, done.stdout) == (3, "s.png\n")
    assert done.stderr == "failed: b.png: truncated\n"


def test_a_users_mistake_is_told_in_words_with_the_next_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mistake = UserError("work/x is no artifact", hint="tarkit inspect work/x")
    pretend_plan(monkeypatch, "tarkit.curate.chats", "ChatsPlan", mistake)
    done = tarkit("curate", "chats", "work/x", "--out", "chats")
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr == "error: work/x is no artifact\nnext: tarkit inspect work/x\n"


def test_our_own_mistake_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_plan(monkeypatch, "tarkit.curate.chats", "ChatsPlan", ValueError("ours"))
    done = tarkit("curate", "chats", "work/x", "--out", "chats")
    assert done.exit_code == 1
    assert isinstance(done.exception, ValueError)


def test_an_interrupted_command_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_plan(monkeypatch, "tarkit.curate.chats", "ChatsPlan", KeyboardInterrupt())
    done = tarkit("curate", "chats", "my tokens", "--out", "o")
    assert done.exit_code == 130
    assert "tarkit curate chats 'my tokens' --out o" in done.stderr.splitlines()


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["encod"], "No such command"),
        (["encode", "pictures", "--out", "o"], "tokenizer"),
        (["encode", "pictures", "--tokenizer", "t", "--out", "o", "--limit", "0"], "limit"),
        (["generate", "a ring", "--out", "a.png", "--n", "two"], "integer"),
        (["generate", "a ring", "--out", "a.png", "--scale", "4"], "scale"),
        (["generate", "a ring", "--out", "a.png", "--colour", "red"], "No such option"),
        (["generate", "--out", "a.png"], "either a PROMPT or --prompts"),
        (["generate", "a ring", "--prompts", "p.txt", "--out", "a"], "either a PROMPT or"),
        (["generate", "--prompts", "p.txt", "--image", "i.png", "--out", "a"], "--image goes with"),
        (["generate", "a ring", "--limit", "3", "--out", "a.png"], "--limit goes with"),
        (["generate", "a ring", "--steps", "9", "--out", "a.png"], "--steps goes with --dtok dif"),
        (["reconstruct", "a.png", "--steps", "9", "--out", "b.png"], "--steps goes with"),
        (
            ["generate", "a ring", "--best-of", "2", "--reflect", "3", "--out", "a.png"],
            "either --best-of or --reflect",
        ),
        (["train", "vqvae", "gone.toml", "--images", "i", "--out", "o"], "does not exist"),
    ],
)
def test_misuse_is_exit_code_2_and_says_what_is_wrong(words: list[str], complaint: str) -> None:
    done = tarkit(*words)
    assert (done.exit_code, done.stdout) == (2, "")
    assert complaint.lower() in " ".join(done.stderr.replace("│", " ").lower().split())


def test_a_dry_run_prints_the_plan_and_runs_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    begin_artifact(tmp_path / "im", "images", settings={}, shards=[])
    run = Mock()
    monkeypatch.setattr(EncodePlan, "run", run)
    words = ["encode", str(tmp_path / "im"), "--tokenizer", "mini", "--out", str(tmp_path / "o")]
    done = tarkit(*words, "--dry-run")
    assert re.fullmatch(
        r"rows: 0\nshards: 0\nshards_to_make: 0\ndisk_bytes_free: \d+\n", done.stdout
    )
    run.assert_not_called()
    assert not (tmp_path / "o").exists()


def test_version_tells_the_packages_as_json() -> None:
    versions = json.loads(tarkit("version", "--json").stdout)
    assert versions["python"] == sys.version.split()[0]
    assert versions["torch"][0].isdigit()
    assert tarkit("version").stdout == f"{versions['tarkit']}\n"
    option = tarkit("--version")
    assert (option.exit_code, option.stdout) == (0, f"{versions['tarkit']}\n")


@pytest.mark.parametrize("group", [[], ["curate"], ["train"], ["eval"], ["export"]])
def test_a_group_without_a_command_shows_its_help(group: list[str]) -> None:
    done = tarkit(*group)
    assert "Usage:" in done.output and "Commands" in done.output


def test_the_module_can_be_run_and_its_exit_code_is_the_processes(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "tarkit.cli", "curate", "chats", "gone", "--out", "o"]
    done = subprocess.run(
        words, capture_output=True, text=True, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[0] == "error: gone does not exist"
    assert "Traceback" not in done.stderr


def test_sample_sheets_need_a_de_tokenizer_and_its_image_vq(config: str) -> None:
    done = tarkit("train", "mllm", config, "--chats", "a", "--ar-dtok", "d", "--out", "o")
    assert done.exit_code == 1
    assert "sample sheets need both --ar-dtok and --vqvae" in done.stderr


def test_a_dry_run_says_what_disk_it_would_take_by_what_it_has_taken(tmp_path: Path) -> None:
    out, settings = tmp_path / "pictures", ["--set", "count=6", "--set", "shard_size=2"]
    words = ["curate", "render", *settings, "--out", str(out)]
    before = json.loads(tarkit(*words, "--dry-run", "--json").stdout)
    assert "disk_bytes_to_come" not in before
    assert tarkit(*words).exit_code == 0
    shards = [*out.glob("0*.parquet"), *out.glob("0*.tar")]
    made = sum(path.stat().st_size for path in shards)
    assert json.loads(tarkit(*words, "--dry-run", "--json").stdout)["disk_bytes_to_come"] == 0
    lost = [path for path in shards if path.name.startswith("00002")]
    assert len(lost) == 2
    kept = made - sum(path.stat().st_size for path in lost)
    for path in lost:
        path.unlink()
    assert json.loads(tarkit(*words, "--dry-run", "--json").stdout)["disk_bytes_to_come"] == (
        kept // 2
    )


def test_a_dry_run_of_another_plan_is_refused_as_the_run_would_be(tmp_path: Path) -> None:
    words = ["curate", "render", "--set", "count=6", "--out", str(tmp_path / "pictures")]
    assert tarkit(*words, "--set", "shard_size=2").exit_code == 0
    done = tarkit(*words, "--set", "shard_size=6", "--dry-run")
    assert done.exit_code == 1
    assert "was begun for 3 shards, this run has 1" in " ".join(done.stderr.split())


def test_a_dry_run_says_how_many_calls_it_would_be_at_most(tmp_path: Path) -> None:
    RenderPlan(out=tmp_path / "pictures", overrides=["count=6", "shard_size=3"]).run()
    words = ["curate", "caption", str(tmp_path / "pictures"), "--out", str(tmp_path / "o")]
    done = tarkit(*words, "--llm", "m", "--dry-run", "--json", "--limit", "4")
    plan = json.loads(done.stdout)
    assert plan.pop("disk_bytes_free") > 0
    # Three tries a row at most.
    assert plan == {
        "rows": 4,
        "calls_at_most": 12,
        "shards": 2,
        "shards_to_make": 2,
    }
    assert not (tmp_path / "o").exists()


def test_a_command_that_wrote_is_recorded_in_its_folder_once(tmp_path: Path) -> None:
    out = tmp_path / "pictures"
    words = ["curate", "render", "--set", "count=4", "--set", "shard_size=2", "--out", str(out)]
    RenderPlan(out=tmp_path / "alone", overrides=["count=4", "shard_size=2"]).run()
    assert tarkit(*words, "--dry-run").exit_code == 0
    assert not out.exists()
    for _ in range(2):
        assert tarkit(*words).exit_code == 0
        assert read_commands(out) == [["tarkit", *words]]
    # No other byte changes: the folder is that of the verb, and its log.
    log = (out / COMMANDS).read_bytes()
    alone = {path.name: path.read_bytes() for path in (tmp_path / "alone").iterdir()}
    assert {path.name: path.read_bytes() for path in out.iterdir()} == alone | {COMMANDS: log}
    # A plan, and settings that are refused, write nothing.
    assert tarkit(*words, "--dry-run").exit_code == 0
    assert tarkit(*words, "--set", "count=6").exit_code == 1
    assert read_commands(out) == [["tarkit", *words]]


@pytest.mark.parametrize(
    ("words", "verb", "recorded"),
    [
        (["eval", "generate", "RUN"], "eval.generate", True),
        (["eval", "answer", "RUN"], "eval.answer", True),
        (["eval", "collect", "RUN", "verdicts.jsonl"], "eval.collect", True),
        (["eval", "export", "RUN", "--out", "RUN", "--format", "mme-txt"], "eval.export", False),
        (["export", "hf", "mini", "--out", "RUN"], "checkpoints.export_hf", False),
        (["report", "a", "--out", "RUN"], "report.report", False),
        (["models", "convert", "a.pth", "--out", "RUN"], "checkpoints.convert", True),
    ],
)
def test_folders_for_other_programs_hold_no_commands(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: list[str], verb: str, recorded: bool
) -> None:
    pretend(monkeypatch, f"tarkit.{verb}", tmp_path)
    words = [str(tmp_path) if word == "RUN" else word for word in words]
    assert tarkit(*words).exit_code == 0
    assert read_commands(tmp_path) == ([["tarkit", *words]] if recorded else [])


def test_a_folder_that_cannot_be_written_does_not_fail_the_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pretend(monkeypatch, "tarkit.checkpoints.convert", tmp_path)
    (tmp_path / COMMANDS).mkdir()  # also refused to a user who may write everything
    with caplog.at_level("DEBUG", logger="tarkit"):
        done = tarkit("models", "convert", "a.pth", "--out", str(tmp_path))
    assert (done.exit_code, done.stdout) == (0, f"{tmp_path}\n")
    assert [record.levelname for record in caplog.records] == ["DEBUG"]
