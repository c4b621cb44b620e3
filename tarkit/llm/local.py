"""A writing model loaded here by transformers: a causal language model, or one that sees pictures.

No code of a repository is run, and only safetensors are read. Pictures are prepared by Pillow:
torchvision is neither needed nor used, so the processors that want it are built by hand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tarkit.checkpoints.directory import precision_of
from tarkit.errors import UserError
from tarkit.images import ImageError, decode
from tarkit.llm.base import Answer, Assistant, AssistantConfig, Question

QWEN_VL = ("qwen2_vl", "qwen2_5_vl")
PICTURE = "<|vision_start|><|image_pad|><|vision_end|>"
IMAGE_PAD = "<|image_pad|>"
MAX_PICTURE_PX = 1024
"""Longer sides are made this long before a picture is shown."""


def load_local(
    model: str, *, config: AssistantConfig, sees: bool, device: str, precision: str
) -> Assistant:
    """The model of a folder or hub id; UserError where it is not there or is no such model."""
    import transformers

    dtype = precision_of(precision)
    kind = _model_type(model)
    family = transformers.AutoModelForImageTextToText if sees else transformers.AutoModelForCausalLM
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(model)
        network = family.from_pretrained(model, dtype=dtype, use_safetensors=True)
        processor: Any = None
        if sees and kind in QWEN_VL:
            processor = transformers.AutoImageProcessor.from_pretrained(model, backend="pil")
        elif sees:
            processor = transformers.AutoProcessor.from_pretrained(model)
    except (OSError, ValueError, ImportError) as error:
        raise UserError(
            f"the model {model} cannot be loaded: {' '.join(str(error).split())[:300]}",
            hint="name a folder or hub id, or an OpenAI-compatible --server URL",
        ) from None
    if tokenizer.chat_template is None:
        raise UserError(f"{model} has no chat template: it is no model that answers")
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    network.to(device).eval()
    return LocalAssistant(network, tokenizer, processor, kind in QWEN_VL, config, device)


def _model_type(model: str) -> str:
    """What config.json says; "" where it is not on this disk and a processor is left to decide."""
    from transformers import PretrainedConfig

    try:
        facts, _ = PretrainedConfig.get_config_dict(model)
    except (OSError, ValueError):
        return ""
    return str(facts.get("model_type", ""))


class LocalAssistant:
    """Answers in batches; a batch's draws come from the seed of its first question."""

    def __init__(
        self,
        network: Any,
        tokenizer: Any,
        processor: Any,
        by_hand: bool,
        config: AssistantConfig,
        device: str,
    ) -> None:
        self._network, self._tokenizer, self._processor = network, tokenizer, processor
        self._by_hand, self._config, self._device = by_hand, config, device

    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        size = self._config.batch_size
        answers: list[Answer] = []
        for start in range(0, len(questions), size):
            answers += self._batch(questions[start : start + size])
        return answers

    def _batch(self, questions: Sequence[Question]) -> list[Answer]:
        try:
            inputs = self._inputs(questions)
        except ImageError as error:
            if len(questions) == 1:
                return [Answer(error=f"the picture cannot be shown: {error}")]
            return [answer for question in questions for answer in self._batch([question])]
        greedy = self._config.temperature == 0
        how: dict[str, Any] = {"do_sample": not greedy}
        if not greedy:
            how |= {"temperature": self._config.temperature, "top_p": self._config.top_p}
            how |= {"top_k": 0}
        devices = [self._device] if self._device.startswith("cuda") else []
        with torch.random.fork_rng(devices), torch.inference_mode():
            torch.manual_seed(questions[0].seed)
            ids = self._network.generate(
                **{name: value.to(self._device) for name, value in inputs.items()},
                **how,
                max_new_tokens=self._config.max_tokens,
                pad_token_id=self._tokenizer.pad_token_id,
            )
        asked = inputs["attention_mask"].sum(1).tolist()
        said = ids[:, inputs["input_ids"].shape[1] :]
        return [self._read(row, num) for row, num in zip(said, asked, strict=True)]

    def _read(self, ids: Tensor, num_asked: int) -> Answer:
        """The text up to the end mark; without one the answer was cut off."""
        ends = self._network.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends, self._tokenizer.eos_token_id]
        found = [place for place, token in enumerate(ids.tolist()) if token in ends]
        kept = ids[: found[0]] if found else ids
        text = self._tokenizer.decode(kept, skip_special_tokens=True).strip()
        error = None if found else "the answer is cut off"
        if error is None and not text:
            error = "the answer is empty"
        return Answer(
            text="" if error else text,
            error=error,
            num_prompt_tokens=num_asked,
            num_tokens=len(kept) + len(found[:1]),
        )

    def _inputs(self, questions: Sequence[Question]) -> Mapping[str, Tensor]:
        pictures = [_shown(q.blob) for q in questions if q.blob is not None]
        if self._processor is None or not pictures:
            texts = [self._chat(question.text, question.shown) for question in questions]
            return dict(self._tokenizer(texts, return_tensors="pt", padding=True))
        if self._by_hand:
            return self._qwen_vl([question.text for question in questions], pictures)
        chats = [
            [{"role": "user", "content": [{"type": "text", "text": q.text}, {"type": "image"}]}]
            for q in questions
        ]
        texts = [
            self._processor.apply_chat_template(chat, add_generation_prompt=True) for chat in chats
        ]
        rows = [[picture] for picture in pictures]
        return dict(self._processor(text=texts, images=rows, return_tensors="pt", padding=True))

    def _chat(self, text: str, shown: Sequence[tuple[str, str]] = ()) -> str:
        """A user's turn as the model was trained to read it; the text can spell no special token.

        (`split_special_tokens` would be the tokenizer's way, which not every one has.)
        """
        turns = [self._unmarked(part) for pair in shown for part in pair] + [self._unmarked(text)]
        messages = [
            {"role": "assistant" if number % 2 else "user", "content": turn}
            for number, turn in enumerate(turns)
        ]
        made: str = self._tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        return made

    def _unmarked(self, text: str) -> str:
        for mark in map(str, self._tokenizer.added_tokens_decoder.values()):
            text = text.replace(mark, " ".join(mark))
        return text

    def _qwen_vl(self, texts: Sequence[str], pictures: Sequence[Any]) -> Mapping[str, Tensor]:
        """Qwen2-VL's inputs: each picture's mark repeated once for every merged patch."""
        seen = self._processor(images=list(pictures), return_tensors="pt")
        merged = self._processor.merge_size**2
        prompts = []
        for text, grid in zip(texts, seen["image_grid_thw"], strict=True):
            patches = int(grid.prod()) // merged
            mark = PICTURE.replace(IMAGE_PAD, IMAGE_PAD * patches)
            prompts.append(self._chat(text + "\x00").replace("\x00", mark))
        inputs = dict(self._tokenizer(prompts, return_tensors="pt", padding=True))
        pad = self._tokenizer.convert_tokens_to_ids(IMAGE_PAD)
        inputs["mm_token_type_ids"] = (inputs["input_ids"] == pad).int()
        return inputs | {
            "pixel_values": seen["pixel_values"],
            "image_grid_thw": seen["image_grid_thw"],
        }


def _shown(blob: bytes) -> Any:
    picture = decode(blob)
    picture.thumbnail((MAX_PICTURE_PX, MAX_PICTURE_PX))
    return picture
