"""`tarkit export hf`: the language model as a directory that transformers, and so vLLM, loads.

The exported model is a plain causal language model whose vocabulary has the image tokens; it runs
without tarkit. It does not include TA-Tok, AR-DTok and the image VQ, which turn pictures into ids
and back.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tarkit.artifacts.card import CARD, NOT_KNOWN, TRAINED_ON, trained_on, write_card
from tarkit.artifacts.files import whole_folder
from tarkit.checkpoints.directory import precision_of
from tarkit.checkpoints.hub import find
from tarkit.checkpoints.language_model import LoadedMllm, load_mllm
from tarkit.checkpoints.representation import TEXT_ALIGNED, representation_of
from tarkit.checkpoints.tar_config import identity_of
from tarkit.errors import UserError
from tarkit.vocab import CHAT_END, CHAT_START, END_OF_TEXT, Scale, Vocabulary


def run(model: str | Path, *, out: Path, precision: str = "float32") -> Path:
    """Write `model`'s language model to `out`, which must be empty or missing, or this export.

    `out` appears whole: after a kill, the same command writes it from the start. `precision` is
    float32, bfloat16 or float16. Raises UserError when `out` holds anything else, or a weight is
    beyond the range of `precision`.
    """
    dtype = precision_of(precision)
    places = find(model, dtok=None)
    path = places.mllm
    holds = out.exists() and (not out.is_dir() or any(out.iterdir()))
    if holds and not (out / CARD).is_file():
        raise UserError(f"{out} is not empty", hint="give another --out")
    loaded = load_mllm(path, dtype)
    representation = representation_of(loaded.config, path)
    if representation == "separate":
        raise UserError(
            f"{model} reads pictures by the features of an encoder (representation separate): it "
            "is no plain causal language model",
            hint="export a model of another representation",
        )
    vocabulary = loaded.vocabulary
    data = trained_on(places.folder or path) or [NOT_KNOWN]
    card = _card(str(model), loaded, precision, sha256=identity_of("mllm", path), data=data)
    if holds:
        # Inputs that were removed since then change only the section of the data.
        there = (out / CARD).read_text(encoding="utf-8", errors="replace")
        if there.partition(TRAINED_ON)[0] != card.partition(TRAINED_ON)[0]:
            raise UserError(
                f"{out} is not empty: it holds another model", hint="give another --out"
            )
        return out
    from transformers.utils.logging import disable_progress_bar

    network = loaded.model
    if not all(bool(p.isfinite().all()) for p in network.parameters()):
        raise UserError(
            f"{model} has weights beyond {precision}'s range", hint="--precision float32"
        )
    special = vocabulary.text.special
    ends = [special[CHAT_END], special[END_OF_TEXT]]
    network.config.eos_token_id = special[CHAT_END]
    network.config.pad_token_id = special[END_OF_TEXT]
    # No temperature or top_p is written: the caller chooses them.
    network.generation_config = type(network.generation_config)(
        eos_token_id=ends, pad_token_id=special[END_OF_TEXT]
    )
    with whole_folder(out) as folder:
        disable_progress_bar()  # a bar for a second, in a style of its own
        network.save_pretrained(folder)
        _write_tokenizer(vocabulary, folder, max_length=network.config.max_position_embeddings)
        (folder / CARD).write_text(card, encoding="utf-8")
    return out


def _write_tokenizer(vocabulary: Vocabulary, out: Path, *, max_length: int) -> None:
    from tokenizers import AddedToken, Tokenizer
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer.from_str(vocabulary.text.json)
    visual = vocabulary.visual
    if visual is not None:
        names = visual.tokens()
        tags = names[: visual.NUM_TAGS - len(Scale)]  # tags of a picture are special, as published
        tokenizer.add_special_tokens([AddedToken(name, special=True) for name in tags])
        rest = [AddedToken(name, special=False, normalized=False) for name in names[len(tags) :]]
        tokenizer.add_tokens(rest)
        wrong = [n for i, n in enumerate(names, visual.first_id) if tokenizer.token_to_id(n) != i]
        if wrong:
            raise UserError(f"{wrong[0]} cannot be given its id: the tokenizer has gaps")
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=CHAT_END,
        pad_token=END_OF_TEXT,
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )
    made.chat_template = chat_template(vocabulary.system)
    made.save_pretrained(out)


def chat_template(system: str | None) -> str:
    """The jinja template that writes a chat as it was trained (App. C.1)."""
    template = (
        "{% for message in messages %}"
        "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )
    if not system:
        return template
    # Not as escapes: jinja reads those of one emoji as two halves of a pair.
    turn = json.dumps(f"{CHAT_START}system\n{system}{CHAT_END}\n", ensure_ascii=False)
    absent = "not messages or messages[0]['role'] != 'system'"
    return f"{{% if {absent} %}}{{{{ {turn} }}}}{{% endif %}}{template}"


def _card(
    model: str, loaded: LoadedMllm, precision: str, *, sha256: str, data: Sequence[str]
) -> str:
    from huggingface_hub import ModelCardData

    visual, grid = loaded.vocabulary.visual, loaded.config.get("grid")
    about = ModelCardData(library_name="transformers", pipeline_tag="text-generation")
    lines = [
        f"# The language model of {model}",
        "",
        f"Written by `tarkit export hf {model}` in {precision}. A causal language model whose "
        "vocabulary holds pictures: it loads with `AutoModelForCausalLM`, and with vLLM.",
        "",
        f"Its weights are those of sha256 {sha256}.",
    ]
    if visual is not None:
        lines += [
            "",
            f"- Text ids: 0 to {visual.first_id - 1}.",
            f"- `<im_start>` {visual.image_start}, `<im_end>` {visual.image_end}, "
            f"`<S0>` to `<S2>` {visual.scale(Scale.FULL)} to {visual.scale(Scale.THIRD)}.",
            f"- Codes `<I0>` to `<I{visual.num_codes - 1}>`: {visual.first_code} to "
            f"{visual.size - 1}.",
            "",
            "To draw: a user turn, `<|im_start|>assistant\\n<im_start><S0>`, then exactly as many "
            "codes as the scale has, allowing no other id. To ask: the codes, a newline and the "
            "question in the user turn. Give prompts as ids: typed text could spell a code.",
        ]
    if grid is not None:
        is_aligned = representation_of(loaded.config, Path(model)) == TEXT_ALIGNED
        scales = tuple(Scale) if is_aligned else (Scale.FULL,)
        counts = ", ".join(f"{scale.token} {scale.num_codes(grid)}" for scale in scales)
        lines += ["", f"Codes of a picture: {counts}."]
    return write_card(about, "\n".join(lines), data)
