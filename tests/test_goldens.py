"""Every number against the published program's own, on tiny models with random weights.

`goldens/` holds three files in the published formats and what the published program computed with
them on CPU in float32 (torch 2.1.2, torchvision 0.16.2, transformers 4.50.0). Codes and greedy
sequences must be equal, floats within 5e-5, bytes within one level at a boundary of truncation.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from torch.testing import assert_close

import tarkit
from tarkit.checkpoints.load import LoadedTaTok
from tarkit.models.ar_decoding import CodeSampling, sample_codes
from tarkit.models.ar_dtok import ArDtok
from tarkit.models.codebook import TextAlignedCodebook
from tarkit.models.sampling import draw
from tarkit.models.ta_tok import pool
from tarkit.models.vqvae import Vqvae
from tarkit.vocab import Scale, TextTokenizer, VisualVocabulary, Vocabulary

FOLDER = Path(__file__).parent / "goldens"
FLOATS: dict[str, Any] = {"atol": 5e-5, "rtol": 0.0}


def vectors(name: str) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(FOLDER / f"{name}.safetensors")


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return vectors("golden")


@pytest.fixture(scope="module")
def inputs() -> dict[str, Tensor]:
    return vectors("inputs")


@pytest.fixture(scope="module")
def ta_tok() -> LoadedTaTok:
    return tarkit.load_ta_tok(FOLDER / "ta_tok_tiny.pth")


@pytest.fixture(scope="module")
def ar_dtok() -> ArDtok:
    return tarkit.load_ar_dtok(FOLDER / "ar_dtok_tiny.pth")


@pytest.fixture(scope="module")
def vqvae() -> Vqvae:
    return tarkit.load_vqvae(FOLDER / "vq_tiny.pt")


# - TA-Tok -


@torch.no_grad()
def test_features_and_the_projected_codebook(
    ta_tok: LoadedTaTok, golden: dict[str, Tensor], inputs: dict[str, Tensor]
) -> None:
    pixels = inputs["images_uint8"].float() / 255 * 2 - 1
    assert_close(ta_tok.model.features(pixels), golden["ta.hidden_select"], **FLOATS)
    assert_close(ta_tok.model.codebook.projected(), golden["ta.codebook"], **FLOATS)


@pytest.mark.parametrize("scale", [1, 2, 3])
@torch.no_grad()
def test_codes_and_what_they_decode_to(
    ta_tok: LoadedTaTok, golden: dict[str, Tensor], inputs: dict[str, Tensor], scale: int
) -> None:
    name = f"ta.s{scale}"
    images = inputs["images_uint8"].float() / 255
    codes = ta_tok.encode_scales(images, [Scale(scale)])[Scale(scale)]
    assert torch.equal(codes, golden[f"{name}.indices"])
    assert_close(ta_tok.condition(codes), golden[f"{name}.decode_from_bottleneck"], **FLOATS)
    rows = ta_tok.model.codebook.lookup(codes)
    assert_close(rows, golden[f"{name}.regularized_z"], **FLOATS)
    # The pass that trains: the same codes, and the features that its loss compares.
    features = ta_tok.model.features(images * 2 - 1)
    pooled = ta_tok.model.encode_task_layer(pool(features, Scale(scale)))
    assert_close(pooled, golden[f"{name}.vq_feats"], **FLOATS)
    out = ta_tok.model(features, Scale(scale))
    assert torch.equal(out.codes, codes)
    if scale > 1:
        assert_close(out.features, golden[f"{name}.rec"], **FLOATS)
        drawn = golden[f"{name}.rand_indices"]
        expected = golden[f"{name}.rand_decode_from_bottleneck"]
        assert_close(ta_tok.condition(drawn), expected, **FLOATS)


@torch.no_grad()
def test_probabilities_that_the_published_scripts_sample_codes_from(
    ta_tok: LoadedTaTok, golden: dict[str, Tensor], inputs: dict[str, Tensor]
) -> None:
    book = ta_tok.model.codebook
    features = ta_tok.model.features(inputs["images_uint8"].float() / 255 * 2 - 1)
    scores = book.scores(ta_tok.model.project(features, Scale.THIRD), book.projected())
    p = torch.softmax(scores / book.temperature, dim=-1)
    assert_close(p, golden["ta.s3.stochastic_probs"], **FLOATS)


@pytest.mark.parametrize(
    ("resize", "name"),
    [("bilinear", "aa"), ("bilinear-noaa", "noaa"), ("pil-bicubic", "pil_bicubic")],
)
def test_the_three_published_resizes(
    ta_tok: LoadedTaTok,
    golden: dict[str, Tensor],
    inputs: dict[str, Tensor],
    resize: Any,
    name: str,
) -> None:
    images = inputs["big_uint8"].float() / 255
    unit = ta_tok.sized(images, resize)
    sized = unit * 2 - 1
    # Pillow's bicubic differs by a level (of 255) between its versions.
    level: dict[str, Any] = {"atol": 2.01 / 255, "rtol": 0.0} if name == "pil_bicubic" else FLOATS
    assert_close(sized[:, :, 40:72, 40:72], golden[f"resize.{name}.pixels_crop"], **level)
    assert_close(sized[:, :, :8, :8], golden[f"resize.{name}.pixels_corner"], **level)
    codes = ta_tok.encode_scales(unit, [Scale.FULL])[Scale.FULL]
    agree = (codes == golden[f"resize.{name}.indices"]).float().mean()
    assert agree >= (0.97 if name == "pil_bicubic" else 1.0)


@pytest.mark.parametrize(
    ("name", "l2_normalized"), [("l2_argmax", True), ("l2_argmin", True), ("euclid_argmin", False)]
)
@torch.no_grad()
def test_quantiser_cases_with_their_ties(name: str, l2_normalized: bool) -> None:
    case = vectors("quantizer_cases")
    num_codes, width = case["embedding"].shape
    book = TextAlignedCodebook(
        num_codes=num_codes, embedding_width=width, width=width, l2_normalized=l2_normalized
    )
    book.embedding.weight.copy_(case["embedding"])
    book.embedding_proj.weight.copy_(case["proj_weight"])
    book.embedding_proj.bias.copy_(case["proj_bias"])
    book.eval()
    assert_close(book.projected(), case[f"{name}.emb"], **FLOATS)
    codes = book.nearest(case["z"])
    assert torch.equal(codes, case[f"{name}.indices"])
    assert_close(book.lookup(codes), case[f"{name}.decode"], **FLOATS)
    quantised = book(case["z"])
    assert torch.equal(quantised.codes, codes)
    assert_close(quantised.z_q, case[f"{name}.regularized_z"], **FLOATS)


# - de-tokenizers -


@pytest.mark.parametrize("scale", [1, 2, 3])
@torch.no_grad()
def test_logits_and_greedy_drawings(ar_dtok: ArDtok, golden: dict[str, Tensor], scale: int) -> None:
    name = f"ar.s{scale}"
    condition, codes = golden[f"ta.s{scale}.decode_from_bottleneck"], golden["ar.tokens"]
    assert_close(ar_dtok.logits(condition, codes), golden[f"{name}.logits"], **FLOATS)
    assert_close(ar_dtok(condition, codes), golden[f"{name}.loss"][0], **FLOATS)
    null = ar_dtok.logits(torch.zeros_like(condition), codes)
    assert_close(null, golden[f"{name}.null_logits"], **FLOATS)
    plain = sample_codes(ar_dtok, condition, CodeSampling(guidance=1.0, top_k=1))
    assert torch.equal(plain, golden[f"{name}.greedy_cfg1"])
    guided = sample_codes(ar_dtok, condition, CodeSampling(guidance=4.0, top_k=1))
    assert torch.equal(guided, golden[f"{name}.greedy_cfg4"])
    some = sample_codes(ar_dtok, condition, CodeSampling(guidance=4.0, top_k=1, guided_steps=3))
    assert torch.equal(some, golden[f"{name}.greedy_cfg4_interval3"])


@pytest.mark.parametrize(
    ("name", "temperature", "top_k", "top_p"),
    [
        ("t1_k5_p1", 1.0, 5, 1.0),
        ("t07_k0_p08", 0.7, 0, 0.8),
        ("t1_k10_p095", 1.0, 10, 0.95),
        ("t1_k0_p1", 1.0, 0, 1.0),
        ("t05_k1200_p05", 0.5, 1200, 0.5),
    ],
)
def test_what_is_drawn_from(
    golden: dict[str, Tensor],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    temperature: float,
    top_k: int,
    top_p: float,
) -> None:
    seen: list[Tensor] = []
    real = torch.multinomial

    def multinomial(p: Tensor, count: int, **options: Any) -> Tensor:
        seen.append(p)
        return real(p, count, **options)

    monkeypatch.setattr(torch, "multinomial", multinomial)
    draw(golden["filter.logits"], temperature=temperature, top_k=top_k, top_p=top_p)
    assert_close(seen[0], golden[f"filter.{name}.probs"], **FLOATS)


@torch.no_grad()
def test_the_image_vq(vqvae: Vqvae, golden: dict[str, Tensor]) -> None:
    codes = golden["vq.codes"]
    rows = F.embedding(codes, vqvae.quantize.codebook())
    side = round(codes.shape[1] ** 0.5)
    grid = rows.transpose(1, 2).unflatten(2, (side, side))
    assert_close(grid, golden["vq.quant"], **FLOATS)
    assert_close(vqvae.decode_latents(rows, (side, side)), golden["vq.decoded_m1p1"], **FLOATS)
    close_bytes(vqvae.decode(codes), golden["vq.uint8_nhwc"])
    images = golden["vq.enc_image_uint8"].float() / 255
    before = vqvae.quant_conv(vqvae.encoder(images * 2 - 1))
    assert_close(before, golden["vq.enc_prequant"], **FLOATS)
    assert torch.equal(vqvae.encode(images), golden["vq.enc_indices"])


@pytest.mark.parametrize("scale", [1, 3])
@pytest.mark.parametrize("guidance", [1, 4])
def test_codes_to_bytes(
    ta_tok: LoadedTaTok,
    ar_dtok: ArDtok,
    vqvae: Vqvae,
    golden: dict[str, Tensor],
    scale: int,
    guidance: int,
) -> None:
    condition = ta_tok.condition(golden[f"ta.s{scale}.indices"])
    drawn = sample_codes(ar_dtok, condition, CodeSampling(guidance=guidance, top_k=1))
    close_bytes(vqvae.decode(drawn), golden[f"pipe.s{scale}.cfg{guidance}.uint8_nhwc"])


def close_bytes(pixels: Tensor, expected: Tensor) -> None:
    """(B, 3, H, W) in [0, 1] are these bytes, but for a level where truncation is at a boundary.

    Floats that differ by 1e-6 fall on two sides of one in about 255e-6 of the values.
    """
    found = (pixels * 255).to(torch.uint8).permute(0, 2, 3, 1).int()
    away = (found - expected.int()).abs()
    assert away.max() <= 1
    assert (away > 0).sum() <= 5e-4 * away.numel()


# - the language model's words -


@pytest.fixture(scope="module")
def words() -> dict[str, Any]:
    read: dict[str, Any] = json.loads((FOLDER / "mllm_golden.json").read_text())
    return read


@pytest.fixture(scope="module")
def vocabulary(words: dict[str, Any]) -> Vocabulary:
    """256 bytes in GPT-2's order and Qwen's three tags, then tarkit's visual tokens."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = [chr(byte) for byte in printable] + [chr(256 + n) for n in range(len(others))]
    bytes_ = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(letters)}, merges=[]))
    bytes_.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_.decoder = decoders.ByteLevel()
    tags = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    bytes_.add_special_tokens([AddedToken(tag, special=True) for tag in tags])
    text = TextTokenizer(bytes_.to_str())
    return Vocabulary(text=text, visual=VisualVocabulary(first_id=text.size, num_codes=128))


def test_visual_tokens_have_the_published_ids(
    vocabulary: Vocabulary, words: dict[str, Any]
) -> None:
    visual = vocabulary.visual
    assert visual is not None and visual.first_id == words["base_vocab_len"]
    assert visual.size == words["len_tokenizer_after"]
    named = dict(zip(visual.tokens(), range(visual.first_id, visual.size), strict=True))
    named |= vocabulary.text.special
    assert {name: named[name] for name in words["ids"]} == words["ids"]
    config = words["config"]
    assert visual.image_start == config["image_start_tag_id"]
    assert visual.image_end == config["image_end_tag_id"]
    assert visual.scale(Scale.FULL) == config["scale_start_token_id"]
    assert visual.first_code == config["image_start_token_id"]


def test_prompts_are_the_published_ones_to_the_byte(
    vocabulary: Vocabulary, words: dict[str, Any]
) -> None:
    visual = vocabulary.visual
    assert visual is not None
    names = {i: n for n, i in vocabulary.text.special.items()}
    names |= dict(zip(range(visual.first_id, visual.size), visual.tokens(), strict=True))

    def spelled(ids: list[int]) -> str:
        return "".join(names.get(i) or vocabulary.text.decode([i]) for i in ids)

    draws, asks = words["inference_prompts"].values()
    assert spelled(vocabulary.prompt("A photo of a macaw", draw=Scale.FULL)) == draws
    question = "Describe the image shortly."
    assert spelled(vocabulary.question(question, (Scale.FULL, [3, 1, 2]))) == asks


@pytest.mark.parametrize("scale", [2, 3])
@pytest.mark.parametrize("name", ["i2t", "t2i", "i2i", "ti2i", "text", "multiturn"])
def test_chats_have_the_published_ids(
    vocabulary: Vocabulary,
    words: dict[str, Any],
    ta_tok: LoadedTaTok,
    inputs: dict[str, Tensor],
    name: str,
    scale: int,
) -> None:
    case = words["cases"][name]
    expected = case["expanded"].get(str(scale), case)
    images = inputs["images_uint8"].float() / 255
    codes = ta_tok.encode_scales(images, [Scale(scale)])[Scale(scale)]
    roles = {"human": "user", "gpt": "assistant"}
    messages = [{"role": roles[t["from"]], "content": t["value"]} for t in case["conversations"]]
    pictures = [(Scale(scale), codes[i].tolist()) for i in expected.get("image_index", [])]
    ids, labels = vocabulary.chat(messages, pictures)
    assert ids == expected["input_ids"]
    same, published = vocabulary.chat(messages, pictures, supervise="published")
    # The first token follows nothing: its label counts in neither program.
    assert same == ids and published[1:] == expected["labels"][1:]
    assert published[0] == vocabulary.IGNORED
    # Tarkit's labels are the published ones less what the published program supervises by accident:
    # tags and newlines everywhere, and the header of an answer, all of which stand in the prompt.
    accidents = {vocabulary.chat_start, vocabulary.chat_end, *vocabulary.text.encode("\nassistant")}
    for ours, theirs, i in zip(labels, expected["labels"], ids, strict=True):
        assert ours == theirs or (ours == vocabulary.IGNORED and i in accidents)
