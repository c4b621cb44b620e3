"""Models of real architectures, tiny and random: questions reach them and answers return."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tarkit.errors import UserError
from tarkit.images import png_bytes
from tarkit.llm.base import AssistantConfig, LlmQuestion
from tarkit.llm.load import load
from tarkit.llm.local import LocalAssistant
from tests.llm.tiny import MARKS, save_seer, save_writer

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
