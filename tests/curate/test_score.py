"""Scores: a number for every picture by its key, from each scorer, and who takes part by them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from tarkit.artifacts.artifact import Artifact, begin_artifact
from tarkit.curate.render import RenderPlan
from tarkit.curate.score import ScorePlan
from tarkit.errors import UserError
from tarkit.images import decode, png_bytes
from tarkit.scoring import scorers
from tarkit.scoring.scorers import Scores, Shown, plan_scorer
from tarkit.shapes.prompts import g0_metadata
from tarkit.shapes.render import render as draw_scene
from tarkit.shapes.scene_edits import scene_for
from tests.llm.tiny import save_tokenizer

PROMPTS: tuple[str | None, ...] = ("a ring", "a red ring", None, "x" * 90)


@pytest.fixture
def pictures(tmp_path: Path) -> Artifact:
    """Four pictures and, at the end, a failed row; the first is blank."""
    artifact = begin_artifact(tmp_path / "pictures", "images", settings={}, shards=["00000"])
    rows: list[dict[str, Any]] = []
    blobs: list[tuple[str, bytes] | None] = []
    for number, prompt in enumerate(PROMPTS):
        row = artifact.failed_row(f"0-{number}", "", prompt=prompt, role="target")
        pixels = np.random.default_rng(number).integers(0, 256, (40, 50, 3), np.uint8)
        rows.append(row | {"status": "ok", "error": None, "source": "", "width": 50, "height": 40})
        blobs.append(("png", png_bytes(pixels * bool(number))))
    rows.append(artifact.failed_row("0-4", "torn"))
    artifact.write_pictures("00000", zip(rows, [*blobs, None], strict=True))
    return artifact


def scored(pictures: Artifact, scorer: str, **known: Any) -> list[dict[str, Any]]:
    out = pictures.path.parent / "scores"
    return ScorePlan(pictures.path, out=out, scorer=scorer, **known).run().rows("00000")


def test_a_blank_picture_has_no_spread(pictures: Artifact) -> None:
    rows = scored(pictures, "pixels")
    assert [row["key"] for row in rows] == [f"0-{number}" for number in range(5)]
    assert rows[0]["spread"] == 0
    # Levels drawn evenly from 0..1 have the standard deviation 1 / sqrt(12) = .289.
    assert all(abs(row["spread"] - 0.289) < 0.02 for row in rows[1:4])
    assert (rows[4]["status"], rows[4]["error"]) == ("failed", "its images row failed: torn")
    assert rows[4]["spread"] is None


def test_the_scores_are_those_of_any_number_of_workers(pictures: Artifact, tmp_path: Path) -> None:
    torn = begin_artifact(tmp_path / "torn", "images", settings={}, shards=["00000"])
    rows, blobs = zip(*pictures.read_images("00000"), strict=True)
    cut = [("png", blob[: 60 if number == 1 else None]) for number, blob in enumerate(blobs[:4])]
    torn.write_pictures("00000", zip(rows, [*cut, None], strict=True))
    files = []
    for number in (0, 1, 2):
        overrides = ["batch_size=2", f"num_workers={number}"]
        out = tmp_path / f"{number}"
        made = ScorePlan(torn.path, out=out, scorer="pixels", overrides=overrides).run()
        files.append(made.shard_path("00000").read_bytes())
    assert files[0] == files[1] == files[2]
    read = made.rows("00000")
    assert [row["status"] for row in read] == ["ok", "failed", "ok", "ok", "failed"]
    assert read[1]["error"].startswith("the picture cannot be read: ")


def save_dual_encoder(path: Path, kind: str) -> Path:
    tokenizer = save_tokenizer(path)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 2}
    text = {**sizes, "vocab_size": len(tokenizer), "max_position_embeddings": 24}
    vision = {**sizes, "image_size": 32, "patch_size": 8}
    torch.manual_seed(0)
    if kind == "clip":
        ends = {"bos_token_id": 0, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": 1}
        clip = transformers.CLIPConfig(
            text_config=text | ends, vision_config=vision, projection_dim=8
        )
        transformers.CLIPModel(clip).save_pretrained(path)
        shape = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
        transformers.CLIPImageProcessorPil(**shape).save_pretrained(path)
    else:
        siglip = transformers.SiglipConfig(text_config=text, vision_config=vision)
        transformers.SiglipModel(siglip).save_pretrained(path)
        size = {"height": 32, "width": 32}
        transformers.SiglipImageProcessorPil(size=size).save_pretrained(path)
    return path


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_dual_encoders_give_the_raw_cosine_and_say_what_they_cut(
    pictures: Artifact, tmp_path: Path, kind: str
) -> None:
    model = save_dual_encoder(tmp_path / "model", kind)
    rows = scored(pictures, "clip", model=str(model))
    for number in (0, 1, 3):
        assert -1 <= rows[number]["cosine"] <= 1
    # A token a byte: 90 of them where 24 are read.
    assert [rows[number]["cut_tokens"] for number in (0, 1, 3)] == [0, 0, 90 - 24]
    assert rows[2]["error"] == "it has no prompt to compare with"
    # By hand, from the model's own features.
    network = transformers.AutoModel.from_pretrained(model).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(model, backend="pil")
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    _, blob = list(pictures.read_images("00000"))[1]
    assert blob is not None
    picture = decode(blob)
    padding: Any = "max_length" if kind == "siglip" else True
    words = tokenizer(
        ["a red ring"], padding=padding, max_length=24, return_tensors="pt", truncation=True
    )
    with torch.inference_mode():
        both = network(**words, pixel_values=processor(picture, return_tensors="pt").pixel_values)
    cosine = float((both.image_embeds * both.text_embeds).sum())
    assert rows[1]["cosine"] == pytest.approx(cosine, abs=1e-5)


def test_a_classifier_gives_a_column_a_label(pictures: Artifact, tmp_path: Path) -> None:
    config = transformers.ViTConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
        id2label={0: "Safe", 1: "Not safe"},
        label2id={"Safe": 0, "Not safe": 1},
    )
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "model")
    size = {"height": 32, "width": 32}
    transformers.ViTImageProcessorPil(size=size).save_pretrained(tmp_path / "model")
    rows = scored(pictures, "classifier", model=str(tmp_path / "model"))
    for row in rows[:4]:
        assert row["safe"] + row["not_safe"] == pytest.approx(1)


def test_the_miniature_tells_the_right_prompt_from_another(tmp_path: Path) -> None:
    pictures = RenderPlan(
        out=tmp_path / "pictures", overrides=["seed=77", "count=40", "shard_size=200"]
    ).run()
    rows = ScorePlan(pictures.path, out=tmp_path / "scores", scorer="tar", model="mini").run()
    drawn = [(row, blob) for row, blob in pictures.read_images("00000") if row["prompt"] and blob]
    scores = {row["key"]: row["gain"] for row in rows.rows("00000")}
    right = np.array([scores[row["key"]] for row, _ in drawn])
    others = [Shown(decode(blob), drawn[k - 1][0]["prompt"]) for k, (_, blob) in enumerate(drawn)]
    found = plan_scorer("tar", "mini").load("cpu").score(others)
    wrong = np.array([one["gain"] for one in found if not isinstance(one, str)])
    assert len(right) == len(wrong) >= 30
    # .98 over 240 pictures where this was written; two prompts may well say the same.
    assert (right[:, None] > wrong[None]).mean() > 0.9


class Lopsided:
    """One's own scorer; what it says of some pictures is no number."""

    columns = ("width",)

    def score(self, shown: Sequence[Shown]) -> list[Scores]:
        found: list[Scores] = [{"width": float(one.picture.width)} for one in shown]
        found[1], found[2] = {"width": float("nan")}, {"height": 1.0}
        return found


def test_the_drawn_world_knows_which_picture_shows_its_prompt(tmp_path: Path) -> None:
    artifact = begin_artifact(tmp_path / "drawn", "images", settings={}, shards=["00000"])
    asked = g0_metadata("color_attr", ["ring", "heart"], colours=["red", "blue"])
    wrong = "a photo of a blue ring and a red heart"
    prompts = [asked["prompt"], wrong, "a photo of a dog", None]
    scene = scene_for(asked, np.random.default_rng(0))
    blob = png_bytes(draw_scene(scene, np.random.default_rng(0)))
    rows = [
        artifact.failed_row(f"0-{number}", "", prompt=prompt, role="target")
        | {"status": "ok", "error": None, "source": "", "width": 64, "height": 64}
        for number, prompt in enumerate(prompts)
    ]
    artifact.write_pictures("00000", zip(rows, [("png", blob)] * 4, strict=True))
    right, other, alien, silent = scored(artifact, "shapes")
    assert (right["correct"], other["correct"]) == (1, 0)
    assert "names no shape" in alien["error"]
    assert silent["error"] == "it has no prompt to compare with"


def test_ones_own_scorer_by_its_module(pictures: Artifact) -> None:
    rows = scored(pictures, f"{__name__}:Lopsided")
    assert [row["width"] for row in rows] == [50, None, None, 50, None]
    assert rows[1]["error"] == "the score width is nan"
    assert rows[2]["error"] == "the scorer gave the columns height"


@pytest.mark.parametrize(
    ("scorer", "model", "said"),
    [
        ("beauty", None, "no scorer 'beauty'"),
        ("clip", None, "needs a model"),
        ("pixels", "mini", "takes no model"),
        ("nowhere:Scorer", None, "cannot be made"),
        ("clip", "/no/such/model", "there is no folder"),
    ],
)
def test_what_is_no_scorer_is_said(
    pictures: Artifact, scorer: str, model: str | None, said: str
) -> None:
    with pytest.raises(UserError, match=said):
        scored(pictures, scorer, model=model)


def test_scores_are_made_once(pictures: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    first = scored(pictures, "pixels")
    monkeypatch.setattr(scorers.Pixels, "score", lambda *_: pytest.fail("scored again"))
    assert scored(pictures, "pixels") == first
    out = pictures.path.parent / "scores"
    assert ScorePlan(pictures.path, out=out, scorer="pixels").preview() == {
        "rows": 5,
        "shards": 1,
        "shards_to_make": 0,
    }


@pytest.mark.parametrize("number", [None, "0.5", float("nan")])
def test_what_ones_own_scorer_gives_and_is_no_number_is_a_reason(number: Any) -> None:
    given: Any = {"taste": number}
    assert scorers.checked(given, ["taste"]) == f"the score taste is {number!r}"
