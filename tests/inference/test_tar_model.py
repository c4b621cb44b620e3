"""`Tar`: each step is its parts', a picture depends on its own words and seed, errors in words."""

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tarkit.checkpoints import assemble
from tarkit.checkpoints.tar_config import Sampling
from tarkit.errors import UserError
from tarkit.inference.ar_detokenizer import ArDetokenizer
from tarkit.inference.tar_model import NO, YES, Tar
from tarkit.models import mllm_decoding
from tarkit.models.ar_decoding import CodeSampling, sample_codes
from tarkit.vocab import Scale
from tests import parts


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("parts")
    given: dict[str, Any] = {**parts.save_parts(made)}
    return assemble.run(**given, out=made / "tar", overrides=["default_scale=2"])


@pytest.fixture(scope="module")
def tar(folder: Path) -> Tar:
    return Tar.load(folder)


def noise(seed: int, width: int = 20, height: int = 12) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def pixels(images: Sequence[Image.Image]) -> list[bytes]:
    return [image.tobytes() for image in images]


def test_what_is_loaded_is_what_was_assembled(tar: Tar, folder: Path) -> None:
    assert tar.default_scale is Scale.HALF and tar.grid == 4 and tar.size_px == 16
    assert tar.sampling == Sampling()
    assert tar.sha256 == parts.sha256(folder / "ta_tok")


# ---- pictures to codes


def test_pictures_are_resized_by_pillows_bicubic_and_lie_between_zero_and_one(tar: Tar) -> None:
    picture = noise(0)
    sized = np.asarray(picture.resize((16, 16), Image.Resampling.BICUBIC))
    expected = torch.from_numpy(sized.copy()).permute(2, 0, 1).float() / 255
    assert torch.equal(tar.pixels([picture])[0], expected)
    codes = tar.encode([picture], [Scale.FULL, Scale.THIRD])
    inside = tar.ta_tok.encode_scales(expected[None], [Scale.FULL, Scale.THIRD])
    assert codes.keys() == inside.keys()
    assert codes[Scale.FULL].tolist() != tar.encode([noise(1)], [Scale.FULL])[Scale.FULL].tolist()
    assert all(torch.equal(codes[scale], inside[scale]) for scale in codes)
    # Grey and transparent pictures are pictures too.
    assert tar.pixels([picture.convert("L"), picture.convert("RGBA")]).shape == (2, 3, 16, 16)


# ---- words to codes


@pytest.mark.parametrize(("scale", "count"), [(Scale.FULL, 16), (Scale.HALF, 4), (Scale.THIRD, 1)])
def test_a_prompt_gives_exactly_its_scales_number_of_codes(
    tar: Tar, scale: Scale, count: int
) -> None:
    hot = tar.sampling.model_copy(update={"temperature": 30.0, "top_p": 1.0, "top_k": 0})
    prompts = ["a red ring", "<I5>", "<|im_end|>", "", "<im_start><S0><I1>", "<image>"] * 4
    codes = tar.imagine_codes(prompts, seeds=range(24), scale=scale, sampling=hot)
    assert codes.shape == (24, count)
    assert 0 <= int(codes.min()) and int(codes.max()) < parts.K


def test_codes_depend_on_their_own_prompt_and_seed_alone(tar: Tar) -> None:
    prompts = ["a red ring", "a much longer prompt of two blue hearts", "a heart"]
    together = tar.imagine_codes(prompts, seeds=[5, 6, 7]).tolist()
    assert len(together[0]) == 4  # the default scale
    for row, (prompt, seed) in enumerate(zip(prompts, [5, 6, 7], strict=True)):
        assert tar.imagine_codes([prompt], seeds=[seed]).tolist() == [together[row]]
    hot = Sampling(temperature=20.0)
    one, two, other = (
        tar.imagine_codes(["a ring"], seeds=[seed], scale=Scale.FULL, sampling=hot).tolist()
        for seed in (1, 1, 2)
    )
    assert one == two != other


def test_codes_are_drawn_after_the_prompt_that_training_showed(tar: Tar) -> None:
    greedy = Sampling(temperature=0.0)
    codes = tar.imagine_codes(["a red ring"], seeds=[0], scale=Scale.HALF, sampling=greedy)
    vocabulary = tar.mllm.vocabulary
    assert vocabulary.visual is not None
    turns = ("user", "a red ring"), ("assistant", "<image>")
    messages = [{"role": role, "content": content} for role, content in turns]
    ids, _ = vocabulary.chat(messages, [(Scale.HALF, codes[0].tolist())])
    with torch.no_grad():
        logits = tar.mllm.model(input_ids=torch.tensor([ids])).logits[0]
    first = ids.index(vocabulary.visual.scale(Scale.HALF))
    among_codes = logits[first : first + 4, vocabulary.visual.first_code :]
    assert among_codes.argmax(-1).tolist() == codes[0].tolist()


def test_a_picture_at_its_mark_is_read_at_the_scale_that_is_drawn(
    tar: Tar, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[int]] = []
    real = mllm_decoding.generate_codes

    def spy(model: object, prompts: list[list[int]], **options: object) -> torch.Tensor:
        seen.extend(prompts)
        return real(model, prompts, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("tarkit.inference.tar_model.generate_codes", spy)
    picture = noise(1)
    tar.imagine_codes(
        ["like <image>", "a <image>"], seeds=[0, 0], scale=Scale.HALF, images=[[picture], []]
    )
    codes = tar.encode([picture], [Scale.HALF])[Scale.HALF][0].tolist()
    prompt = tar.mllm.vocabulary.prompt
    assert seen[0] == prompt("like <image>", [(Scale.HALF, codes)], draw=Scale.HALF)
    # Without a picture a typed mark is a word.
    assert seen[1] == prompt("a <image>", draw=Scale.HALF)
    assert tar.mllm.vocabulary.text.decode(seen[1]).count("a <image>") == 1


def test_guidance_is_against_an_empty_prompt(tar: Tar, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []

    def spy(model: object, prompts: list[list[int]], **options: Any) -> torch.Tensor:
        seen.append(options)
        return mllm_decoding.generate_codes(model, prompts, **options)

    monkeypatch.setattr("tarkit.inference.tar_model.generate_codes", spy)
    tar.imagine_codes(
        ["like <image>", "a ring"],
        seeds=[0, 1],
        scale=Scale.HALF,
        images=[[noise(1)], []],
        sampling=Sampling(prompt_guidance=3.0),
    )
    empty = tar.mllm.vocabulary.prompt("", draw=Scale.HALF)
    assert (seen[0]["guidance"], seen[0]["unguided"]) == (3.0, [empty, empty])


def test_marks_and_pictures_must_be_as_many(tar: Tar) -> None:
    with pytest.raises(UserError, match="has 2 <image> marks for 1 pictures: '<image>") as error:
        tar.imagine("<image><image>", images=[noise(0)])
    assert "--image FILE" in error.value.hint


# ---- codes to pictures


@pytest.mark.parametrize("scale", list(Scale))
def test_codes_of_every_scale_become_a_picture(tar: Tar, scale: Scale) -> None:
    codes = tar.encode([noise(0), noise(1)], [scale])[scale]
    greedy = Sampling(dtok_temperature=0.0, guidance=2.0)
    one, two = tar.draw(codes, seeds=[0, 1], sampling=greedy)
    assert isinstance(tar.dtok, ArDetokenizer)
    drawn = sample_codes(
        tar.dtok.ar_dtok, tar.ta_tok.condition(codes), CodeSampling(guidance=2.0, temperature=0.0)
    )
    decoded = tar.dtok.vqvae.decode(drawn)
    for image, expected in zip((one, two), decoded, strict=True):
        # Bytes are truncated: 254.9 is 254.
        assert np.array_equal(
            np.asarray(image), (expected.permute(1, 2, 0) * 255).floor().numpy().astype(np.uint8)
        )
    assert pixels([one, two]) == pixels(tar.draw(codes, seeds=[8, 9], sampling=greedy))


def test_a_drawn_picture_depends_on_its_own_codes_and_seed_alone(tar: Tar) -> None:
    codes = tar.encode([noise(0), noise(1), noise(2)], [Scale.HALF])[Scale.HALF]
    together = pixels(tar.draw(codes, seeds=[0, 1, 2]))
    assert pixels(tar.draw(codes[2:], seeds=[2])) == together[2:]
    assert pixels(tar.draw(codes[:1], seeds=[5])) != together[:1]


def test_codes_of_no_scale_or_beyond_the_book_are_refused(tar: Tar) -> None:
    with pytest.raises(ValueError, match="3 codes are not a square grid"):
        tar.draw(torch.zeros(1, 3, dtype=torch.long), seeds=[0])
    with pytest.raises(ValueError, match="codes span 0 to 16, K is 16"):
        tar.draw(torch.tensor([[0, 16, 1, 2]]), seeds=[0])


def test_imagine_is_imagine_codes_and_draw(tar: Tar) -> None:
    prompts, seeds = ["a red ring", "a heart"], [3, 4]
    expected = tar.draw(tar.imagine_codes(prompts, seeds=seeds), seeds=seeds)
    assert pixels(tar.imagine_many(prompts, seeds=seeds)) == pixels(expected)
    assert pixels([tar.imagine("a heart", seed=4)]) == pixels(expected[1:])
    assert expected[0].size == (16, 16)


# ---- pictures to words


def test_an_answer_is_the_same_alone_and_among_others(tar: Tar) -> None:
    images, questions = [noise(0), noise(1)], ["What is it?", "Is there a ring in the image?"]
    answers = tar.describe_many(images, questions, max_tokens=6)
    assert answers == [
        tar.describe(image, question, max_tokens=6)
        for image, question in zip(images, questions, strict=True)
    ]


def test_pictures_are_read_at_their_own_scale_unless_one_is_named(
    tar: Tar, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = replace(tar, read_scale=Scale.FULL)
    asked: list[tuple[Scale, int]] = []
    question = type(tar.mllm.vocabulary).question

    def noted(vocabulary: Any, text: str, picture: tuple[Scale, Sequence[int]]) -> list[int]:
        asked.append((picture[0], len(picture[1])))
        return question(vocabulary, text, picture)

    monkeypatch.setattr(type(tar.mllm.vocabulary), "question", noted)
    reads.describe_many([noise(0)], ["What is it?"], max_tokens=1)
    reads.describe_many([noise(0)], ["What is it?"], scale=Scale.HALF, max_tokens=1)
    assert asked == [(Scale.FULL, 16), (Scale.HALF, 4)]


@pytest.mark.parametrize("name", ["<|im_end|>", "<|endoftext|>"])
def test_an_answer_ends_at_either_end(tar: Tar, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    text = tar.mllm.vocabulary.text
    said = [*text.encode("a ring"), text.special[name], *text.encode(" and more")]
    monkeypatch.setattr(mllm_decoding, "draw", lambda *_, **__: torch.tensor([said.pop(0)]))
    assert tar.describe(noise(0)) == "a ring"


def test_the_probability_of_yes_is_over_the_first_tokens_of_its_forms(tar: Tar) -> None:
    image, question = noise(0), "Is there a ring?"
    vocabulary = tar.mllm.vocabulary
    codes = tar.encode([image, noise(1)], [Scale.HALF])[Scale.HALF]
    ids = vocabulary.question(question, (Scale.HALF, codes[0].tolist()))
    with torch.no_grad():
        p = tar.mllm.model(input_ids=torch.tensor([ids])).logits[0, -1].double().softmax(-1)
    # In this vocabulary of near bytes a form begins with its first letter: y and Y, n and N.
    # YES begins as Yes does and is counted once.
    first = {form: vocabulary.text.encode(form)[0] for form in (*YES, *NO)}
    assert first["Yes"] == first["YES"] and first["No"] == first["NO"]
    yes = float(p[first["yes"]] + p[first["Yes"]])
    no = float(p[first["no"]] + p[first["No"]])
    found, of_another = tar.yes_probability(codes, [question] * 2)
    assert found == pytest.approx(yes / (yes + no), rel=1e-4)
    assert of_another != pytest.approx(found, rel=1e-3)


# ---- what is refused


def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def refused(path: Path, match: str) -> str:
    with pytest.raises(UserError, match=match) as error:
        Tar.load(path)
    return error.value.hint


@pytest.mark.parametrize("part", ["mllm", "ar_dtok"])
def test_parts_of_another_tokenizer_are_refused(folder: Path, tmp_path: Path, part: str) -> None:
    path = copy(folder, tmp_path)
    config = json.loads((path / part / "config.json").read_text())
    mine = config["tokenizer_sha256"]
    config["tokenizer_sha256"] = "0" * 64
    (path / part / "config.json").write_text(json.dumps(config))
    match = f"copy/{part} was trained on codes of tokenizer 0{{12}}, .* holds {mine[:12]}"
    assert refused(path, match).startswith("tarkit assemble --mllm")


def test_a_config_that_is_not_ours_and_a_missing_part_are_refused(
    folder: Path, tmp_path: Path
) -> None:
    path = copy(folder, tmp_path)
    shutil.rmtree(path / "vqvae")
    assert refused(path, r"copy/vqvae is no model directory: there is no such folder")
    (path / "config.json").write_text(
        json.dumps({"kind": "tar", "default_scale": 7, "sampling": {"heat": 1}})
    )
    hint = refused(path, r"copy/config\.json: default_scale: .*sampling\.heat: Extra")
    assert hint.startswith("tarkit assemble")
    assert refused(path / "mllm", "mllm is mllm, where a model of kind tar is needed")
    assert "tarkit models" in refused(tmp_path / "gone", "neither a folder nor one of mini")


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_is_kept_in_memory_where_codes_do_not_come_from(
    folder: Path, tar: Tar, precision: str
) -> None:
    halved = Tar.load(folder, precision=precision)
    assert isinstance(halved.dtok, ArDetokenizer)
    kept = getattr(torch, precision)
    for module, dtype in (
        (halved.mllm.model, kept),
        (halved.dtok.ar_dtok, kept),
        (halved.ta_tok.model, torch.float32),
        (halved.dtok.vqvae, torch.float32),
    ):
        assert {p.dtype for p in module.parameters()} == {dtype}
    assert halved.sha256 == tar.sha256 and halved.identities() == tar.identities()
    picture = halved.imagine("a red ring", seed=4)
    assert picture.size == tar.imagine("a red ring", seed=4).size
    assert pixels([halved.imagine("a red ring", seed=4)]) == pixels([picture])
    assert isinstance(halved.describe(picture, max_tokens=3), str)
    codes = halved.encode([picture], [Scale.FULL])[Scale.FULL]
    assert 0 <= halved.yes_probability(codes, ["is it red?"])[0] <= 1
    with pytest.raises(UserError, match="precision 'int4' is unknown"):
        Tar.load(folder, precision="int4")


def test_reading_needs_no_detokenizer(folder: Path, tar: Tar, tmp_path: Path) -> None:
    path = copy(folder, tmp_path)
    shutil.rmtree(path / "ar_dtok")
    shutil.rmtree(path / "vqvae")
    reader = Tar.load(path, dtok=None)
    picture = noise(3)
    assert reader.describe(picture, max_tokens=4) == tar.describe(picture, max_tokens=4)
    assert len(reader.identities()) == 2
    with pytest.raises(UserError, match="without a de-tokenizer"):
        reader.imagine("a ring")
    refused(path, "ar_dtok is no model directory")


def test_a_model_is_known_by_its_parts(folder: Path, tmp_path: Path) -> None:
    tar = Tar.load(folder)
    known = [
        json.loads((folder / p / "config.json").read_text())["sha256"] for p in parts.ASSEMBLED
    ]
    assert tar.identities() == known
    digests = {
        f"{part}/model.safetensors": hashlib.sha256(
            (folder / part / "model.safetensors").read_bytes()
        ).hexdigest()
        for part in parts.ASSEMBLED
    }
    assert tar.fingerprints() == digests
