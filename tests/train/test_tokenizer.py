"""Training TA-Tok: exact resume, the start from data by its moments, what is refused."""

import json
import re
import shutil
import tomllib
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import transformers
from torch import Tensor
from torch.testing import assert_close
from typer.testing import CliRunner

from tarkit.artifacts.artifact import open_artifact
from tarkit.checkpoints.directory import read_config
from tarkit.checkpoints.embeddings import read_embeddings
from tarkit.checkpoints.load import load_encoder, load_ta_tok
from tarkit.cli.app import app
from tarkit.config import load_config, write_toml
from tarkit.errors import UserError
from tarkit.models.codebook import representative_rows
from tarkit.models.encoder import EncoderArch
from tarkit.models.ta_tok import pool
from tarkit.train import tokenizer
from tarkit.train.streams import picture_stream
from tarkit.train.tokenizer import (
    TaTokSizes,
    TokenizerBatch,
    TokenizerConfig,
    TokenizerModel,
    TokenizerTask,
)
from tarkit.vocab import Scale
from tests import parts

SIZES = TaTokSizes(
    num_codes=10, decoder_layers=1, decoder_heads=2, decoder_mlp_width=24, decoder_side=4
)
SETTINGS: dict[str, Any] = {
    "sizes": SIZES,
    "steps": 8,
    "batch_size": 4,
    "learning_rate": 1e-3,
    "checkpoint_every": 2,
    "log_every": 1,
}


def config(tmp_path: Path, **changes: Any) -> Path:
    file = tmp_path / "tokenizer.toml"
    file.write_text(write_toml(TokenizerConfig(**SETTINGS | changes)))
    return file


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {
            **{"freeze_encoder": True, "whiten": 1.0, "whiten_floor": 1e-3, "centre": 1.5},
            **{"start": "data", "start_rank": 4},
        },
        {"images_weights": (2, 1)},
    ],
    ids=["as published", "as in miniature", "two sources"],
)
def test_a_stopped_training_ends_with_the_same_bytes(
    pictures: Path, models: dict[str, Path], tmp_path: Path, resumes: Any, changes: dict[str, Any]
) -> None:
    file = config(tmp_path, **changes)
    images = [pictures] * len(changes.get("images_weights", (1,)))
    resumes(
        TokenizerTask,
        lambda out: tokenizer.run(
            file, images=images, encoder=models["encoder"], lm=models["lm"], out=out
        ),
        stops=(3, 6),
    )
    before = load_encoder(models["encoder"]).state_dict()
    after = load_ta_tok(tmp_path / "whole").model.encoder.state_dict()
    name = "encoder.layers.0.mlp.fc1.weight"
    assert torch.equal(before[name], after[name]) is changes.get("freeze_encoder", False)


def test_a_resumed_training_reads_no_pictures_to_start_from(
    pictures: Path, models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts: list[int] = []
    start_from = TokenizerModel.start_from

    def counted(self: TokenizerModel, pixels: Tensor) -> None:
        starts.append(len(pixels))
        start_from(self, pixels)

    def stopped(self: TokenizerTask, step: int, model: Any) -> dict[str, float]:
        if step == 3:
            raise KeyboardInterrupt
        return {}

    monkeypatch.setattr(TokenizerModel, "start_from", counted)
    parents: dict[str, Any] = {"encoder": models["encoder"], "lm": models["lm"]}
    file = config(tmp_path, whiten=1.0)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(TokenizerTask, "after_step", stopped)
        tokenizer.run(file, images=[pictures], out=tmp_path / "out", **parents)
    assert starts == [12]
    tokenizer.run(file, images=[pictures], out=tmp_path / "out", **parents)
    assert starts == [12]


def test_a_model_that_is_kept_without_copies_leaves_the_training_all_codes(
    pictures: Path, models: dict[str, Path], tmp_path: Path
) -> None:
    outs = {}
    for name, keep_every in (("plain", None), ("kept", 4)):
        (tmp_path / name).mkdir()
        file = config(tmp_path / name, drop_copies=0.5, keep_every=keep_every)
        outs[name] = tokenizer.run(
            file, images=[pictures], encoder=models["encoder"], lm=models["lm"], out=tmp_path / name
        )
    kept = read_config(outs["kept"] / "steps/0000004")
    assert kept["arch"]["num_codes"] < SIZES.num_codes
    weights = [(out / "model.safetensors").read_bytes() for out in outs.values()]
    assert weights[0] == weights[1]


def task(pictures: Path, models: dict[str, Path], **changes: Any) -> TokenizerTask:
    torch.manual_seed(0)
    made = TokenizerTask(
        TokenizerConfig(**SETTINGS | changes),
        picture_stream(open_artifact(pictures), seed=0),
        load_encoder(models["encoder"]),
        read_embeddings(models["lm"]),
    )
    made.start_from_data(torch.device("cpu"))
    return made


def test_codes_come_from_the_rows_that_the_words_used(
    pictures: Path, models: dict[str, Path]
) -> None:
    made = task(pictures, models)
    table = read_embeddings(models["lm"]).table
    text = parts.text_tokenizer()
    words = [*parts.CAPTIONS, "pack my box, 0123456789"]
    used = sorted({i for said in words for i in text.encode(said)})
    assert len(used) < len(table)
    chosen = [used[i] for i in representative_rows(table[used], 10).tolist()]
    assert made.rows is not None
    assert made.rows.tolist() == chosen
    book = made.model.ta_tok.codebook
    assert torch.equal(book.embedding.weight, table[made.rows])
    assert not book.embedding.weight.requires_grad


@pytest.mark.parametrize("free", [False, True])
def test_rows_of_the_language_model_are_frozen_unless_the_codebook_is_free(
    pictures: Path, models: dict[str, Path], tmp_path: Path, free: bool
) -> None:
    out = tmp_path / "out"
    tokenizer.run(
        config(tmp_path, free_codebook=free),
        images=[pictures],
        encoder=models["encoder"],
        lm=models["lm"],
        out=out,
    )
    rows = read_embeddings(models["lm"]).table[read_config(out, "ta_tok")["codebook_rows"]]
    trained = load_ta_tok(out).model.codebook.embedding.weight
    assert torch.equal(trained, rows) is not free


@pytest.mark.parametrize("width", [6, None])
def test_a_random_codebook_is_trained_and_not_projected(
    pictures: Path, models: dict[str, Path], tmp_path: Path, resumes: Any, width: int | None
) -> None:
    sizes = SIZES.model_copy(update={"code_width": width})
    file = config(tmp_path, codebook_start="random", sizes=sizes)
    made = task(pictures, models, codebook_start="random", sizes=sizes)
    book = made.model.ta_tok.codebook
    unit = book.embedding.weight.detach().clone()
    assert_close(unit.norm(dim=1), torch.ones(10))
    assert_close(book.projected(), unit)
    assert made.rows is None

    def run(out: Path) -> Path:
        parents: dict[str, Any] = {"encoder": models["encoder"], "lm": models["lm"]}
        return tokenizer.run(file, images=[pictures], out=out, **parents)

    resumes(TokenizerTask, run, stops=(3,))
    out = tmp_path / "whole"
    assert "codebook_rows" not in read_config(out, "ta_tok")
    trained = load_ta_tok(out).model.codebook
    table = read_embeddings(models["lm"]).table
    assert trained.embedding.weight.shape == (10, width or table.shape[1])
    assert not torch.equal(trained.embedding.weight, unit)
    assert torch.equal(trained.embedding_proj.weight, torch.eye(width or table.shape[1]))
    assert not trained.embedding_proj.bias.any()


@pytest.mark.parametrize("changes", [{"start": "data"}, {"free_codebook": True}])
def test_a_random_codebook_has_no_other_start(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="without a projection"):
        TokenizerConfig(**SETTINGS, codebook_start="random", **changes)


def test_whitened_teachers_have_unit_covariance(pictures: Path, models: dict[str, Path]) -> None:
    made = task(pictures, models, whiten=1.0)
    pixels = made._pixels([made.stream[i] for i in range(12)])
    taught = made.model.teacher_features(pixels)
    raw = taught.flatten(0, 1)
    # 12 pictures of 16 positions: 192 vectors of 16 directions, none of them flat.
    white = made.model.target(taught, Scale.FULL).flatten(0, 1)
    assert_close(white.mean(0), torch.zeros(16), atol=1e-4, rtol=0)
    assert_close(torch.cov(white.T), torch.eye(16), atol=1e-3, rtol=0)
    assert float((torch.cov(raw.T) - torch.eye(16)).abs().max()) > 0.1
    # Left alone, the target is the teacher's layer before the last, pooled.
    assert torch.equal(taught, made.model.teacher.features(pixels, layer=-2))
    plain = task(pictures, models).model.target(taught, Scale.HALF)
    assert_close(plain, pool(taught, Scale.HALF))


def test_the_origin_lies_beyond_the_mean_as_seen_from_the_median(
    pictures: Path, models: dict[str, Path]
) -> None:
    mean = task(pictures, models, whiten=1.0).model.mean
    for whiten in (0.0, 1.0):
        made = task(pictures, models, whiten=whiten, centre=1.5)
        pixels = made._pixels([made.stream[i] for i in range(12)])
        raw = made.model.teacher_features(pixels).flatten(0, 1)
        middle = raw.sort(0).values[(len(raw) - 1) // 2]
        assert float((middle - mean).norm()) > 1e-2
        assert_close(made.model.mean, mean + 1.5 * (mean - middle), atol=1e-4, rtol=1e-4)


def test_variances_below_the_floor_are_whitened_as_if_they_had_it(
    pictures: Path, models: dict[str, Path]
) -> None:
    made = task(pictures, models, whiten=1.0, whiten_floor=0.25)
    pixels = made._pixels([made.stream[i] for i in range(12)])
    raw = made.model.teacher_features(pixels)
    values, vectors = torch.linalg.eigh(torch.cov(raw.flatten(0, 1).T))
    assert float(values[0]) < 0.25 * float(values[-1]) < float(values[-2])
    white = torch.cov(made.model.target(raw, Scale.FULL).flatten(0, 1).T)
    expected = values / values.clamp(min=0.25 * float(values[-1]))
    assert_close((vectors.T @ white @ vectors).diagonal(), expected, atol=1e-3, rtol=1e-3)


def test_a_start_from_data_gives_codes_the_mean_and_covariance_of_the_features(
    pictures: Path, models: dict[str, Path]
) -> None:
    made = task(pictures, models, start="data", start_rank=3)
    ta_tok = made.model.ta_tok
    pixels = made._pixels([made.stream[i] for i in range(12)])
    with torch.no_grad():
        features = ta_tok.features(pixels)
        z = torch.cat([ta_tok.project(features, s).flatten(0, 1) for s in Scale])
        rows = ta_tok.codebook.embedding_proj(ta_tok.codebook.embedding.weight)
    assert_close(rows.mean(0), z.mean(0), atol=1e-5, rtol=1e-4)
    # Along the three directions in which the features spread most, the codes spread as much.
    values, vectors = torch.linalg.eigh(torch.cov(z.T))
    top = vectors[:, -3:]
    assert_close(torch.cov((rows @ top).T), torch.diag(values[-3:]), atol=1e-4, rtol=1e-3)
    # And not at all along the others.
    rest = torch.cov((rows @ vectors[:, :-3]).T)
    assert float(rest.abs().max()) < 1e-4 * float(values[-1])


def test_the_loss_is_its_three_parts_with_their_weights(
    pictures: Path, models: dict[str, Path]
) -> None:
    made = task(pictures, models, reconstruction=2.0, codebook=3.0, commitment=0.5)
    model = made.model.eval()
    pixels = made._pixels([made.stream[0], made.stream[1]])
    loss, codes, figures, cosines = model(TokenizerBatch(pixels, Scale.HALF, [0, 1]))
    # Both halves of Eq. 3 have one value; only whom they pull differs.
    expected = 2 * (1 - figures["cosine"]) + (3 + 0.5) * figures["codebook"]
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-4)
    assert figures["scale"] == 2 and codes.shape == (2, 4)
    assert figures["loss_by_scale/2"] == float(loss.detach())
    assert float(cosines.mean()) == pytest.approx(figures["cosine"], abs=1e-6)


def test_a_pictures_codes_are_drawn_by_its_place_in_the_step(
    pictures: Path, models: dict[str, Path]
) -> None:
    made = task(pictures, models)

    def drawn(size: int, part: int, parts: int) -> Tensor:
        torch.manual_seed(part)  # has no say
        codes: Tensor = made.model(made.batch(3, size, part, parts))[1]
        return codes

    whole = drawn(4, 0, 1)
    assert torch.equal(whole, torch.cat([drawn(2, 0, 2), drawn(2, 1, 2)]))
    batch = made.batch(3, 4, 0, 1)
    assert len(set(batch.seeds)) == 4
    other = made.model(batch._replace(seeds=[seed + 1 for seed in batch.seeds]))[1]
    assert not torch.equal(whole, other)


def test_a_bad_step_can_name_its_pictures(pictures: Path, models: dict[str, Path]) -> None:
    made = task(pictures, models)
    # The second of two parts of the fourth step begins with row 3 * 4 + 2.
    names = made.row_names(made.batch(3, 2, 1, 2), 14)
    assert [name.key for name in names] == [made.stream[14]["key"], made.stream[15]["key"]]
    assert {name.source for name in names} == {str(pictures)}


def test_perplexity_is_that_of_all_micro_batches(pictures: Path, models: dict[str, Path]) -> None:
    made = task(pictures, models)
    made._codes = [torch.zeros(1, 4, dtype=torch.long), torch.ones(1, 4, dtype=torch.long)]
    used = {"perplexity": pytest.approx(2.0), "usage": 2 / 10}
    assert made.after_step(0, made.model) == used
    made._codes = [torch.zeros(1, 4, dtype=torch.long)]  # the last step's are gone
    used = {"perplexity": pytest.approx(1.0), "usage": 1 / 10}
    assert made.after_step(1, made.model) == used


def test_what_is_measured_is_of_argmax_codes_at_every_scale(
    pictures: Path, models: dict[str, Path], tmp_path: Path
) -> None:
    out = tokenizer.run(
        config(tmp_path, steps=2),
        images=[pictures],
        encoder=models["encoder"],
        lm=models["lm"],
        out=tmp_path / "out",
    )
    figures = read_config(out, "ta_tok")["figures"]
    assert figures["pictures"] == 12
    for name in ("all_scales", "scale_1", "scale_2", "scale_3"):
        found = figures[name]
        assert found["used"] + found["dead"] == 10 and 1 <= found["perplexity"] <= found["used"]
    stream = picture_stream(open_artifact(pictures), seed=0)
    x = torch.stack([torch.from_numpy(stream[i].pixels()) for i in range(12)])
    images = x.permute(0, 3, 1, 2).float() / 255
    codes = load_ta_tok(out).encode_scales(images, [Scale.FULL])[Scale.FULL]
    assert len(codes.unique()) == figures["scale_1"]["used"]


def test_near_copies_are_dropped_when_training_is_over(
    pictures: Path, models: dict[str, Path], tmp_path: Path
) -> None:
    where: dict[str, Any] = {"images": [pictures], "encoder": models["encoder"], "lm": models["lm"]}
    plain = tokenizer.run(config(tmp_path), out=tmp_path / "plain", **where)
    file = config(tmp_path, drop_copies=0.8)
    dropped = tokenizer.run(file, out=tmp_path / "dropped", **where)
    before, after = load_ta_tok(plain), load_ta_tok(dropped)
    assert after.num_codes < before.num_codes == SIZES.num_codes
    rows = {
        name: read_config(path)["codebook_rows"]
        for name, path in {"before": plain, "after": dropped}.items()
    }
    kept = torch.tensor([rows["before"].index(row) for row in rows["after"]])
    books = [loaded.model.codebook.projected().detach() for loaded in (before, after)]
    assert_close(books[1], books[0][kept])
    # No two of what is left are near copies, and each that is gone was one.
    near = books[0] @ books[0].T >= 0.8
    assert not (near[kept][:, kept].fill_diagonal_(False)).any()
    assert near[:, kept].any(1).all()
    figures = read_config(dropped)["figures"]
    assert figures["before_dropping"] == read_config(plain)["figures"]["all_scales"]
    used = figures["all_scales"]["used"] + figures["all_scales"]["dead"]
    assert used == after.num_codes == len(rows["after"])


def test_more_codes_than_used_rows_are_refused(
    pictures: Path, models: dict[str, Path], tmp_path: Path
) -> None:
    used = len(read_embeddings(models["lm"]).used)
    file = config(tmp_path, sizes=SIZES.model_copy(update={"num_codes": used + 1}))
    expected = rf"num_codes = {used + 1}, but only {used} rows"
    with pytest.raises(UserError, match=expected) as error:
        tokenizer.run(
            file,
            images=[pictures],
            encoder=models["encoder"],
            lm=models["lm"],
            out=tmp_path / "out",
        )
    assert "text of more words" in error.value.hint
    assert error.value.hint.endswith(f" --set sizes.num_codes={used}")


def test_a_directory_of_another_kind_is_refused(
    pictures: Path, models: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"vqvae is vqvae, where a model of kind encoder") as error:
        tokenizer.run(
            config(tmp_path),
            images=[pictures],
            encoder=models["vqvae"],
            lm=models["lm"],
            out=tmp_path / "out",
        )
    assert error.value.hint == f"tarkit inspect {models['vqvae']}"


# ---- from published parts


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny SigLIP 2 and a tiny Qwen2 as transformers saves them, of widths 24 and 20.

    The table has 8 rows more than the tokenizer has tokens.
    """
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("published")
    # SigLIP 2 of a fixed resolution is a `siglip` model of transformers.
    layers = {"hidden_size": 24, "intermediate_size": 40, "num_attention_heads": 4}
    vision = transformers.SiglipVisionConfig(
        **layers, num_hidden_layers=3, image_size=30, patch_size=7
    )
    siglip = transformers.SiglipVisionModel(vision)
    with torch.no_grad():
        siglip.embeddings.patch_embedding.weight.mul_(8)
    siglip.save_pretrained(folder / "siglip2")
    text = parts.text_tokenizer()
    qwen = transformers.Qwen2Config(
        vocab_size=text.size + 8,
        **{"hidden_size": 20, "intermediate_size": 24, "num_hidden_layers": 1},
        **{"num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": True},
        **{"bos_token_id": None, "eos_token_id": None},
    )
    transformers.Qwen2ForCausalLM(qwen).save_pretrained(folder / "qwen2", max_shard_size="20KB")
    (folder / "qwen2" / "tokenizer.json").write_text(text.json)
    return {"encoder": folder / "siglip2", "lm": folder / "qwen2"}


PLAIN: dict[str, Any] = {"projection_bias": False, "l2_normalized": False, "stochastic": False}


@pytest.mark.parametrize("form", [{}, PLAIN], ids=["as released", "plain E W"])
@pytest.mark.parametrize("code_width", [None, 14])
def test_published_parts_train_a_tokenizer_whose_codebook_is_e_w_of_the_chosen_rows(
    pictures: Path,
    published: dict[str, Path],
    tmp_path: Path,
    form: dict[str, Any],
    code_width: int | None,
) -> None:
    sizes = SIZES.model_copy(update={"num_codes": 200, "code_width": code_width, **form})
    out = tokenizer.run(
        config(tmp_path, steps=2, sizes=sizes),
        images=[pictures],
        encoder=published["encoder"],
        lm=published["lm"],
        out=tmp_path / "out",
    )
    language_model = transformers.Qwen2ForCausalLM.from_pretrained(published["lm"])
    table = language_model.get_input_embeddings().weight.detach()
    # Words are ids 0 to 266: the last three tokens are tags, eight rows are padding.
    words = parts.text_tokenizer().size - 3
    assert (words, len(table)) == (267, 278)
    rows = read_config(out, "ta_tok")["codebook_rows"]
    assert rows == representative_rows(table[:words], 200).tolist()
    loaded = load_ta_tok(out)
    state = loaded.model.codebook.state_dict()
    E, W = table[rows], state["embedding_proj.weight"].T  # noqa: N806
    assert torch.equal(state["embedding.weight"], E)
    assert W.shape == (20, code_width or 20)
    if form:
        assert "embedding_proj.bias" not in state
        expected = E @ W
    else:
        expected = torch.nn.functional.normalize(E @ W + state["embedding_proj.bias"], dim=-1)
    assert_close(loaded.model.codebook.projected().detach(), expected)
    # The nearest rows of C are the codes of a picture.
    x = torch.rand(1, 3, 30, 30, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        z = loaded.model.project(loaded.model.features(x * 2 - 1), Scale.HALF)[0]
    z = z if form else torch.nn.functional.normalize(z, dim=-1)
    codes = loaded.encode_scales(loaded.sized(x, "pil-bicubic"), [Scale.HALF])[Scale.HALF]
    assert codes.tolist() == [torch.cdist(z, expected).argmin(1).tolist()]


def test_hub_ids_are_taken_from_the_cache(
    pictures: Path,
    published: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    words = ["train", "tokenizer", str(config(tmp_path, steps=2)), "--images", str(pictures)]
    words += ["--encoder", "google/siglip2", "--lm", "Qwen/qwen2", "--out", str(tmp_path / "out")]
    missing = CliRunner().invoke(app, words)
    assert missing.exit_code == 1 and not (tmp_path / "out").exists()
    for repo, part in (("google--siglip2", "encoder"), ("Qwen--qwen2", "lm")):
        root = tmp_path / "hub" / f"models--{repo}"
        shutil.copytree(published[part], root / "snapshots" / "0123abc")
        (root / "refs").mkdir()
        (root / "refs" / "main").write_text("0123abc")
    trained = CliRunner().invoke(app, words)
    assert trained.exit_code == 0, trained.output
    assert load_ta_tok(tmp_path / "out").size_px == 30


def test_a_siglip_is_encoder_and_frozen_teacher(
    pictures: Path, published: dict[str, Path], tmp_path: Path
) -> None:
    made = task(pictures, published, start="data")
    pixels = made._pixels([made.stream[i] for i in range(4)])
    theirs = transformers.SiglipVisionModel.from_pretrained(published["encoder"])
    with torch.no_grad():
        state = theirs(pixels, output_hidden_states=True).hidden_states[-2]
    assert_close(made.model.teacher_features(pixels), state, atol=1e-5, rtol=1e-5)
    assert_close(made.model.ta_tok.features(pixels).detach(), state, atol=1e-5, rtol=1e-5)
    assert not any(weight.requires_grad for weight in made.model.teacher.parameters())
    assert all(weight.requires_grad for weight in made.model.ta_tok.encoder.parameters())


def test_sources_are_mixed_and_each_is_a_parent(
    pictures: Path, models: dict[str, Path], tmp_path: Path
) -> None:
    second = parts.write_pictures(tmp_path / "aesthetic", [["train"] * 3]).path
    parents: dict[str, Any] = {"encoder": models["encoder"], "lm": models["lm"]}
    file = config(tmp_path, steps=2, images_weights=(3, 1))
    out = tokenizer.run(file, images=[pictures, second], out=tmp_path / "out", **parents)
    manifest = json.loads((out / "manifest.json").read_text())
    assert set(manifest["parents"]) == {"images", "images_1", "encoder", "lm"}
    assert read_config(out)["figures"]["pictures"] == 12 + 3
    with pytest.raises(UserError, match="images_weights has 2 weights, but there are 1 --images"):
        tokenizer.run(file, images=[pictures], out=tmp_path / "one", **parents)


def test_sizes_that_do_not_fit_the_encoder_are_refused(
    pictures: Path, models: dict[str, Path], published: dict[str, Path]
) -> None:
    for changes, match, hint in (
        ({"decoder_heads": 10}, "decoder_heads = 10 does not divide the encoder's width 24", "8"),
        ({"select_layer": -5}, "select_layer = -5, but the encoder has 3 layers: -4 to 3", "-2"),
    ):
        with pytest.raises(UserError, match=match) as error:
            task(pictures, published, sizes=SIZES.model_copy(update=changes))
        assert (error.value.hint or "").endswith(f"={hint}")


def test_a_run_begun_before_these_options_goes_on(
    pictures: Path, models: dict[str, Path], tmp_path: Path
) -> None:
    file, out = config(tmp_path, steps=2), tmp_path / "out"
    parents: dict[str, Any] = {"encoder": models["encoder"], "lm": models["lm"]}
    tokenizer.run(file, images=[pictures], out=out, **parents)
    manifest = json.loads((out / "manifest.json").read_text())
    assert set(manifest["parents"]) == {"images", "encoder", "lm"}
    assert "images_weights" not in manifest["settings"]
    for name in ("projection_bias", "l2_normalized"):
        del manifest["settings"]["sizes"][name]
    (out / "manifest.json").write_text(json.dumps(manifest))
    assert tokenizer.run(file, images=[pictures], out=out, **parents) == out


# ---- the paper's numbers

PAPER_TOML = Path(__file__).parents[2] / "pipelines" / "paper" / "tokenizer.toml"
SAMPLES = 100_000_000 + 100_000_000  # Table 7: LAION (100M), LAION Aes (100M)
PAPER: dict[str, Any] = {
    "steps": SAMPLES // 512,
    "batch_size": 512,
    "images_weights": (1, 1),
    **{"learning_rate": 2e-4, "schedule": "cosine", "optimizer": "adamw", "betas": (0.9, 0.99)},
    **{"weight_decay": 1e-4, "warmup": 0.04, "clip": 1.0},
    **{"codebook": 1.0, "reconstruction": 1.0},
    "scale_ratio": (2, 1, 1),
    **{"num_codes": 65536, "code_width": 1536, "decoder_layers": 3},
}
# What the released file has in place of the paper's value: (released, paper).
RELEASED: dict[str, Any] = {
    "commitment": (0.25, "Eq. 3: 1.0"),
    "projection_bias": (True, "Eq. 1: false"),
    "l2_normalized": (True, "Sec. 3.1: false"),
    "stochastic": (True, "Sec. 3.1: false"),
    "temperature": (0.03, "Sec. 3.1"),
}
OPEN = ["representative", "precision", "checkpoint_every", "select_layer"]
OPEN += ["decoder_heads", "decoder_mlp_width", "decoder_side"]


def test_every_cell_of_the_papers_toml_is_the_papers_or_says_why_not() -> None:
    settings = load_config(TokenizerConfig, PAPER_TOML)
    values = {**settings.model_dump(), **settings.sizes.model_dump()}
    text = PAPER_TOML.read_text()
    sources = dict(re.findall(r"^(\w+) = .*?# (.*)$", text, re.MULTILINE))
    data = tomllib.loads(text)
    assert list(sources) == [k for k in data if k != "sizes"] + list(data["sizes"])
    assert sorted(sources) == sorted([*PAPER, *RELEASED, *OPEN])
    for name, value in PAPER.items():
        assert values[name] == value, name
        assert re.match(r"(Table|Sec\.|App\.) ", sources[name]), name
    for name, (value, paper) in RELEASED.items():
        assert values[name] == value, name
        assert sources[name].startswith(f"released ({paper}"), name
    assert all(sources[name].startswith("open") for name in OPEN)
    # Table 8: one epoch of whole batches at the encoder's 384 px; Sec. 4.1: {729, 169, 81} codes.
    assert settings.steps * settings.batch_size == SAMPLES
    arch = EncoderArch()
    assert arch.size_px == 384 and [s.num_codes(arch.grid) for s in Scale] == [729, 169, 81]
