"""The page: a tab for each thing that a person can do with the model.

All jobs wait in one queue, because they share the model; the page shows a person's place in it. A
mistake becomes a notice, and any other fault a sentence, with the details in the log on stderr.
"""

from __future__ import annotations

import functools
import html
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from tarkit.checkpoints.hub import DtokName
from tarkit.demo.studio import (
    MAX_PICTURES,
    MAX_PROMPT_CHARACTERS,
    DrawSettings,
    Step,
    Studio,
    read_upload,
)
from tarkit.errors import UserError, explained
from tarkit.inference.self_reflect import JudgeName
from tarkit.terminal import printable
from tarkit.vocab import IMAGE_MARK

LOG = logging.getLogger("tarkit")

# The last whole number that a browser counts exactly.
MAX_BROWSER_SEED = (1 << 53) - 1 - MAX_PICTURES
KNOWN_WORLD = (
    "a photo of a ring above a heart",
    "a photo of a yellow triangle and a purple cross",
    "a photo of two white diamonds",
    "a photo of a blue circle left of a red square",
    "a photo of a brown crescent",
)
WIDE_WORLD = (
    "a photo of a red apple on a wooden table",
    "a small boat on a lake at sunset",
    "a cat in a blue armchair, watercolour",
)
EXAMPLE_PICTURE = ("a photo of an orange heart", 1)
"""The prompt and seed of the picture that a person without one takes."""
QUESTIONS = {
    True: ("Describe the image.", "what color is the heart?", "is there a star in the image?"),
    False: ("Describe the image.", "What is in the middle of the image?"),
}
EDITS = {
    True: (f"a photo of {IMAGE_MARK} and a blue circle", f"a photo of {IMAGE_MARK} above a ring"),
    False: (f"make {IMAGE_MARK} a watercolour", f"{IMAGE_MARK} on a beach"),
}
DTOK_NAMES = {"ar": "AR (one code after the other)", "dif": "Diffusion (step by step)"}
# What Markdown gives a meaning; & and < are escaped before.
MARKED = re.compile(r"[\\`*_{}\[\]()#+\-.!|~$:]")
CSS = """
.gradio-container { max-width: 1100px !important; margin: 0 auto !important; }
.note td, .note th { white-space: nowrap; padding: 2px 10px !important; }
.upload-container img, .image-frame img { width: 100%; height: 100%; object-fit: contain; }
"""

Values = tuple[Any, ...]


def theme() -> gr.themes.Base:
    """A calm look in the fonts of the person's own computer."""
    return gr.themes.Soft(
        primary_hue="teal",
        neutral_hue="slate",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )


def page_of(studio: Studio) -> gr.Blocks:
    """The page of a model."""
    tar = studio.tar
    knows_few_words = bool(tar.words)
    with gr.Blocks(
        title=f"tarkit: {studio.model}", analytics_enabled=False, delete_cache=(600, 3600)
    ) as page:
        gr.Markdown(_introduction(studio))
        with gr.Tabs() as tabs:
            with gr.Tab("Draw", id="draw"):
                drawn = _draw_tab(studio)
            with gr.Tab("Ask", id="ask"):
                asked = _ask_tab(studio)
            with gr.Tab("Edit", id="edit"):
                edited = _edit_tab(studio)
            with gr.Tab("Reconstruct", id="reconstruct"):
                rebuilt = _reconstruct_tab(studio)
            with gr.Tab("Reflect", id="reflect"):
                _reflect_tab(studio)
            with gr.Tab("Dialect", id="dialect"):
                worded = _dialect_tab(studio)
        goals = {"ask": asked, "edit": edited, "reconstruct": rebuilt, "dialect": worded}
        drawn.carry_to(tabs, goals)
        if knows_few_words:
            with gr.Accordion("The words that this model knows", open=False):
                gr.Markdown(html.escape(", ".join(tar.words)))
    page.queue(max_size=64, default_concurrency_limit=1, api_open=False)
    return page


class _DrawnOutputs:
    """The pictures of a tab, which a person takes on to another tab."""

    def __init__(
        self, gallery: gr.Gallery, note: gr.Markdown, buttons: dict[str, gr.Button]
    ) -> None:
        self.gallery, self.note, self.buttons = gallery, note, buttons

    def carry_to(self, tabs: gr.Tabs, goals: dict[str, gr.Image]) -> None:
        """Let each button put the picture that was clicked, or else the first, into its tab."""
        clicked = gr.State(0)

        def remember(event: gr.SelectData) -> int:
            return int(event.index)

        _quick(self.gallery.select, remember, None, clicked)
        for name, button in self.buttons.items():

            def take(place: int, files: Any, goal: str = name) -> Values:
                if not files:
                    return gr.skip(), gr.skip(), "**There is no picture yet.** Draw one first."
                file, _ = files[min(place, len(files) - 1)]
                return file, gr.Tabs(selected=goal), gr.skip()

            outputs = [goals[name], tabs, self.note]
            _quick(button.click, take, [clicked, self.gallery], outputs)


def _draw_tab(studio: Studio) -> _DrawnOutputs:
    gr.Markdown("Write what the picture shows. The model writes it as codes, then draws the codes.")
    with gr.Row():
        with gr.Column(min_width=300):
            prompt = _prompt("What to draw", _world(studio)[0])
            _examples(prompt, _world(studio))
            n = _number_of("Pictures")
            more = _SettingsControls.of(studio)
            start, stop = _buttons("Draw")
        with gr.Column(min_width=300):
            gallery, note = _results()
            gr.Markdown("Click a picture to choose it, then take it to:")
            with gr.Row():
                buttons = {
                    "ask": gr.Button("Ask", size="sm", min_width=60),
                    "edit": gr.Button("Edit", size="sm", min_width=60),
                    "reconstruct": gr.Button("Reconstruct", size="sm", min_width=60),
                    "dialect": gr.Button("Dialect", size="sm", min_width=60),
                }

    def draw(prompt: str, n: int, *values: Any) -> Iterator[Step]:
        return studio.draw(prompt, more.settings(values), n=n)

    _job([start.click, prompt.submit], stop, draw, [prompt, n, *more.inputs], gallery, note)
    return _DrawnOutputs(gallery, note, buttons)


def _ask_tab(studio: Studio) -> gr.Image:
    gr.Markdown("Ask about a picture. The model reads it as codes and answers in words.")
    with gr.Row():
        with gr.Column(min_width=300):
            picture = _picture(studio)
            question = _prompt("Question", "Describe the image.")
            _examples(question, QUESTIONS[bool(studio.tar.words)])
            start, stop = _buttons("Ask")
        with gr.Column(min_width=300):
            answer = gr.Textbox(label="Answer", lines=4, interactive=False)
            note = gr.Markdown(elem_classes="note")

    def ask(file: Path | None, question: str) -> Values:
        try:
            return studio.answer(read_upload(file), question), ""
        except Exception as fault:
            return gr.skip(), told(fault)

    running = _queued([start.click, question.submit], ask, [picture, question], [answer, note])
    _quick(stop.click, lambda: "Stopped.", None, note, cancels=running)
    return picture


def _edit_tab(studio: Studio) -> gr.Image:
    gr.Markdown(
        f"Give a picture and write `{IMAGE_MARK}` where it belongs: it stands for your picture "
        "as a word would."
    )
    edits = EDITS[bool(studio.tar.words)]
    with gr.Row():
        with gr.Column(min_width=300):
            picture = _picture(studio)
            prompt = _prompt("What to draw", edits[0])
            _examples(prompt, edits)
            n = _number_of("Pictures")
            more = _SettingsControls.of(studio)
            start, stop = _buttons("Draw")
        with gr.Column(min_width=300):
            gallery, note = _results()

    def edit(file: Path | None, prompt: str, n: int, *values: Any) -> Iterator[Step]:
        return studio.edit(read_upload(file), prompt, more.settings(values), n=n)

    inputs = [picture, prompt, n, *more.inputs]
    _job([start.click, prompt.submit], stop, edit, inputs, gallery, note)
    return picture


def _reconstruct_tab(studio: Studio) -> gr.Image:
    gr.Markdown(
        "How much of a picture do the codes keep? The model turns it into codes, from many to few, "
        "and draws it again from the codes alone. A model draws only what it has learned to see."
    )
    with gr.Row():
        with gr.Column(min_width=300):
            picture = _picture(studio)
            more = _SettingsControls.of(studio, for_codes=False)
            start, stop = _buttons("Reconstruct")
        with gr.Column(min_width=300):
            gallery, note = _results()

    def reconstruct(file: Path | None, *values: Any) -> Iterator[Step]:
        return studio.reconstruct(read_upload(file), more.settings(values))

    _job([start.click], stop, reconstruct, [picture, *more.inputs], gallery, note)
    return picture


def _reflect_tab(studio: Studio) -> None:
    gr.Markdown(
        "The model draws several candidates, looks at each and keeps the best.\n"
        "- **P(yes)**: how surely it answers yes to “does the picture match?”, from 0 to 1.\n"
        "- **gain**: how much likelier your words make the picture; above 0 is a match."
    )
    with gr.Row():
        with gr.Column(min_width=300):
            prompt = _prompt("What to draw", _world(studio)[0])
            _examples(prompt, _world(studio))
            n = _number_of("Candidates", low=2)
            by = gr.Radio(
                [("gain", "gain"), ("P(yes)", "yes")], value="gain", label="Chosen by the highest"
            )
            more = _SettingsControls.of(studio)
            start, stop = _buttons("Draw and choose")
        with gr.Column(min_width=300):
            gallery, note = _results()

    def reflect(prompt: str, n: int, by: JudgeName, *values: Any) -> Iterator[Step]:
        return studio.reflect(prompt, more.settings(values), n=n, by=by)

    _job([start.click, prompt.submit], stop, reflect, [prompt, n, by, *more.inputs], gallery, note)


def _dialect_tab(studio: Studio) -> gr.Image:
    gr.Markdown(
        "Which words does the model use for a picture? Every code was made from one word of its "
        "language; the sheet shows the word in the place of the picture that it stands for, at "
        "each of three sizes of code. A dot · is a space. Click the sheet to enlarge it."
    )
    with gr.Row():
        with gr.Column(min_width=300):
            picture = _picture(studio)
            start, stop = _buttons("Show the words")
        with gr.Column(min_width=300, scale=2):
            gallery, note = _results(columns=1)

    def dialect(file: Path | None) -> Iterator[Step]:
        return studio.dialect(read_upload(file))

    _job([start.click], stop, dialect, [picture], gallery, note)
    return picture


class _SettingsControls:
    """The inputs of a tab's further settings, and what their values mean."""

    def __init__(self, inputs: dict[str, Any]) -> None:
        self.names, self.inputs = list(inputs), list(inputs.values())

    @classmethod
    def of(cls, studio: Studio, *, for_codes: bool = True) -> _SettingsControls:
        """Inputs in a closed panel; without `for_codes` only those of pixels."""
        tar = studio.tar
        inputs: dict[str, Any] = {}
        with gr.Accordion("More settings", open=False):
            inputs["seed"] = gr.Number(
                label="Seed",
                info="The same seed gives the same pictures.",
                value=0,
                precision=0,
                minimum=0,
                maximum=MAX_BROWSER_SEED,
            )
            if for_codes:
                inputs["scale"] = gr.Radio(
                    [(f"{scale.num_codes(tar.grid)} codes", int(scale)) for scale in tar.scales],
                    value=int(tar.default_scale),
                    label="Detail",
                    info=f"This model draws with {tar.default_scale.num_codes(tar.grid)}.",
                )
                inputs["prompt_guidance"] = gr.Slider(
                    1,
                    10,
                    value=tar.sampling.prompt_guidance,
                    step=0.5,
                    label="Follow the words",
                    info="How strictly the codes follow the words (prompt guidance); 1: off.",
                )
            inputs["guidance"] = gr.Slider(
                1,
                10,
                value=tar.sampling.guidance,
                step=0.5,
                label="Follow the codes",
                info="How strictly the pixels follow the codes (guidance); 1: off.",
            )
            if len(studio.dtoks) > 1:
                inputs["dtok"] = gr.Radio(
                    [(DTOK_NAMES[name], name) for name in studio.dtoks],
                    value=studio.dtoks[0],
                    label="De-tokenizer",
                    info="The part that turns codes into pixels.",
                )
        return cls(inputs)

    def settings(self, values: Sequence[Any]) -> DrawSettings:
        given = dict(zip(self.names, values, strict=True))
        if given["seed"] is None:
            raise UserError("The seed is empty.", hint="Any whole number is a seed, for example 0.")
        scale: int | None = given.get("scale")
        dtok: DtokName | None = given.get("dtok")
        return DrawSettings(
            seed=int(given["seed"]),
            scale=scale,
            prompt_guidance=given.get("prompt_guidance"),
            guidance=given["guidance"],
            dtok=dtok,
        )


def _introduction(studio: Studio) -> str:
    words = studio.tar.words
    limits = f"It has read only {len(words)} different words, about simple shapes." if words else ""
    return (
        f"## Pictures as words: {html.escape(studio.model)}\n\n"
        f"A model that draws and reads pictures as if they were text. {limits} Everything runs on "
        "this computer; nothing is sent anywhere."
    )


def _world(studio: Studio) -> Sequence[str]:
    return KNOWN_WORLD if studio.tar.words else WIDE_WORLD


def _prompt(label: str, value: str) -> gr.Textbox:
    return gr.Textbox(label=label, value=value, max_length=MAX_PROMPT_CHARACTERS, submit_btn=False)


def _examples(goal: gr.Textbox, texts: Sequence[str]) -> None:
    gr.Examples([[text] for text in texts], goal, label="Examples", api_visibility="private")


def _number_of(label: str, low: int = 1) -> gr.Slider:
    return gr.Slider(low, MAX_PICTURES, value=4, step=1, label=label)


def _picture(studio: Studio) -> gr.Image:
    """A place for a picture, whose value is the path of its file, and a button for an example."""
    picture = gr.Image(
        label="Your picture", sources=["upload", "clipboard"], height=260, buttons=[]
    )
    # gradio would decode the file without limits, and show what its decoder says of it. The method
    # of a subclass would do, but gradio writes a .pyi file next to the source of every subclass.
    picture.preprocess = _uploaded
    take = gr.Button("Take an example", size="sm")
    note = gr.Markdown(elem_classes="note")

    def example() -> Values:
        try:
            prompt, seed = EXAMPLE_PICTURE
            return studio.tar.imagine(prompt, seed=seed), ""
        except Exception as fault:
            return gr.skip(), told(fault)

    _queued([take.click], example, [], [picture, note])
    return picture


def _uploaded(payload: Any) -> Path | None:
    return Path(payload.path) if payload is not None and payload.path else None


def _buttons(start: str) -> tuple[gr.Button, gr.Button]:
    with gr.Row():
        return gr.Button(start, variant="primary", min_width=80), gr.Button("Stop", min_width=80)


def _results(columns: int = 2) -> tuple[gr.Gallery, gr.Markdown]:
    note = gr.Markdown(elem_classes="note")
    gallery = gr.Gallery(
        show_label=False,
        columns=columns,
        height="auto",
        object_fit="contain",
        format="png",
        interactive=False,
        buttons=["download", "fullscreen"],
    )
    return gallery, note


def _job(
    triggers: Sequence[Any],
    stop: gr.Button,
    job: Callable[..., Iterator[Step]],
    inputs: Sequence[Any],
    gallery: gr.Gallery,
    note: gr.Markdown,
) -> None:
    """Run a job on a trigger, show each of its steps, and end it where it is stopped."""

    @functools.wraps(job)
    def steps(*values: Any) -> Iterator[Values]:
        try:
            for step in job(*values):
                yield list(step.pictures), _markdown(step)
        except Exception as fault:
            yield gr.skip(), told(fault)

    running = _queued(triggers, steps, inputs, [gallery, note])
    _quick(stop.click, lambda: "Stopped.", None, note, cancels=running)


def _queued(triggers: Sequence[Any], run: Any, inputs: Sequence[Any], outputs: Any) -> Any:
    """An event that waits in the model's queue."""
    return gr.on(
        triggers,
        run,
        list(inputs),
        outputs,
        concurrency_id="model",
        concurrency_limit=1,
        api_visibility="private",
        scroll_to_output=False,
    )


def _quick(trigger: Any, run: Any, inputs: Any, outputs: Any, cancels: Any = None) -> None:
    """An event that needs no model and waits for nothing."""
    trigger(run, inputs, outputs, cancels=cancels, queue=False, api_visibility="private")


def _markdown(step: Step) -> str:
    """The lines of a step and its table, whose texts are shown as they are."""
    parts = [plain(line) for line in step.lines]
    if step.table:
        head, *rows = [f"| {' | '.join(map(plain, row))} |" for row in step.table]
        parts.append("\n".join([head, "|---" * len(step.table[0]) + "|", *rows]))
    return "\n\n".join(parts)


def plain(text: str) -> str:
    """Markdown that shows a text as it is, whoever wrote it."""
    return MARKED.sub(r"\\\g<0>", html.escape(printable(text), quote=False))


def told(fault: Exception) -> str:
    """What the page says of a fault: a mistake with its hint; else one sentence, and the log."""
    error = explained(fault)
    if error is None:
        LOG.error("the page met a fault", exc_info=fault)
        error = UserError(
            "Something went wrong, and the model gave no answer.",
            hint="The terminal in which tarkit demo runs shows the details.",
        )
    lines = f"**{plain(error.message)}**", plain(error.hint)
    return "\n\n".join(line for line in lines if line)
