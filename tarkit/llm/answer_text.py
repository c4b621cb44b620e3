"""The answer alone, out of the text that a language model or its server returns.

Servers without a reasoning parser return a model's thinking before its answer, and servers with a
wrong chat template return marks of turns. The marks are those of published chat templates.
"""

from __future__ import annotations

import re

THOUGHT = r"think(?:ing)?|thoughts?|reasoning|analysis|reflection|seed:think|scratchpad"
THOUGHT_START = re.compile(
    rf"<(?:{THOUGHT})>|\[THINK\]|◁think▷|<\|(?:begin_of_thought|START_THINKING|begin_of_thinking)\|>"
    r"|<\|channel\|?>\s*(?:analysis|commentary|thought)|<unused94>(?:thought)?",
    re.IGNORECASE,
)
THOUGHT_END = re.compile(
    rf"</(?:{THOUGHT})>|\[/THINK\]|◁/think▷|<\|(?:end_of_thought|END_THINKING|end_of_thinking)\|>"
    r"|<\|channel\|>\s*final\s*<\|message\|>|<channel\|>|<unused95>",
    re.IGNORECASE,
)
TURN_START = re.compile(
    r"\s*(?:<s>|<bos>|<\|begin_of_text\|>|\[/INST\]|<\|START_OF_TURN_TOKEN\|>"
    r"|<\|(?:im_start|start)\|>\s*assistant(?!\w)|<\|assistant\|>|<\|CHATBOT_TOKEN\|>"
    r"|<(?:start_of_turn|\|turn)>\s*model(?!\w)"
    r"|<\|start_header_id\|>\s*assistant\s*<\|end_header_id\|>"
    r"|<｜Assistant｜>|<\|message\|>)"
)
TURN_END = re.compile(
    r"</s>|<eos>|<end_of_turn>|<turn\|>|<end_of_utterance>|\[/?INST\]|<\|(?:im_end|im_start|end|return"
    r"|start|eot_id|eom_id|end_of_text|endoftext|EOT|eot|user|system|observation|endofassistant"
    r"|END_OF_TURN_TOKEN|start_header_id|end_of_sentence)\|>"
    r"|<start_of_turn>|<｜(?:end▁of▁sentence|User)｜>"
)
WRAPPERS = (
    ("<|begin_of_box|>", "<|end_of_box|>"),
    ("<|begin_of_solution|>", "<|end_of_solution|>"),
    ("<|START_RESPONSE|>", "<|END_RESPONSE|>"),
    ("<answer>", "</answer>"),
    ("<response>", "</response>"),
    ("<output>", "</output>"),
)
OTHER_MARK = re.compile(r"<\|[^<>|\s]{1,40}\|>|<｜[^<>｜\s]{1,40}｜>")


class UnusableAnswer(Exception):
    """A text that holds no whole answer; the message is the reason."""


def answer_text(text: str) -> str:
    """The answer in `text`: what follows a thinking block, up to the end mark of the turn.

    Raises UnusableAnswer where the thinking has no end, nothing follows it, or a mark remains that
    no answer has.
    """
    ends = list(THOUGHT_END.finditer(text))
    if ends:
        text = text[ends[-1].end() :]
    if THOUGHT_START.search(text):
        raise UnusableAnswer("the answer is thinking that does not end")
    while start := TURN_START.match(text):
        text = text[start.end() :]
    if end := TURN_END.search(text):
        text = text[: end.start()]
    text = text.strip()
    for opening, closing in WRAPPERS:
        if opening in text:
            text = text.partition(opening)[2]
        text = text.partition(closing)[0].strip()
    if mark := OTHER_MARK.search(text):
        raise UnusableAnswer(f"the answer contains the mark {mark[0]}")
    if not text:
        raise UnusableAnswer("the answer is empty" + (" after its thinking" if ends else ""))
    return text
