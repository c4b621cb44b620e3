"""The lmms-eval plug-in on stand-ins for lmms-eval; in the slow tier on lmms-eval itself."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tarkit.errors import UserError
from tarkit.eval import lmms
from tarkit.eval.metrics.yes_no import parse_yes_no
from tarkit.images import png_bytes
from tarkit.inference.tar_model import Tar
from tarkit.shapes.render import render
from tarkit.shapes.suites import pope_suite
from tarkit.vocab import Scale

PYTHON = os.environ.get("TARKIT_LMMS_PYTHON")
RED, GREEN = (Image.new("RGB", (8, 8), colour) for colour in ("red", "green"))

# ---- the model ----------------------------------------------------------------------------------


class Echo:
    """Has what the plug-in calls of `Tar`; an answer names its question."""

    device = "cpu"

    def __init__(self) -> None:
        self.batches: list[tuple[int, int]] = []

    def describe_many(
        self,
        images: Sequence[Image.Image],
        questions: Sequence[str],
        *,
        scale: Scale | None,
        max_tokens: int,
    ) -> list[str]:
        self.batches.append((len(images), max_tokens))
        return [f"{q}: {i.getpixel((0, 0))}" for i, q in zip(images, questions, strict=True)]


class BaseModel:
    """lmms-eval's base class, as far as a model meets it."""

    def __init__(self) -> None:
        self.task_dict: dict[str, Any] = {}
        self.remembered: list[tuple[Any, ...]] = []
        self.cache_hook = SimpleNamespace(add_partial=lambda *one: self.remembered.append(one))


def chat_messages(messages: Sequence[Mapping[str, Any]]) -> Any:
    return SimpleNamespace(
        messages=[
            SimpleNamespace(
                role=message["role"],
                content=[SimpleNamespace(**content) for content in message["content"]],
            )
            for message in messages
        ]
    )


@pytest.fixture
def plug_in(monkeypatch: pytest.MonkeyPatch) -> Any:
    contents: dict[str, dict[str, Any]] = {
        "lmms_eval": {},
        "lmms_eval.api": {},
        "lmms_eval.api.model": {"lmms": BaseModel},
        "lmms_eval.protocol": {"ChatMessages": chat_messages},
    }
    for name, content in contents.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "tarkit.eval.lmms_model", raising=False)
    from tarkit.eval import lmms_model

    monkeypatch.setattr(Tar, "load", lambda *args, **options: Echo())
    yield lmms_model
    sys.modules.pop("tarkit.eval.lmms_model", None)


Doc = Mapping[str, Any]


def chat_request(
    doc_id: int, read: Callable[[Doc], Any] | None = None, **generation: Any
) -> SimpleNamespace:
    def messages(doc: Doc) -> Any:
        content = [{"type": "text", "text": doc["text"]}]
        content += [{"type": "image", "url": picture} for picture in doc["pictures"]]
        return [{"role": "user", "content": content}]

    arguments = ("context", read or messages, generation, doc_id, "colours", "test")
    return SimpleNamespace(args=arguments, task_name="colours")


def simple_request(doc_id: int, text: str, **generation: Any) -> SimpleNamespace:
    arguments = (text, generation, lambda doc: doc["pictures"], doc_id, "colours", "test")
    return SimpleNamespace(args=arguments, task_name="colours")


DOCS = [
    {"text": "a?", "pictures": [RED]},
    {"text": "b?", "pictures": [GREEN]},
    {"text": "c?", "pictures": [RED]},
    {"text": "d?", "pictures": [GREEN]},
    {"text": "two", "pictures": [RED, GREEN]},
    {"text": "film", "pictures": ["film.mp4"]},
    {"text": "none", "pictures": []},
    {"text": "glass", "pictures": [Image.new("RGBA", (8, 8), (0, 0, 0, 0))]},
]


def loaded(kind: Any, **options: Any) -> Any:
    model = kind(**options)
    model.task_dict["colours"] = {"test": DOCS}
    return model


def test_answers_come_in_the_order_of_requests_batched_by_their_length(plug_in: Any) -> None:
    model = loaded(plug_in.TarChat, batch_size="2")
    lengths = [5, 9, 5, 5]
    asked = [chat_request(n, max_new_tokens=length) for n, length in enumerate(lengths)]
    red, green = "(255, 0, 0)", "(0, 128, 0)"
    answers = [f"a?: {red}", f"b?: {green}", f"c?: {red}", f"d?: {green}"]
    assert model.generate_until(asked) == answers
    # Three of length 5 are a batch of two and one of one, then the one of length 9.
    assert model.tar.batches == [(2, 5), (1, 5), (1, 9)]
    key = ("context", {"max_new_tokens": 5})
    assert model.remembered[0] == ("generate_until", key, answers[0])
    assert len(model.remembered) == 4


def test_the_simple_model_asks_the_same(plug_in: Any) -> None:
    chat, simple = loaded(plug_in.TarChat), loaded(plug_in.TarSimple)
    assert (chat.is_simple, simple.is_simple) == (False, True)
    texts = simple.generate_until([simple_request(1, "b?"), simple_request(0, "a?")])
    assert texts == chat.generate_until([chat_request(1), chat_request(0)])
    assert simple.tar.batches == [(1, plug_in.MAX_NEW_TOKENS)] * 2


def test_an_answer_ends_before_its_first_stop_string(plug_in: Any) -> None:
    model = loaded(plug_in.TarSimple)
    asked = [
        simple_request(0, "yes. it is", until=["is", ".", ""]),
        simple_request(0, "x", until=None),
    ]
    assert model.generate_until(asked) == ["yes", "x: (255, 0, 0)"]
    assert plug_in.cut(" one\n\ntwo", ["\n\n"]) == "one"


def test_transparency_is_white_as_everywhere(plug_in: Any) -> None:
    assert loaded(plug_in.TarChat).generate_until([chat_request(7)]) == ["glass: (255, 255, 255)"]


@pytest.mark.parametrize(
    ("doc_id", "found"),
    [(4, r"2 picture\(s\)"), (5, r"1 'film.mp4'"), (6, "none")],
)
def test_what_is_not_one_picture_is_refused_by_task_and_document(
    plug_in: Any, doc_id: int, found: str
) -> None:
    says = f"task colours, document {doc_id}: Tar reads one picture .* this has {found}"
    with pytest.raises(UserError, match=says):
        loaded(plug_in.TarChat).generate_until([chat_request(doc_id)])
    with pytest.raises(UserError, match=says):
        loaded(plug_in.TarSimple).generate_until([simple_request(doc_id, "?")])


def test_more_than_one_turn_is_refused(plug_in: Any) -> None:
    def turns(doc: Doc) -> Any:
        return [{"role": role, "content": []} for role in ("system", "user")]

    with pytest.raises(UserError, match="document 0: .* one turn of a user, not system, user"):
        loaded(plug_in.TarChat).generate_until([chat_request(0, turns)])


@pytest.mark.parametrize("asked", [{"temperature": 0.7}, {"do_sample": True}, {"num_beams": 3}])
def test_sampling_is_refused(plug_in: Any, asked: Mapping[str, Any]) -> None:
    with pytest.raises(UserError, match="task colours, document 1: Tar answers greedily"):
        loaded(plug_in.TarChat).generate_until([chat_request(0), chat_request(1, **asked)])


def test_what_cannot_be_followed_is_counted(plug_in: Any, caplog: pytest.LogCaptureFixture) -> None:
    odd: dict[str, Any] = {"do_sample": True, "temperature": 0.0, "top_p": None}
    asked = [chat_request(0, **odd), chat_request(1, **odd, repetition_penalty=2), chat_request(2)]
    loaded(plug_in.TarChat).generate_until(asked)
    assert [record.getMessage() for record in caplog.records] == [
        "2 of 3 requests: do_sample at temperature 0 is ignored",
        "1 of 3 requests: repetition_penalty is ignored",
    ]


def test_likelihoods_several_rounds_and_several_processes_are_refused(
    plug_in: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = loaded(plug_in.TarChat)
    with pytest.raises(UserError, match="task colours asks for likelihoods"):
        model.loglikelihood([chat_request(0)])
    with pytest.raises(UserError, match="answers in several rounds"):
        model.generate_until_multi_round([chat_request(0)])
    with pytest.raises(UserError, match="batch_size auto"):
        plug_in.TarChat(batch_size="auto")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="one process"):
        plug_in.TarChat()


def test_the_entry_point_needs_no_lmms_eval_until_it_is_called(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("lmms_eval", "lmms_eval.models", "lmms_eval.models.registry_v2"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "tarkit.eval.lmms_plugin", raising=False)
    from tarkit.eval.lmms_plugin import manifests

    with pytest.raises(ImportError):
        manifests()
    registry = SimpleNamespace(ModelManifest=lambda **fields: fields)
    monkeypatch.setitem(sys.modules, "lmms_eval.models.registry_v2", registry)
    assert manifests() == [
        {
            "model_id": "tar",
            "chat_class_path": "tarkit.eval.lmms_model.TarChat",
            "simple_class_path": "tarkit.eval.lmms_model.TarSimple",
        }
    ]


# ---- the verb -----------------------------------------------------------------------------------

# Two questions right of three, 2/3 = 0.667; a fourth answer is in another task.
STAND_IN = """
import json, os, pathlib, sys
place = pathlib.Path(os.environ["STAND_IN_CALLS"])
offline = [os.environ.get(name) for name in ("HF_HUB_OFFLINE", "HF_TOKEN")]
with place.open("a") as calls:
    calls.write(json.dumps([sys.argv[1:], offline]) + "\\n")
print("chatter")
mode = os.environ.get("STAND_IN_MODE")
if mode == "fails":
    print("Traceback\\n  here\\n\\x1b[31mKeyError: 'picture'\\x1b[0m", file=sys.stderr)
    sys.exit(0)
if mode == "dies":
    sys.exit("out of memory")
folder = pathlib.Path(sys.argv[sys.argv.index("--output_path") + 1]) / "mini"
folder.mkdir(parents=True, exist_ok=True)
lines = {
    "colours": [
        {"doc_id": n, "input": f"q{n} \\u2028?", "target": "yes", "filtered_resps": said,
         "doc_hash": "0", "token_counts": [None], "input_media": ["data:image/png;base64,AAAA"],
         "correct": float(said == ["yes"]), "shown": {"picture": "data:image/png;base64,AAAA"}}
        for n, said in enumerate([["yes"], ["yes"], ["no"]])
    ],
    "more": [{"doc_id": 4, "input": "q", "target": "2", "filtered_resps": "2",
              "exact": float("nan")}],
}
if mode == "torn":
    del lines["colours"][-1]
results = {
    "results": {
        "colours": {"alias": "colours", "correct,none": 2 / 3, "correct_stderr,none": 0.25,
                    "correct_stderr_clt,none": 0.25},
        "more": {"alias": "more", "exact,none": float("nan"), "exact_stderr,none": "N/A"},
    },
    "versions": {"colours": 1.5, "more": "Yaml"},
    "n-samples": {"colours": {"original": 9, "effective": 3},
                  "more": {"original": 1, "effective": 1}},
}
(folder / "20260101_000000_results.json").write_text(json.dumps(results))
for task, samples in lines.items():
    text = "".join(json.dumps(each, ensure_ascii=False) + "\\n" for each in samples)
    (folder / f"20260101_000000_samples_{task}.jsonl").write_text(text)
"""


def save_stand_in(site: Path) -> Path:
    """A folder of packages with a stand-in for lmms-eval, which logs to STAND_IN_CALLS."""
    (site / "lmms_eval").mkdir(parents=True)
    (site / "lmms_eval" / "__init__.py").touch()
    (site / "lmms_eval" / "__main__.py").write_text(STAND_IN)
    info = site / "lmms_eval-0.7.3.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lmms-eval\nVersion: 0.7.3\n")
    return site


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The stand-in is installed; the file gets a line for every call of it."""
    site = save_stand_in(tmp_path / "site")
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("PYTHONPATH", str(site))
    monkeypatch.setenv("STAND_IN_CALLS", str(tmp_path / "calls"))
    return tmp_path / "calls"


def test_the_command_line_is_lmms_evals() -> None:
    command = lmms.command_of(["mme", "pope"], Path("/o/lmms"))
    words = "--model tar --model_args model=mini --tasks mme,pope --batch_size 16 --device cpu"
    assert command == [
        *(sys.executable, "-m", "lmms_eval"),
        *words.split(),
        *("--log_samples", "--output_path", "/o/lmms"),
    ]


def test_every_option_reaches_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("7").mkdir()
    command = lmms.command_of(
        ["mme"],
        Path("o"),
        model="7",
        include=Path("7"),
        scale=2,
        limit=3,
        batch_size=4,
        device="cuda:1",
        simple=True,
    )
    assert command[command.index("--model_args") + 1] == f"model={tmp_path / '7'},scale=2"
    words = f"--batch_size 4 --device cuda:1 --include_path {tmp_path / '7'} --limit 3"
    words += f" --force_simple --log_samples --output_path {tmp_path / 'o'}"
    assert command[command.index("--tasks") + 2 :] == words.split()
    with pytest.raises(UserError, match="no name with commas"):
        lmms.command_of(["mme"], Path("a,b"))


def test_samples_and_figures_are_brought_back(
    tmp_path: Path, calls: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert lmms.run(tasks=["colours,more"], out=out, limit=3) == out
    output = capfd.readouterr()
    assert (output.out, "chatter" in output.err) == ("", True)
    rows = pq.read_table(out / "answers.parquet").to_pylist()
    assert [row["answer"] for row in rows] == ["yes", "yes", "no", "2"]
    assert rows[2] == {
        "task": "colours",
        "doc_id": 2,
        "question": "q2 \u2028?",
        "answer": "no",
        "target": "yes",
        "metrics": '{"correct": 0.0, "shown": {"picture": null}}',
    }
    assert rows[3]["metrics"] == '{"exact": null}'
    document = json.loads((out / "results.json").read_text())
    colours = document["metrics"]["colours@lmms-eval-0.7.3"]
    assert math.isclose(colours.pop("correct,none"), 2 / 3)
    assert colours.pop("correct_stderr,none") == 0.25
    assert (colours["task_version"], colours["num_questions"]) == (1.5, 3)
    assert document["metrics"]["more@lmms-eval-0.7.3"]["exact,none"] is None
    assert document["versions"]["lmms-eval"] == "0.7.3"
    ((words, offline),) = map(json.loads, calls.read_text().splitlines())
    assert document["settings"]["command"] == [sys.executable, "-m", "lmms_eval", *words]
    assert offline == [None, None]
    report = (out / "report.md").read_text()
    assert "| colours@lmms-eval-0.7.3 | correct,none | 0.6667 | 0.2500 | 3 |" in report
    assert "| more@lmms-eval-0.7.3 | exact,none | - | - | 1 |" in report
    assert "stderr" not in report


def test_the_same_command_again_only_reads_and_another_is_refused(
    tmp_path: Path, calls: Path
) -> None:
    out = tmp_path / "out"
    lmms.run(tasks=["colours", "more"], out=out)
    written = {path.name: path.read_bytes() for path in out.glob("*.*")}
    lmms.run(tasks=["colours", "more"], out=out, device="cuda")
    assert {path.name: path.read_bytes() for path in out.glob("*.*")} == written
    assert len(calls.read_text().splitlines()) == 1
    with pytest.raises(UserError, match=r"scale: none there, 2 now\); give another --out"):
        lmms.run(tasks=["colours", "more"], out=out, scale=2)


def test_changed_tasks_of_ones_own_are_another_run(tmp_path: Path, calls: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "colours.yaml").write_text("task: colours\n")
    lmms.run(tasks=["colours"], out=tmp_path / "out", include=mine)
    (mine / "colours.yaml").write_text("task: colours\nrepeats: 2\n")
    with pytest.raises(UserError, match="include.colours.yaml"):
        lmms.run(tasks=["colours"], out=tmp_path / "out", include=mine)


@pytest.mark.parametrize("name", ["*_results.json", "*_samples_colours.jsonl", "command.json"])
@pytest.mark.parametrize(
    "text", ["null\n" * 3, '{"n-samples": 1}\n' * 3, f"{'[' * 9_999}\n" * 3, "\xff\n" * 3]
)
def test_damaged_files_of_a_finished_run_are_named(
    tmp_path: Path, calls: Path, name: str, text: str
) -> None:
    out = tmp_path / "out"
    lmms.run(tasks=["colours", "more"], out=out)
    (file,) = (out / "lmms").rglob(name)
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError) as error:
        lmms.run(tasks=["colours", "more"], out=out)
    assert "rm -r" in error.value.hint or "same command" in error.value.hint


@pytest.mark.parametrize(
    ("mode", "says"),
    [
        ("fails", "wrote no results to .*its last lines:\nTraceback\n  here\nKeyError: 'pic"),
        ("dies", "lmms-eval ended with 1:\nout of memory"),
        ("torn", "wrote no results"),
    ],
)
def test_a_failed_run_is_told_by_its_last_lines_and_begins_again(
    tmp_path: Path, calls: Path, monkeypatch: pytest.MonkeyPatch, mode: str, says: str
) -> None:
    monkeypatch.setenv("STAND_IN_MODE", mode)
    out = tmp_path / "out"
    with pytest.raises(UserError, match=f"(?s){says}"):
        lmms.run(tasks=["colours", "more"], out=out)
    assert not (out / "results.json").exists()
    if mode != "torn":  # the stand-in writes under one date only
        monkeypatch.delenv("STAND_IN_MODE")
        lmms.run(tasks=["colours", "more"], out=out)
        assert len(calls.read_text().splitlines()) == 2


def test_offline_opens_no_connection_for_a_token_either(
    tmp_path: Path, calls: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    lmms.run(tasks=["colours"], out=tmp_path / "out", offline=True)
    assert json.loads(calls.read_text())[1] == ["1", None]


def test_what_is_missing_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'tarkit\[lmms\]'"):
        lmms.run(tasks=["mme"], out=tmp_path / "out")
    with pytest.raises(UserError, match="no task is named"):
        lmms.run(tasks=[","], out=tmp_path / "out")
    with pytest.raises(UserError, match="gone is not a folder of tasks"):
        lmms.run(tasks=["mme"], out=tmp_path / "out", include=tmp_path / "gone")
    assert not (tmp_path / "out").exists()


# ---- lmms-eval itself ---------------------------------------------------------------------------

TASK = """
task: {name}
dataset_path: parquet
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.{visual}
doc_to_text: !function utils.text
doc_to_messages: !function utils.{messages}
doc_to_target: answer
process_results: !function utils.score
generation_kwargs:
  max_new_tokens: 16
  temperature: 0
  do_sample: false
metric_list:
  - metric: correct
    aggregation: mean
    higher_is_better: true
"""

UTILS = """
import io
from PIL import Image

def picture(doc):
    return [Image.open(io.BytesIO(doc["picture"]))]

def pictures(doc):
    return picture(doc) * 2

def text(doc):
    return doc["question"]

def chat(doc):
    content = [{"type": "image", "url": each} for each in picture(doc)]
    return [{"role": "user", "content": [*content, {"type": "text", "text": text(doc)}]}]

def chat_of_two(doc):
    content = [{"type": "image", "url": each} for each in pictures(doc)]
    return [{"role": "user", "content": [*content, {"type": "text", "text": text(doc)}]}]

def score(doc, results):
    return {"correct": float(results[0].lower().startswith(doc["answer"]))}
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(PYTHON is None, reason="TARKIT_LMMS_PYTHON names no Python with lmms-eval")
def test_lmms_eval_itself_runs_a_local_task_offline_by_chat_and_simply(tmp_path: Path) -> None:
    items = pope_suite()[:6]
    pictures = [
        Image.fromarray(render(item.scene, np.random.default_rng(item.seed))) for item in items
    ]
    questions = [item.question for item in items]
    columns = {
        "picture": [png_bytes(picture) for picture in pictures],
        "question": questions,
        "answer": [item.answer for item in items],
    }
    file = tmp_path / "drawn.parquet"
    pq.write_table(pa.table(columns), file)
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "utils.py").write_text(UTILS)
    for name, visual, messages in (("one", "picture", "chat"), ("two", "pictures", "chat_of_two")):
        text = TASK.format(name=f"drawn_{name}", file=file, visual=visual, messages=messages)
        (tasks / f"drawn_{name}.yaml").write_text(text)

    def tarkit(task: str, out: Path, *options: str) -> "subprocess.CompletedProcess[str]":
        words = ["--tasks", task, "--include", str(tasks), "--batch-size", "4", "--device", "cpu"]
        return subprocess.run(
            [
                str(PYTHON),
                "-m",
                "tarkit.cli",
                "eval",
                "lmms",
                *words,
                "--out",
                str(out),
                *options,
            ],
            env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")},
            capture_output=True,
            text=True,
        )

    truth = Tar.load("mini", dtok=None).describe_many(pictures, questions, max_tokens=16)
    right = [
        parse_yes_no(said) == (item.answer == "yes")
        for said, item in zip(truth, items, strict=True)
    ]
    for name, options in (("chat", ["--offline"]), ("simple", ["--offline", "--simple"])):
        out = tmp_path / name
        done = tarkit("drawn_one", out, *options)
        assert (done.returncode, done.stdout) == (0, f"{out}\n"), done.stderr[-3000:]
        rows = pq.read_table(out / "answers.parquet").to_pylist()
        assert [row["answer"] for row in rows] == truth
        assert [row["question"] for row in rows] == questions
        assert [row["doc_id"] for row in rows] == list(range(6))
        assert [json.loads(row["metrics"])["correct"] for row in rows] == list(map(float, right))
        (figures,) = json.loads((out / "results.json").read_text())["metrics"].values()
        assert math.isclose(figures["correct,none"], sum(right) / 6)
        print(f"{name}: {truth}, correct {figures['correct,none']}")
    failed = tarkit("drawn_two", tmp_path / "two", "--offline")
    assert failed.returncode == 1
    assert "task drawn_two, document 0: Tar reads one picture" in failed.stderr
    assert "this has 2 picture(s)" in failed.stderr.split("error: lmms-eval")[1]
