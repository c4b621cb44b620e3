"""Learning from scored pictures: the objective by hand, exact resume, and that it learns at all."""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from torch import Tensor
from torch.testing import assert_close

from tarkit.checkpoints import assemble
from tarkit.checkpoints.language_model import load_mllm
from tarkit.config import write_toml
from tarkit.errors import UserError
from tarkit.inference.tar_model import Tar
from tarkit.models.mllm import code_log_probs
from tarkit.models.mllm_decoding import generate_codes
from tarkit.scoring.scorers import Scores, Shown, plan_scorer
from tarkit.train import grpo
from tarkit.train.grpo import GrpoBatch, GrpoConfig, GrpoTask, Round, advantages, clipped_objective
from tarkit.vocab import Scale
from tests import parts

SETTINGS: dict[str, Any] = {
    "steps": 8,
    "batch_size": 8,
    "group": 4,
    "round_steps": 2,
    "learning_rate": 1e-3,
    "checkpoint_every": 2,
    "log_every": 1,
    "length": 128,
    "draw_size": 6,
}


class Bright:
    """How bright a picture is; one whose prompt asks for nothing has no number."""

    columns: tuple[str, ...] = ("bright",)

    def score(self, shown: Sequence[Shown]) -> list[Scores]:
        return [
            {"bright": float(np.asarray(one.picture).mean() / 255)}
            if one.prompt != "nothing"
            else "it asks for nothing"
            for one in shown
        ]


class Wide(Bright):
    """Gives two numbers."""

    columns = ("bright", "wide")


class Short(Bright):
    """Loses a score."""

    def score(self, shown: Sequence[Shown]) -> list[Scores]:
        return super().score(shown)[1:]


SCORER = f"{__name__}:Bright"


@pytest.fixture(scope="module")
def tar(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    given: dict[str, Any] = {
        name: models[name] for name in ("mllm", "tokenizer", "ar_dtok", "vqvae")
    }
    out = tmp_path_factory.mktemp("grpo") / "tar"
    return assemble.run(**given, out=out, overrides=["default_scale=3"])


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    file = tmp_path / "prompts.txt"
    file.write_text("\n".join(parts.CAPTIONS))
    return file


def config(tmp_path: Path, **changes: Any) -> Path:
    file = tmp_path / "grpo.toml"
    file.write_text(write_toml(GrpoConfig(**SETTINGS | changes)))
    return file


# ---- the objective, by hand


def test_an_advantage_is_the_distance_from_its_groups_mean_in_its_spreads() -> None:
    scores = np.array([[1.0, 0, 0, 0], [1, 1, 1, 1], [0.2, 0.4, math.nan, 0.6], [5, 5, 7, 7]])
    third = math.sqrt(3)
    expected: list[list[float]] = [
        [third, -1 / third, -1 / third, -1 / third],
        [0] * 4,
        [0] * 4,
        [-1, -1, 1, 1],
    ]
    np.testing.assert_allclose(advantages(scores), expected, atol=1e-12)


def test_a_push_ends_where_the_probability_has_moved_far_enough() -> None:
    old_log_probs = torch.zeros(4, 1)
    moved = torch.tensor([[1.5], [1.5], [0.5], [0.5]])
    log_probs = moved.log().requires_grad_()
    advantage = torch.tensor([1.0, -1.0, 1.0, -1.0])
    loss, stopped = clipped_objective(log_probs, old_log_probs, advantage, 0.2)
    # Good and likelier: held at 1.2. Bad and likelier: felt whole. Good and rarer: felt whole.
    # Bad and rarer: held at .8.
    assert_close(loss, -torch.tensor((1.2 - 1.5 + 0.5 - 0.8) / 4))
    loss.backward()
    assert log_probs.grad is not None
    assert_close(log_probs.grad[:, 0], torch.tensor([0.0, 1.5, -0.5, 0.0]) / 4)
    assert stopped == 0.5


def test_every_code_is_read_in_its_own_place(tar: Path) -> None:
    whole = Tar.load(tar)
    scale, vocabulary = whole.default_scale, whole.mllm.vocabulary
    assert vocabulary.visual is not None
    texts = ("a red circle", "two rings and one blue heart")
    prompts = [vocabulary.prompt(text, draw=scale) for text in texts]
    assert len(prompts[0]) != len(prompts[1])
    generator = torch.Generator().manual_seed(1)
    codes = torch.randint(vocabulary.visual.num_codes, (2, 5), generator=generator)
    found = code_log_probs(whole.mllm.model, prompts, codes, visual=vocabulary.visual)
    first = vocabulary.visual.first_code
    for row, prompt in enumerate(prompts):
        ids = torch.tensor([[*prompt, *(codes[row] + first).tolist()]])
        logits = whole.mllm.model(input_ids=ids).logits[0, :, first:][:, : parts.K]
        for place in range(5):
            at = len(prompt) - 1 + place
            expected = logits[at].log_softmax(-1)[codes[row, place]]
            assert_close(found[row, place], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_log_probabilities_are_those_that_codes_are_drawn_with(tar: Path, guidance: float) -> None:
    whole = Tar.load(tar)
    scale, loaded = whole.default_scale, whole.mllm
    assert loaded.vocabulary.visual is not None
    prompt, empty = (loaded.vocabulary.prompt(text, draw=scale) for text in ("a red circle", ""))
    draws, num_codes = 4000, loaded.vocabulary.visual.num_codes
    how: dict[str, Any] = {"visual": loaded.vocabulary.visual, "temperature": 0.2}
    codes = generate_codes(
        loaded.model,
        [prompt] * draws,
        num_codes=1,
        top_k=0,
        top_p=1.0,
        generator=torch.Generator().manual_seed(0),
        guidance=guidance,
        unguided=[empty] * draws,
        **how,
    )
    every, prompts = torch.arange(num_codes)[:, None], [prompt] * num_codes
    given = code_log_probs(
        loaded.model, prompts, every, guidance=guidance, unguided=[empty] * num_codes, **how
    ).detach()
    given = given.exp()[:, 0]
    assert_close(given.sum(), torch.tensor(1.0))
    counted = torch.bincount(codes[:, 0], minlength=num_codes) / draws
    assert float((given - counted).abs().max()) < 5 * math.sqrt(0.25 / draws)
    # Each of the two matters: without them the draw would be another.
    plain = code_log_probs(loaded.model, prompts, every, visual=how["visual"]).detach().exp()[:, 0]
    assert float((plain - counted).abs().max()) > 5 * math.sqrt(0.25 / draws)


def test_no_gradient_flows_through_what_is_guided_away_from(tar: Path) -> None:
    whole = Tar.load(tar)
    loaded, scale = whole.mllm, whole.default_scale
    prompt, empty = (loaded.vocabulary.prompt(text, draw=scale) for text in ("a red circle", ""))
    codes = torch.zeros(1, scale.num_codes(whole.grid), dtype=torch.long)
    table = loaded.model.get_input_embeddings().weight
    how: dict[str, Any] = {"visual": loaded.vocabulary.visual, "guidance": 3.0}
    code_log_probs(loaded.model, [prompt], codes, unguided=[[*empty, 7]], **how).sum().backward()
    # Token 7 is read by the unguided pass alone, and text rows of the head take no part.
    assert 7 not in prompt
    assert table.grad is not None and not table.grad[7].any()
    assert table.grad[prompt].any()


@pytest.mark.parametrize("step", [0, 1])
def test_groups_that_teach_nothing_are_not_read_and_weigh_as_before(
    tar: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Tar.load(tar)
    visual = whole.mllm.vocabulary.visual
    assert visual is not None
    plan = plan_scorer(SCORER, None)
    settings = GrpoConfig(**SETTINGS | {"prompt_guidance": 2.0})
    given: dict[str, Any] = {"column": "bright", "prompts": parts.CAPTIONS, "streams": None}
    task = GrpoTask(settings, whole, plan.load("cpu"), plan, **given)
    scale, texts = whole.default_scale, [parts.CAPTIONS[0]] * 8 + [parts.CAPTIONS[1]] * 8
    ids = [whole.mllm.vocabulary.prompt(text, draw=scale) for text in texts]
    generator = torch.Generator().manual_seed(2)
    codes = torch.randint(visual.num_codes, (16, scale.num_codes(whole.grid)), generator=generator)
    now = task.model.code_log_probs(ids, codes, scale).detach()
    # Each step's first group is all alike; the second step's codes have moved since drawn.
    advantage = torch.tensor(([0.0] * 4 + [1.0, -1.0, 1.0, -1.0]) * 2)
    old_log_probs = torch.cat([now[:8] * math.nan, now[8:] + 0.1])
    drawn = Round(ids, codes, old_log_probs, advantage, {})
    monkeypatch.setattr(task, "_draw_round", lambda prompts, seeds: drawn)
    task.round = drawn
    loss, _ = task.loss(task.model, GrpoBatch(texts if step == 0 else [], [], None), step)
    loss.backward()
    (table,) = [p.grad for n, p in task.model.named_parameters() if "embed_tokens" in n]
    assert table is not None
    learnt = table.clone()
    task.model.zero_grad()
    every = slice(8 * step, 8 * step + 8)
    log_probs = task.model.code_log_probs(ids[every], codes[every], scale)
    before = old_log_probs[every] if step else log_probs.detach()
    expected, _ = clipped_objective(log_probs, before, advantage[every], settings.ratio_clip)
    expected.backward()
    assert_close(loss, expected)
    (table,) = [p.grad for n, p in task.model.named_parameters() if "embed_tokens" in n]
    assert_close(learnt, table)
    read: list[int] = []
    code_log_probs = task.model.code_log_probs

    def counted(prompts: Any, codes: Tensor, at: Scale) -> Tensor:
        read.append(len(prompts))
        return code_log_probs(prompts, codes, at)

    monkeypatch.setattr(task.model, "code_log_probs", counted)
    task.loss(task.model, GrpoBatch(texts if step == 0 else [], [], None), step)
    assert read == [4]


# ---- whole runs


def test_a_stopped_training_ends_with_the_same_bytes(
    tar: Path, prompts: Path, chats: Path, tmp_path: Path, resumes: Any
) -> None:
    ratio = {"t2i": 1, "i2t": 1}
    file = config(tmp_path, chats_size=3, ratio=ratio, prompt_dropout=0.5, prompt_guidance=2)

    def run(out: Path) -> Path:
        return grpo.run(
            file, model=str(tar), prompts=prompts, scorer=SCORER, chats=[chats], out=out
        )

    # Stopped within a round: it goes on from the last round's end and draws the same again.
    resumes(GrpoTask, run, stops=(3, 5))
    rows = [json.loads(row) for row in (tmp_path / "whole" / "metrics.jsonl").open()]
    assert {"reward", "groups_that_teach", "stopped", "code_loss", "text_loss"} <= rows[0].keys()
    loaded = load_mllm(tmp_path / "whole")
    assert loaded.config["tokenizer_sha256"] == Tar.load(tar).sha256
    assert loaded.vocabulary.text.json == Tar.load(tar).mllm.vocabulary.text.json


def test_what_scores_higher_is_drawn_more_often(tar: Path, prompts: Path, tmp_path: Path) -> None:
    changes = {"steps": 30, "batch_size": 32, "round_steps": 1, "learning_rate": 3e-3}
    file = config(tmp_path, **changes, group=8, checkpoint_every=100)
    out = grpo.run(file, model=str(tar), prompts=prompts, scorer=SCORER, out=tmp_path / "out")
    rewards = [json.loads(row)["reward"] for row in (out / "metrics.jsonl").open()]
    spreads = [json.loads(row)["reward_spread"] for row in (out / "metrics.jsonl").open()]
    assert np.mean(rewards[-5:]) > np.mean(rewards[:5]) + spreads[0]


def test_a_prompt_without_a_score_teaches_nothing_and_is_told(
    tar: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("nothing\na red circle\n")
    numbers = config(tmp_path, steps=2, batch_size=4, round_steps=1, checkpoint_every=1)
    # A whole round of it is a step like any other: which prompts meet in a round is luck.
    out = grpo.run(numbers, model=str(tar), prompts=file, scorer=SCORER, out=tmp_path / "out")
    rows = [json.loads(row) for row in (out / "metrics.jsonl").open()]
    assert sorted(row["unscored"] for row in rows) == [0, 1]
    assert [row["groups_that_teach"] + row["unscored"] for row in rows] == [1, 1]
    assert [row["loss"] for row in rows if row["unscored"]] == [0]
    assert ["reward" in row for row in rows] == [not row["unscored"] for row in rows]
    assert caplog.text.count("'nothing' has no score and is skipped: it asks for") == 1


@pytest.fixture
def another_precision() -> Iterator[None]:
    """Accelerate keeps one precision a process; a test of another begins and ends without."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.usefixtures("another_precision")
def test_half_precision_learns_and_draws(tar: Path, prompts: Path, tmp_path: Path) -> None:
    file = config(tmp_path, steps=2, precision="bf16", sample_every=1)
    out = grpo.run(file, model=str(tar), prompts=prompts, scorer=SCORER, out=tmp_path / "out")
    assert (out / "samples" / "0000002.png").exists()
    before, after = Tar.load(tar).mllm.model, load_mllm(out).model
    moved = [
        not torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True)
    ]
    assert sum(moved) > len(moved) / 2


# ---- what is refused


def test_numbers_that_make_no_rounds_are_refused(tmp_path: Path) -> None:
    for change, match in [
        ({"batch_size": 6}, "batch_size must be a multiple of group, 4"),
        ({"checkpoint_every": 3}, "checkpoint_every must be a multiple of round_steps, 2"),
        ({"keep_every": 5}, "keep_every must be a multiple"),
    ]:
        with pytest.raises(ValueError, match=match):
            GrpoConfig(**SETTINGS | change)


def test_a_reward_that_is_not_one_number_is_refused(
    tar: Path, prompts: Path, chats: Path, tmp_path: Path
) -> None:
    given: dict[str, Any] = {"model": str(tar), "prompts": prompts, "out": tmp_path / "out"}
    with pytest.raises(UserError, match="gives bright, wide, not one number") as error:
        grpo.run(config(tmp_path), scorer=f"{__name__}:Wide", **given)
    assert error.value.hint == "--column bright"
    with pytest.raises(UserError, match="gives bright, not dark"):
        grpo.run(config(tmp_path), scorer=SCORER, column="dark", **given)
    with pytest.raises(UserError, match="chats_size is 0 and --chats names 1"):
        grpo.run(config(tmp_path), scorer=SCORER, chats=[chats], **given)
    assert not (tmp_path / "out").exists()


def test_a_training_begun_for_one_reward_does_not_go_on_for_another(
    tar: Path, prompts: Path, tmp_path: Path
) -> None:
    given: dict[str, Any] = {"model": str(tar), "prompts": prompts, "out": tmp_path / "out"}
    grpo.run(config(tmp_path, steps=2), scorer=SCORER, **given)
    with pytest.raises(UserError, match="reward"):
        grpo.run(config(tmp_path, steps=2), scorer="pixels", **given)


def test_scores_that_are_not_one_a_picture_are_refused(
    tar: Path, prompts: Path, tmp_path: Path
) -> None:
    given: dict[str, Any] = {"model": str(tar), "prompts": prompts, "out": tmp_path / "out"}
    with pytest.raises(UserError, match="gave 5 scores of 6 pictures"):
        grpo.run(config(tmp_path), scorer=f"{__name__}:Short", **given)


def test_what_does_not_divide_by_the_processes_is_refused_before_anything_is_written(
    tar: Path, prompts: Path, chats: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    given: dict[str, Any] = {"model": str(tar), "prompts": prompts, "out": tmp_path / "out"}
    for changes in ({"batch_size": 4}, {"chats_size": 3}):
        with pytest.raises(UserError, match="on each of 2 processes") as error:
            grpo.run(config(tmp_path, **changes), scorer=SCORER, chats=[chats], **given)
        assert "--set batch_size=8" in str(error.value.hint)
    assert not (tmp_path / "out").exists()
