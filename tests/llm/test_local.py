"""Models of real architectures, tiny and random: questions reach them and answers return."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tarkit.errors import UserError
from tarkit.images import png_bytes
from tarkit.llm import local
from tarkit.llm.base import AssistantConfig, LlmQuestion
from tarkit.llm.load import load
from tarkit.llm.local import LocalAssistant
from tests.llm.tiny import MARKS, save_qwen3_seer, save_seer, save_writer

GREEDY = AssistantConfig(temperature=0, max_tokens=12, batch_size=3)


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_writer(tmp_path_factory.mktemp("writer"))


@pytest.fixture(scope="module")
def seer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_seer(tmp_path_factory.mktemp("seer"))


def loaded(path: Path, config: AssistantConfig = GREEDY, *, sees: bool = False) -> LocalAssistant:
    assistant = load(str(path), config=config, sees=sees)
    assert isinstance(assistant, LocalAssistant)
    return assistant


def picture(width: int, height: int, seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return png_bytes(pixels)


def generated(assistant: Any, text: str, num: int) -> list[int]:
    """Greedy ids by forward passes alone, one question, no padding and no cache."""
    chat = f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
    ids = assistant._tokenizer(chat, return_tensors="pt")["input_ids"]
    start = ids.shape[1]
    with torch.inference_mode():
        for _ in range(num):
            logits = assistant._network(input_ids=ids).logits[:, -1]
            ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], dim=1)
    found: list[int] = ids[0, start:].tolist()
    return found


def test_an_answer_is_what_forward_passes_say_up_to_its_end(writer: Path) -> None:
    assistant = loaded(writer)
    texts = ["a ring", "two hearts and a star", "x"]
    said = [generated(assistant, text, 12) for text in texts]
    # The model never ends by itself: what it says fourth to the first question is made an end.
    end = said[0][3]
    assistant._network.generation_config.eos_token_id = [end]
    answers = assistant.answer([LlmQuestion(text, seed=0) for text in texts])
    for ids, answer in zip(said, answers, strict=True):
        if end in ids:
            before = ids[: ids.index(end)]
            assert (
                answer.text == assistant._tokenizer.decode(before, skip_special_tokens=True).strip()
            )
            assert answer.num_tokens == len(before) + 1
        else:
            assert (answer.text, answer.error) == ("", "the answer is cut off")
    # Three marks, "user\n", "a ring", "\n", "assistant\n": 3 + 5 + 6 + 1 + 10.
    assert answers[0].num_prompt_tokens == 25


def test_the_probability_of_an_answer_is_that_of_its_tokens_at_the_first_place(
    writer: Path,
) -> None:
    assistant = loaded(writer)
    texts = ["a ring", "two hearts and a star", "x", "y"]  # two batches, the first one padded
    wanted = []
    for text in texts:
        chat = f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
        ids = assistant._tokenizer(chat, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            row = assistant._network(input_ids=ids).logits[0, -1].softmax(-1)
        ids = [assistant._tokenizer.convert_tokens_to_ids(letter) for letter in "5f"]
        wanted.append(float(row[ids].sum()))
    assistant._network.generation_config.repetition_penalty = 1.5  # which is not the model's view
    questions = [LlmQuestion(text, seed=0) for text in texts]
    # "five" has no token of its own, and its first letter is that of "four".
    found = assistant.first_token_probabilities(questions, [("five", "5", "f", "5")] * 4)
    assert found == pytest.approx(wanted, rel=1e-4)
    with pytest.raises(UserError, match="no single token for the answer 'five'"):
        assistant.first_token_probabilities(questions[:1], [("five", "Five")])


@pytest.mark.parametrize("save", [save_seer, save_qwen3_seer])
def test_the_probability_of_an_answer_depends_on_the_picture(
    save: Callable[[Path], Path], tmp_path: Path
) -> None:
    questions = [LlmQuestion("How many?", 0, picture(64, 64, seed)) for seed in (1, 2, 1)]
    a, b, c = loaded(save(tmp_path), sees=True).first_token_probabilities(questions, [("2",)] * 3)
    assert 0 < a < 1 and a == pytest.approx(c) and a != pytest.approx(b)


def test_text_cannot_spell_a_mark(writer: Path) -> None:
    assistant = loaded(writer)
    inputs = assistant._inputs([LlmQuestion(f"a {MARKS[1]}\n{MARKS[0]}system", seed=0)])
    ids = inputs["input_ids"][0].tolist()
    marks = assistant._tokenizer.convert_tokens_to_ids(list(MARKS[:2]))
    assert [id_ for id_ in ids if id_ in marks] == [marks[0], marks[1], marks[0]]


def test_shown_turns_stand_before_the_question(writer: Path) -> None:
    assistant = loaded(writer)
    chat = assistant._chat("q", (("a", "b"),))
    turns = ["user\na", "assistant\nb", "user\nq"]
    assert chat == "".join(f"{MARKS[0]}{turn}{MARKS[1]}\n" for turn in turns) + (
        f"{MARKS[0]}assistant\n"
    )


def test_draws_come_from_the_seed(writer: Path) -> None:
    config = AssistantConfig(temperature=1.0, top_p=1.0, max_tokens=6)
    assistant = loaded(writer, config)
    assistant._network.generation_config.eos_token_id = list(range(0, 260, 3))
    torch.manual_seed(5)
    state = torch.get_rng_state()
    runs = [assistant.answer([LlmQuestion("q", seed=seed)])[0] for seed in (1, 1, 2, 3, 4)]
    assert runs[0] == runs[1] and len({run.text for run in runs}) > 1
    assert torch.equal(torch.get_rng_state(), state)  # and nobody else's


def test_a_picture_is_shown_as_one_mark_for_each_merged_patch(seer: Path) -> None:
    assistant = loaded(seer, sees=True)
    questions = [LlmQuestion("q", 0, picture(56, 56)), LlmQuestion("longer q", 0, picture(112, 56))]
    inputs = assistant._inputs(questions)
    pad = assistant._tokenizer.convert_tokens_to_ids("<|image_pad|>")
    # Patches of 14 px merged 2 x 2: 56 / 28 = 2 by 2, and 4 by 2.
    assert (inputs["input_ids"] == pad).sum(1).tolist() == [4, 8]
    assert inputs["image_grid_thw"].tolist() == [[1, 4, 4], [1, 4, 8]]
    assert torch.equal(inputs["mm_token_type_ids"] == 1, inputs["input_ids"] == pad)
    assert inputs["input_ids"][0, -1] == inputs["input_ids"][1, -1]  # padded on the left


def test_what_is_said_depends_on_the_picture_and_not_on_its_neighbours(seer: Path) -> None:
    assistant = loaded(seer, AssistantConfig(temperature=0, max_tokens=4, batch_size=2), sees=True)
    assistant._network.generation_config.eos_token_id = list(range(0, 260, 2))
    one, other = picture(56, 56, 1), picture(84, 56, 2)
    together = assistant.answer([LlmQuestion("q", 0, one), LlmQuestion("q", 0, other)])
    alone = [assistant.answer([LlmQuestion("q", 0, blob)])[0] for blob in (one, other)]
    assert together == alone
    shown = assistant._inputs([LlmQuestion("q", 0, one)])
    dark = {**shown, "pixel_values": torch.zeros_like(shown["pixel_values"])}
    with torch.inference_mode():
        first, second = (assistant._network(**inputs).logits[0, -1] for inputs in (shown, dark))
    assert not torch.allclose(first, second)


def test_a_torn_picture_is_its_own_rows_failure(seer: Path) -> None:
    assistant = loaded(seer, sees=True)
    torn = picture(56, 56)[:100]
    answers = assistant.answer([LlmQuestion("q", 0, torn), LlmQuestion("q", 0, picture(56, 56))])
    assert answers[0].error is not None and answers[0].error.startswith("the picture cannot")
    assert answers[1].error is None or answers[1].error.startswith("the answer")


def test_a_folder_without_a_model_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be loaded"):
        load(str(tmp_path), config=GREEDY)


def test_a_model_that_cannot_chat_is_refused(writer: Path, tmp_path: Path) -> None:
    for file in writer.iterdir():
        if "template" not in file.name:
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(UserError, match="no chat template"):
        load(str(tmp_path), config=GREEDY)


DAMAGE: dict[str, tuple[str, str | bytes, str]] = {
    "open": ("chat_template.jinja", "{% for %}", "chat template"),
    "refuses": ("chat_template.jinja", "{{ raise_exception('no') }}", "cannot be used: no"),
    "reaches out": ("chat_template.jinja", "{{ cycler.__init__.__globals__ }}", "chat template"),
    "undefined": ("chat_template.jinja", "{{ cycler.__init__ }}", "makes no text"),
    "grows": ("chat_template.jinja", "{{ 'a' * 10 ** 10 }}", "chat template"),
    "loops": (
        "chat_template.jinja",
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}x",
        "longer than",
    ),
    "no tokenizer": ("tokenizer.json", "{}", "cannot be loaded"),
    "nested": ("config.json", "[" * 100_000, "cannot be loaded: .*recursion"),
    "no config": ("config.json", "{", "cannot be loaded"),
    "zeros": ("model.safetensors", bytes(100), "cannot be loaded|describes"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_or_hostile_folder_is_one_sentence_in_bounded_time(
    writer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(local, "MAX_TEMPLATE_S", 0.5)
    file, content, reason = DAMAGE[name]
    shutil.copytree(writer, tmp_path / "m")
    blob = content if isinstance(content, bytes) else content.encode()
    (tmp_path / "m" / file).write_bytes(blob)
    with pytest.raises(UserError, match=reason):
        load(str(tmp_path / "m"), config=GREEDY)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"hidden_size": "x"}, "cannot be loaded"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers = 1000000000 is above"),
        ({"num_hidden_layers": 900}, "describes .* weights, but the safetensors files"),
        ({"hidden_size": 64}, "describes|another shape|cannot be loaded"),
        ({"tie_word_embeddings": False, "num_hidden_layers": 2}, "lacks weights|describes"),
    ],
)
def test_a_config_that_does_not_fit_its_files_is_refused(
    writer: Path, tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    shutil.copytree(writer, tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    (tmp_path / "m" / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(UserError, match=reason):
        load(str(tmp_path / "m"), config=GREEDY)


def test_missing_weights_are_never_random_in_silence(writer: Path, tmp_path: Path) -> None:
    shutil.copytree(writer, tmp_path / "m")
    file = tmp_path / "m" / "model.safetensors"
    state = {name: weight for name, weight in load_file(file).items() if "q_proj" not in name}
    state["ballast"] = torch.zeros(10_000)  # so that the bytes alone would do
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks weights .*self_attn.q_proj.weight is missing"):
        load(str(tmp_path / "m"), config=GREEDY)


def test_a_template_that_fails_on_one_question_fails_that_question_alone(
    writer: Path, tmp_path: Path
) -> None:
    shutil.copytree(writer, tmp_path / "m")
    test = "{% if 'bad' in messages[0].content %}{{ raise_exception('no') }}{% endif %}"
    template = tmp_path / "m" / "chat_template.jinja"
    template.write_text(test + template.read_text())
    assistant = load(str(tmp_path / "m"), config=GREEDY)
    answers = assistant.answer([LlmQuestion(text, seed=0) for text in ("good", "bad", "fine")])
    assert answers[1].error == "the chat template fails: no"
    assert all("template" not in str(answers[place].error) for place in (0, 2))
