"""Tar as a model of lmms-eval: each request is a picture and a question, answered greedily.

`TarChat` reads a task's messages, `TarSimple` its pictures and its text; everything else is shared.
The picture comes before the question wherever the task puts it, as in Tar's training. A request
that Tar cannot answer is refused with the names of task and document: no picture or several, video,
audio, several turns, sampling, likelihoods. Written against lmms-eval 0.7.3.
"""

from __future__ import annotations

import logging
import os
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

from lmms_eval.api.model import lmms
from lmms_eval.protocol import ChatMessages
from PIL import Image

from tarkit.errors import UserError
from tarkit.images import to_rgb
from tarkit.inference.tar_model import Tar
from tarkit.progress import Progress
from tarkit.vocab import Scale

MAX_NEW_TOKENS = 1024
"""For a task that sets none; the default of lmms-eval's LLaVA models."""

GREEDILY = "lmms-eval's --gen_kwargs temperature=0,do_sample=False,num_beams=1 asks for greedy"
# Greedy decoding does not use the last two, so ignoring them changes nothing.
KNOWN = {"until", "max_new_tokens", "temperature", "do_sample", "num_beams", "top_p", "top_k"}

log = logging.getLogger("tarkit")


class StopCondition(NamedTuple):
    """Where an answer ends: after `max_tokens`, or before one of the strings `until`."""

    max_tokens: int
    until: tuple[str, ...]


@dataclass(frozen=True)
class Request:
    """One request; `read` gives a document's media and the question."""

    task: str
    split: str
    doc_id: int
    context: Any
    generation: Mapping[str, Any]
    read: Callable[[Any], tuple[Sequence[Any], str]]

    def __str__(self) -> str:
        return f"task {self.task}, document {self.doc_id}"


class _LmmsTar(lmms):
    """What both models share: requests in, answers out in the same order."""

    def __init__(
        self,
        model: str = "mini",
        *,
        scale: int | None = None,
        device: str = "cpu",
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
    ) -> None:
        """`model=NAME|DIR` and `scale` are model_args; the others are lmms-eval's own options."""
        super().__init__()
        if max_batch_size is not None or not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise UserError(f"batch_size {batch_size}: give a number", hint="--batch_size 16")
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise UserError(
                "tar answers in one process; run it without torchrun or accelerate launch"
            )
        self.batch_size = int(batch_size)
        self.scale = None if scale is None else Scale(scale)
        # str: lmms-eval turns an argument that looks like a number into a number.
        self.tar = Tar.load(str(model), device=device, dtok=None)

    @property
    def device(self) -> Any:
        return self.tar.device

    @abstractmethod
    def request(self, arguments: tuple[Any, ...]) -> Request:
        """The request with the arguments that lmms-eval passes to a model of this kind."""

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """The answer to each request, cut off before the first of its stop strings."""
        parsed = [self.request(each.args) for each in requests]
        ignored: Counter[str] = Counter()
        stops = [_stop_condition(each, ignored) for each in parsed]
        for what, count in ignored.items():
            log.warning("%d of %d requests: %s is ignored", count, len(parsed), what)
        answers = [""] * len(parsed)
        with Progress("answer", total=len(parsed), unit="questions") as progress:
            for max_tokens in dict.fromkeys(stop.max_tokens for stop in stops):
                alike = [n for n, each in enumerate(stops) if each.max_tokens == max_tokens]
                for first in range(0, len(alike), self.batch_size):
                    batch = alike[first : first + self.batch_size]
                    texts = self._describe([parsed[n] for n in batch], max_tokens)
                    for n, answer in zip(batch, texts, strict=True):
                        answers[n] = cut(answer, stops[n].until)
                        key = (parsed[n].context, parsed[n].generation)
                        self.cache_hook.add_partial("generate_until", key, answers[n])
                    progress.advance(len(batch))
        return answers

    def _describe(self, requests: Sequence[Request], max_tokens: int) -> list[str]:
        opened = [self._open(each) for each in requests]
        pictures, questions = zip(*opened, strict=True)
        return self.tar.describe_many(pictures, questions, scale=self.scale, max_tokens=max_tokens)

    def _open(self, request: Request) -> tuple[Image.Image, str]:
        try:
            document = self.task_dict[request.task][request.split][request.doc_id]
            media, question = request.read(document)
            return to_rgb(_only_picture(media)), question
        except UserError as error:
            raise UserError(f"{request}: {error.message}", hint=error.hint) from None

    def loglikelihood(self, requests: Sequence[Any]) -> NoReturn:
        _refuse(requests, "likelihoods of given answers")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> NoReturn:
        _refuse(requests, "answers in several rounds")


class TarChat(_LmmsTar):
    """Reads a task's messages, which must be one turn of the user."""

    is_simple = False

    def request(self, arguments: tuple[Any, ...]) -> Request:
        context, doc_to_messages, generation, doc_id, task, split = arguments

        def read(doc: Any) -> tuple[Sequence[Any], str]:
            return _read_messages(ChatMessages(messages=doc_to_messages(doc)))

        return Request(task, split, doc_id, context, generation, read)


class TarSimple(_LmmsTar):
    """Reads a task's pictures and its text."""

    is_simple = True

    def request(self, arguments: tuple[Any, ...]) -> Request:
        context, generation, doc_to_visual, doc_id, task, split = arguments

        def read(doc: Any) -> tuple[Sequence[Any], str]:
            return doc_to_visual(doc) or [], context

        return Request(task, split, doc_id, context, generation, read)


def cut(answer: str, until: Sequence[str]) -> str:
    """The text before the first stop string, without blanks at its ends."""
    ends = [answer.index(stop) for stop in until if stop in answer]
    return answer[: min(ends, default=len(answer))].strip()


def _read_messages(chat: ChatMessages) -> tuple[Sequence[Any], str]:
    roles = [message.role for message in chat.messages]
    if roles != ["user"]:
        raise UserError(f"Tar reads one turn of a user, not {', '.join(roles) or 'none'}")
    (message,) = chat.messages
    text = "".join(content.text for content in message.content if content.type == "text")
    return [content.url for content in message.content if content.type != "text"], text


def _only_picture(media: Sequence[Any]) -> Image.Image:
    if len(media) == 1 and isinstance(media[0], Image.Image):
        return media[0]
    kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(map(_kind, media)).items())
    raise UserError(f"Tar reads one picture with a question, and this has {kinds or 'none'}")


def _kind(medium: Any) -> str:
    """In words: a picture, the name of a file (a video), or a type (audio is a dict)."""
    if isinstance(medium, Image.Image):
        return "picture(s)"
    return repr(medium) if isinstance(medium, str) else type(medium).__name__


def _stop_condition(request: Request, ignored: Counter[str]) -> StopCondition:
    """The stop condition of a request's `generation`; its unused options are counted in `ignored`.

    Raises UserError for an option that asks for other than greedy decoding.
    """
    given = {name: value for name, value in request.generation.items() if value is not None}
    temperature = float(given.get("temperature", 1.0 if given.get("do_sample") else 0.0))
    beams = given.get("num_beams", 1)
    if temperature > 0 or beams != 1:
        raise UserError(
            f"{request}: Tar answers greedily, and this asks for temperature {temperature}, "
            f"num_beams {beams}",
            hint=GREEDILY,
        )
    if given.get("do_sample"):
        ignored["do_sample at temperature 0"] += 1
    ignored.update(sorted(given.keys() - KNOWN))
    until = given.get("until", [])
    return StopCondition(
        max_tokens=int(given.get("max_new_tokens", MAX_NEW_TOKENS)),
        until=tuple(stop for stop in ([until] if isinstance(until, str) else until) if stop),
    )


def _refuse(requests: Sequence[Any], what: str) -> NoReturn:
    tasks = ", ".join(sorted({str(each.task_name) for each in requests}))
    raise UserError(f"task {tasks} asks for {what}, and Tar's plug-in answers questions only")
