"""Training the language model: exact resume, tasks dealt in their ratio, what is refused."""

import json
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from tarkit.artifacts.artifact import Artifact, open_artifact
from tarkit.checkpoints.directory import read_config
from tarkit.checkpoints.language_model import load_mllm
from tarkit.checkpoints.load import load_ta_tok
from tarkit.config import write_toml
from tarkit.errors import UserError
from tarkit.models.mllm import Packed, build, from_scratch, pack
from tarkit.train import mllm
from tarkit.train.chat_batches import ChatStreams, TaskName, TooLongChats, encode_chat
from tarkit.train.mllm import MllmConfig, MllmTask
from tarkit.train.streams import draw_scale
from tarkit.train.task import Amount, Mean, Total
from tarkit.vocab import Scale, VisualVocabulary, Vocabulary
from tests import parts
from tests.checkpoints.test_language_model import publish

SETTINGS: dict[str, Any] = {
    "lm": parts.LM,
    "text_vocab": 270,
    "steps": 8,
    "batch_size": 4,
    "learning_rate": 1e-3,
    "optimizer": "muon",
    "checkpoint_every": 2,
    "log_every": 1,
    "length": 128,
    "ratio": {"t2i": 2, "i2t": 1, "text": 1},
}


def config(tmp_path: Path, **changes: Any) -> Path:
    file = tmp_path / "mllm.toml"
    file.write_text(write_toml(MllmConfig(**SETTINGS | changes)))
    return file


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents alone: no codes, no tokenizer."""
    rows = [parts.chat_row("text", ("assistant", f"{c} and more")) for c in parts.CAPTIONS * 3]
    return parts.write_chats(tmp_path_factory.mktemp("chats") / "text", [rows]).path


# ---- whole runs


def test_a_stopped_training_of_all_tasks_ends_with_the_same_bytes(
    chats: Path, models: dict[str, Path], tmp_path: Path, resumes: Any
) -> None:
    file = config(tmp_path)

    def run(out: Path) -> Path:
        return mllm.run(
            file, chats=[chats], tokenizer=models["tokenizer"], lm=models["lm"], out=out
        )

    resumes(MllmTask, run, stops=(3, 6))
    loaded = load_mllm(tmp_path / "whole")
    text = parts.text_tokenizer()
    assert loaded.vocabulary.visual == VisualVocabulary(first_id=text.size, num_codes=parts.K)
    assert loaded.vocabulary.system == "You are a helpful assistant."
    assert loaded.vocabulary.text.json == text.json
    assert loaded.model.get_input_embeddings().weight.shape == (text.size + 5 + 16, parts.WIDTH)
    made = read_config(tmp_path / "whole")
    assert made["tokenizer_sha256"] == parts.sha256(models["tokenizer"]) and made["grid"] == 4
    assert made["token_counts"] is None


def test_a_stopped_training_of_text_from_nothing_ends_with_the_same_bytes(
    texts: Path, tmp_path: Path, resumes: Any
) -> None:
    file = config(tmp_path, ratio={"text": 1})
    resumes(MllmTask, lambda out: mllm.run(file, chats=[texts], out=out), stops=(5,))
    loaded = load_mllm(tmp_path / "whole")
    assert loaded.vocabulary.visual is None
    # Each of 12 documents is counted once: which rows of its table its text has used.
    ids = [i for c in parts.CAPTIONS * 3 for i in loaded.vocabulary.text.encode(f"{c} and more")]
    counts = loaded.config["token_counts"]
    assert len(counts) == loaded.vocabulary.text.size
    assert {i: n for i, n in enumerate(counts) if n} == Counter(ids)


# ---- the start


def task(chats: Path, models: dict[str, Path], lm: Path | None, **changes: Any) -> MllmTask:
    torch.manual_seed(0)
    settings = MllmConfig(**SETTINGS | changes)
    streams = ChatStreams([open_artifact(chats, "chats")], settings.ratio, settings.seed)
    return MllmTask(settings, streams, tokenizer=load_ta_tok(models["tokenizer"]), lm=lm)


def test_the_codes_rows_start_as_the_tokenizers_codebook(
    chats: Path, models: dict[str, Path]
) -> None:
    made = task(chats, models, models["lm"])
    visual = made.vocabulary.visual
    assert visual is not None
    table = made.model.lm.get_input_embeddings().weight.detach()
    with torch.no_grad():
        codebook = load_ta_tok(models["tokenizer"]).model.codebook.projected()
    assert torch.equal(table[visual.first_code :], codebook)
    words = load_mllm(models["lm"]).model.get_input_embeddings().weight.detach()
    assert torch.equal(table[: visual.first_id], words)


def test_a_published_language_model_is_read_and_its_padding_cut(
    chats: Path, models: dict[str, Path], tmp_path: Path
) -> None:
    text = parts.text_tokenizer()
    torch.manual_seed(1)
    published = build(from_scratch(parts.LM, text.size + 10))
    published.save_pretrained(tmp_path / "qwen")
    (tmp_path / "qwen/tokenizer.json").write_text(text.json)
    made = task(chats, models, tmp_path / "qwen")
    table = made.model.lm.get_input_embeddings().weight
    assert len(table) == text.size + 5 + 16
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "qwen", local_files_only=True)
    assert torch.equal(table[: text.size], again.get_input_embeddings().weight[: text.size])
    out = mllm.run(
        config(tmp_path, steps=1, learning_rate=1e-9, optimizer="adamw"),
        chats=[chats],
        tokenizer=models["tokenizer"],
        lm=tmp_path / "qwen",
        out=tmp_path / "out",
    )
    # Read back from our own directory it still computes what it computed.
    ids = torch.tensor([text.encode("a red ring")])
    with torch.no_grad():
        theirs = again(input_ids=ids).logits[..., : text.size]
        assert_close(load_mllm(out).model(input_ids=ids).logits[..., : text.size], theirs)
    (tmp_path / "qwen/tokenizer.json").write_text(text.json.replace("<|im_end|>", "<|end|>"))
    with pytest.raises(UserError, match=r"tokenizer.json has no <\|im_end\|>") as error:
        task(chats, models, tmp_path / "qwen")
    assert "Qwen" in error.value.hint
    (tmp_path / "qwen/tokenizer.json").write_text(text.json)
    (tmp_path / "qwen/model.safetensors").unlink()
    with pytest.raises(UserError, match="weights, but the safetensors files .* have 0 bytes"):
        task(chats, models, tmp_path / "qwen")


def foreign(path: Path, arch: dict[str, Any]) -> Path:
    """A tiny model of any family in transformers' layout."""
    text = parts.text_tokenizer()
    torch.manual_seed(1)
    sizes = {"vocab_size": text.size, "hidden_size": 16, "num_hidden_layers": 2}
    build({**sizes, "num_attention_heads": 2, **arch}).save_pretrained(path)
    (path / "tokenizer.json").write_text(text.json)
    return path


def test_a_model_that_has_the_codes_goes_on_as_it_is(
    chats: Path, models: dict[str, Path], tmp_path: Path
) -> None:
    made = task(chats, models, models["mllm"])
    before = load_mllm(models["mllm"])
    assert made.vocabulary.visual == before.vocabulary.visual
    for name, weight in before.model.state_dict().items():
        assert torch.equal(made.model.lm.state_dict()[name], weight), name
    out = mllm.run(
        config(tmp_path), chats=[chats], tokenizer=models["tokenizer"], lm=models["mllm"],
        out=tmp_path / "out",
    )  # fmt: skip
    after = load_mllm(out)
    assert after.vocabulary.visual == before.vocabulary.visual
    assert read_config(out)["tokenizer_sha256"] == parts.sha256(models["tokenizer"])
    table = before.model.get_input_embeddings().weight
    assert not torch.equal(after.model.get_input_embeddings().weight, table)
    shrunk = task(chats, models, models["mllm"], shrink=0.5).model.lm.state_dict()
    for name, weight in before.model.state_dict().items():
        factor = 0.5 if "proj" in name and weight.dim() == 2 else 1.0
        assert torch.equal(shrunk[name], weight * factor), name


def test_pre_alignment_trains_the_tables_first_and_then_all(
    chats: Path, models: dict[str, Path], tmp_path: Path
) -> None:
    # Paper Table 3, the row pre-align.
    given: dict[str, Any] = {"chats": [chats], "tokenizer": models["tokenizer"]}
    first = mllm.run(
        config(tmp_path, embedding_start="random", train_only=["*embed_tokens*", "*lm_head*"]),
        lm=models["lm"],
        out=tmp_path / "first",
        **given,
    )
    started = load_mllm(models["lm"]).model.state_dict()
    aligned = load_mllm(first).model.state_dict()
    changed = {name for name in aligned if not torch.equal(aligned[name], started[name])}
    assert changed == {"model.embed_tokens.weight", "lm_head.weight"}
    second = mllm.run(config(tmp_path), lm=first, out=tmp_path / "second", **given)
    ended = load_mllm(second).model.state_dict()
    assert all(not torch.equal(ended[name], aligned[name]) for name in ended)


def test_a_published_model_that_draws_goes_on(
    chats: Path, models: dict[str, Path], tmp_path: Path
) -> None:
    published = publish(tmp_path / "tar", num_codes=parts.K)
    made = task(chats, models, published)
    assert made.vocabulary.visual == VisualVocabulary(first_id=259, num_codes=parts.K)
    weights = load_mllm(published).model.get_input_embeddings().weight
    assert torch.equal(made.model.lm.get_input_embeddings().weight, weights)
    with pytest.raises(UserError, match="draws with 12 codes of tokenizer None, --tokenizer has"):
        task(chats, models, publish(tmp_path / "twelve", num_codes=12))


def test_a_model_of_another_tokenizers_codes_does_not_go_on(
    chats: Path, texts: Path, models: dict[str, Path], tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(models["mllm"], other)
    described = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(described | {"tokenizer_sha256": "f" * 64}))
    given: dict[str, Any] = {"file": config(tmp_path), "out": tmp_path / "out", "lm": other}
    ours = parts.sha256(models["tokenizer"])[:12]
    hint = refused(
        f"draws with 16 codes of tokenizer ffffffffffff, --tokenizer has 16 and is {ours}",
        chats=chats, tokenizer=models["tokenizer"], **given,
    )  # fmt: skip
    assert "grow a text-only model" in hint
    given["file"] = config(tmp_path, ratio={"text": 1})
    hint = refused("has visual tokens, but there is no --tokenizer", chats=texts, **given)
    assert "--tokenizer" in hint


# ---- which chat stands where


def streams(chats: Path, ratio: Mapping[TaskName, int], *, seed: int = 0) -> ChatStreams:
    return ChatStreams([open_artifact(chats, "chats")], ratio, seed)


def test_every_round_holds_each_task_in_its_ratio(chats: Path) -> None:
    made = streams(chats, {"t2i": 3, "i2t": 2, "text": 1, "ti2i": 0})
    rounds = [[made[6 * r + i]["task"] for i in range(6)] for r in range(20)]
    assert all(Counter(dealt) == {"t2i": 3, "i2t": 2, "text": 1} for dealt in rounds)
    assert len(set(map(tuple, rounds))) > 5  # and in an order of its own
    # 9 rows of each task: three rounds deal t2i once through.
    drawn = [made[i]["key"] for i in range(18) if made[i]["task"] == "t2i"]
    assert len(drawn) == len(set(drawn)) == 9
    assert [made[i]["key"] for i in (17, 3, 40)] == [
        streams(chats, made.ratio)[i]["key"] for i in (17, 3, 40)
    ]
    other = streams(chats, made.ratio, seed=1)
    assert [made[i]["key"] for i in range(18)] != [other[i]["key"] for i in range(18)]


def test_chats_that_add_nothing_to_others_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    said = ("assistant", "words")
    splits = {"train": ["train"], "test": ["test", "test"]}
    made = [
        parts.write_chats(
            tmp_path / name, [[parts.chat_row("text", said, split=split) for split in rows]]
        )
        for name, rows in splits.items()
    ]
    ChatStreams(made, {"text": 1, "t2i": 0}, 0)
    assert caplog.messages == [
        f"{made[1].path} adds nothing: it has no row of a task in the ratio (text) with status "
        "ok and split 'train' or none"
    ]


def test_only_usable_training_chats_are_dealt(tmp_path: Path) -> None:
    said = ("assistant", "words")
    rows = [parts.chat_row("text", said, split=split) for split in ("train", "test", None)]
    made = parts.write_chats(tmp_path / "chats", [rows])
    dealt = streams(made.path, {"text": 1})
    assert {dealt[i]["key"] for i in range(4)} == {"00000-000000", "00000-000002"}
    with pytest.raises(UserError, match="names the task i2i, but the chats hold no row of it"):
        streams(made.path, {"text": 1, "i2i": 1})


def test_some_prompts_are_left_empty_and_nothing_else(chats: Path, models: dict[str, Path]) -> None:
    plain, dropped, bare = (
        task(chats, models, models["lm"], prompt_dropout=share, seed=3) for share in (0, 0.4, 1)
    )
    empty = plain.vocabulary.prompt("", draw=None)

    def rows(made: MllmTask) -> list[tuple[list[int], list[int]]]:
        found = []
        for slot in range(0, 400):
            packed = made.batch(slot, 1, 0, 1)
            found.append((packed.ids[0].tolist(), packed.labels[0].tolist()))
        return found

    tasks = [plain.streams[slot]["task"] for slot in range(400)]
    whole, some, none = rows(plain), rows(dropped), rows(bare)
    for kind, a, b, c in zip(tasks, whole, some, none, strict=True):
        supervised = [[label for label in labels if label != -100] for _, labels in (a, b, c)]
        assert supervised[0] == supervised[1] == supervised[2]
        assert b in (a, c)
        assert (c[0][: len(empty)] == empty) == (kind == "t2i")
        assert kind == "t2i" or a == c
    share = sum(a != b for a, b in zip(whole, some, strict=True)) / tasks.count("t2i")
    assert 0.3 < share < 0.5
    assert rows(dropped) == some


def test_the_loss_is_the_mean_over_tokens_and_words_weigh_as_told(
    chats: Path, models: dict[str, Path]
) -> None:
    plain, heavy = (task(chats, models, models["lm"], text_weight=w) for w in (1.0, 5.0))
    batch = plain.batch(0, 12, 0, 1)
    with torch.no_grad():
        losses, targets = plain.model(batch)
        mean, figures = plain.loss(plain.model, batch, 0)
        weighted, same = heavy.loss(plain.model, batch, 0)
    assert plain.vocabulary.visual is not None
    is_code = targets >= plain.vocabulary.visual.first_code
    codes, words = losses[is_code], losses[~is_code]
    assert len(codes) > 10 and len(words) > 10
    assert float(mean) == pytest.approx(float(losses.mean()))
    expected = (codes.sum() + 5 * words.sum()) / (len(codes) + 5 * len(words))
    assert float(weighted) == pytest.approx(float(expected))
    assert same == figures  # what is logged is not weighted
    # Each is a mean over its own tokens.
    for name, tokens in (("code_loss", codes), ("text_loss", words)):
        figure = figures[name]
        assert isinstance(figure, Mean) and figure.weight == len(tokens)
        assert figure.value == pytest.approx(float(tokens.mean()))
    assert plain.weight(batch) == len(losses)
    assert heavy.weight(batch) == len(codes) + 5 * len(words)


def test_chats_without_a_supervised_token_weigh_and_cost_nothing(
    chats: Path, models: dict[str, Path]
) -> None:
    made = task(chats, models, models["lm"])
    batch = made.batch(0, 2, 0, 1)
    mute = batch._replace(labels=torch.full_like(batch.labels, -100))
    assert made.weight(mute) == 0
    loss, figures = made.loss(made.model, mute, 0)
    loss.backward()
    assert float(loss.detach()) == 0
    assert not any(isinstance(figure, Mean) for figure in figures.values())
    assert figures["supervised_tokens_per_s"] == Amount(0) != figures["tokens_per_s"]
    gradients = [p.grad for p in made.model.parameters() if p.grad is not None]
    assert gradients and not any(bool(gradient.any()) for gradient in gradients)


def test_pictures_may_be_read_at_other_scales_than_they_are_drawn_at(
    chats: Path, models: dict[str, Path]
) -> None:
    given = task(
        chats,
        models,
        models["lm"],
        ratio={"t2i": 1, "i2t": 1},
        scale_ratio=(0, 0, 1),
        read_scale_ratio=(1, 0, 0),
    )
    visual = given.vocabulary.visual
    assert visual is not None
    found = given.batch(0, 8, 0, 1)
    lengths: dict[bool, set[int]] = {True: set(), False: set()}
    for ids, labels, numbers in zip(found.ids, found.labels, found.chats, strict=True):
        for number in range(int(numbers.max()) + 1):
            codes = (numbers == number) & (ids >= visual.first_code)
            # What is drawn is supervised, what is read is not.
            lengths[bool((labels[codes] >= 0).all())].add(int(codes.sum()))
    assert lengths == {True: {1}, False: {16}}


def dealt_chats(packed: Packed) -> Counter[tuple[int, ...]]:
    """How often each chat, as token ids, is in the rows."""
    chats: Counter[tuple[int, ...]] = Counter()
    for row in range(len(packed.ids)):
        for number in range(int(packed.chats[row].max()) + 1):
            chats[tuple(packed.ids[row][packed.chats[row] == number].tolist())] += 1
    return chats


def test_ranks_share_a_steps_chats(chats: Path, models: dict[str, Path]) -> None:
    made = task(chats, models, models["lm"])

    def said(step: int, size: int, rank: int, world: int) -> Counter[tuple[int, ...]]:
        return dealt_chats(made.batch(step, size, rank, world))

    assert said(3, 8, 0, 1) == said(3, 4, 0, 2) + said(3, 4, 1, 2)
    assert sum(said(3, 8, 0, 1).values()) == 8


def test_chats_longer_than_a_row_are_left_out_and_listed(
    chats: Path,
    models: dict[str, Path],
    tmp_path: Path,
    resumes: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Resumed or not, the same chats go to the rows, and each of the others is listed once."""
    file = config(tmp_path, length=60, steps=12)

    def run(out: Path) -> Path:
        return mllm.run(
            file, chats=[chats], tokenizer=models["tokenizer"], lm=models["lm"], out=out
        )

    resumes(MllmTask, run, stops=(3, 6))
    made = task(chats, models, models["lm"], length=60)
    long: dict[str, int] = {}
    kept: Counter[tuple[int, ...]] = Counter()
    for slot in range(48):
        chat = made.streams[slot]
        ids, _ = encode_chat(made.vocabulary, chat, draw_scale((2, 1, 1), 0, slot))
        if len(ids) > 60:
            long.setdefault(chat["key"], len(ids))
        else:
            kept[tuple(ids)] += 1
    assert 3 < len(long) and 10 < kept.total()
    for out in ("whole", "stopped"):
        lines = (tmp_path / out / "too_long.jsonl").read_text().splitlines()
        assert [json.loads(line) for line in lines] == [
            {"chats": str(chats), "key": key, "tokens": tokens, "length": 60}
            for key, tokens in long.items()
        ]
    dealt = sum((dealt_chats(made.batch(step, 4, 0, 1)) for step in range(12)), Counter())
    assert dealt == kept
    first = next(iter(long))
    assert f"chat {first} has {long[first]} tokens, length is 60: it is left out" in caplog.text


def test_a_half_written_list_is_mended_and_two_artifacts_are_told_apart(tmp_path: Path) -> None:
    file = tmp_path / "too_long.jsonl"
    TooLongChats(file).add("one", "00000-000001", tokens=9, length=5)
    first = file.read_text()
    file.write_text(first + '{"chats": "one", "key": "00000-0')
    again = TooLongChats(file)
    for artifact in ("one", "two", "one"):
        again.add(artifact, "00000-000001", tokens=9, length=5)
    assert file.read_text() == first + first.replace("one", "two")


@pytest.mark.parametrize("line", ["null", "[1]", "{}", '{"chats": [], "key": 1}', "[" * 100_000])
def test_a_damaged_line_of_the_list_stops_no_training(line: str, tmp_path: Path) -> None:
    file = tmp_path / "too_long.jsonl"
    file.write_text(f"{line}\n")
    TooLongChats(file).add("one", "00000-000001", tokens=9, length=5)
    assert file.read_text().count("00000-000001") == 1


def test_a_step_of_nothing_but_long_chats_learns_nothing(
    chats: Path, models: dict[str, Path]
) -> None:
    made = task(chats, models, models["lm"])
    loss, figures = made.loss(made.model, pack([], 128), 0)
    loss.backward()
    assert float(loss.detach()) == 0
    amounts = ("tokens_per_s", "supervised_tokens_per_s", "pictures_per_s", "flops_per_s")
    assert figures == {"tokens": Total(0)} | dict.fromkeys(amounts, Amount(0))
    for weight in made.model.parameters():
        assert weight.grad is None or not weight.grad.any()


# ---- one chat


@pytest.fixture
def vocabulary() -> Vocabulary:
    text = parts.text_tokenizer()
    visual = VisualVocabulary(first_id=text.size, num_codes=parts.K)
    return Vocabulary(text=text, visual=visual, system="")


def test_a_lone_document_is_supervised_whole_between_two_ends(vocabulary: Vocabulary) -> None:
    row = {**parts.chat_row("text", ("assistant", "a red ring")), "key": "0"}
    ids, labels = encode_chat(vocabulary, row, Scale.FULL)
    end, words = vocabulary.text.special["<|endoftext|>"], vocabulary.text.encode("a red ring")
    assert ids == [end, *words, end]
    assert labels == [-100, *words, end]


def test_a_conversation_in_words_is_a_chat(vocabulary: Vocabulary) -> None:
    row = {**parts.chat_row("text", ("user", "Hi"), ("assistant", "Yes")), "key": "0"}
    ids, labels = encode_chat(vocabulary, row, Scale.FULL)
    supervised = [label for label in labels if label != -100]
    assert supervised == [*vocabulary.text.encode("Yes"), vocabulary.chat_end]
    # An empty system turn is none at all.
    assert ids.count(vocabulary.chat_start) == 2


@pytest.mark.parametrize("scale", list(Scale))
def test_a_picture_has_the_codes_of_the_drawn_scale(vocabulary: Vocabulary, scale: Scale) -> None:
    turns = ("user", "a red ring"), ("assistant", "<image>")
    row = {**parts.chat_row("t2i", *turns, codes=[5]), "key": "0"}
    ids, labels = encode_chat(vocabulary, row, scale)
    visual = vocabulary.visual
    assert visual is not None
    codes = [visual.first_code + 5] * {1: 16, 2: 4, 3: 1}[scale]
    answer = [visual.image_start, visual.scale(scale), *codes, visual.image_end]
    assert [x for x in labels if x != -100] == [*answer, vocabulary.chat_end]
    assert ids[-len(answer) - 2 : -2] == answer


def test_chats_that_cannot_be_read_are_named(vocabulary: Vocabulary) -> None:
    row = {**parts.chat_row("i2t", ("user", "<image><image>"), codes=[1]), "key": "00000-000007"}
    with pytest.raises(UserError, match="chat 00000-000007: 2 <image> marks but 1 pictures"):
        encode_chat(vocabulary, row, Scale.FULL)
    row = {**parts.chat_row("i2t", ("user", "<image>"), codes=[99]), "key": "00000-000008"}
    with pytest.raises(UserError, match="chat 00000-000008: codes span 99 to 99, the codebook has"):
        encode_chat(vocabulary, row, Scale.FULL)
    row["images"] = [{**row["images"][0], "codes_2": None}]
    with pytest.raises(UserError, match="00000-000008 has no codes of scale 2") as error:
        encode_chat(vocabulary, row, Scale.HALF)
    assert "scale_ratio" in error.value.hint


# ---- what is refused


def refused(match: str, *, chats: Path, out: Path, **given: Any) -> str:
    with pytest.raises(UserError, match=match) as error:
        mllm.run(given.pop("file"), chats=[chats], out=out, **given)
    assert not (out / "model.safetensors").exists()
    return error.value.hint


def test_codes_of_another_tokenizer_are_refused(
    chats: Path, models: dict[str, Path], tmp_path: Path
) -> None:
    other = parts.save_ta_tok(tmp_path / "other", seed=1)
    mine, theirs = parts.sha256(models["tokenizer"])[:12], parts.sha256(other)[:12]
    given = {"file": config(tmp_path), "lm": models["lm"]}
    hint = refused(
        f"mixed holds codes of tokenizer {mine}, --tokenizer is {theirs}",
        chats=chats,
        out=tmp_path / "out",
        tokenizer=other,
        **given,
    )
    assert "encode the pictures again" in hint
    hint = refused("mixed holds picture codes, but no", chats=chats, out=tmp_path / "out", **given)
    assert "--tokenizer" in hint


def test_a_length_that_no_chat_fits_into_is_refused(
    chats: Path, models: dict[str, Path], tmp_path: Path
) -> None:
    hint = refused(
        r"none of the first 4 chats fits into length = 5: the shortest has \d+ tokens",
        chats=chats,
        out=tmp_path / "out",
        file=config(tmp_path, length=5),
        tokenizer=models["tokenizer"],
        lm=models["lm"],
    )
    assert hint.startswith("--set length=")


@pytest.mark.parametrize(
    ("family", "match"),
    [
        ({"model_type": "mamba", "state_size": 4}, "mamba models carry one packed chat into the"),
        (
            {"model_type": "hyperclovax", "logits_scaling": 2.0, "intermediate_size": 16},
            "hyperclovax models change their logits after the head in an unknown way",
        ),
    ],
)
def test_a_family_that_packing_changes_is_refused_before_the_first_step(
    family: dict[str, Any], match: str, texts: Path, tmp_path: Path
) -> None:
    lm = foreign(tmp_path / "lm", family)
    hint = refused(
        f"this language model cannot be trained: {match}",
        chats=texts,
        out=tmp_path / "out",
        file=config(tmp_path, ratio={"text": 1}),
        lm=lm,
    )
    assert "Qwen2.5" in hint


def test_a_codebook_that_cannot_start_the_embeddings_is_refused(
    chats: Path, models: dict[str, Path], tmp_path: Path
) -> None:
    wide = parts.LM.model_copy(update={"width": 24})
    given = {"chats": chats, "out": tmp_path / "out", "tokenizer": models["tokenizer"]}
    hint = refused(
        "codes are 16 wide, the language model's embeddings 24",
        file=config(tmp_path, lm=wide),
        **given,
    )
    assert "--set codebook_projection=rotation, or --set embedding_start=mean" in hint
    qwen = {"model_type": "qwen2", "hidden_size": 24, "intermediate_size": 24}
    lm = foreign(tmp_path / "wide", qwen | {"num_key_value_heads": 1})
    made = task(chats, models, lm, codebook_projection="rotation")
    visual = made.vocabulary.visual
    assert visual is not None
    with torch.no_grad():
        codes = made.model.lm.get_input_embeddings().weight[visual.first_code :]
        codebook = load_ta_tok(models["tokenizer"]).model.codebook.projected()
    assert codes.shape == (parts.K, 24)
    assert_close(codes @ codes.T, codebook @ codebook.T)
    hint = refused(
        "ta_tok is ta_tok, not a language model",
        file=config(tmp_path),
        lm=models["tokenizer"],
        **given,
    )
    assert "tarkit inspect" in hint


def test_missing_shards_and_missing_text_are_refused(
    chats: Path, models: dict[str, Path], tmp_path: Path
) -> None:
    rows = [parts.chat_row("t2i", ("user", "x"), ("assistant", "<image>"), codes=[1])]
    made: Artifact = parts.write_chats(tmp_path / "chats", [rows, rows])
    file = config(tmp_path, ratio={"t2i": 1})
    given = {"chats": made.path, "out": tmp_path / "out", "tokenizer": models["tokenizer"]}
    hint = refused("needs text rows to make its tokenizer from", file=file, **given)
    assert "tarkit curate chats --text" in hint
    made.shard_path("00001").unlink()
    hint = refused(r"lacks 1 of its 2 shards \(00001\)", file=file, **given)
    assert f"--out {made.path}" in hint


def test_a_finished_model_keeps_its_words_when_another_is_aimed_at_it(
    texts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    mllm.run(config(tmp_path, ratio={"text": 1}, steps=1), chats=[texts], out=out)
    before = (out / "tokenizer.json").read_text()
    with pytest.raises(UserError, match="text_vocab: 270 there, 280 now"):
        mllm.run(
            config(tmp_path, ratio={"text": 1}, steps=1, text_vocab=280), chats=[texts], out=out
        )
    assert (out / "tokenizer.json").read_text() == before


def test_a_model_from_nothing_is_not_shrunk(texts: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="shrink = 0.5 needs a model to start from") as error:
        mllm.run(config(tmp_path, ratio={"text": 1}, shrink=0.5), chats=[texts], out=tmp_path / "o")
    assert "--lm" in str(error.value.hint)
