"""A folder of tiny files of every kind that tarkit reads, and the commands that read them.

`build` makes it; `CASES` says which command reads which file. Paths are relative to the folder.
"""

import atexit
import base64
import contextlib
import gzip
import hashlib
import importlib
import importlib.util
import io
import json
import os
import pickle
import pkgutil
import shlex
import shutil
import signal
import socket
import sys
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from typer.testing import CliRunner

import tarkit
from tarkit.cli.app import app
from tarkit.config import write_toml
from tarkit.images import png_bytes
from tarkit.train.adapters import AdapterConfig
from tarkit.train.ar_dtok import ArDtokConfig
from tarkit.train.contrastive import EncoderConfig
from tarkit.train.dif_dtok import DifDtokConfig
from tarkit.train.grpo import GrpoConfig
from tarkit.train.mllm import MllmConfig, MllmTask
from tarkit.train.tokenizer import TokenizerConfig
from tarkit.train.vqvae import VqvaeConfig
from tests import parts
from tests.curate.test_synthesize import save_flux
from tests.eval.test_lmms import save_stand_in
from tests.fuzz.trial import Ending, run_command, run_forked
from tests.llm.stub_server import said
from tests.llm.tiny import save_seer
from tests.report.sample_runs import make_run
from tests.train.test_dif_dtok import save_sana
from tests.train.test_tokenizer import SIZES

DOWNLOADER = Path(__file__).resolve().parents[1] / "curate/stand_in.py"
GOLDENS = Path(__file__).resolve().parents[1] / "goldens"
OUT = "trial/out"
LOGS = ("commands.jsonl", "manifest.json", "answers.jsonl")
ROW_COUNTS = ".row_counts.json"


DOWNLOAD = (
    f"curate download urls.txt --img2dataset ./downloader --allow-private --out {OUT} "
    "--set shard_size=3 --set retries=0 --set num_threads=1 --set num_processes=1"
)
SYNTHESIZE = (
    f"curate synthesize prompts --generator models/flux --out {OUT} --device cpu --set size_px=16 "
    "--set steps=1 --set max_prompt_tokens=16 --set batch_size=2"
)
BEGUN = {"downloaded": DOWNLOAD}
"""Folders whose --out a command of the world makes, for commands that go on with them."""


@dataclass(frozen=True)
class Case:
    """A kind of file: the file, the commands that read it, and whether its content is recorded.

    `recorded`: its sha256, or that of what it lies in, is recorded elsewhere, so that no damage may
    change a result in silence. `start`: a folder of which the trial's --out is a copy; a file in
    trial/out is that copy's.
    """

    kind: str
    file: str
    commands: tuple[str, ...]
    recorded: bool = False
    start: str | None = None


ENCODE = f"encode pictures --tokenizer models/tokenizer --out {OUT} --device cpu"
CHATS = f"curate chats tokens --out {OUT}"
TRAIN = (
    f"train mllm mllm.toml --chats chats --tokenizer models/tokenizer --lm models/lm --out {OUT}"
)
DTOK = (
    "train ar-dtok ar_dtok.toml --images pictures --tokenizer models/tokenizer "
    f"--vqvae models/vqvae --out {OUT}"
)
VQVAE = f"train vqvae vqvae.toml --images pictures --out {OUT}"
GENERATE = f"generate 'a red ring' --model tar --out {OUT}/picture.png --device cpu"
DESCRIBE = "describe raw/00.png --model tar --device cpu --max-tokens 4"
ASSEMBLE = (
    "assemble --mllm models/mllm --tokenizer models/tokenizer --ar-dtok models/ar_dtok "
    f"--vqvae models/vqvae --out {OUT}"
)
INGEST = "curate ingest {} --out " + OUT
ASK_ONCE = " --set assistant.tries=1 --set assistant.retries=1"
REPORT = f"report results/one results/two --out {OUT}"
PROMPTS = "curate prompts {} --out " + OUT
EXPORT = f"export hf tar --out {OUT}"


def _cases() -> tuple[Case, ...]:
    cases = []
    manifests: dict[str, tuple[str, ...]] = {
        "pictures": (f"inspect pictures --out {OUT}/s.png", "verify pictures", ENCODE, VQVAE),
        "tokens": ("inspect tokens", "verify tokens", CHATS),
        "chats": ("inspect chats", "verify chats", TRAIN),
    }
    for name, commands in manifests.items():
        sheet = f" --out {OUT}/sheet.png" if name == "pictures" else ""
        cases.append(Case("manifest", f"{name}/manifest.json", commands))
        cases.append(Case("commands", f"{name}/commands.jsonl", (f"inspect {name}{sheet}",)))
    cases += [
        Case("shard", "pictures/00000.parquet", (ENCODE, DTOK, VQVAE), recorded=True),
        Case("shard", "tokens/00000.parquet", (CHATS, "inspect tokens"), recorded=True),
        Case("shard", "chats/00000.parquet", (TRAIN, "inspect chats"), recorded=True),
        Case("tar", "pictures/00000.tar", (ENCODE, DTOK, VQVAE), recorded=True),
        Case("tar of others", "others/00000.tar", (INGEST.format("others/00000.tar"),)),
        Case("tar of others", "others/00000.tar.gz", (INGEST.format("others/00000.tar.gz"),)),
        Case("table of others", "others/table.parquet", (INGEST.format("others/table.parquet"),)),
        Case("picture", "raw/00.png", (INGEST.format("raw"), DESCRIBE, *_one("raw/00.png"))),
        Case("picture", "raw/01.jpg", (INGEST.format("raw"), *_one("raw/01.jpg"))),
        *(
            Case("picture", f"more/{name}", (INGEST.format("more"), *_one(f"more/{name}")))
            for name in _more_pictures()
        ),
        Case("caption", "raw/00.txt", (INGEST.format("raw"),)),
        Case("captions", "captions.csv", (INGEST.format("raw --captions captions.csv"),)),
        Case("captions", "captions.jsonl", (INGEST.format("raw --captions captions.jsonl"),)),
        Case("questions", "questions.json", (INGEST.format("raw --questions questions.json"),)),
        *(
            Case("prompts", f"prompts.{kind}", (PROMPTS.format(f"prompts.{kind}"),))
            for kind in ("txt", "csv", "jsonl", "parquet")
        ),
        Case(
            "prompts",
            "few.txt",
            (f"generate --prompts few.txt --model tar --out {OUT} --device cpu",),
        ),
        Case("text", "text.txt", (f"curate chats --text text.txt --out {OUT}",)),
        Case("settings", "mllm.toml", (TRAIN,)),
        Case("settings", "vqvae.toml", (VQVAE,)),
        Case("settings", "chats.toml", (CHATS + " --config chats.toml",)),
        Case("settings", "assemble.toml", (ASSEMBLE + " --config assemble.toml",)),
        Case("npz", "reference.npz", (f"eval gfid raw reference.npz --model tar --out {OUT}",)),
        Case("results", "results/one/results.json", (REPORT, "inspect results/one")),
        Case("scores", "results/one/scores.parquet", (REPORT,)),
        Case("samples", "results/one/samples/00000/0000.png", (REPORT,)),
        Case("metrics", "half/metrics.jsonl", (f"report half --out {OUT}", "inspect half")),
        Case("run.toml", "trained/run.toml", (f"report trained --out {OUT}", "inspect trained")),
        Case("manifest", "trained/manifest.json", (f"report trained --out {OUT}",)),
        Case("published", "others/ta_tok_tiny.pth", (_convert("ta_tok_tiny.pth"),)),
        Case("row counts", "pictures/.row_counts.json", (ENCODE, DTOK)),
        Case("published", "others/vq.pt", (_convert("vq.pt"),)),
        Case("published", "others/ar_dtok.pth", (_convert("ar_dtok.pth"),)),
    ]
    uses = {
        "mllm": (ASSEMBLE,),
        "tokenizer": (ENCODE, ASSEMBLE),
        "ar_dtok": (ASSEMBLE,),
        "vqvae": (ASSEMBLE, DTOK),
        "lm": (TRAIN,),
    }
    for name, commands in uses.items():
        model = f"models/{name}"
        cases.append(Case("config", f"{model}/config.json", (*commands, f"inspect {model}")))
        cases.append(Case("weights", f"{model}/model.safetensors", commands, recorded=True))
    cases += [Case("tokenizer", f"models/{name}/tokenizer.json", (uses[name])) for name in ("lm",)]
    cases += [
        Case("config", "tar/config.json", (GENERATE, DESCRIBE, EXPORT)),
        Case("config", "tar/mllm/config.json", (GENERATE, DESCRIBE, EXPORT)),
        Case("config", "tar/ar_dtok/config.json", (GENERATE,)),
        Case("tokenizer", "tar/mllm/tokenizer.json", (GENERATE, DESCRIBE)),
        Case("weights", "tar/mllm/model.safetensors", (GENERATE, DESCRIBE, EXPORT), recorded=True),
        Case("weights", "tar/vqvae/model.safetensors", (GENERATE,), recorded=True),
    ]
    cases += [
        Case("checkpoint", f"{OUT}/{name}", (TRAIN,), recorded=recorded, start="half")
        for name, recorded in (
            ("state/step-0000004/state.json", True),
            ("state/step-0000004/SHARD", True),
            ("manifest.json", False),
            ("metrics.jsonl", False),
        )
    ]
    for verb, words in (("caption", "pictures"), ("split", "prompts"), ("judge", "pictures")):
        examples = " --examples examples.txt" if verb == "caption" else ""
        command = f"curate {verb} {words} --llm m --server SERVER{examples} --out {OUT}"
        command += ASK_ONCE
        cases.append(Case("server answer", f"{verb}.http", (command,)))
    for name, path in BENCHMARKS.items():
        command = f"eval prepare {name} {data_of(name)} --out {OUT}"
        cases.append(Case("benchmark", path, (command,)))
    draw, score = (f"eval {verb} {OUT}" for verb in ("generate", "score"))
    draw += " --model mini --device cpu"
    for start, names, commands in (
        ("drawn", ("items.parquet", "samples/manifest.json"), (draw, f"{score} --scorer shapes")),
        (
            "drawn",
            ("manifest.json", "samples/00000/samples/0000.png"),
            (f"{score} --scorer shapes",),
        ),
        ("answered", ("items.parquet", "answers/manifest.json", "answers/00000.jsonl"), (score,)),
    ):
        for name in names:
            recorded = name == "items.parquet"
            cases.append(Case("run", f"{OUT}/{name}", commands, recorded=recorded, start=start))
    return tuple(cases)


# What `eval prepare` reads: all but DPG's table and the tables' pictures stand in it by name.
BENCHMARKS = {
    "geneval": "bench/geneval.jsonl",
    "geneval2": "bench/geneval2.jsonl",
    "dpg": "bench/dpg.csv",
    "pope": "bench/pope.jsonl",
    "mme": "bench/mme/existence/0.txt",
    "mmbench": "bench/mmbench.tsv",
    "seed": "bench/seed.json",
    "gqa": "bench/gqa.json",
    "mmmu": "bench/mmmu.parquet",
    "mmvp": "bench/mmvp/Questions.csv",
}


def data_of(name: str) -> str:
    """The options of `eval prepare` and `eval NAME` for the data of a benchmark."""
    data = {"mme": "bench/mme", "mmvp": "bench/mmvp"}.get(name, BENCHMARKS[name])
    return f"--data {data}" + (" --images raw" if name in ("pope", "seed", "gqa") else "")


def _more_pictures() -> tuple[str, ...]:
    """Pictures of the formats that Pillow, or a plug-in beside it, reads here."""
    from PIL import features

    names = ["a.gif", "b.tif", "c.bmp", "d.jp2"] + ["e.avif"] * bool(features.check("avif"))
    return (*names, *(["f.heic"] if importlib.util.find_spec("pillow_heif") else []))


def _one(picture: str) -> tuple[str, ...]:
    return (f"reconstruct {picture} --model tar --out {OUT}/sheet.png --device cpu",)


def _convert(name: str) -> str:
    return f"models convert others/{name} --out {OUT}"


CASES = _cases()


# ---- building ------------------------------------------------------------------------------------


class _Stopped(Exception):
    """What stands for a killed training."""


def build(folder: Path) -> None:
    """Make everything; run it in a process of its own, as it starts threads."""
    for make in (
        _models,
        _painters,
        _sources,
        _texts,
        _settings,
        _artifacts,
        _trainings,
        _results,
        _others,
        _answers,
        _benchmarks,
        _begun,
    ):
        make(folder)
    _swaps(folder / "swaps")


def run(folder: Path, command: str) -> None:
    done = CliRunner().invoke(app, shlex.split(command.replace("@", f"{folder}/")))
    assert done.exit_code in (0, 3), f"{command}: {done.output} {done.exception!r}"


def _models(folder: Path) -> None:
    parts.save_parts(folder / "models")
    (folder / "models/ta_tok").rename(folder / "models/tokenizer")
    parts.save_mllm(folder / "models/lm", None)
    models = "--mllm @models/mllm --tokenizer @models/tokenizer --ar-dtok @models/ar_dtok"
    run(folder, f"assemble {models} --vqvae @models/vqvae --out @tar")


def _painters(folder: Path) -> None:
    parts.save_encoder(folder / "models/encoder")
    save_sana(folder / "models/sana")
    save_flux(folder / "models")
    save_seer(folder / "models/seer")


def _sources(folder: Path) -> None:
    raw = folder / "raw"
    raw.mkdir()
    for number, suffix in enumerate(("png", "jpg", "png", "webp")):
        pixels = np.random.default_rng(number).integers(0, 256, (24, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(raw / f"{number:02d}.{suffix}")
        (raw / f"{number:02d}.txt").write_text(f"a photo of {number} red rings")
    more = folder / "more"
    more.mkdir()
    if "f.heic" in _more_pictures():
        importlib.import_module("pillow_heif").register_heif_opener()
    for number, name in enumerate(_more_pictures()):
        pixels = np.random.default_rng(number).integers(0, 256, (24, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(more / name)


def _texts(folder: Path) -> None:
    names = sorted(path.name for path in (folder / "raw").glob("*.[pjw]*"))
    rows = [{"image": name, "caption": f"a picture of {name}, ä"} for name in names]
    asked = [{"image": n, "question": f"What is {n}?", "answer": "A ring."} for n in names]
    prompts = [{"prompt": f"a painting of {n} boats", "id": str(n)} for n in range(8)]
    for name, table in (("captions", rows), ("prompts", prompts)):
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in table)
        (folder / f"{name}.jsonl").write_text(lines)
        cells = [",".join(table[0]), *(",".join(f'"{v}"' for v in row.values()) for row in table)]
        (folder / f"{name}.csv").write_text("\n".join(cells) + "\n")
    (folder / "questions.json").write_text(json.dumps(asked))
    (folder / "prompts.txt").write_text("".join(f"{row['prompt']}\n" for row in prompts))
    (folder / "few.txt").write_text("a red ring\na blue heart\n")
    pq.write_table(pa.Table.from_pylist(prompts), folder / "prompts.parquet")
    (folder / "text.txt").write_text("".join(f"{c} and more\n" for c in parts.CAPTIONS * 3))


def _settings(folder: Path) -> None:
    shared: dict[str, Any] = {"batch_size": 2, "log_every": 1, "learning_rate": 1e-3}
    files = {
        "mllm": MllmConfig(
            **shared,
            steps=6,
            checkpoint_every=2,
            length=128,
            ratio={"t2i": 2, "i2t": 1, "text": 1},
            optimizer="muon",
        ),
        "ar_dtok": ArDtokConfig(**shared, steps=2, arch=parts.AR_DTOK),
        "vqvae": VqvaeConfig(**shared, steps=2, arch=parts.VQVAE),
        "encoder": EncoderConfig(
            **shared,
            steps=4,
            checkpoint_every=1,
            keep_every=2,
            arch=parts.ENCODER,
            text_width=8,
            text_layers=1,
            text_heads=2,
            text_length=16,
            text_vocab=270,
        ),
        "tokenizer": TokenizerConfig(**shared, steps=4, checkpoint_every=1, sizes=SIZES),
        "dif_dtok": DifDtokConfig(**shared, steps=3, checkpoint_every=1, keep_every=2),
        "grpo": GrpoConfig(
            **{**shared, "batch_size": 4},
            steps=6,
            checkpoint_every=2,
            group=2,
            round_steps=2,
            length=128,
            draw_size=4,
        ),
        "finetune": MllmConfig(
            **shared,
            steps=4,
            checkpoint_every=1,
            keep_every=2,
            length=128,
            ratio={"t2i": 2, "i2t": 1},
            lora=AdapterConfig(rank=2, alpha=4),
        ),
    }
    for name, config in files.items():
        (folder / f"{name}.toml").write_text(write_toml(config))
    (folder / "chats.toml").write_text("t2i_per_picture = 1\nseed = 3\nqa_turns = 1\n")
    (folder / "assemble.toml").write_text("default_scale = 3\n\n[sampling]\ntop_p = 0.9\n")


def _artifacts(folder: Path) -> None:
    splits: list[Sequence[str | None]] = [["train"] * 5 + ["failed"], ["train"] * 4]
    parts.write_pictures(folder / "pictures", splits)
    run(folder, "encode @pictures --tokenizer @models/tokenizer --out @tokens --device cpu")
    rows = parts.mixed_chats(5)
    made_by = {"tokenizer_sha256": parts.sha256(folder / "models/tokenizer")}
    parts.write_chats(folder / "chats", [rows[:8], rows[8:]], **made_by)
    for name in ("pictures", "chats"):
        shutil.copy(folder / "tokens/commands.jsonl", folder / name)
    run(folder, "train vqvae @vqvae.toml --images @pictures --out @vqvae")


def _trainings(folder: Path) -> None:
    words = "--chats @chats --tokenizer @models/tokenizer --lm @models/lm"
    run(folder, f"train mllm @mllm.toml {words} --out @trained")
    real: Callable[..., Any] = MllmTask.loss

    def loss(self: MllmTask, model: Any, batch: Any, step: int) -> Any:
        if step == 5:
            raise _Stopped
        return real(self, model, batch, step)

    MllmTask.loss = loss  # type: ignore[method-assign]
    try:
        words = words.replace("@", f"{folder}/")
        done = CliRunner().invoke(
            app, shlex.split(f"train mllm {folder}/mllm.toml {words} --out {folder}/half")
        )
    finally:
        MllmTask.loss = real  # type: ignore[method-assign]
    assert isinstance(done.exception, _Stopped), done.output


def _results(folder: Path) -> None:
    for name in ("one", "two"):
        make_run(folder / "results" / name)


def _others(folder: Path) -> None:
    others = folder / "others"
    others.mkdir()
    shutil.copy(GOLDENS / "ta_tok_tiny.pth", others)
    shutil.copytree(GOLDENS / "siglip_tiny", others / "siglip_tiny")
    shutil.copy(GOLDENS / "ar_dtok_tiny.pth", others / "ar_dtok.pth")
    shutil.copy(GOLDENS / "vq_tiny.pt", others / "vq.pt")
    pictures = [
        png_bytes(np.random.default_rng(n).integers(0, 256, (9, 8, 3), dtype=np.uint8))
        for n in range(4)
    ]
    notes = b'{"caption": "a ring", "key": "0"}'
    with tarfile.open(others / "00000.tar", "w") as tar:
        for number, blob in enumerate(pictures):
            for suffix, data in (("png", blob), ("txt", b"a ring"), ("json", notes)):
                info = tarfile.TarInfo(f"{number:05d}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    (others / "00000.tar.gz").write_bytes(gzip.compress((others / "00000.tar").read_bytes()))
    rows = [{"image": {"bytes": blob, "path": None}, "text": "a ring"} for blob in pictures]
    pq.write_table(pa.Table.from_pylist(rows), others / "table.parquet")
    width = parts.WIDTH
    rng = np.random.default_rng(0)
    values = rng.normal(size=(4 * width, width))
    np.savez(folder / "reference.npz", mu=values.mean(0), sigma=np.cov(values.T))


def _answers(folder: Path) -> None:
    """A whole HTTP response for each command that asks a server."""
    run(folder, "curate prompts @prompts.txt --out @prompts")
    (folder / "examples.txt").write_text("one ship\ntwo ships\nthree ships\n")
    split = {"prompt": "a painting of 0 boats", "<image>": "boats"}
    texts = {"caption": "A ship at sea.", "split": json.dumps(split), "judge": "yes"}
    for name, text in texts.items():
        _, body = said(text)
        head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n"
        head += f"content-length: {len(body)}\r\n\r\n"
        (folder / f"{name}.http").write_bytes(head.encode() + body)


def _benchmarks(folder: Path) -> None:
    """Two questions or prompts of every benchmark, as its publisher writes them."""
    bench = folder / "bench"
    (bench / "mme/existence").mkdir(parents=True)
    (bench / "mmvp/MMVP Images").mkdir(parents=True)
    lines: dict[str, list[dict[str, Any]]] = {
        "geneval": [
            {"tag": "single_object", "include": [{"class": c, "count": 1}], "prompt": f"a {c}"}
            for c in ("cow", "cup")
        ],
        "geneval2": [  # an answer that the tiny judge's tokenizer has as one token
            {"prompt": f"a {c}", "atom_count": 1, "vqa_list": [["How many?", "2"]]}
            | {"skills": ["count"]}
            for c in ("cow", "cup")
        ],
        "pope": [
            {"question_id": n, "image": "01.jpg", "text": f"Is it {n}?", "label": label}
            for n, label in enumerate(("yes", "no"))
        ],
    }
    for name, rows in lines.items():
        (bench / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    head = "item_id,text,proposition_id,dependency,tuple,question_natural_language\n"
    rows_of_a = 'a,a cow,1,0,entity - whole (cow),Is it?\na,a cow,2,"1",attribute (red),Red?\n'
    (bench / "dpg.csv").write_text(head + rows_of_a + "b,a cup,1,0,entity - whole (cup),Is it?\n")
    jpeg, png = (folder / "raw/01.jpg").read_bytes(), (folder / "raw/00.png").read_bytes()
    (bench / "mme/existence/0.jpg").write_bytes(jpeg)
    (bench / "mme/existence/0.txt").write_text("Is it?\tYes\nIs it not?\tNo\n")
    for number in (1, 2):
        (bench / f"mmvp/MMVP Images/{number}.jpg").write_bytes(jpeg)
    asked = "1,Open?,(a) Open (b) Shut,(a)\n2,Open?,(a) Open (b) Shut,(b)\n"
    (bench / "mmvp/Questions.csv").write_text("Index,Question,Options,Correct Answer\n" + asked)
    text = base64.b64encode(png).decode()
    table = "".join(f"{n}\tWhat?\ta fox\ta hen\tA\tx\t{text}\n" for n in (1, 2))
    (bench / "mmbench.tsv").write_text("index\tquestion\tA\tB\tanswer\tcategory\timage\n" + table)
    choices = {"question": "What?", "choice_a": "a fox", "choice_b": "a hen", "answer": "B"}
    seeds = [choices | {"question_id": str(n), "data_id": "01.jpg"} for n in (1, 2)]
    (bench / "seed.json").write_text(json.dumps({"questions": seeds}))
    short = {
        "question": "What?",
        "answer": "fox",
        "imageId": "01",
        "types": {"structural": "query"},
    }
    (bench / "gqa.json").write_text(json.dumps({"1": short, "2": short}))
    college = [
        {"id": f"validation_{n}", "question": "What? <image 1>", "options": "['fox', 'hen']"}
        | {"answer": "A", "subfield": "x", "image_1": {"bytes": png, "path": None}}
        for n in (1, 2)
    ]
    pq.write_table(pa.Table.from_pylist(college), bench / "mmmu.parquet")


def _begun(folder: Path) -> None:
    """Folders that a command goes on with: a run, drawn and answered, and a torn artifact."""
    os.chdir(folder)
    run(folder, f"eval prepare geneval {data_of('geneval')} --n 2 --out {OUT}")
    shutil.copytree(OUT, "prepared")
    run(folder, f"eval generate {OUT} --model mini --device cpu")
    verdicts = "".join(
        json.dumps({"filename": f"{row:05d}/samples/{n:04d}.png", "correct": True}) + "\n"
        for row in range(2)
        for n in range(2)
    )
    Path("verdicts.jsonl").write_text(verdicts)
    shutil.move(OUT, "drawn")
    run(folder, f"eval prepare pope {data_of('pope')} --out {OUT}")
    shutil.copytree(OUT, "asked")
    run(folder, f"eval answer {OUT} --model tar --device cpu")
    shutil.move(OUT, "answered")
    run(folder, f"curate render --set count=6 --set shard_size=2 --set num_workers=1 --out {OUT}")
    shutil.move(OUT, "torn")
    run(folder, "generate --prompts pictures --model tar --device cpu --out trial")
    shutil.move("trial", "sketched")
    os.truncate("torn/00000.tar", 700)
    os.unlink("torn/00001.parquet")


def serve(folder: Path, listening: socket.socket) -> None:
    """Answer while the parent process lives: the newest .http file, or a picture of `raw`."""
    parent = os.getppid()
    listening.settimeout(2)
    while os.getppid() == parent:
        try:
            connection, _ = listening.accept()
        except TimeoutError:
            continue
        with connection, contextlib.suppress(OSError):
            connection.settimeout(5)
            connection.sendall(_answer(folder, connection))


def _answer(folder: Path, connection: socket.socket) -> bytes:
    """What a request gets: a picture of `raw` by its name, else the newest .http file."""
    with connection.makefile("rb") as request:
        words = request.readline().split()
        header = b"".join(iter(request.readline, b"\r\n" if words else b"")).lower()
        if words and words[0] == b"GET":
            file = folder / "raw" / Path(words[1].decode()).name
            body = file.read_bytes() if file.is_file() else None
            status = b"404 Not Found" if body is None else b"200 OK"
            head = b"HTTP/1.1 %b\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
            return head % (status, len(body or b"")) + (body or b"")
        length = header.partition(b"content-length: ")[2].split()
        request.read(int(length[0]) if length else 0)
    answers = sorted(folder.glob("*.http"), key=lambda path: path.stat().st_mtime_ns)
    return answers[-1].read_bytes()


class _Run:
    """A pickle that runs a command where it is loaded in trust."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("outside"),)


def _swaps(folder: Path) -> None:
    """Whole files of each kind that are not the ones meant, by suffix."""
    folder.mkdir()
    tables = {
        "empty": pa.table({}),
        "other": pa.table({"key": [1, 2], "prompt": [None, None], "image": [1.5, 2.5]}),
        "nulls": pa.table({"key": pa.nulls(5), "status": pa.nulls(5), "image": pa.nulls(5)}),
        "nested": pa.table({"prompt": [[{"a": [1]}]], "image": [[b"x"]], "key": [["k"]]}),
        "twice": pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["key", "key"]),
        "many": pa.table({"prompt": pa.array(["x" * 100] * 50_000).dictionary_encode()}),
    }
    for name, table in tables.items():
        pq.write_table(table, folder / f"{name}.parquet")
    from safetensors.torch import save_file

    save_file({}, folder / "empty.safetensors")
    save_file({"a": torch.zeros(3)}, folder / "other.safetensors")
    for name, array in (("claims", (1 << 40,)), ("odd", (3, 0))):
        header = {"descr": "<f8", "fortran_order": False, "shape": array}
        with (folder / f"{name}.npy").open("wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
        import zipfile

        with zipfile.ZipFile(folder / f"{name}.npz", "w") as archive:
            for member in ("mu.npy", "sigma.npy"):
                archive.write(folder / f"{name}.npy", member)
    np.savez(folder / "objects.npz", mu=np.array([{}], dtype=object), sigma=np.zeros((1, 1)))
    np.savez(folder / "strings.npz", mu=np.array(["a"]), sigma=np.array([["b"]]))
    np.savez(folder / "small.npz", mu=np.zeros(2), sigma=-np.eye(2))
    for name, value in (
        ("list", [1, 2]),
        ("strings", {"model": {"a": "b"}}),
        ("keys", {1: torch.zeros(1), ("a",): 2}),
        ("meta", {"model": {"x": torch.empty(3, device="meta")}}),
    ):
        torch.save(value, folder / f"{name}.pth")
    (folder / "runs.pth").write_bytes(pickle.dumps(_Run()))
    Image.new("RGB", (3, 2)).save(folder / "small.png")
    Image.new("1", (12_000, 12_000)).save(folder / "huge.png")
    Image.new("I;16", (5, 5)).save(folder / "deep.png")
    Image.new("CMYK", (5, 5)).save(folder / "cmyk.jpg")
    with tarfile.open(folder / "links.tar", "w") as tar:
        for name, kind in (("../up.png", tarfile.SYMTYPE), ("/etc/x.png", tarfile.LNKTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
    tarfile.open(folder / "empty.tar", "w").close()


# ---- running ------------------------------------------------------------------------------------


class World:
    """The folder of `build` and what its undamaged files lead to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "world"
        self.folder.mkdir()
        self.log = folder / "log"
        for module in pkgutil.walk_packages(tarkit.__path__, "tarkit."):
            # Those that need a package of an extra are not what is forked here.
            last = module.name.split(".")[-1]
            if last not in ("__main__", "page") and "lmms" not in last:
                importlib.import_module(module.name)
        for name in ("openai", "peft", "transformers.models.qwen2.modeling_qwen2"):
            importlib.import_module(name)
        sys.path.insert(0, str(save_stand_in(folder / "site")))
        paths = [sys.path[0], *filter(None, [os.environ.get("PYTHONPATH")])]
        os.environ |= {"PYTHONPATH": os.pathsep.join(paths), "STAND_IN_CALLS": os.devnull}
        listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
        names = ("00.png", "01.jpg", "missing.jpg", "02.png", "03.webp")
        urls = "".join(f"{self.url}/{name}\n" for name in names)
        (self.folder / "urls.txt").write_text(urls)
        downloader = f'#!/bin/sh\nexec {sys.executable} {DOWNLOADER} "$@"\n'
        (self.folder / "downloader").write_text(downloader)
        (self.folder / "downloader").chmod(0o755)
        self.server = os.fork()
        if self.server == 0:
            serve(self.folder, listening)
            os._exit(0)
        atexit.register(os.kill, self.server, signal.SIGKILL)
        built = run_forked(lambda: build(self.folder), self.folder, self.log)
        assert built.status == 0, built.output
        for name, command in BEGUN.items():  # a fork each, as the parent may start no threads
            ending, _ = self.run(command.replace("SERVER", self.url))
            assert ending.status in (0, 3), ending.output
            shutil.move(self.folder / OUT, self.folder / name)
        shards = self.folder / "half/state/step-0000004"
        self.shard = next(path.name for path in shards.glob("*.safetensors"))
        self.kept = folder / "kept"
        shutil.copytree(self.folder, self.kept, copy_function=shutil.copy2)
        self.before = _listing(self.folder)
        self.results: dict[tuple[str | None, str], tuple[Ending, dict[str, str]]] = {}
        self.unsteady: dict[tuple[str | None, str], set[str]] = {}

    def file(self, case: Case) -> Path:
        return self.folder / case.file.replace("SHARD", self.shard)

    def start(self, case: Case) -> None:
        shutil.rmtree(self.folder / "trial", ignore_errors=True)
        if case.kind == "server answer":
            self.file(case).touch()
        (self.folder / OUT).parent.mkdir()
        if case.start:
            shutil.copytree(self.folder / case.start, self.folder / OUT)

    def run(self, command: str) -> tuple[Ending, dict[str, str]]:
        words = shlex.split(command.replace("SERVER", self.url))
        ending = run_command(words, self.folder, self.log)
        return ending, _digests(self.folder / OUT)

    def undamaged(self, case: Case, command: str) -> dict[str, str]:
        """The files that a command makes, but for those that differ from run to run."""
        key = (case.start, command)
        if key not in self.results:
            runs = []
            for _ in range(2):
                self.start(case)
                runs.append(self.run(command))
                assert runs[-1][0].status in (0, 3), f"{command}\n{runs[-1][0].output}"
            one, two = (files for _, files in runs)
            self.unsteady[key] = {name for name in one if one[name] != two.get(name)}
            self.results[key] = runs[0]
        unsteady = self.unsteady[key]
        return {k: v for k, v in self.results[key][1].items() if k not in unsteady}

    def changed(self) -> list[str]:
        """Files that a trial wrote or removed outside of its folder; they are put back."""
        now = _listing(self.folder)
        names = {k for k in now.keys() | self.before.keys() if now.get(k) != self.before.get(k)}
        if names:
            shutil.rmtree(self.folder)
            shutil.copytree(self.kept, self.folder, copy_function=shutil.copy2)
        return sorted(names)


def _listing(folder: Path) -> dict[str, tuple[int, int]]:
    found = {}
    for root, _, names in os.walk(folder):
        if root.startswith(f"{folder}/trial"):
            continue
        for name in names:
            if name == ROW_COUNTS or name.endswith(".http"):  # kept where the rows are; served
                continue
            status = os.lstat(f"{root}/{name}")
            found[os.path.relpath(f"{root}/{name}", folder)] = (status.st_size, status.st_mtime_ns)
    return found


def _digests(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name not in LOGS)
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }
