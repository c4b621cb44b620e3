"""Training the encoder: exact resume, captions as positives of each other, errors in words."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tarkit.artifacts.artifact import open_artifact
from tarkit.checkpoints.load import load_encoder
from tarkit.config import write_toml
from tarkit.errors import UserError
from tarkit.models.encoder import VisionEncoder
from tarkit.shapes.regions import regions_of
from tarkit.train import encoder
from tarkit.train.contrastive import EncoderConfig
from tarkit.train.encoder import EncoderTask, covered
from tarkit.train.streams import picture_stream
from tests import parts

SETTINGS: dict[str, Any] = {
    "arch": parts.ENCODER,
    "steps": 8,
    "batch_size": 4,
    "learning_rate": 1e-3,
    "optimizer": "muon",
    "weight_decay": 0.01,
    "text_width": 8,
    "text_layers": 1,
    "text_heads": 2,
    "text_length": 16,
    "text_vocab": 270,
    "checkpoint_every": 2,
    "log_every": 1,
}


def config(tmp_path: Path, **changes: Any) -> Path:
    file = tmp_path / "encoder.toml"
    file.write_text(write_toml(EncoderConfig(**SETTINGS | changes)))
    return file


@pytest.mark.parametrize(
    "changes",
    [{}, {"grounding": 1.0, "caption": "first"}, {"grounding": 1.0, "surplus": 1.0}],
    ids=["contrastive", "grounded", "no surplus"],
)
def test_a_stopped_training_ends_with_the_same_bytes(
    pictures: Path, tmp_path: Path, resumes: Any, changes: dict[str, Any]
) -> None:
    file = config(tmp_path, **changes)

    def run(out: Path) -> Path:
        return encoder.run(file, images=[pictures], out=out, regions_of=regions_of)

    resumes(EncoderTask, run, stops=(3, 6))
    # The vision tower alone is kept.
    model = load_encoder(tmp_path / "whole")
    assert set(model.state_dict()) == set(VisionEncoder(parts.ENCODER).state_dict())


def test_the_loss_is_its_parts_with_their_weights(pictures: Path) -> None:
    made = task(pictures, grounding=2.0)
    pair = made.batch(0, 4, 0, 1)
    loss, figures = made.model.eval()(pair)
    grounding = sum(figures[name] for name in ("object", "phrase", "box"))
    assert float(loss.detach()) == pytest.approx(figures["contrastive"] + 2 * grounding, rel=1e-4)
    plain, figures = task(pictures).model.eval()(pair._replace(regions=None))
    assert float(plain.detach()) == pytest.approx(figures["contrastive"])
    assert "phrase" not in figures


def test_surplus_is_what_phrase_and_box_leave_unexplained(pictures: Path) -> None:
    made = task(pictures, grounding=1.0, surplus=3.0)
    head = made.model.grounding.eval()
    regions = made.batch(0, 4, 0, 1).regions
    assert regions is not None and bool(regions.known.all())
    there = regions.phrase >= 0
    with torch.no_grad():
        phrases = made.model.text(regions.ids, regions.mask)
        told = phrases[regions.phrase[there]] + head.placed(regions.box[there])
        features = head.nothing.repeat(*there.shape, 1)
        features[there] = told + head.expected(told)
        # Features that are a function of phrase and box leave nothing over.
        assert head(features, phrases, regions)[1]["surplus"] == pytest.approx(0, abs=1e-9)
        noise = torch.randn(features.shape, generator=torch.Generator().manual_seed(0))
        # With noise of the features' own variance, half of the sum is unexplained.
        noisy = features + noise * features.flatten(0, 1).var(0, correction=0).mean().sqrt()
        loss, figures = head(noisy, phrases, regions)
        assert figures["surplus"] == pytest.approx(0.5, abs=0.05)
        parts_of = sum(figures[name] for name in ("object", "phrase", "box"))
        assert float(loss) == pytest.approx(parts_of + 3 * figures["surplus"], rel=1e-4)
    # A picture whose scene is not known takes no part.
    unknown = regions._replace(known=torch.tensor([True, True, True, False]))
    less = unknown._replace(phrase=unknown.phrase.masked_fill(~unknown.known[:, None], -1))
    noisy[3] = 1e6
    assert head(noisy, phrases, less)[1]["surplus"] < 1


@pytest.mark.parametrize(("layer", "moved"), [(-1, True), (-2, False), (0, False)])
def test_the_grounded_layer_is_the_one_that_is_named(
    pictures: Path, layer: int, moved: bool
) -> None:
    made = task(pictures, grounding=1.0, grounding_layer=layer)
    pair, model = made.batch(0, 4, 0, 1), made.model.eval()
    before = model(pair)[1]
    with torch.no_grad():
        bias = dict(model.vision.named_parameters())["encoder.layers.1.mlp.fc2.bias"]
        bias.add_(torch.arange(16.0))
    after = model(pair)[1]
    assert before["contrastive"] != after["contrastive"]
    assert (before["phrase"] != after["phrase"]) is moved


def test_regions_are_where_the_scene_says(pictures: Path) -> None:
    made = task(pictures, grounding=1.0)
    rows = made.stream.batch(0, 4)
    regions = made.batch(0, 4, 0, 1).regions
    assert regions is not None and regions.known.all()
    # Hearts and rings of radius 16 px around (32, 32) of 64: about the middle four of 4 x 4.
    there = regions.phrase.view(4, 4, 4) >= 0
    assert there[:, 1:3, 1:3].all() and there.sum() == 16
    names = [f"{row['prompt'].removeprefix('a ')}" for row in rows]
    for name, phrase in zip(names, regions.phrase, strict=True):
        number = int(phrase.max())
        ids = regions.ids[number][regions.mask[number].bool()][1:-1]
        assert ids.tolist() == made.tokens.tokenizer.encode(name)
    upper_left, lower_right = regions.box[0, 5], regions.box[0, 10]
    assert upper_left[:2].tolist() == pytest.approx([0.5, 0.5], abs=0.15)
    assert lower_right[:2].tolist() == pytest.approx([-0.5, -0.5], abs=0.15)
    assert upper_left[2:].tolist() == lower_right[2:].tolist()
    assert upper_left[2:].tolist() == pytest.approx([2, 2], abs=0.35)


def test_a_box_stands_on_what_it_covers_a_quarter_of() -> None:
    # x from 0.5 to 2.2 of a grid of 4: half of column 0, all of 1, a fifth of 2.
    where, offsets = covered(np.array([0.5, 1.0, 2.2, 2.0]), 4)
    assert where.tolist() == [4, 5]  # row 1
    centre = pytest.approx([0.85, 0.0, 1.7, 1.0], abs=1e-6)
    assert offsets[0].tolist() == centre
    assert offsets[1].tolist() == pytest.approx([-0.15, 0.0, 1.7, 1.0], abs=1e-6)
    # A bar so thin that it covers a quarter of nothing stands where it covers most.
    where, _ = covered(np.array([2.0, 3.1, 2.9, 3.2]), 4)
    assert where.tolist() == [14]


def test_pictures_without_a_scene_are_not_grounded(pictures: Path) -> None:
    made = task(pictures, grounding=1.0)
    rows = made.stream.batch(0, 3)
    for row in rows[:2]:
        row["scene"] = None
    regions = made._regions(rows)
    assert regions is not None
    assert regions.known.tolist() == [False, False, True]
    assert (regions.phrase[:2] == -1).all()
    features = torch.randn(3, 16, 16)
    phrases = made.model.text(regions.ids, regions.mask)
    loss, _ = made.model.grounding(features, phrases, regions)
    features[:2] += 1  # what is not known teaches nothing
    assert torch.equal(made.model.grounding(features, phrases, regions)[0], loss)
    rows[2]["scene"] = None
    assert made._regions(rows) is None


def task(pictures: Path, **changes: Any) -> EncoderTask:
    torch.manual_seed(0)
    settings = EncoderConfig(**SETTINGS | changes)
    stream = picture_stream(open_artifact(pictures), seed=0)
    return EncoderTask(settings, stream, regions_of=regions_of)


def test_a_grounding_weight_without_regions_is_refused(pictures: Path, tmp_path: Path) -> None:
    file = config(tmp_path, grounding=1.0)
    with pytest.raises(UserError, match="grounding = 1.0 needs to know what stands where") as error:
        encoder.run(file, images=[pictures], out=tmp_path / "out")
    assert error.value.hint == "--set grounding=0"
    assert not (tmp_path / "out").exists()


def test_equal_captions_are_positives_of_each_other(pictures: Path) -> None:
    made = task(pictures)
    pair = made.batch(0, 12, 0, 1)
    rows = made.stream.batch(0, 12)
    said = [row["prompt"] for row in rows]
    assert len(set(said)) == 4  # twelve pictures, four captions
    assert pair.same.tolist() == [[a == b for b in said] for a in said]
    assert pair.pixels.shape == (12, 3, 16, 16)
    for ids, mask, words in zip(pair.ids, pair.mask, said, strict=True):
        end = made.tokens.tokenizer.special["<|endoftext|>"]
        assert ids[mask.bool()].tolist() == [end, *made.tokens.tokenizer.encode(words), end]
        assert ids[~mask.bool()].sum() == 0


def test_pictures_without_a_caption_and_captions_without_room_are_refused(
    pictures: Path, tmp_path: Path
) -> None:
    # Between two end-of-text tokens.
    longest = 2 + max(
        len(task(pictures).tokens.tokenizer.encode(words)) for words in parts.CAPTIONS
    )
    short = config(tmp_path, text_length=longest - 1)
    with pytest.raises(UserError, match=rf"caption has {longest} tokens, text_length is") as error:
        encoder.run(short, images=[pictures], out=tmp_path / "out")
    assert error.value.hint == f"--set text_length={longest}"
    made = open_artifact(pictures).read("00000").to_pylist()[:1]
    mute = parts.write_pictures(tmp_path / "mute", [["train"]])
    blank = {**made[0], "prompt": None, "captions": []}
    mute.write_pictures("00000", zip([blank], [("png", b"never read")], strict=True))
    with pytest.raises(UserError, match="picture 00000-000000 has no caption"):
        encoder.run(config(tmp_path), images=[mute.path], out=tmp_path / "mute_out")
