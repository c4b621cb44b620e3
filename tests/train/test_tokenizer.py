"""Training TA-Tok: exact resume, the start from data by its moments, what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from tarkit.artifacts.artifact import open_artifact
from tarkit.checkpoints.directory import read_config
from tarkit.checkpoints.language_model import read_embeddings
from tarkit.checkpoints.load import load_encoder, load_ta_tok
from tarkit.config import write_toml
from tarkit.errors import UserError
from tarkit.models.codebook import representative_rows
from tarkit.models.ta_tok import pool
from tarkit.train import tokenizer
from tarkit.train.streams import picture_stream
from tarkit.train.tokenizer import TaTokSizes, TokenizerConfig, TokenizerTask
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
    ],
    ids=["as published", "as in miniature"],
)
def test_a_stopped_training_ends_with_the_same_bytes(
    pictures: Path, models: dict[str, Path], tmp_path: Path, resumes: Any, changes: dict[str, Any]
) -> None:
    file = config(tmp_path, **changes)
    resumes(
        TokenizerTask,
        lambda out: tokenizer.run(
            file, images=pictures, encoder=models["encoder"], lm=models["lm"], out=out
        ),
        stops=(3, 6),
    )
    before = load_encoder(models["encoder"]).state_dict()
    after = load_ta_tok(tmp_path / "whole").model.encoder.state_dict()
    name = "encoder.layers.0.mlp.fc1.weight"
    assert torch.equal(before[name], after[name]) is bool(changes)


def task(pictures: Path, models: dict[str, Path], **changes: Any) -> TokenizerTask:
    torch.manual_seed(0)
    return TokenizerTask(
        TokenizerConfig(**SETTINGS | changes),
        picture_stream(open_artifact(pictures), seed=0),
        load_encoder(models["encoder"]),
        read_embeddings(models["lm"]),
    )


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
        images=pictures,
        encoder=models["encoder"],
        lm=models["lm"],
        out=out,
    )
    rows = read_embeddings(models["lm"]).table[read_config(out, "ta_tok")["codebook_rows"]]
    trained = load_ta_tok(out).model.codebook.embedding.weight
    assert torch.equal(trained, rows) is not free


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
    loss, figures = model(pixels, Scale.HALF)
    # Both halves of Eq. 3 have one value; only whom they pull differs.
    expected = 2 * (1 - figures["cosine"]) + (3 + 0.5) * figures["codebook"]
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-4)
    assert figures["scale"] == 2 and 1 <= figures["perplexity"] <= 8  # 2 pictures of 4 codes


def test_what_is_measured_is_of_argmax_codes_at_every_scale(
    pictures: Path, models: dict[str, Path], tmp_path: Path
) -> None:
    out = tokenizer.run(
        config(tmp_path, steps=2),
        images=pictures,
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
    where: dict[str, Any] = {"images": pictures, "encoder": models["encoder"], "lm": models["lm"]}
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
            file, images=pictures, encoder=models["encoder"], lm=models["lm"], out=tmp_path / "out"
        )
    assert error.value.hint == f"--set sizes.num_codes={used}"


def test_a_directory_of_another_kind_is_refused(
    pictures: Path, models: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"vqvae is vqvae, where a model of kind encoder") as error:
        tokenizer.run(
            config(tmp_path),
            images=pictures,
            encoder=models["vqvae"],
            lm=models["lm"],
            out=tmp_path / "out",
        )
    assert error.value.hint == f"tarkit inspect {models['vqvae']}"
