"""The six scripts of pipelines/paper, run to a drawn picture with small models.

bash runs the scripts. Their `tarkit` is a line to this process, which runs the command and so
imports torch only once. The models are those of test_paper_chain, a small FLUX and a small CLIP; a
server answers for the language models. Only sizes differ from the paper's numbers, and folders of
pictures stand for lists of URLs. `pytest -m slow tests/test_paper_scripts_run.py`
"""

import json
import shutil
import socket
import subprocess
import tomllib
import zlib
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from accelerate.state import AcceleratorState
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from tarkit.artifacts.artifact import open_artifact
from tarkit.cli.app import app
from tests.checkpoints.test_hub import snapshot
from tests.curate.test_score import save_dual_encoder
from tests.curate.test_synthesize import flux
from tests.llm.stub_server import Reply, said, serving
from tests.test_paper_chain import (
    QWEN,
    SANA,
    SETTINGS,
    SIGLIP2,
    save_photos,
    save_qwen,
    save_siglip2,
)
from tests.test_paper_scripts import PAPER, STEPS
from tests.train.test_dif_dtok import save_sana

__all__ = ["flux"]

# A command's words, and those that small models are given.
SMALLER = {
    "0.25": "0.4",  # the small CLIP's cosines are .27 to .45
    "size_px=1024": "size_px=64",
    "min_side_px=512": "min_side_px=16",
    **{f"vq_size_px={large}": f"vq_size_px={small}" for large, small in ((256, 16), (512, 32))},
    "vq_size_px=1024": "vq_size_px=64",
}
CLIENT = r"""#!/bin/bash
exec 3<>"/dev/tcp/127.0.0.1/$PORT"
printf '%s\037' "$@" $'\n' >&3
read -r status <&3
exit "$status"
"""
TEXTS = ("magpie", "webinstruct", "openhermes", "genqa", "infinity")


VQVAE = [
    "curate render --set count=8 --set shard_size=8 --out drawn".split(),
    (
        f"train vqvae {PAPER}/../smoke/vqvae.toml --images drawn --set steps=2 --set batch_size=4 "
        "--set arch.num_codes=16 --set arch.unshuffle=2 --out vqvae"
    ).split(),
]


def small(folder: Path) -> Path:
    """The scripts and TOMLs in another folder, with the sizes of small models."""
    shutil.copytree(PAPER, folder)
    few = {"steps": "2", "batch_size": "15", "log_every": "1"}
    of = {"tokenizer": "TOKENIZER", "ar_dtok": "AR", "dif_dtok": "DIF"}
    for path in folder.glob("*.toml"):
        settings: dict[str, Any] = tomllib.loads(path.read_text())
        name = next((own for start, own in of.items() if path.stem.startswith(start)), None)
        pairs = dict(pair.split("=") for pair in SETTINGS[name].split()) if name else {}
        for key, value in (few | pairs).items():
            table = settings
            *parents, last = key.split(".")
            for parent in parents:
                table = table[parent]
            table[last] = int(value)
        if name == "AR":
            settings["arch"]["num_codes"] //= 16
        if name == "DIF":
            settings["size_px"] //= 16
        path.write_text(tomli_w.dumps(settings))
    return folder


def smaller(words: list[str]) -> list[str]:
    """A script's command for small models and without a network."""
    words = [SMALLER.get(word, word) for word in words]
    if words[:2] == ["curate", "download"]:
        captions = ["--captions", str(Path(words[2]).with_suffix(".csv"))]
        return ["curate", "ingest", "SOURCES/photos", *captions, *words[3:]]
    if words[:2] == ["curate", "synthesize"]:
        sized = [] if "size_px=64" in words else ["--set", "size_px=32"]
        steps = [*sized, *("--set", "steps=1", "--set", "max_prompt_tokens=16")]
        return [*words, *steps]
    return words


def answer(body: dict[str, Any]) -> Reply:
    """A caption, a split whose phrase is the first word, or a verdict, as they are asked for."""
    content = body["messages"][-1]["content"]
    parts = [content] if isinstance(content, str) else [p.get("text", "") for p in content]
    text = "".join(parts)
    if "placeholder <image>" in text:
        first, _, rest = text.rsplit("INPUT:", 1)[1].strip().partition(" ")
        return said(json.dumps({"prompt": f"<image> {rest}", "<image>": first}))
    if "yes or no" in text:
        return said("yes, it does." if len(text) % 2 else "no, it is another thing.")
    number = zlib.crc32(json.dumps(body).encode())
    return said(f"a photo of {number} red circles on snow")


def save_clip(folder: Path) -> Path:
    """A CLIP whose cosines are positive: as drawn, its texts point away from all pictures."""
    file = save_dual_encoder(folder, "clip") / "model.safetensors"
    weights = load_file(file)
    weights["text_projection.weight"] *= -1
    save_file(weights, file, metadata={"format": "pt"})
    return folder


def sources(folder: Path) -> None:
    folder.mkdir()
    save_photos(folder)
    for name in ("laion", "laion_aes", "megalith", "datacomp"):
        shutil.copy(folder / "captions.csv", folder / f"{name}.csv")
    for name in ("imagenet", "recap_cc12m", "recap_558k", "recap_118k", "llava"):
        shutil.copytree(folder / "photos", folder / name)
        if name != "imagenet" and name != "llava":
            shutil.copy(folder / "llava.json", folder / f"{name}.json")
    for name in ("journeydb", "midjourney"):
        (folder / name).mkdir()
        (folder / name / "prompts.txt").write_text(f"a {name} heart on snow\ntwo {name} rings\n")
    (folder / "examples.txt").write_text("a red ring\na blue star\na green heart\n")
    (folder / "sft_prompts.txt").write_text("a photo of a red circle\na photo of two stars\n")
    for name in ("geneval", "dpg"):
        (folder / f"{name}.jsonl").write_text('{"prompt": "a photo of a bench"}\n')
    for name in TEXTS:
        shutil.copy(folder / "text.jsonl", folder / f"{name}.jsonl")


def run(script: Path, given: list[str], variables: dict[str, str]) -> None:
    """Run a script, its commands in this process."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        variables = {**variables, "PORT": str(server.getsockname()[1])}
        with subprocess.Popen(["bash", str(script), *given], env=variables) as process:
            while process.poll() is None:
                try:
                    connection, _ = server.accept()
                except TimeoutError:
                    continue
                with connection, connection.makefile("rwb") as stream:
                    text = b""
                    while not text.endswith(b"\n\x1f"):
                        text += stream.read(1)
                    words = text.decode().split("\x1f")[:-2]
                    AcceleratorState._reset_state(reset_partial_state=True)
                    done = CliRunner().invoke(app, smaller(words))
                    assert done.exit_code in (0, 3), f"{words}\n{done.output}\n{done.exception!r}"
                    stream.write(f"{done.exit_code}\n".encode())
        assert process.returncode == 0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_scripts_run_from_sources_to_pictures(
    flux: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for save, repo in ((save_siglip2, SIGLIP2), (save_qwen, QWEN), (save_sana, SANA)):
        save(snapshot(tmp_path / "hub", repo))
    sources(tmp_path / "SOURCES")
    clip = save_clip(tmp_path / "clip")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/tarkit").write_text(CLIENT)
    (tmp_path / "bin/tarkit").chmod(0o755)
    here = small(tmp_path / "paper")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    for words in VQVAE:
        assert CliRunner().invoke(app, words).exit_code == 0
    with serving(answer) as server:
        variables = {
            "PATH": f"{tmp_path / 'bin'}:/usr/local/bin:/usr/bin:/bin",
            **{name: str(flux) for name in ("PAINTER", "LUMINA", "SANA15")},
            "CLIP": str(clip),
            "VQVAE": "vqvae",
            "SERVER": server.url,
            "LIMIT": "8",
        }
        for step in STEPS:
            given = ["SOURCES", "work"] if step.stem in ("1-curate", "3-encode") else ["work"]
            run(here / step.name, given, variables)
    for name in ("macaw.png", "macaw_dif.png"):
        with Image.open(tmp_path / "work" / name) as picture:
            assert picture.size == (32, 32)
    scores = list(open_artifact(tmp_path / "work/gen23m_clip").rows("00000"))
    chats = list(open_artifact(tmp_path / "work/chats/gen_sft").rows("00000"))
    kept = [row["key"] for row in scores if row["status"] == "ok" and row["cosine"] >= 0.4]
    assert 0 < len(kept) < len(scores), [row["cosine"] for row in scores]
    assert {row["key"].rsplit("-", 1)[0] for row in chats if row["status"] == "ok"} == set(kept)
