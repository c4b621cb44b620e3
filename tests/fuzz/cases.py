"""Which command reads which file of the world of damaged files. Paths are relative to it."""

import importlib.util
from dataclasses import dataclass

OUT = "trial/out"


DOWNLOAD = (
    f"curate download urls.txt --img2dataset ./downloader --allow-private --out {OUT} "
    "--set shard_size=3 --set retries=0 --set num_threads=1 --set num_processes=1"
)
SYNTHESIZE = (
    f"curate synthesize prompts --generator models/flux --out {OUT} --device cpu --set size_px=16 "
    "--set steps=1 --set max_prompt_tokens=16 --set batch_size=2"
)


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
SKETCH = f"generate --prompts pictures --model tar --device cpu --out {OUT}"
COMPARE = f"compare sketched sketched --images pictures --features-of tar --out {OUT}"
DIALECT = f"dialect raw/00.png --model spoken --lm models/lm --device cpu --out {OUT}/page.html"
ASSISTED = "--llm m --server SERVER --out " + OUT
JUDGE = f"curate judge pictures {ASSISTED}"
CAPTION = f"curate caption pictures --examples examples.txt {ASSISTED}"
SPLIT = f"curate split prompts {ASSISTED}"
FINETUNE = (
    f"train mllm finetune.toml --chats chats --tokenizer models/tokenizer --lm models/mllm "
    f"--out {OUT}"
)
GRPO = (
    "train grpo grpo.toml --prompts few.txt --scorer tests.train.test_grpo:Bright "
    f"--model tar --device cpu --out {OUT}"
)
DIF_DTOK = (
    "train dif-dtok dif_dtok.toml --tokenizer models/tokenizer --sana models/sana "
    f"--images pictures --out {OUT}"
)
ENCODER = f"train encoder encoder.toml --images pictures --out {OUT}"
TOKENIZER = (
    "train tokenizer tokenizer.toml --encoder models/encoder --lm models/lm --images pictures "
    f"--out {OUT}"
)
PREPARE = f"finetune tar --images raw --captions captions.csv --prepare --out {OUT}"
SHAPES = f"eval shapes --suite pope --limit 2 --out {OUT} --model tar --device cpu"
LMMS = f"eval lmms --tasks colours,more --out {OUT} --model tar --device cpu"
BEGUN = {
    "downloaded": DOWNLOAD,
    "judged": JUDGE + ASK_ONCE,
    "shaped": SHAPES,
    "asked_lmms": LMMS,
    "prepared_finetune": PREPARE,
}
"""Folders whose --out a command of the world makes, for commands that go on with them."""


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
            for name in more_pictures()
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
            ("state/step-0000004/*.safetensors", True),
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
    return (*cases, *_sources(), *_models(), *_folders_to_go_on_with(), *_settings())


def _sources() -> list[Case]:
    """Lists and annotations in the forms of others, and what a file of another program says."""
    score = f"eval score {OUT} --device cpu"
    cases = [
        Case(
            "captions",
            f"annotations/{name}",
            (INGEST.format(f"raw --captions annotations/{name}"),),
        )
        for name in ("coco.json", "kohya.json", "captions.parquet", "captions.tsv")
    ]
    cases += [
        Case(
            "questions",
            f"annotations/{name}",
            (INGEST.format(f"raw --questions annotations/{name}"),),
        )
        for name in ("llava.json", "messages.jsonl", "questions.parquet")
    ]
    cases += [
        Case("captions", "folder/metadata.jsonl", (INGEST.format("folder"),)),
        Case("captions", "csv_folder/metadata.csv", (INGEST.format("csv_folder"),)),
        Case("table of others", "others/list.parquet", (INGEST.format("others/list.parquet"),)),
        Case("tar of others", "served/a.tar", (INGEST.format("SERVER/a.tar --allow-private"),)),
        Case("list", "pictures.txt", (INGEST.format("pictures.txt"),)),
        Case("list", "shards.txt", (INGEST.format("shards.txt"),)),
        Case("list", "urls.txt", (DOWNLOAD,)),
        Case("list", "urls.csv", (DOWNLOAD.replace("urls.txt", "urls.csv"),)),
        Case("examples", "examples.txt", (CAPTION + ASK_ONCE,)),
        Case("prompts", "few.txt", (GRPO,)),
        Case("text", "text.jsonl", (f"curate chats --text text.jsonl --out {OUT}",)),
        Case("text", "text.parquet", (f"curate chats --text text.parquet --out {OUT}",)),
        Case("verdicts", "verdicts.jsonl", (f"eval collect {OUT} verdicts.jsonl",), start="drawn"),
        Case(
            "detections",
            "detections.jsonl",
            (f"{score} --scorer detections --file detections.jsonl",),
            start="drawn",
        ),
        Case("samples", "sketched/samples.jsonl", (COMPARE, INGEST.format("sketched"))),
        Case("samples", "sketched/00000/0000.png", (COMPARE, INGEST.format("sketched"))),
        Case("manifest", "sketched/manifest.json", (COMPARE, INGEST.format("sketched"))),
        Case("picture", "raw/01.jpg", (f"eval rfid raw raw --model tar --out {OUT}",)),
        Case("certificate", "owner.pem", (GENERATE + " --c2pa owner.pem",)),
        Case(
            "selftest",
            "published/pope/coco_pope_random.json",
            ("eval selftest --data published --seed 1",),
        ),
    ]
    for kind in ("prompts", "scored", "judged", "pictures"):
        commands = {
            "prompts": (
                SPLIT + ASK_ONCE,
                SYNTHESIZE,
                f"generate --prompts prompts --model tar --device cpu --out {OUT}",
            ),
            "scored": (CHATS + " --keep scored --min 0",),
            "judged": (CHATS + " --judgements judged",),
            "pictures": (
                JUDGE + ASK_ONCE,
                f"curate score pictures --scorer pixels --out {OUT}",
                SKETCH,
            ),
        }[kind]
        cases.append(Case("shard", f"{kind}/00000.parquet", commands, recorded=True))
        cases.append(Case("manifest", f"{kind}/manifest.json", commands))
    return cases


def _models() -> list[Case]:
    """Models that are drawn with, that judge, and that trainings start from, file by file."""
    draft = GENERATE + " --draft models/ar_dtok"
    score = f"eval score {OUT} --device cpu --scorer hf-m2f --scorer-model models/m2f"
    score += " --clip models/clip"
    geneval2 = f"eval geneval2 {data_of('geneval2')} --n 1 --limit 1 --scorer-model models/seer "
    geneval2 += f"--out {OUT} --model tar --device cpu"
    rate = (
        f"curate score pictures --scorer clip --model models/clip_scorer --out {OUT} --device cpu"
    )
    sharded = TRAIN.replace("models/lm", "models/sharded") + " --set embedding_start=mean"
    cases = [
        Case("card", "tar/card.md", ("inspect tar", EXPORT)),
        Case("manifest", "tar/manifest.json", ("inspect tar", "verify tar", EXPORT, GENERATE)),
        Case("commands", "tar/commands.jsonl", ("inspect tar", EXPORT)),
        Case("config", "tar/ta_tok/config.json", (DESCRIBE, GENERATE, "verify tar")),
        Case("config", "tar/vqvae/config.json", (GENERATE,)),
        Case("weights", "tar/ta_tok/model.safetensors", (DESCRIBE,), recorded=True),
        Case("weights", "tar/ar_dtok/model.safetensors", (GENERATE,), recorded=True),
        Case("config", "models/encoder/config.json", (TOKENIZER,)),
        Case("weights", "models/encoder/model.safetensors", (TOKENIZER,), recorded=True),
        Case("tokenizer", "models/lm/tokenizer.json", (TOKENIZER, DIALECT)),
        Case("weights", "models/lm/model.safetensors", (TOKENIZER, DIALECT)),
        Case("config", "models/lm/config.json", (TOKENIZER, DIALECT)),
        Case("config", "spoken/config.json", (DIALECT,)),
        Case("weights", "spoken/model.safetensors", (DIALECT,), recorded=True),
        Case("manifest", "spoken_tokens/manifest.json", (DIALECT + " --tokens spoken_tokens",)),
        Case("config", "models/ar_dtok/config.json", (draft,)),
        Case("weights", "models/ar_dtok/model.safetensors", (draft,), recorded=True),
        Case("model of others", "models/sharded/model.safetensors.index.json", (sharded,)),
        Case("model of others", "models/sharded/model-00001-of-00004.safetensors", (sharded,)),
        Case("model of others", "models/sharded/config.json", (sharded,)),
    ]
    others = {
        "sana": (
            DIF_DTOK,
            (
                "scheduler/scheduler_config.json",
                "transformer/config.json",
                "vae/config.json",
                "vae/diffusion_pytorch_model.safetensors",
            ),
        ),
        "flux": (
            SYNTHESIZE,
            (
                "model_index.json",
                "transformer/config.json",
                "text_encoder/config.json",
                "tokenizer/tokenizer.json",
                "vae/diffusion_pytorch_model.safetensors",
            ),
        ),
        "seer": (
            geneval2,
            (
                "config.json",
                "preprocessor_config.json",
                "tokenizer.json",
                "tokenizer_config.json",
                "chat_template.jinja",
                "generation_config.json",
                "model.safetensors",
            ),
        ),
        "clip_scorer": (
            rate,
            ("config.json", "preprocessor_config.json", "tokenizer.json", "model.safetensors"),
        ),
    }
    for name, (command, files) in others.items():
        cases += [Case("model of others", f"models/{name}/{file}", (command,)) for file in files]
    for name in (
        "m2f/config.json",
        "m2f/preprocessor_config.json",
        "m2f/model.safetensors",
        "clip/config.json",
    ):
        cases.append(Case("model of others", f"models/{name}", (score,), start="drawn"))
    return cases


def _folders_to_go_on_with() -> list[Case]:
    """Files in the --out of a command that was begun, and that the same command reads."""
    found: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
        "sketched": ((SKETCH,), ("samples.jsonl", "manifest.json", "00000/0000.png")),
        "downloaded": (
            (DOWNLOAD, DOWNLOAD + " --retry-failed"),
            ("00000.parquet", "00000.tar", "manifest.json"),
        ),
        "tokens": ((ENCODE, ENCODE + " --retry-failed"), ("00000.parquet", "manifest.json")),
        "judged": ((JUDGE + ASK_ONCE,), ("00000.parquet", "manifest.json")),
        "shaped": ((SHAPES,), ("manifest.json", "answers/pope/00000.jsonl", "results.json")),
        "asked_lmms": (
            (LMMS,),
            (
                "manifest.json",
                "lmms/command.json",
                "lmms/*/*_results.json",
                "lmms/*/*_samples_colours.jsonl",
                "answers.parquet",
            ),
        ),
        "prepared_finetune": ((PREPARE,), ("settings/mllm.toml", "settings/ingest.toml", "run.sh")),
        "torn": (
            (f"verify {OUT} --repair",),
            ("manifest.json", "00002.tar", "00002.parquet", "commands.jsonl"),
        ),
        "half_tuned": (
            (FINETUNE,),
            ("state/step-0000002/state.json", "state/step-0000002/*.safetensors", "manifest.json"),
        ),
        "half_vqvae": (
            (VQVAE + " --set checkpoint_every=1",),
            ("state/step-0000001/state.json", "state/step-0000001/*.safetensors"),
        ),
        "tar": ((ASSEMBLE,), ("config.json", "manifest.json", "mllm/model.safetensors")),
        "exported": ((EXPORT,), ("config.json", "card.md", "tokenizer.json", "model.safetensors")),
    }
    return [
        Case("begun", f"{OUT}/{file}", commands, start=start)
        for start, (commands, files) in found.items()
        for file in files
    ]


def _settings() -> list[Case]:
    """The TOML of every other training, also for `plan`, and of the engine."""
    plan = "plan mllm.toml --gpus 1 --gpu h100 --lm models/lm --tokenizer models/tokenizer"
    commands = {
        "ar_dtok": DTOK,
        "encoder": ENCODER,
        "tokenizer": TOKENIZER,
        "dif_dtok": DIF_DTOK,
        "grpo": GRPO,
        "finetune": FINETUNE,
        "mllm": plan,
    }
    return [Case("settings", f"{name}.toml", (command,)) for name, command in commands.items()]


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


def more_pictures() -> tuple[str, ...]:
    """Pictures of the formats that Pillow, or a plug-in beside it, reads here."""
    from PIL import features

    names = ["a.gif", "b.tif", "c.bmp", "d.jp2"] + ["e.avif"] * bool(features.check("avif"))
    return (*names, *(["f.heic"] if importlib.util.find_spec("pillow_heif") else []))


def _one(picture: str) -> tuple[str, ...]:
    return (f"reconstruct {picture} --model tar --out {OUT}/sheet.png --device cpu",)


def _convert(name: str) -> str:
    return f"models convert others/{name} --out {OUT}"


CASES = _cases()
