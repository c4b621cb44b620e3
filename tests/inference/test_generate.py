"""Pictures of prompts: names, seeds, what is written into them, and resuming."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tarkit.checkpoints.tar_config import Sampling
from tarkit.errors import UserError
from tarkit.images import png_bytes
from tarkit.inference import generate
from tarkit.inference.self_reflect import BestCandidate, Reflection
from tarkit.vocab import Scale
from tests.parts import ASSEMBLED

# The parts' own fingerprints are their names here, one a line.
MODEL_SHA256 = hashlib.sha256(b"mllm\nta_tok\nar_dtok\nvqvae").hexdigest()


class GreyTar:
    """A model whose picture of a prompt has the seed's grey, the prompt's length and the scale."""

    default_scale = Scale.HALF
    read_scale = Scale.FULL
    sampling = Sampling()
    dtok = None

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    def identities(self) -> list[str]:
        return list(ASSEMBLED)

    def unknown_words(self, prompts: Iterable[str]) -> list[str]:
        return []

    def imagine_many(
        self,
        prompts: Sequence[str],
        *,
        seeds: Sequence[int],
        scale: Scale,
        images: Sequence[Sequence[Image.Image]] | None,
        sampling: Sampling,
    ) -> list[Image.Image]:
        self.asked.append({"prompts": prompts, "seeds": seeds, "images": images, "how": sampling})
        return [
            Image.new("RGB", (8, 8), (seed % 256, len(prompt), int(scale)))
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]


@pytest.fixture
def tar(monkeypatch: pytest.MonkeyPatch) -> GreyTar:
    fake = GreyTar()
    loaded = SimpleNamespace(load=lambda name, **how: fake)
    monkeypatch.setattr(generate, "Tar", loaded)
    return fake


def pixel(path: Path) -> tuple[int, ...]:
    with Image.open(path) as picture:
        return tuple(int(value) for value in np.asarray(picture)[0, 0])


def test_one_prompt_gives_the_picture_asked_for(tar: GreyTar, tmp_path: Path) -> None:
    out = tmp_path / "new" / "picture.png"
    assert generate.run("a ring", out=out, seed=7) == [out]
    # Seed 7, six letters, the model's own scale 2.
    assert pixel(out) == (7, 6, 2)


def test_a_picture_says_how_it_was_drawn(tar: GreyTar, tmp_path: Path) -> None:
    out = tmp_path / "picture.png"
    prompt = "zwei Ringe – für\ndich"
    generate.run(prompt, out=out, seed=7, scale=3, sampling={"temperature": 0.25})
    with Image.open(out) as picture:
        text = picture.info
    assert text["prompt"] == prompt
    assert (text["model"], text["model_sha256"]) == ("mini", MODEL_SHA256)
    assert (text["seed"], text["scale"]) == ("7", "3")
    sampling = json.loads(text["sampling"])
    assert sampling == {**Sampling().model_dump(), "temperature": 0.25}
    assert text["Software"].startswith("tarkit ")


def test_several_samples_are_numbered_and_have_seeds_of_their_own(
    tar: GreyTar, tmp_path: Path
) -> None:
    (tmp_path / "ring.jsonl").write_text("someone's data")
    paths = generate.run("a ring", out=tmp_path / "ring.png", n=3, seed=20)
    assert (tmp_path / "ring.jsonl").read_text() == "someone's data"
    assert [path.name for path in paths] == ["ring-0000.png", "ring-0001.png", "ring-0002.png"]
    assert [pixel(path)[0] for path in paths] == [20, 21, 22]
    lines = [json.loads(line) for line in (tmp_path / "ring.png.jsonl").read_text().splitlines()]
    assert [(line["file"], line["seed"]) for line in lines] == [
        ("ring-0000.png", 20),
        ("ring-0001.png", 21),
        ("ring-0002.png", 22),
    ]
    assert lines[0]["sampling"] == Sampling().model_dump() and lines[0]["scale"] == 2


def test_pictures_stand_at_the_marks_in_order(tar: GreyTar, tmp_path: Path) -> None:
    for name, grey in (("a", 10), ("b", 20)):
        (tmp_path / f"{name}.png").write_bytes(png_bytes(np.full((4, 4, 3), grey, np.uint8)))
    given = [tmp_path / "a.png", tmp_path / "b.png"]
    generate.run("<image> above <image>", images=given, out=tmp_path / "c.png", n=2)
    (asked,) = tar.asked
    greys = [[image.getpixel((0, 0)) for image in row] for row in asked["images"]]
    assert greys == [[(10, 10, 10), (20, 20, 20)]] * 2


@pytest.mark.parametrize(
    ("prompt", "num_images", "reason"),
    [
        ("a ring", 1, "has 0 <image> marks for 1 pictures"),
        ("a ring above <image>", 0, "has 1 <image> marks for 0 pictures"),
        ("  ", 0, "the prompt is empty"),
        ("a \udcff ring", 0, "is not UTF-8 text"),
    ],
)
def test_a_prompt_that_cannot_be_drawn_is_refused_before_the_model_is_loaded(
    tar: GreyTar, tmp_path: Path, prompt: str, num_images: int, reason: str
) -> None:
    with pytest.raises(UserError, match=reason):
        generate.run(prompt, images=[tmp_path / "a.png"] * num_images, out=tmp_path / "c.png")
    assert not tar.asked


def test_a_name_that_is_no_png_is_refused(tar: GreyTar, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"must end in \.png"):
        generate.run("a ring", out=tmp_path / "picture.jpg")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(UserError, match="is a folder"):
        generate.run("a ring", out=tmp_path / "folder.png")


def test_a_file_of_prompts_makes_a_folder_a_prompt(tar: GreyTar, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a ring\na heart\n")
    done = generate.run_file(tmp_path / "p.txt", out=tmp_path / "out", n=2, seed=5)
    assert done.num_pictures == 4
    found = sorted(str(path.relative_to(tmp_path / "out")) for path in done.path.rglob("*.png"))
    assert found == [
        *("00000/0000.png", "00000/0001.png", "00001/0000.png", "00001/0001.png"),
        "sheet.png",
    ]
    lines = [json.loads(line) for line in (done.path / "samples.jsonl").read_text().splitlines()]
    # The seed of prompt row r, sample s is 5 + 1000 r + s.
    assert [line["seed"] for line in lines] == [5, 6, 1005, 1006]
    assert lines[3] == {
        "file": "00001/0001.png",
        "prompt_row": 1,
        "sample": 1,
        "prompt": "a heart",
        "seed": 1006,
        "model_sha256": MODEL_SHA256,
        "precision": "float32",
        "scale": 2,
        "sampling": Sampling().model_dump(),
    }
    assert pixel(done.path / "00001/0001.png") == (1006 % 256, 7, 2)


def test_a_files_picture_is_the_one_that_its_recorded_seed_draws(
    tar: GreyTar, tmp_path: Path
) -> None:
    (tmp_path / "p.txt").write_text("a ring\na heart\n")
    done = generate.run_file(tmp_path / "p.txt", out=tmp_path / "out", n=2)
    line = json.loads((done.path / "samples.jsonl").read_text().splitlines()[3])
    (alone,) = generate.run(line["prompt"], out=tmp_path / "one.png", seed=line["seed"])
    assert alone.read_bytes() == (done.path / line["file"]).read_bytes()


def all_bytes(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_killed_and_run_again_the_bytes_are_the_same(
    tar: GreyTar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "p.txt").write_text("".join(f"prompt {n}\n" for n in range(10)))
    generate.run_file(tmp_path / "p.txt", out=tmp_path / "whole", n=4)
    write = generate.write_whole
    written: list[Path] = []

    def killed(path: Path, data: bytes) -> None:
        if len(written) == 21:
            raise KeyboardInterrupt
        written.append(path)
        write(path, data)

    monkeypatch.setattr(generate, "write_whole", killed)
    with pytest.raises(KeyboardInterrupt):
        generate.run_file(tmp_path / "p.txt", out=tmp_path / "again", n=4)
    monkeypatch.setattr(generate, "write_whole", write)
    tar.asked.clear()
    generate.run_file(tmp_path / "p.txt", out=tmp_path / "again", n=4)
    assert all_bytes(tmp_path / "again") == all_bytes(tmp_path / "whole")
    # 40 pictures are batches of 16, 16 and 8; 21 were written, so the first is not drawn again,
    # and the second is drawn as it was drawn the first time, whole.
    assert [len(asked["seeds"]) for asked in tar.asked] == [16, 8]


def test_a_drawn_picture_that_is_damaged_since_is_named(tar: GreyTar, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a ring\n")
    generate.run_file(tmp_path / "p.txt", out=tmp_path / "out")
    (picture,) = tmp_path.glob("out/0*/*.png")
    whole = picture.read_bytes()
    picture.write_bytes(whole[: len(whole) - 40])
    with pytest.raises(UserError, match=r"0000\.png cannot be read") as error:
        generate.run_file(tmp_path / "p.txt", out=tmp_path / "out")
    assert error.value.hint == f"rm {picture}; then the same command draws it again"
    picture.unlink()
    generate.run_file(tmp_path / "p.txt", out=tmp_path / "out")
    assert picture.read_bytes() == whole


def test_other_settings_in_the_same_folder_are_refused(tar: GreyTar, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a ring\n")
    generate.run_file(tmp_path / "p.txt", out=tmp_path / "out")
    with pytest.raises(UserError, match="scale: 2 there, 1 now"):
        generate.run_file(tmp_path / "p.txt", out=tmp_path / "out", scale=1)
    with pytest.raises(UserError, match=r"sampling\.temperature: .* there, 0\.125 now"):
        generate.run_file(tmp_path / "p.txt", out=tmp_path / "out", sampling={"temperature": 0.125})
    (tmp_path / "p.txt").write_text("a heart\n")
    with pytest.raises(UserError, match="prompts_sha256"):
        generate.run_file(tmp_path / "p.txt", out=tmp_path / "out")


def test_a_mark_in_a_prompt_file_is_named_with_its_row(tar: GreyTar, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a ring\na ring above <image>\n")
    with pytest.raises(UserError, match="prompt 1 of .* has 1 <image> marks"):
        generate.run_file(tmp_path / "p.txt", out=tmp_path / "out")


def test_the_record_of_a_chosen_picture_names_the_judge_and_where_it_read(
    tar: GreyTar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def chosen(
        tar: Any, prompts: Sequence[str], *, seeds: Sequence[int], **_: Any
    ) -> list[BestCandidate]:
        return [BestCandidate(torch.zeros(4), seed, 0.7, 2, 4) for seed in seeds]

    monkeypatch.setattr(generate, "best_of", chosen)
    monkeypatch.setattr(generate, "draw", lambda *_, **__: [Image.new("RGB", (8, 8))])
    how = Reflection(n=4, by="yes", on="pixels")
    generate.run("a ring", out=tmp_path / "a.png", reflection=how)
    (line,) = (tmp_path / "a.png.jsonl").read_text().splitlines()
    record = json.loads(line)
    assert record["reflection"] == {**asdict(how), "read_scale": 1}
    assert record["chosen"] == {"score": 0.7, "candidate": 2, "tried": 4}
    (tmp_path / "p.txt").write_text("a ring\n")
    generate.run_file(tmp_path / "p.txt", out=tmp_path / "out", reflection=how)
    Image.new("RGB", (8, 8)).save(tmp_path / "out/00000/0000.png")
    with pytest.raises(UserError, match="does not say which candidate it is"):
        generate.run_file(tmp_path / "p.txt", out=tmp_path / "out", reflection=how)
