"""The representations of Sec. 4.3: each is encoded, trained, assembled, drawn and asked."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch.testing import assert_close

from tarkit.artifacts.artifact import open_artifact
from tarkit.checkpoints import assemble, export_hf
from tarkit.checkpoints.directory import read_config
from tarkit.checkpoints.language_model import load_mllm
from tarkit.checkpoints.load import load_pixel_tokenizer, load_reading_encoder, load_vqvae
from tarkit.checkpoints.tar_config import Sampling
from tarkit.config import write_toml
from tarkit.curate.chats import ChatsPlan
from tarkit.encode import EncodePlan
from tarkit.errors import UserError
from tarkit.eval import shapes
from tarkit.inference import generate
from tarkit.inference.tar_model import NO, YES, Tar
from tarkit.models.encoder import VisionEncoder
from tarkit.models.pixel_range import from_unit_truncated, to_unit
from tarkit.models.ta_tok import pool
from tarkit.train import mllm, vqvae
from tarkit.train.alignment import AlignmentConfig
from tarkit.train.chat_batches import ChatStreams, packed_chats
from tarkit.train.costs import count
from tarkit.train.mllm import EncoderReading, MllmConfig, MllmTask
from tarkit.train.read_pictures import ChatPictures, ReadChats
from tarkit.train.streams import mixed_pictures
from tarkit.train.vqvae import VqvaeConfig, VqvaeTask
from tarkit.train.workloads import language
from tarkit.train.workloads.workload import Start, Workload
from tarkit.vocab import FEATURE, Scale
from tests import parts

SETTINGS: dict[str, Any] = {
    "lm": parts.LM,
    "steps": 6,
    "batch_size": 4,
    "learning_rate": 1e-3,
    "optimizer": "muon",
    "checkpoint_every": 2,
    "log_every": 1,
    "length": 128,
    "ratio": {"t2i": 2, "i2t": 2, "text": 1},
    "scale_ratio": (1, 0, 0),
    "embedding_start": "random",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pictures, the parts of a Tar, a language model of text, and chats of both kinds of codes."""
    folder = tmp_path_factory.mktemp("representations")
    pictures = parts.write_pictures(folder / "pictures", [["train"] * 4, ["train"] * 3]).path
    models = parts.save_parts(folder / "models")
    lm = parts.save_mllm(folder / "models/lm", None)
    tokens = EncodePlan(
        input_path=pictures,
        out=folder / "tokens",
        tokenizer=models["tokenizer"],
        vqvae=models["vqvae"],
        overrides=["vq_size_px=16"],
    ).run()
    documents = folder / "text.txt"
    documents.write_text("\n".join(parts.CAPTIONS))
    chats = ChatsPlan(out=folder / "chats", tokens=tokens.path, overrides=["codes=vq"]).run()
    aligned = ChatsPlan(out=folder / "aligned", tokens=tokens.path).run()
    text = ChatsPlan(out=folder / "text", text=documents).run()
    return {
        **models,
        "encoder": parts.save_encoder(folder / "models/encoder"),
        "lm": lm,
        "pictures": pictures,
        "tokens": tokens.path,
        "chats": chats.path,
        "aligned": aligned.path,
        "text": text.path,
    }


def config(folder: Path, **changes: Any) -> Path:
    file = folder / "mllm.toml"
    file.write_text(write_toml(MllmConfig(**SETTINGS | changes)))
    return file


def train(made: dict[str, Path], folder: Path, out: Path, **changes: Any) -> Path:
    return mllm.run(
        config(folder, **{"representation": "vq"} | changes),
        chats=[made["chats"], made["text"]],
        lm=made["lm"],
        vqvae=made["vqvae"],
        out=out,
    )


@pytest.fixture(scope="module")
def vq(made: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An assembled model of pixel codes."""
    folder = tmp_path_factory.mktemp("vq")
    trained = train(made, folder, folder / "mllm", sample_every=3)
    return assemble.run(mllm=trained, vqvae=made["vqvae"], out=folder / "tar")


def train_separate(made: dict[str, Path], folder: Path, out: Path, **changes: Any) -> Path:
    return mllm.run(
        config(folder, **{"representation": "separate", "read_scale_ratio": (2, 1, 1)} | changes),
        chats=[made["chats"], made["text"]],
        lm=made["lm"],
        vqvae=made["vqvae"],
        encoder=made["encoder"],
        images=[made["pictures"]],
        out=out,
    )


@pytest.fixture(scope="module")
def separate(made: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An assembled model that reads features and writes pixel codes."""
    folder = tmp_path_factory.mktemp("separate")
    trained = train_separate(made, folder, folder / "mllm")
    return assemble.run(
        mllm=trained,
        vqvae=made["vqvae"],
        encoder=made["encoder"],
        out=folder / "tar",
        overrides=["read_scale=2"],
    )


# ---- chats


def test_chats_of_pixel_codes_hold_the_codes_of_the_image_vq_and_the_pictures_key(
    made: dict[str, Path],
) -> None:
    tokens, chats = open_artifact(made["tokens"], "tokens"), open_artifact(made["chats"], "chats")
    assert chats.settings["tokenizer_sha256"] == parts.sha256(made["vqvae"])
    assert chats.settings["codebook_size"] == 12 and chats.settings["sides"] == {"1": 4}
    codes = {row["key"]: row["vq_codes"] for row in tokens.rows("00000")}
    pictures = [picture for row in chats.rows("00000") for picture in row["images"]]
    assert len(pictures) >= 8 and {picture["key"] for picture in pictures} == set(codes)
    assert all(picture["codes_1"] == codes[picture["key"]] for picture in pictures)
    # By default there is nothing of all this.
    aligned = open_artifact(made["aligned"], "chats")
    assert "codes" not in aligned.settings and "key" not in aligned.rows("00000")[0]["images"][0]


def test_chats_of_pixel_codes_need_them_in_the_tokens(
    made: dict[str, Path], tmp_path: Path
) -> None:
    tokens = EncodePlan(
        input_path=made["pictures"], out=tmp_path / "tokens", tokenizer=made["tokenizer"]
    ).run()
    with pytest.raises(UserError, match="needs codes of an image VQ, and .*tokens has none"):
        ChatsPlan(out=tmp_path / "chats", tokens=tokens.path, overrides=["codes=vq"]).run()


# ---- training


def test_a_stopped_training_on_pixel_codes_ends_with_the_same_bytes(
    made: dict[str, Path], tmp_path: Path, resumes: Any
) -> None:
    resumes(MllmTask, lambda out: train(made, tmp_path, out), stops=(3,))
    written = read_config(tmp_path / "whole")
    assert written["representation"] == "vq" and written["grid"] == 4
    assert written["tokenizer_sha256"] == parts.sha256(made["vqvae"])
    assert written["visual"]["num_codes"] == 12


@pytest.mark.parametrize(
    ("changes", "given", "message"),
    [
        ({}, {"vqvae": None}, "draws with an image VQ, and there is no --vqvae"),
        ({}, {"tokenizer": "tokenizer"}, "does not use --tokenizer"),
        ({}, {"chats": "aligned"}, "needs chats with pixel codes of one size, and they have none"),
        ({"representation": "hybrid"}, {}, "was trained on pixels alone, which is not .* hybrid"),
        (
            {"representation": "text-aligned"},
            {"vqvae": None, "tokenizer": "tokenizer"},
            "holds pixel codes of an image VQ, and the representation is text-aligned",
        ),
        ({}, {"lm": "mllm"}, "was trained with representation = text-aligned, and this .* has vq"),
        ({"embedding_start": "codebook"}, {}, "codes are 4 wide, the language model's embeddings"),
    ],
)
def test_parts_that_do_not_fit_the_representation_are_refused(
    changes: dict[str, Any],
    given: dict[str, str | None],
    message: str,
    made: dict[str, Path],
    tmp_path: Path,
) -> None:
    named: dict[str, str | None] = {"chats": "chats", "lm": "lm", "vqvae": "vqvae", **given}
    paths = {option: made[name] for option, name in named.items() if name}
    chats = paths.pop("chats")
    with pytest.raises(UserError, match=message) as error:
        mllm.run(
            config(tmp_path, **{"representation": "vq", "ratio": {"t2i": 1}} | changes),
            chats=[chats],
            out=tmp_path / "out",
            **paths,  # type: ignore[arg-type]
        )
    assert error.value.hint


def test_another_scale_or_another_image_vq_is_refused(
    made: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"scale 1 alone: scale_ratio must be \[1, 0, 0\]"):
        MllmConfig(**SETTINGS | {"representation": "vq", "scale_ratio": (1, 1, 0)})
    other = parts.save_vqvae(tmp_path / "other", seed=1)
    with pytest.raises(UserError, match="holds codes of tokenizer .* --vqvae is"):
        train({**made, "vqvae": other}, tmp_path, tmp_path / "out")


# ---- the assembled model


def noise(seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))


def pixels(pictures: Sequence[Image.Image]) -> list[bytes]:
    return [picture.tobytes() for picture in pictures]


def test_a_model_of_pixel_codes_draws_by_its_image_vq_alone(
    vq: Path, made: dict[str, Path]
) -> None:
    tar = Tar.load(vq)
    assert (tar.representation, tar.scales, tar.grid, tar.size_px) == ("vq", (Scale.FULL,), 4, 16)
    codes = tar.imagine_codes(["a red ring"], seeds=[0])
    assert codes.shape == (1, 16) and int(codes.max()) < 12
    decoded = load_vqvae(made["vqvae"]).decode(codes)
    [expected] = from_unit_truncated(decoded)
    assert np.array_equal(np.asarray(tar.imagine("a red ring", seed=0)), expected)
    # What it reads are the codes of the picture, as `encode` stores them.
    read = tar.encode([noise(0)], [Scale.FULL])[Scale.FULL]
    own = load_vqvae(made["vqvae"]).encode(to_unit([np.asarray(noise(0))]))
    assert torch.equal(read, own)


def test_a_model_of_pixel_codes_answers_and_edits(vq: Path) -> None:
    tar = Tar.load(vq, dtok=None)
    answers = tar.describe_many([noise(0), noise(1)], ["What is it?"] * 2, max_tokens=4)
    assert answers == [tar.describe(noise(n), "What is it?", max_tokens=4) for n in (0, 1)]
    tar.imagine("like <image>", images=[noise(2)], sampling=Sampling(prompt_guidance=2.0))
    assert 0 <= tar.yes_probability(tar.imagine_codes(["a ring"], seeds=[0]), ["a?"])[0] <= 1


def test_what_pixel_codes_lack_is_refused_in_a_sentence(vq: Path, made: dict[str, Path]) -> None:
    tar = Tar.load(vq)
    with pytest.raises(UserError, match="have scale 1 alone, not scale 2"):
        tar.imagine("a ring", scale=Scale.HALF)
    with pytest.raises(UserError, match="draws with its image VQ .representation vq.: it has no"):
        Tar.load(vq, dtok="dif")
    with pytest.raises(UserError, match="draws with its image VQ alone"):
        Tar.load(vq, draft=made["ar_dtok"])
    with pytest.raises(UserError, match="has no TA-Tok: it draws with pixel codes"):
        _ = tar.ta_tok


def test_parts_that_do_not_belong_together_are_not_assembled(
    vq: Path, made: dict[str, Path], tmp_path: Path
) -> None:
    given: dict[str, Any] = {"mllm": vq / "mllm", "vqvae": made["vqvae"], "out": tmp_path / "tar"}
    with pytest.raises(UserError, match="representation vq, which does not use --ar-dtok"):
        assemble.run(**given, ar_dtok=made["ar_dtok"])
    with pytest.raises(UserError, match="was trained with tokenizer"):
        assemble.run(**{**given, "vqvae": parts.save_vqvae(tmp_path / "other", seed=1)})
    with pytest.raises(UserError, match="default_scale = 2: pixel codes have scale 1 alone"):
        assemble.run(**given, overrides=["default_scale=2"])
    with pytest.raises(UserError, match="is text-aligned: it needs --tokenizer"):
        assemble.run(**{**given, "mllm": made["mllm"]}, ar_dtok=made["ar_dtok"])


def test_generate_and_eval_shapes_take_a_model_of_pixel_codes(vq: Path, tmp_path: Path) -> None:
    [file] = generate.run("a red ring", out=tmp_path / "ring.png", model=str(vq))
    assert Image.open(file).size == (16, 16)
    shapes.run(out=tmp_path / "shapes", model=vq, limit=2)
    metrics = json.loads((tmp_path / "shapes/results.json").read_text())["metrics"]
    ceilings = {name for name in metrics if name.startswith("ceiling_")}
    assert ceilings == {"ceiling_truth@shapes", "ceiling_pixel_vq@shapes"}
    assert list(metrics["codes@shapes"]) == ["1"]


# ---- separate encoders


def test_a_stopped_training_with_separate_encoders_ends_with_the_same_bytes(
    made: dict[str, Path], tmp_path: Path, resumes: Any
) -> None:
    resumes(MllmTask, lambda out: train_separate(made, tmp_path, out), stops=(3,))
    written = read_config(tmp_path / "whole")
    assert written["representation"] == "separate"
    assert written["reader"] == {
        "encoder_sha256": parts.sha256(made["encoder"]),
        "layer": -2,
        "width": 16,
    }
    # Trained on from its own weights, the projector goes on too.
    projector = load_mllm(tmp_path / "whole").model.get_submodule("projector")
    still: dict[str, Any] = {"learning_rate": 1e-12, "optimizer": "adamw"}
    again = train_separate(
        {**made, "lm": tmp_path / "whole"}, tmp_path, tmp_path / "again", **still
    )
    went_on = load_mllm(again).model.get_submodule("projector")
    for name, weight in projector.state_dict().items():
        assert_close(went_on.state_dict()[name], weight, atol=1e-4, rtol=0)


def separate_task(made: dict[str, Path], **changes: Any) -> MllmTask:
    torch.manual_seed(0)
    settings = MllmConfig(**SETTINGS | {"representation": "separate"} | changes)
    chats = [open_artifact(made["chats"], "chats")]
    images = [open_artifact(made["pictures"], "images")]
    encoder = load_reading_encoder(made["encoder"], layer=-2)
    return MllmTask(
        settings,
        ChatStreams(chats, settings.ratio, settings.seed),
        tokenizer=load_pixel_tokenizer(made["vqvae"], grid=4),
        lm=made["lm"],
        reading=EncoderReading(encoder, ChatPictures(chats, images, size_px=16)),
    )


def test_packed_chats_read_the_features_that_each_reads_alone(made: dict[str, Path]) -> None:
    task = separate_task(made, ratio={"i2t": 1}, read_scale_ratio=(1, 1, 1), length=400)
    together = task.batch(0, 8, 0, 1)
    assert isinstance(together, ReadChats)
    assert len(together.pixels) == 8 and len(set(together.scales)) > 1
    assert len(together.packed.ids) < 8  # several chats in a row
    loss, _ = task.loss(task.model, together, 0)
    # Each chat in a row of its own: its pixels, its features, its loss.
    losses, weights = [], []
    for part in range(8):
        alone = _alone(task, part)
        assert len(alone.pixels) == 1
        losses.append(float(task.loss(task.model, alone, 0)[0].detach()))
        weights.append(task.weight(alone))
    mean = sum(a * b for a, b in zip(losses, weights, strict=True)) / sum(weights)
    assert_close(float(loss.detach()), mean, rtol=1e-5, atol=0)


def _alone(task: MllmTask, slot: int) -> ReadChats:
    """The chat of a slot in a row of its own."""
    packed = packed_chats(
        task.streams, task.config, task.vocabulary, first=slot, size=1, too_long=None
    )
    assert task.reading is not None
    return task.reading.pictures.with_pictures(packed, task.streams, task.config)


def test_the_loss_depends_on_the_pictures_and_trains_the_projector_alone_of_the_two(
    made: dict[str, Path],
) -> None:
    task = separate_task(made, ratio={"i2t": 1})
    batch = task.batch(0, 4, 0, 1)
    loss, _ = task.loss(task.model, batch, 0)
    other, _ = task.loss(task.model, batch._replace(pixels=255 - batch.pixels), 0)
    assert float(loss.detach()) != float(other.detach())
    loss.backward()
    projector = task.model.lm.get_submodule("projector")
    assert all(float(w.grad.abs().sum()) > 0 for w in projector.parameters() if w.grad is not None)
    assert task.reading is not None
    assert all(weight.grad is None for weight in task.reading.encoder.model.parameters())
    # Without a picture to read, the projector still has a gradient: processes wait for it.
    drawing = separate_task(made, ratio={"t2i": 1})
    batch = drawing.batch(0, 4, 0, 1)
    assert len(batch.pixels) == 0
    drawing.loss(drawing.model, batch, 0)[0].backward()
    projector = drawing.model.lm.get_submodule("projector")
    assert all(w.grad is not None and not w.grad.any() for w in projector.parameters())


@pytest.mark.slow
def test_steps_are_the_same_in_micro_batches_and_workers(
    made: dict[str, Path], tmp_path: Path
) -> None:
    whole = train_separate(made, tmp_path, tmp_path / "whole", batch_size=8, steps=2)
    small = train_separate(
        made, tmp_path, tmp_path / "small", batch_size=8, steps=2, micro_batch_size=2, workers=1
    )
    one, other = (load_mllm(path).model.state_dict() for path in (whole, small))
    for name, weight in one.items():
        assert_close(other[name], weight, atol=1e-4, rtol=1e-3)


def test_a_model_with_separate_encoders_answers_what_it_was_asked_in_training(
    separate: Path, made: dict[str, Path]
) -> None:
    tar = Tar.load(separate)
    assert tar.read_scale is Scale.HALF and tar.representation == "separate"
    picture, question = noise(3), "What is it?"
    answers = tar.describe_many([picture, noise(4)], [question] * 2, max_tokens=4)
    assert answers[0] == tar.describe(picture, question, max_tokens=4)
    # By hand: the encoder's features, pooled, through the projector, in place of the embeddings.
    encoder = load_reading_encoder(made["encoder"], layer=-2)
    unit = to_unit([np.asarray(picture)])
    with torch.no_grad():
        state = encoder.model.features(unit * 2 - 1, layer=-2)
        rows = tar.mllm.model.get_submodule("projector")(pool(state, Scale.HALF)[0])
        vocabulary, table = tar.mllm.vocabulary, tar.mllm.model.get_input_embeddings().weight
        assert vocabulary.visual is not None
        ids = vocabulary.question(question, (Scale.HALF, [FEATURE] * 4))
        at = ids.index(vocabulary.visual.feature)
        embeddings = torch.cat([table[ids[:at]], rows, table[ids[at + 4 :]]])
        logits = tar.mllm.model(inputs_embeds=embeddings[None]).logits[0, -1]
    encode = vocabulary.text.encode
    p = logits.double().softmax(-1)
    yes, no = (float(p[sorted({encode(w)[0] for w in ws})].sum()) for ws in (YES, NO))
    assert_close(tar.yes_probability_of([picture], [question])[0], yes / (yes + no))


def test_a_model_with_separate_encoders_draws_edits_and_is_evaluated(
    separate: Path, tmp_path: Path
) -> None:
    tar = Tar.load(separate)
    assert tar.imagine("a red ring").size == (16, 16)
    guided = Sampling(prompt_guidance=2.0, temperature=0.0)
    edits = tar.imagine_many(
        ["like <image>", "a ring"], seeds=[0, 0], images=[[noise(1)], []], sampling=guided
    )
    assert pixels(edits[1:]) == pixels([tar.imagine("a ring", sampling=guided)])
    codes = tar.imagine_codes(["a ring"], seeds=[0])
    of_picture = tar.yes_probability_of(tar.draw(codes, seeds=[0]), ["a ring?"])
    assert tar.yes_probability(codes, ["a ring?"]) == of_picture
    shapes.run(out=tmp_path / "shapes", model=separate, suites=["pope", "caption"], limit=2)
    with pytest.raises(UserError, match="reads pictures by the features of an encoder"):
        export_hf.run(separate, out=tmp_path / "hf")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"encoder": None}, "reads pictures with a vision encoder, and there is no --encoder"),
        ({"images": None}, "and there is no --images"),
        ({"images": "other"}, "was made from pictures .* that are none of --images"),
        ({"read_layer": 9}, "read_layer = 9: .* has 2 layers"),
    ],
)
def test_what_reads_must_be_there_and_fit(
    given: dict[str, Any], message: str, made: dict[str, Path], tmp_path: Path
) -> None:
    other = parts.write_pictures(tmp_path / "other", [["train"]]).path
    paths = {**made, "other": other}
    layer = given.pop("read_layer", -2)
    named = {"encoder": "encoder", "images": "pictures", **given}
    file = config(tmp_path, representation="separate", read_layer=layer, ratio={"i2t": 1})
    with pytest.raises(UserError, match=message):
        mllm.run(
            file,
            chats=[made["chats"]],
            lm=made["lm"],
            vqvae=made["vqvae"],
            encoder=paths[named["encoder"]] if named["encoder"] else None,
            images=[paths[named["images"]]] if named["images"] else [],
            out=tmp_path / "out",
        )


def test_another_encoder_is_not_assembled(
    separate: Path, made: dict[str, Path], tmp_path: Path
) -> None:
    given: dict[str, Any] = {"mllm": separate / "mllm", "vqvae": made["vqvae"]}
    other = parts.save_encoder(tmp_path / "other", seed=1)
    with pytest.raises(UserError, match="was trained with encoder .*, .*other is"):
        assemble.run(**given, encoder=other, out=tmp_path / "tar")
    with pytest.raises(UserError, match="is separate: it needs --encoder"):
        assemble.run(**given, out=tmp_path / "tar")


# ---- a hybrid tokenizer


def train_hybrid(made: dict[str, Path], folder: Path, out: Path, **changes: Any) -> Path:
    small: dict[str, Any] = {"width": 16, "heads": 2, "layers": 1, "text_width": 16}
    alignment = AlignmentConfig(**small, text_layers=1, text_heads=2, text_vocab=270)
    settings: dict[str, Any] = {
        "arch": parts.VQVAE,
        "steps": 6,
        "batch_size": 3,
        "learning_rate": 1e-3,
        "warmup_unquantised": 0.2,
        "fade_in": 0.2,
        "restart_every": 2,
        "checkpoint_every": 2,
        "log_every": 1,
        "alignment": alignment,
    }
    file = folder / "hybrid.toml"
    file.write_text(write_toml(VqvaeConfig(**settings | changes)))
    return vqvae.run(file, images=[made["pictures"]], out=out)


def test_a_stopped_training_of_a_hybrid_tokenizer_ends_with_the_same_bytes(
    made: dict[str, Path], tmp_path: Path, resumes: Any
) -> None:
    resumes(VqvaeTask, lambda out: train_hybrid(made, tmp_path, out), stops=(3,))
    # It is an image VQ like any other, with nothing of the text tower.
    assert load_pixel_tokenizer(tmp_path / "whole", grid=4).is_aligned
    assert read_config(tmp_path / "whole")["aligned"]["weight"] == 1.0
    rows = [json.loads(row) for row in (tmp_path / "whole/metrics.jsonl").read_text().splitlines()]
    assert all({"contrastive", "retrieval", "reconstruction"} <= row.keys() for row in rows)


def test_the_gradient_of_the_captions_reaches_the_encoder_through_the_codes(
    made: dict[str, Path],
) -> None:
    torch.manual_seed(0)
    settings = VqvaeConfig(
        arch=parts.VQVAE, steps=4, batch_size=4, learning_rate=1e-3, alignment=AlignmentConfig()
    )
    stream = mixed_pictures([open_artifact(made["pictures"], "images")], None, seed=0)
    task = VqvaeTask(settings, stream)
    pair = task.batch(0, 4, 0, 1)
    out = task.model(pair, quantised=1.0)
    out.contrastive.backward()
    encoder = task.vqvae.encoder.conv_in.weight.grad
    assert encoder is not None and float(encoder.abs().sum()) > 0
    # The decoder has no part in it.
    assert task.vqvae.decoder.conv_in.weight.grad is None
    # By hand: what is compared are the rows of the codebook of the picture's codes.
    rows = F.embedding(task.vqvae.encode(pair.pixels * 0.5 + 0.5), task.vqvae.quantize.codebook())
    assert_close(out.image_vq.vectors, rows)
    with pytest.raises(ValueError, match="every other picture of a step is a negative"):
        VqvaeConfig(**settings.model_dump() | {"micro_batch_size": 2})


@pytest.mark.slow
def test_a_hybrid_tokenizer_is_adversarial_too_and_its_model_draws_and_answers(
    made: dict[str, Path], tmp_path: Path
) -> None:
    adversarial = {"discriminator_from": 3, "discriminator_channels": 32}
    hybrid = train_hybrid(
        made, tmp_path, tmp_path / "hybrid", **adversarial, discriminator_layers=1
    )
    tokens = EncodePlan(
        input_path=made["pictures"],
        out=tmp_path / "tokens",
        tokenizer=made["tokenizer"],
        vqvae=hybrid,
        overrides=["vq_size_px=16"],
    ).run()
    chats = ChatsPlan(out=tmp_path / "chats", tokens=tokens.path, overrides=["codes=vq"]).run()
    given: dict[str, Any] = {"chats": [chats.path, made["text"]], "lm": made["lm"]}
    with pytest.raises(UserError, match="was trained to match captions too, which is not .* vq"):
        mllm.run(config(tmp_path, representation="vq"), vqvae=hybrid, out=tmp_path / "vq", **given)
    file = config(tmp_path, representation="hybrid")
    trained = mllm.run(file, vqvae=hybrid, out=tmp_path / "mllm", **given)
    tar = Tar.load(assemble.run(mllm=trained, vqvae=hybrid, out=tmp_path / "tar"))
    assert tar.representation == "hybrid"
    assert tar.imagine("a red ring").size == (16, 16)
    tar.describe(noise(0), "What is it?", max_tokens=4)


# ---- what it costs


def test_a_plan_counts_what_each_representation_reads_and_writes() -> None:
    settings = MllmConfig(**SETTINGS | {"ratio": {"i2t": 1, "t2i": 1}, "length": 2048})

    def plan(representation: str, **changes: Any) -> Workload:
        given = {"representation": representation, "scale_ratio": (1, 0, 0)} | changes
        changed = MllmConfig(**settings.model_dump() | given)
        return language.mllm(
            changed.model_dump(mode="json"),
            Start(vqvae=parts.VQVAE, encoder=parts.ENCODER, size_px=32, text_tokens=10),
        )

    # 32 px at 4 px a code are 64 codes, and three marks: 77 tokens with the text.
    assert plan("vq").tokens == plan("hybrid").tokens == 77
    # A question has 16 features in place of the codes; pooled by two, 4.
    separate = plan("separate")
    assert separate.tokens == (77 + 29) / 2
    assert plan("separate", read_scale_ratio=(0, 1, 0)).tokens == (77 + 17) / 2
    # Half of the chats read a picture: one of the encoder's two layers and its patches.
    N, D = 16, 16
    block = 2 * (4 * D * D + 2 * D * 24) + 4 * D * N
    assert separate.frozen_flops == (N * block + 2 * 3 * 4**2 * D * N) / 2
    assert separate.frozen == sum(p.numel() for p in VisionEncoder(parts.ENCODER).parameters())
    projector = 2 * D + 2 * (D * parts.WIDTH + parts.WIDTH)
    assert count(separate.model) - count(plan("vq").model) == projector
    with pytest.raises(UserError, match="trained with representation = text-aligned, and this"):
        language.mllm(
            settings.model_copy(update={"representation": "vq"}).model_dump(mode="json"),
            Start(lm=Path("tar-1.5b"), size_px=256),
        )
