"""A folder of tiny files of every kind that tarkit reads, and the commands that read them.

`build` makes it; `CASES` of `cases.py` says which command reads which file.
"""

import atexit
import base64
import contextlib
import gzip
import hashlib
import importlib
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
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import transformers
from cryptography.hazmat.primitives.asymmetric import ec
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
from tarkit.train.vqvae import VqvaeConfig, VqvaeTask
from tests import parts
from tests.curate.test_score import save_dual_encoder
from tests.curate.test_synthesize import save_flux
from tests.eval.benchmark_parts.test_mask2former import save_clip, save_detector
from tests.eval.test_lmms import save_stand_in
from tests.fuzz.cases import BEGUN, OUT, Case, data_of, more_pictures
from tests.fuzz.trial import Ending, run_command, run_forked
from tests.inference.test_content_credentials import certificate, pem
from tests.llm.stub_server import said
from tests.llm.tiny import save_seer, save_writer
from tests.report.sample_runs import make_run
from tests.train.test_dif_dtok import save_sana
from tests.train.test_tokenizer import SIZES

DOWNLOADER = Path(__file__).resolve().parents[1] / "curate/stand_in.py"
GOLDENS = Path(__file__).resolve().parents[1] / "goldens"
LOGS = ("commands.jsonl", "manifest.json", "answers.jsonl")
ROW_COUNTS = ".row_counts.json"


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
        _half_trainings,
        _results,
        _others,
        _judges,
        _answers,
        _benchmarks,
        _annotations,
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
    if "f.heic" in more_pictures():
        importlib.import_module("pillow_heif").register_heif_opener()
    for number, name in enumerate(more_pictures()):
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
    words = "--tokenizer @models/tokenizer --lm @models/lm"
    run(folder, f"train mllm @mllm.toml --chats @chats {words} --out @trained")
    _half(folder, MllmTask, 5, f"train mllm @mllm.toml --chats @chats {words} --out @half")
    words = "--encoder @models/encoder --lm @models/lm --images @pictures"
    run(folder, f"train tokenizer @tokenizer.toml {words} --out @spoken")
    run(folder, "encode @pictures --tokenizer @spoken --out @spoken_tokens --device cpu")


def _half_trainings(folder: Path) -> None:
    words = "--tokenizer @models/tokenizer --lm @models/mllm"
    command = f"train mllm @finetune.toml --chats @chats {words} --out @half_tuned"
    _half(folder, MllmTask, 2, command)
    command = "train vqvae @vqvae.toml --images @pictures --set checkpoint_every=1"
    _half(folder, VqvaeTask, 1, f"{command} --out @half_vqvae")


def _half(folder: Path, task: Any, last: int, command: str) -> None:
    """A training that ends in its step `last` as one that is killed."""
    real: Callable[..., Any] = task.loss

    def loss(self: Any, model: Any, batch: Any, step: int) -> Any:
        if step == last:
            raise _Stopped
        return real(self, model, batch, step)

    task.loss = loss
    try:
        done = CliRunner().invoke(app, shlex.split(command.replace("@", f"{folder}/")))
    finally:
        task.loss = real
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


def _judges(folder: Path) -> None:
    """Models of other programs that score pictures, and a language model in four files."""
    save_detector(folder / "models/m2f")
    save_clip(folder / "models/clip")
    save_dual_encoder(folder / "models/clip_scorer", "clip")
    writer, sharded = save_writer(folder / "models/writer"), folder / "models/sharded"
    shutil.copytree(writer, sharded, ignore=shutil.ignore_patterns("*.safetensors"))
    model = transformers.AutoModelForCausalLM.from_pretrained(writer)
    model.save_pretrained(sharded, max_shard_size="20KB")
    key, root = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    chain = certificate("Ada", key, "Root", root) + certificate("Root", root, "Root", root)
    (folder / "owner.pem").write_bytes(pem(key) + chain)


def _annotations(folder: Path) -> None:
    """Captions, questions and lists in the forms of other programs."""
    place = folder / "annotations"
    place.mkdir()
    names = sorted(path.name for path in (folder / "raw").glob("*.[pjw]*"))
    rows = [{"image": name, "caption": f"a picture of {name}"} for name in names]
    asked = [{"image": name, "question": "What?", "answer": "A ring."} for name in names]
    pq.write_table(pa.Table.from_pylist(rows), place / "captions.parquet")
    pq.write_table(pa.Table.from_pylist(asked), place / "questions.parquet")
    lines = ["image\tcaption", *(f"{row['image']}\t{row['caption']}" for row in rows)]
    (place / "captions.tsv").write_text("\n".join(lines) + "\n")
    coco: dict[str, Any] = {"images": [], "annotations": []}
    for number, row in enumerate(rows):
        coco["images"].append({"id": number, "file_name": row["image"]})
        coco["annotations"].append({"id": number, "image_id": number, "caption": row["caption"]})
    (place / "coco.json").write_text(json.dumps(coco))
    kohya = {row["image"]: {"caption": row["caption"], "tags": "ring, red"} for row in rows}
    (place / "kohya.json").write_text(json.dumps(kohya))
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A ring."}]
    llava = [{"id": name, "image": name, "conversations": turns} for name in names]
    (place / "llava.json").write_text(json.dumps(llava))
    said_by = [
        {"role": "user", "content": "<image> What?"},
        {"role": "assistant", "content": "It."},
    ]
    messages = [{"image": name, "messages": said_by} for name in names]
    (place / "messages.jsonl").write_text("".join(json.dumps(row) + "\n" for row in messages))
    for name in ("folder", "csv_folder"):
        (folder / name).mkdir()
        for picture in names:
            shutil.copy(folder / "raw" / picture, folder / name)
    about = [{"file_name": row["image"], "text": row["caption"]} for row in rows]
    lines = [json.dumps(row) + "\n" for row in about]
    (folder / "folder/metadata.jsonl").write_text("".join(lines))
    lines = ["file_name,text", *(",".join(row.values()) for row in about)]
    (folder / "csv_folder/metadata.csv").write_text("\n".join(lines) + "\n")
    (folder / "pictures.txt").write_text("".join(f"raw/{name}\n" for name in names))
    (folder / "shards.txt").write_text("others/00000.tar\n")
    (folder / "served").mkdir()
    shutil.copy(folder / "others/00000.tar", folder / "served/a.tar")
    blobs = [png_bytes(np.full((9, 8, 3), 40 * n, np.uint8)) for n in range(2)]
    pictures = [[{"bytes": blob, "path": "a.png"}] for blob in blobs]
    table = pa.table({"images": pictures, "caption": pa.array(["a", "a"]).dictionary_encode()})
    pq.write_table(table, folder / "others/list.parquet")
    (folder / "published/pope").mkdir(parents=True)
    # As many questions as the published file has, half of which are answered by yes.
    questions = (folder / "bench/pope.jsonl").read_bytes() * 1500
    (folder / "published/pope/coco_pope_random.json").write_bytes(questions)
    texts = [{"text": f"{caption} and more"} for caption in parts.CAPTIONS * 3]
    (folder / "text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts))
    pq.write_table(pa.Table.from_pylist(texts), folder / "text.parquet")


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
    seen = [{"class": "cow", "box": [0, 0, 9.5, 9], "score": 0.9, "color": "red"}]
    detections = "".join(
        json.dumps({"filename": f"{row:05d}/samples/{n:04d}.png", "detections": seen}) + "\n"
        for row in range(2)
        for n in range(2)
    )
    Path("detections.jsonl").write_text(detections)
    shutil.move(OUT, "drawn")
    run(folder, f"eval prepare pope {data_of('pope')} --out {OUT}")
    shutil.copytree(OUT, "asked")
    run(folder, f"eval answer {OUT} --model tar --device cpu")
    shutil.move(OUT, "answered")
    run(folder, f"curate render --set count=6 --set shard_size=2 --set num_workers=1 --out {OUT}")
    shutil.move(OUT, "torn")
    run(folder, "generate --prompts pictures --model tar --device cpu --out trial")
    shutil.move("trial", "sketched")
    run(folder, "curate score pictures --scorer pixels --out scored")
    run(folder, "export hf tar --out exported")
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
    """What a request gets: a file of `raw` or `served` by its name, else the newest .http file."""
    with connection.makefile("rb") as request:
        words = request.readline().split()
        header = b"".join(iter(request.readline, b"\r\n" if words else b"")).lower()
        if words and words[0] == b"GET":
            name = Path(words[1].decode()).name
            file = folder / ("served" if name.endswith(".tar") else "raw") / name
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
        rows = "".join(f"{url},a picture\n" for url in urls.split())
        (self.folder / "urls.csv").write_text(f"url,caption\n{rows}")
        downloader = f'#!/bin/sh\nexec {sys.executable} {DOWNLOADER} "$@"\n'
        (self.folder / "downloader").write_text(downloader)
        (self.folder / "downloader").chmod(0o755)
        self.server = os.fork()
        if self.server == 0:
            serve(self.folder, listening)
            os._exit(0)
        atexit.register(os.kill, self.server, signal.SIGKILL)
        built = run_forked(lambda: build(self.folder), self.folder, self.log, limit_s=1800)
        assert built.status == 0, f"{built.output}\nstatus {built.status}"
        for name, command in BEGUN.items():  # a fork each, as the parent may start no threads
            ending, _ = self.run(command.replace("SERVER", self.url))
            assert ending.status in (0, 3), ending.output
            shutil.move(self.folder / OUT, self.folder / name)
        self.kept = folder / "kept"
        shutil.copytree(self.folder, self.kept, copy_function=shutil.copy2)
        self.before = _listing(self.folder)
        self.results: dict[tuple[str | None, str], tuple[Ending, dict[str, str]]] = {}
        self.unsteady: dict[tuple[str | None, str], set[str]] = {}

    def file(self, case: Case) -> Path:
        """The file of a case; of a pattern, such as `*/x.json`, the first one that fits."""
        if "*" not in case.file:
            return self.folder / case.file
        return min(self.folder.glob(case.file))

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
