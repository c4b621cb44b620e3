"""A language model on this machine, loaded by transformers: text only, or with vision.

No code from a model's repository runs, and weights are read from safetensors only. Pillow prepares
the pictures, without torchvision; for Qwen2-VL to Qwen3-VL, whose processors need torchvision, the
inputs are built here.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tarkit.checkpoints.directory import precision_of
from tarkit.checkpoints.from_transformers import from_transformers
from tarkit.checkpoints.hub import find_snapshot
from tarkit.errors import UserError
from tarkit.images import ImageError, decode
from tarkit.llm.answer_text import UnusableAnswer, answer_text
from tarkit.llm.base import AssistantConfig, LlmAnswer, LlmQuestion, ProbabilityAssistant

QWEN_VL = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe")
PICTURE = "<|vision_start|><|image_pad|><|vision_end|>"
IMAGE_PAD = "<|image_pad|>"
MAX_TEMPLATE_S, MAX_TEMPLATE_BYTES, MAX_CHAT_CHARS = 5.0, 1 << 30, 1 << 22
"""Limits of a chat template, which takes milliseconds and writes little more than its turns."""
MAX_PICTURE_PX = 1024
"""A picture with a longer side is made smaller, to this, before the model sees it."""


def load_local(
    model: str, *, config: AssistantConfig, sees: bool, device: str, precision: str
) -> ProbabilityAssistant:
    """The model of a folder, or of a hub id that is in the hub's cache.

    Raises UserError when it is missing, damaged, of another kind, lacks weights, or has no chat
    template that can be used.
    """
    import transformers

    dtype = precision_of(precision)
    kind = _model_type(model)
    family = transformers.AutoModelForImageTextToText if sees else transformers.AutoModelForCausalLM
    tokenizer = from_transformers(transformers.AutoTokenizer, model)
    network = from_transformers(family, model, dtype=dtype)
    processor: Any = None
    if sees and kind in QWEN_VL:
        processor = from_transformers(transformers.AutoImageProcessor, model, backend="pil")
    elif sees:
        processor = from_transformers(transformers.AutoProcessor, model)
    if tokenizer.chat_template is None:
        raise UserError(f"{model} has no chat template, so it cannot answer questions")
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    network.to(device).eval()
    assistant = LocalAssistant(network, tokenizer, processor, kind in QWEN_VL, config, device)
    assistant.check(model)
    return assistant


def _model_type(model: str) -> str:
    """The model_type of config.json; "" when there is no such file, and AutoProcessor decides."""
    from transformers import PretrainedConfig

    try:
        facts, _ = PretrainedConfig.get_config_dict(find_snapshot(model), local_files_only=True)
    except UserError:
        raise
    except Exception:  # transformers raises many types for a bad file
        return ""
    return str(facts.get("model_type", ""))


class LocalAssistant:
    """Answers in batches; the seed of a batch is that of its first question."""

    def __init__(
        self,
        network: Any,
        tokenizer: Any,
        processor: Any,
        is_qwen_vl: bool,
        config: AssistantConfig,
        device: str,
    ) -> None:
        self._network, self._tokenizer, self._processor = network, tokenizer, processor
        self._is_qwen_vl, self._config, self._device = is_qwen_vl, config, device

    def check(self, model: str) -> None:
        """Raise UserError where the chat template fails, or the tokenizer has unknown ids."""
        try:
            ids = self._tokenizer(self._chat("Hello."))["input_ids"]
        except (TemplateError, ValueError, TypeError) as error:
            raise UserError(
                f"the chat template or the tokenizer of {model} cannot be used: {_reason(error)}",
                hint="put the files of this model into its folder again",
            ) from None
        pad = getattr(self._network.config, "image_token_id", None)
        if self._is_qwen_vl and self._tokenizer.convert_tokens_to_ids(IMAGE_PAD) != pad:
            raise UserError(
                f"the tokenizer of {model} has another id for {IMAGE_PAD} than its config.json, "
                f"{pad}",
                hint="put the tokenizer of this model into its folder",
            )
        rows = self._network.get_input_embeddings().weight.shape[0]
        if max([*ids, len(self._tokenizer) - 1]) >= rows:
            raise UserError(
                f"the tokenizer of {model} has {len(self._tokenizer):,} tokens, but the model has "
                f"{rows:,} embeddings",
                hint="put the tokenizer of this model into its folder",
            )

    def answer(self, questions: Sequence[LlmQuestion]) -> list[LlmAnswer]:
        size = self._config.batch_size
        answers: list[LlmAnswer] = []
        for start in range(0, len(questions), size):
            answers += self._batch(questions[start : start + size])
        return answers

    def first_token_probabilities(
        self, questions: Sequence[LlmQuestion], forms: Sequence[Sequence[str]]
    ) -> list[float]:
        """By the model's own logits, before any penalty of its generation config."""
        tokens = [self._whole_tokens(spellings) for spellings in forms]
        size = self._config.batch_size
        chances: list[float] = []
        for start in range(0, len(questions), size):
            try:
                inputs = self._inputs(questions[start : start + size])
            except ImageError as error:
                raise UserError(f"the picture cannot be shown: {error}") from None
            with torch.inference_mode():
                made = self._generate(
                    inputs,
                    do_sample=False,
                    max_new_tokens=1,
                    output_logits=True,
                    return_dict_in_generate=True,
                )
            rows = made.logits[0].double().softmax(-1).cpu()
            for row, ids in zip(rows, tokens[start : start + size], strict=True):
                chance = float(row[ids].sum())
                if not math.isfinite(chance):
                    raise UserError("the model's logits are not finite")
                chances.append(min(chance, 1.0))  # a sum of doubles may exceed 1 by rounding
        return chances

    def _whole_tokens(self, forms: Sequence[str]) -> list[int]:
        """The ids of the tokens that spell a form whole; raises UserError where there is none."""
        encoded = [self._tokenizer(form, add_special_tokens=False)["input_ids"] for form in forms]
        ids = sorted({row[0] for row in encoded if len(row) == 1})
        if not ids:
            raise UserError(
                f"the judge's tokenizer has no single token for the answer {forms[0]!r}",
                hint="another judge, as Qwen/Qwen3-VL-8B-Instruct",
            )
        return ids

    def _batch(self, questions: Sequence[LlmQuestion]) -> list[LlmAnswer]:
        try:
            inputs = self._inputs(questions)
        except ImageError as error:
            if len(questions) == 1:
                return [LlmAnswer(error=f"the picture cannot be shown: {error}")]
            return [answer for question in questions for answer in self._batch([question])]
        except TemplateError as error:
            if len(questions) == 1:
                return [LlmAnswer(error=f"the chat template fails: {_reason(error)}")]
            return [answer for question in questions for answer in self._batch([question])]
        greedy = self._config.temperature == 0
        sampling: dict[str, Any] = {"do_sample": not greedy}
        if not greedy:
            sampling |= {"temperature": self._config.temperature, "top_p": self._config.top_p}
            sampling |= {"top_k": 0}
        devices = [self._device] if self._device.startswith("cuda") else []
        with torch.random.fork_rng(devices), torch.inference_mode():
            torch.manual_seed(questions[0].seed)
            ids = self._generate(inputs, **sampling, max_new_tokens=self._config.max_tokens)
        prompt_lengths = inputs["attention_mask"].sum(1).tolist()
        answers = ids[:, inputs["input_ids"].shape[1] :]
        return [self._read(row, num) for row, num in zip(answers, prompt_lengths, strict=True)]

    def _generate(self, inputs: Mapping[str, Tensor], **options: Any) -> Any:
        """transformers' `generate`; UserError where the files of a stranger let it fail."""
        try:
            return self._network.generate(
                **{name: value.to(self._device) for name, value in inputs.items()},
                **options,
                pad_token_id=self._tokenizer.pad_token_id,
            )
        except (ValueError, TypeError, LookupError, AttributeError, StopIteration) as error:
            raise UserError(
                f"the model cannot answer with its settings and templates: {_reason(error)}",
                hint="put the files of this model into its folder again",
            ) from None

    def _read(self, ids: Tensor, num_prompt_tokens: int) -> LlmAnswer:
        """The text up to the end token; an answer without one was cut off."""
        ends = self._network.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends, self._tokenizer.eos_token_id]
        positions = [place for place, token in enumerate(ids.tolist()) if token in ends]
        text_ids = ids[: positions[0]] if positions else ids
        text = self._tokenizer.decode(text_ids, skip_special_tokens=True).strip()
        error = None
        if not positions:
            error = "the answer is cut off"
        else:
            try:
                text = answer_text(text)
            except UnusableAnswer as unusable:
                error = str(unusable)
        return LlmAnswer(
            text="" if error else text,
            error=error,
            num_prompt_tokens=num_prompt_tokens,
            num_tokens=len(text_ids) + len(positions[:1]),
        )

    def _inputs(self, questions: Sequence[LlmQuestion]) -> Mapping[str, Tensor]:
        pictures = [_small_picture(q.blob, q.max_pixels) for q in questions if q.blob is not None]
        if self._processor is None or not pictures:
            texts = [self._chat(question.text, question.examples) for question in questions]
            return dict(self._tokenizer(texts, return_tensors="pt", padding=True))
        if self._is_qwen_vl:
            return self._qwen_vl([question.text for question in questions], pictures)
        chats = [
            [{"role": "user", "content": [{"type": "text", "text": q.text}, {"type": "image"}]}]
            for q in questions
        ]
        texts = [_render(self._processor, chat) for chat in chats]
        rows = [[picture] for picture in pictures]
        return dict(self._processor(text=texts, images=rows, return_tensors="pt", padding=True))

    def _chat(self, text: str, examples: Sequence[tuple[str, str]] = ()) -> str:
        """The chat template filled with the turns, in which no text can spell a special token.

        The option `split_special_tokens` does the same, but not every tokenizer has it.
        """
        turns = [self._unmarked(turn) for turn in (*itertools.chain(*examples), text)]
        messages = [
            {"role": "assistant" if number % 2 else "user", "content": turn}
            for number, turn in enumerate(turns)
        ]
        return _render(self._tokenizer, messages)

    def _unmarked(self, text: str) -> str:
        """`text` with spaces between the letters of every special token that it spells."""
        for mark in map(str, self._tokenizer.added_tokens_decoder.values()):
            text = text.replace(mark, " ".join(mark))
        return text

    def _qwen_vl(self, texts: Sequence[str], pictures: Sequence[Any]) -> Mapping[str, Tensor]:
        """Qwen-VL's inputs: a picture's placeholder token is repeated for every merged patch."""
        vision = self._processor(images=list(pictures), return_tensors="pt")
        merged = self._processor.merge_size**2
        prompts = []
        for text, grid in zip(texts, vision["image_grid_thw"], strict=True):
            patches = int(grid.prod()) // merged
            mark = PICTURE.replace(IMAGE_PAD, IMAGE_PAD * patches)
            prompts.append(self._chat(text + "\x00").replace("\x00", mark))
        inputs = dict(self._tokenizer(prompts, return_tensors="pt", padding=True))
        pad = self._tokenizer.convert_tokens_to_ids(IMAGE_PAD)
        inputs["mm_token_type_ids"] = (inputs["input_ids"] == pad).int()
        return inputs | {
            "pixel_values": vision["pixel_values"],
            "image_grid_thw": vision["image_grid_thw"],
        }


class TemplateError(UserError):
    """A chat template that fails, or takes too long."""


def _render(owner: Any, messages: Sequence[Mapping[str, Any]]) -> str:
    """The chat template of a tokenizer or processor, filled; raises TemplateError.

    A template is a program from a stranger, run by jinja in a sandbox that bounds neither its time
    nor its memory.
    """
    try:
        with _bounded():
            chat = owner.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # jinja raises many types, and a template any of Python's
        raise TemplateError(_reason(error)) from None
    if not isinstance(chat, str) or not 0 < len(chat) <= MAX_CHAT_CHARS:
        raise TemplateError(f"it makes no text of 1 to {MAX_CHAT_CHARS:,} characters")
    return chat


@contextlib.contextmanager
def _bounded() -> Iterator[None]:
    """Raise TimeoutError after `MAX_TEMPLATE_S`, MemoryError beyond `MAX_TEMPLATE_BYTES` more.

    Only Unix has such limits, and only the main thread gets signals.
    """
    try:
        import resource
    except ImportError:
        yield
        return
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: Any) -> None:
        raise TimeoutError(f"it takes longer than {MAX_TEMPLATE_S} s")

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    in_use = _virtual_bytes()
    before = signal.signal(signal.SIGALRM, stop)
    try:
        if in_use and (soft == resource.RLIM_INFINITY or soft > in_use + MAX_TEMPLATE_BYTES):
            resource.setrlimit(resource.RLIMIT_AS, (in_use + MAX_TEMPLATE_BYTES, hard))
        signal.setitimer(signal.ITIMER_REAL, MAX_TEMPLATE_S)
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _virtual_bytes() -> int:
    """The address space that this process uses; 0 where the system does not tell it."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _small_picture(blob: bytes, max_pixels: int) -> Any:
    picture = decode(blob, max_pixels=max_pixels)
    picture.thumbnail((MAX_PICTURE_PX, MAX_PICTURE_PX))
    return picture
