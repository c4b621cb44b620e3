"""Training the encoder: exact resume, captions as positives of each other, errors in words."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tarkit.artifacts import open_artifact
from tarkit.checkpoints import load_encoder
from tarkit.config import write_toml
from tarkit.errors import UserError
from tarkit.models.encoder import VisionEncoder
from tarkit.train import encoder
from tarkit.train.data import picture_stream
from tarkit.train.encoder import EncoderConfig, EncoderTask
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
    [{}, {"captioning": 2.0, "dense": 10.0, "caption": "first"}],
    ids=["contrastive", "with captions and pixels"],
)
def test_a_stopped_training_ends_with_the_same_bytes(
    pictures: Path, tmp_path: Path, resumes: Any, changes: dict[str, Any]
) -> None:
    file = config(tmp_path, **changes)
    resumes(EncoderTask, lambda out: encoder.run(file, images=pictures, out=out), stops=(3, 6))
    # The vision tower alone is kept.
    model = load_encoder(tmp_path / "whole")
    assert set(model.state_dict()) == set(VisionEncoder(parts.ENCODER).state_dict())


def test_the_loss_is_its_parts_with_their_weights(pictures: Path) -> None:
    made = task(pictures, captioning=2.0, dense=10.0)
    model = made.model.eval()
    pair = made.batch(0, 4, 0, 1)
    loss, figures = model(pair)
    parts_ = figures["contrastive"] + 2 * figures["captioning"] + 10 * figures["dense"]
    assert float(loss.detach()) == pytest.approx(parts_, rel=1e-4)
    # Each of 16 features tells the 4 x 4 x 3 numbers of its own patch, in reading order.
    told = model.patch_pixels(model.vision.features(pair.pixels))
    patches = pair.pixels.unfold(2, 4, 4).unfold(3, 4, 4)  # (B, 3, 4, 4 patches, 4, 4 pixels)
    patches = patches.permute(0, 2, 3, 1, 4, 5).reshape(4, 16, 48)
    assert figures["dense"] == pytest.approx(
        float((told - patches).pow(2).mean().detach()), rel=1e-4
    )
    plain, figures = task(pictures).model.eval()(pair)
    assert float(plain.detach()) == pytest.approx(figures["contrastive"])


def task(pictures: Path, **changes: Any) -> EncoderTask:
    torch.manual_seed(0)
    settings = EncoderConfig(**SETTINGS | changes)
    return EncoderTask(settings, picture_stream(open_artifact(pictures), seed=0))


def test_equal_captions_are_positives_of_each_other(pictures: Path) -> None:
    made = task(pictures)
    pair = made.batch(0, 12, 0, 1)
    rows = made.stream.batch(0, 12)
    said = [row["prompt"] for row in rows]
    assert len(set(said)) == 4  # twelve pictures, four captions
    assert pair.same.tolist() == [[a == b for b in said] for a in said]
    assert pair.pixels.shape == (12, 3, 16, 16)
    for ids, mask, words in zip(pair.ids, pair.mask, said, strict=True):
        end = made.tokenizer.special["<|endoftext|>"]
        assert ids[mask.bool()].tolist() == [end, *made.tokenizer.encode(words), end]
        assert ids[~mask.bool()].sum() == 0


def test_pictures_without_a_caption_and_captions_without_room_are_refused(
    pictures: Path, tmp_path: Path
) -> None:
    # Between two end-of-text tokens.
    longest = 2 + max(len(task(pictures).tokenizer.encode(words)) for words in parts.CAPTIONS)
    short = config(tmp_path, text_length=longest - 1)
    with pytest.raises(UserError, match=rf"caption has {longest} tokens, text_length is") as error:
        encoder.run(short, images=pictures, out=tmp_path / "out")
    assert error.value.hint == f"--set text_length={longest}"
    made = open_artifact(pictures).read("00000").to_pylist()[:1]
    mute = parts.write_pictures(tmp_path / "mute", [["train"]])
    blank = {**made[0], "prompt": None, "captions": []}
    mute.write_images("00000", [blank], [("png", b"never read")])
    with pytest.raises(UserError, match="picture 00000-000000 has no caption"):
        encoder.run(config(tmp_path), images=mute.path, out=tmp_path / "mute_out")
