"""The answer alone: thinking and the marks of turns go, an answer that is not whole is refused."""

import pytest

from tarkit.llm.answer_text import UnusableAnswer, answer_text

ANSWER = "Yes. It shows\nit."


@pytest.mark.parametrize(
    "text",
    [
        ANSWER,
        f"<think>\nIs it <i>red</i>?\n</think>\n\n{ANSWER}",
        f"<think>\n\n</think>\n\n{ANSWER}",
        f"The thinking began in the prompt.</think>\n{ANSWER}",
        f"<think>one</think> and <think>two</think>{ANSWER}",
        f"[THINK]hm[/THINK]{ANSWER}</s>",
        f"◁think▷hm◁/think▷{ANSWER}",
        f"<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>"
        f"{ANSWER}<|return|>",
        f"<|begin_of_thought|>hm<|end_of_thought|><|begin_of_solution|>{ANSWER}<|end_of_solution|>",
        f"{ANSWER}<|im_end|>",
        f"{ANSWER}<|im_end|>\n<|im_start|>user\nAnd now?",
        f"<|im_start|>assistant\n{ANSWER}<|im_end|>",
        f"<|start_header_id|>assistant<|end_header_id|>\n\n{ANSWER}<|eot_id|>",
        f"<start_of_turn>model\n{ANSWER}<end_of_turn>",
        f"<s> {ANSWER}</s>",
        f"{ANSWER} [/INST]",
        f"<|begin_of_box|>{ANSWER}<|end_of_box|>",
        f"<answer>{ANSWER}</answer>",
    ],
)
def test_only_the_answer_remains(text: str) -> None:
    assert answer_text(text) == ANSWER


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<think>\nThe picture shows a", "does not end"),
        ("<think>a</think><think>b", "does not end"),
        ("<think>a</think>\n\n", "empty after its thinking"),
        ("<|im_end|>", "empty"),
        ("<|vision_start|>a", "the mark <|vision_start|>"),
    ],
)
def test_a_text_without_a_whole_answer_is_refused(text: str, reason: str) -> None:
    with pytest.raises(UnusableAnswer, match=reason.replace("|", r"\|")):
        answer_text(text)
