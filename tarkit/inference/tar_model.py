"""`Tar`, a complete system loaded from a model directory: pictures to words, words to pictures.

    from tarkit import Tar
    tar = Tar.load("mini")
    picture = tar.imagine("a photo of a red circle left of a blue square")
    tar.describe(picture, "what colour is the circle?")

Source: paper Fig. 2 and Sec. 3.3 (inference). B: pictures, N: image tokens of one scale.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tarkit.checkpoints.directory import precision_of, read_config
from tarkit.checkpoints.hub import DtokName, ModelPaths, find
from tarkit.checkpoints.language_model import LoadedMllm, load_mllm
from tarkit.checkpoints.load import (
    LoadedEncoder,
    LoadedTaTok,
    LoadedVqvae,
    load_pixel_tokenizer,
    load_reading_encoder,
    load_ta_tok,
)
from tarkit.checkpoints.product_forms import use_machines_forms
from tarkit.checkpoints.published_directory import PUBLISHED
from tarkit.checkpoints.representation import Representation, representation_of
from tarkit.checkpoints.tar_config import (
    ASSEMBLE,
    AssembleConfig,
    Sampling,
    fingerprints,
    identity_of,
    read_defaults,
)
from tarkit.errors import UserError
from tarkit.images import resize, to_rgb
from tarkit.inference.ar_detokenizer import ArDetokenizer
from tarkit.inference.dif_detokenizer import DifDetokenizer
from tarkit.llm.code_server import CodeServer
from tarkit.models.mllm import PROJECTOR, code_log_likelihood
from tarkit.models.mllm_decoding import generate_codes, generate_text, next_logits
from tarkit.models.pixel_range import from_unit_truncated, to_unit
from tarkit.models.skinny import use_products
from tarkit.seeds import generator_seed
from tarkit.vocab import END_OF_TEXT, FEATURE, IMAGE_MARK, Scale

WORD = re.compile(r"[^\W_]+(?:['-][^\W_]+)*")

YES = ("yes", "Yes", "YES")
NO = ("no", "No", "NO")

MAX_GRID = 1024
"""Codes along a side of a picture: more are no image VQ's."""

INT8 = "int8"
"""The precision of large linear layers whose weights are 8-bit integers, beside float32."""


def require_unguided(sampling: Sampling) -> None:
    """Raise UserError for guidance by the prompt, which no server can draw with."""
    if sampling.prompt_guidance != 1:
        raise UserError(
            "a server returns no logits, which guidance by the prompt "
            f"({sampling.prompt_guidance:g}) mixes",
            hint="--prompt-guidance 1, or without --server",
        )


class PicturesRead(NamedTuple):
    """What a language model reads for each of several pictures."""

    codes: list[list[int]]
    """N codes, or as many `FEATURE`."""
    features: list[Tensor]  # of each picture (N, D), the embeddings of its features; or no list


@dataclass(frozen=True)
class Tar:
    """Language model, tokenizer of pictures and a de-tokenizer, on one device.

    The tokenizer is a TA-Tok, or the image VQ of a model that reads or writes pixel codes, which
    draws by itself. `dtok` may be None, because reading pictures needs no de-tokenizer.
    """

    mllm: LoadedMllm
    tokenizer: LoadedTaTok | LoadedVqvae
    dtok: ArDetokenizer | DifDetokenizer | None
    sampling: Sampling
    default_scale: Scale
    """The scale at which pictures are drawn."""
    read_scale: Scale
    """The scale at which pictures are read for questions about them."""
    places: ModelPaths
    words: tuple[str, ...]
    """Every word of the prompts it was trained on, where they are few and known; else empty."""
    sha256: str
    """Identity of the tokenizer; artifacts of codes name it."""
    server: CodeServer | None = None
    """Draws the codes of pictures; None: the language model does so on this device."""
    reader: LoadedEncoder | None = None
    """The encoder whose features stand for pictures that are read; None: their codes do."""

    @classmethod
    def load(
        cls,
        model: str | Path = "mini",
        *,
        device: str = "cpu",
        size_px: int | None = None,
        dtok: DtokName | None = "ar",
        precision: str = "float32",
        draft: Path | None = None,
        server: str | None = None,
    ) -> Tar:
        """Load a model. Raises UserError for parts that are missing or do not fit each other.

        `model` is an embedded model, an assembled or published folder, a known name or a hub id
        (`tarkit.checkpoints.hub.find`). `dtok` chooses the de-tokenizer (None loads none), and
        `size_px` the side of the pictures of a published one. `precision` (float32, bfloat16 or
        float16) is for the language model and the de-tokenizer; TA-Tok, whose codes are an argmax,
        and the decoder from latents to pixels are float32. `draft` is a smaller AR-DTok that
        proposes the codes of pictures (models/speculative.py).
        """
        int8 = precision == INT8
        dtype = torch.float32 if int8 else precision_of(precision)
        if int8 and torch.device(device).type != "cpu":
            raise UserError(
                "precision int8 is for processors: a GPU multiplies bfloat16 faster",
                hint="--precision bfloat16",
            )
        if draft is not None and dtok != "ar":
            raise UserError(
                f"the draft {draft} is an AR-DTok, which proposes codes to an AR-DTok alone",
                hint="leave --draft or --dtok dif out",
            )
        code_server = None if server is None else CodeServer(server)
        places = find(model, size_px=size_px, dtok=dtok)
        assembled = places.folder
        defaults = AssembleConfig() if assembled is None else read_defaults(assembled)
        mllm = load_mllm(places.mllm, dtype)
        # The head, whose rows may be the embeddings, decides between near equals: it stays.
        use_products(mllm.model.base_model, int8=int8)
        tokenizer = _load_tokenizer(places, mllm)
        if assembled:
            _check_trained_on(places.mllm, tokenizer)
        if draft is not None and isinstance(tokenizer, LoadedVqvae):
            raise UserError(
                f"the draft {draft} proposes codes to an AR-DTok, and {model} draws with its image "
                "VQ alone",
                hint="leave --draft out",
            )
        detokenizer: ArDetokenizer | DifDetokenizer | None = None
        if places.ar_dtok and places.vqvae:
            if assembled:
                _check_trained_on(places.ar_dtok, tokenizer)
            detokenizer = ArDetokenizer.load(
                places.ar_dtok, places.vqvae, dtype, draft=draft, int8=int8
            )
        elif places.dif_dtok:
            detokenizer = DifDetokenizer.load(places.dif_dtok, dtype)
        _check_sizes(places, mllm, tokenizer, detokenizer)
        return cls(
            mllm=mllm,
            tokenizer=tokenizer,
            dtok=detokenizer,
            sampling=defaults.sampling,
            default_scale=defaults.default_scale,
            read_scale=defaults.read_scale or defaults.default_scale,
            places=places,
            words=defaults.words,
            sha256=tokenizer.sha256,
            server=code_server,
            reader=_load_reader(places, mllm),
        ).to(device)

    def to(self, device: str | torch.device) -> Tar:
        """This system, with all its parts moved to `device`."""
        reader = self.reader.model if self.reader else None
        for module in (self.mllm.model, self.tokenizer.model, self.dtok, reader):
            if module is not None:
                module.to(device)
        use_machines_forms([self.mllm.model])
        return self

    def identities(self) -> list[str]:
        """The identity of each part: the sha256 of its training or of its published files."""
        return [identity_of(part, path) for part, path in self.places.parts.items()]

    def fingerprints(self) -> dict[str, str]:
        """The sha256 of the weights, by part."""
        return fingerprints(self.places)

    def unknown_words(self, prompts: Iterable[str]) -> list[str]:
        """The words of `prompts` that no prompt of its training had; none where it is not known."""
        if not self.words:
            return []
        texts = (self._as_trained(prompt).replace(IMAGE_MARK, " ") for prompt in prompts)
        words = dict.fromkeys(word for text in texts for word in WORD.findall(text))
        return [word for word in words if word not in self.words]

    def _as_trained(self, prompt: str) -> str:
        """The prompt in lower case, where the words of the model's training are known."""
        return prompt.lower() if self.words else prompt

    @property
    def ta_tok(self) -> LoadedTaTok:
        """The TA-Tok of a text-aligned model; UserError for a model of another representation."""
        if isinstance(self.tokenizer, LoadedTaTok):
            return self.tokenizer
        raise UserError(
            f"{self.places.mllm} has no TA-Tok: it draws with pixel codes of an image VQ",
            hint="name a text-aligned model, such as mini",
        )

    @property
    def representation(self) -> Representation:
        """How the model sees pictures."""
        return representation_of(self.mllm.config, self.places.mllm)

    @property
    def scales(self) -> tuple[Scale, ...]:
        """The scales at which pictures have codes."""
        return self.tokenizer.scales

    @property
    def grid(self) -> int:
        return self.tokenizer.grid

    @property
    def size_px(self) -> int:
        """Side of the pictures that the tokenizer reads."""
        return self.tokenizer.size_px

    @property
    def device(self) -> torch.device:
        return next(self.tokenizer.model.parameters()).device

    def pixels(self, images: Sequence[Image.Image]) -> Tensor:
        """Pictures of any size -> (B, 3, size_px, size_px) in [0, 1], by PIL bicubic.

        Transparency is put on white, and 16-bit grey scaled, as `images.decode` does.
        """
        return self._sized(images, self.size_px)

    def _sized(self, images: Sequence[Image.Image], size_px: int) -> Tensor:
        sized = [np.asarray(resize(to_rgb(i), size_px, "squash")) for i in images]
        return to_unit(sized, self.device)

    def encode(self, images: Sequence[Image.Image], scales: Sequence[Scale]) -> dict[Scale, Tensor]:
        """Pictures -> codes (B, N) int64 of each scale, from one encoder pass."""
        return self.tokenizer.encode_scales(self.pixels(images), scales)

    def imagine_codes(
        self,
        prompts: Sequence[str],
        *,
        seeds: Sequence[int],
        scale: Scale | None = None,
        images: Sequence[Sequence[Image.Image]] | None = None,
        sampling: Sampling | None = None,
    ) -> Tensor:
        """Prompts -> codes (B, N), N = `scale.num_codes(grid)`.

        `images` has for each prompt one picture for every `<image>` mark (TI2I, I2I). Raises
        UserError for a model without visual tokens, or another number of pictures than marks.
        """
        scale = scale or self.default_scale
        if isinstance(self.tokenizer, LoadedVqvae):
            self.tokenizer.require_scale(scale)
        sampling = sampling or self.sampling
        visual = self.mllm.vocabulary.visual
        if visual is None:
            raise UserError(f"{self.places.mllm} has no visual tokens and cannot draw")
        conditions = images or [()] * len(prompts)
        ids, features = [], []
        for prompt, pictures in zip(map(self._as_trained, prompts), conditions, strict=True):
            read = self._marked(prompt, pictures, scale)
            marked = [(scale, codes) for codes in read.codes]
            ids.append(self.mllm.vocabulary.prompt(prompt, marked, draw=scale))
            features.append(torch.cat([self._no_features, *read.features]))
        if self.server is not None:
            require_unguided(sampling)
            if any(map(len, features)):
                raise UserError(
                    "a server reads ids alone, and this model reads pictures by an encoder's "
                    "features",
                    hint="leave --server or --image out",
                )
            rows = self.server.generate_codes(
                ids,
                visual=visual,
                num_codes=scale.num_codes(self.grid),
                temperature=sampling.temperature,
                top_k=sampling.top_k,
                top_p=sampling.top_p,
                seeds=[generator_seed(seed, "words") for seed in seeds],
            )
            return torch.tensor(rows, device=self.device)
        empty = self.mllm.vocabulary.prompt("", draw=scale)
        return generate_codes(
            self.mllm.model,
            ids,
            visual=visual,
            num_codes=scale.num_codes(self.grid),
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            generator=[
                torch.Generator().manual_seed(generator_seed(seed, "words")) for seed in seeds
            ],
            guidance=sampling.prompt_guidance,
            unguided=[empty] * len(ids),
            features=features if any(map(len, features)) else (),
        )

    def _marked(self, prompt: str, images: Sequence[Image.Image], scale: Scale) -> PicturesRead:
        """What the model reads for the picture at each `<image>` mark of a prompt, in order."""
        if not images:
            return PicturesRead([], [])
        if prompt.count(IMAGE_MARK) != len(images):
            raise UserError(
                f"the prompt has {prompt.count(IMAGE_MARK)} {IMAGE_MARK} marks for "
                f"{len(images)} pictures: {prompt!r}",
                hint=f'tarkit generate "a photo of {IMAGE_MARK} above a heart" --image FILE',
            )
        return self._read(images, scale)

    def _read(self, images: Sequence[Image.Image], scale: Scale) -> PicturesRead:
        """What the model reads for each picture, at a scale of its codes or of the features."""
        if self.reader is None:
            return PicturesRead(self.encode(images, [scale])[scale].tolist(), [])
        projector = self.mllm.model.get_submodule(PROJECTOR)
        sized = self._sized(images, self.reader.size_px)
        rows = self.reader.features(sized, [scale] * len(images))
        dtype = self._no_features.dtype
        with torch.no_grad():
            features = [projector(row.to(dtype)) for row in rows]
        return PicturesRead([[FEATURE] * len(row) for row in rows], features)

    @property
    def _no_features(self) -> Tensor:
        """(0, D), of the type and on the device of the embeddings."""
        return self.mllm.model.get_input_embeddings().weight.detach()[:0]

    def draw(
        self, codes: Tensor, *, seeds: Sequence[int], sampling: Sampling | None = None
    ) -> list[Image.Image]:
        """Codes (B, N) of any one scale -> pictures.

        `seeds` has one seed for each picture; an image VQ needs none. Raises UserError for codes of
        TA-Tok without a de-tokenizer.
        """
        if isinstance(self.tokenizer, LoadedVqvae):
            # One at a time: less memory, and the same bytes among any others.
            decoded = torch.cat(
                [self.tokenizer.decode(row) for row in codes.to(self.device).split(1)]
            )
            return [Image.fromarray(row) for row in from_unit_truncated(decoded)]
        sampling = sampling or self.sampling
        condition = self.ta_tok.condition(codes)
        generators = [
            torch.Generator().manual_seed(generator_seed(seed, "pixels")) for seed in seeds
        ]
        if isinstance(self.dtok, ArDetokenizer):
            pixels = self.dtok.draw(
                condition,
                guidance=sampling.guidance,
                temperature=sampling.dtok_temperature,
                top_k=sampling.dtok_top_k,
                top_p=sampling.dtok_top_p,
                generators=generators,
            )
        elif self.dtok is None:
            raise UserError("this model was loaded without a de-tokenizer and cannot draw")
        else:
            pixels = self.dtok.draw(
                condition,
                guidance=sampling.guidance,
                steps=sampling.dif_steps,
                generators=generators,
            )
        return [Image.fromarray(row) for row in from_unit_truncated(pixels)]

    def imagine(
        self,
        prompt: str,
        *,
        seed: int = 0,
        scale: Scale | None = None,
        images: Sequence[Image.Image] = (),
        sampling: Sampling | None = None,
    ) -> Image.Image:
        """One picture of a prompt; `images` replace its `<image>` marks."""
        return self.imagine_many(
            [prompt], seeds=[seed], scale=scale, images=[images], sampling=sampling
        )[0]

    def imagine_many(
        self,
        prompts: Sequence[str],
        *,
        seeds: Sequence[int],
        scale: Scale | None = None,
        images: Sequence[Sequence[Image.Image]] | None = None,
        sampling: Sampling | None = None,
    ) -> list[Image.Image]:
        """One picture for each prompt; it depends only on its own prompt and seed."""
        codes = self.imagine_codes(
            prompts, seeds=seeds, scale=scale, images=images, sampling=sampling
        )
        return self.draw(codes, seeds=seeds, sampling=sampling)

    def describe(
        self, image: Image.Image, question: str = "Describe the image.", *, max_tokens: int = 128
    ) -> str:
        """The model's answer to a question about a picture, decoded greedily."""
        return self.describe_many([image], [question], max_tokens=max_tokens)[0]

    def describe_many(
        self,
        images: Sequence[Image.Image],
        questions: Sequence[str],
        *,
        scale: Scale | None = None,
        max_tokens: int = 128,
    ) -> list[str]:
        """The answer to each question about its picture, decoded greedily.

        The pictures are read at `scale`, by default `read_scale`.
        """
        scale = scale or self.read_scale
        vocabulary = self.mllm.vocabulary
        read = self._read(images, scale)
        answers = generate_text(
            self.mllm.model,
            self._questions(read.codes, scale, questions),
            features=read.features,
            stop=[vocabulary.chat_end, vocabulary.text.special[END_OF_TEXT]],
            text_size=vocabulary.text.size,
            max_tokens=max_tokens,
        )
        return [vocabulary.text.decode(ids).strip() for ids in answers]

    def yes_probability(self, codes: Tensor, questions: Sequence[str]) -> list[float]:
        """P(yes) / (P(yes) + P(no)) of the first answer token, in [0, 1].

        P(yes) sums the tokens that begin YES, P(no) those that begin NO. `codes` (B, N), of any one
        scale, may come from pictures or from the model itself. With separate encoders the model
        reads the pictures that the codes are drawn as.
        """
        if self.reader is not None:
            pictures = self.draw(codes, seeds=range(len(codes)))
            return self.yes_probability_of(pictures, questions)
        scale = Scale.of(codes.shape[1], self.grid)
        return self._yes(PicturesRead(codes.tolist(), []), scale, questions)

    def yes_probability_of(
        self, images: Sequence[Image.Image], questions: Sequence[str]
    ) -> list[float]:
        """As `yes_probability`, of pictures that are read at `read_scale`."""
        return self._yes(self._read(images, self.read_scale), self.read_scale, questions)

    def _yes(self, read: PicturesRead, scale: Scale, questions: Sequence[str]) -> list[float]:
        ids = self._questions(read.codes, scale, questions)
        logits = next_logits(self.mllm.model, ids, features=read.features)
        p = logits.double().softmax(-1)
        encode = self.mllm.vocabulary.text.encode
        yes, no = (p[:, sorted({encode(form)[0] for form in forms})].sum(1) for forms in (YES, NO))
        return [float(value) for value in yes / (yes + no)]

    def prompt_gain(self, codes: Tensor, prompts: Sequence[str]) -> list[float]:
        """The gain in likelihood of each picture's codes (B, N) from its prompt.

        In nats per code: mean log p(codes | prompt) - mean log p(codes), an estimate of the
        pointwise mutual information by this model; 0 for a prompt that does not matter.
        """
        visual = self.mllm.vocabulary.visual
        if visual is None:
            raise UserError(f"{self.places.mllm} has no visual tokens and cannot read pictures")
        scale = Scale.of(codes.shape[1], self.grid)
        ids_of = self.mllm.vocabulary.prompt
        with_prompt, without_prompt = (
            code_log_likelihood(self.mllm.model, ids, codes, visual=visual)
            for ids in (
                [ids_of(self._as_trained(prompt), draw=scale) for prompt in prompts],
                [ids_of("", draw=scale) for _ in prompts],
            )
        )
        return [float(value) for value in with_prompt - without_prompt]

    def _questions(
        self, codes: Sequence[Sequence[int]], scale: Scale, questions: Sequence[str]
    ) -> list[list[int]]:
        """Ids of `picture, newline, question` up to the start of the answer (paper App. C.1)."""
        # The picture comes first; a mark in the question is plain text.
        return [
            self.mllm.vocabulary.question(question, (scale, row))
            for row, question in zip(codes, questions, strict=True)
        ]


def _load_reader(places: ModelPaths, mllm: LoadedMllm) -> LoadedEncoder | None:
    """The encoder of a model that reads features; UserError where it is not the one it learned."""
    if places.encoder is None:
        return None
    facts = mllm.config.get("reader")
    layer = facts.get("layer") if isinstance(facts, dict) else None
    if not isinstance(facts, dict) or type(layer) is not int:
        raise UserError(
            f"{places.mllm} has representation separate, and its config.json names no reader",
            hint=f"tarkit inspect {places.mllm}",
        )
    encoder = load_reading_encoder(places.encoder, layer=layer)
    if encoder.facts() != facts:
        raise UserError(
            f"{places.mllm} was trained with encoder {str(facts.get('encoder_sha256'))[:12]}, but "
            f"the encoder folder next to it holds {encoder.sha256[:12]}",
            hint=ASSEMBLE,
        )
    return encoder


def _load_tokenizer(places: ModelPaths, mllm: LoadedMllm) -> LoadedTaTok | LoadedVqvae:
    """The tokenizer of a model's pictures; UserError where its config.json does not fit it."""
    if places.ta_tok is not None:
        return load_ta_tok(places.ta_tok)
    assert places.vqvae is not None  # `find` names one of the two
    grid = mllm.config.get("grid")
    if type(grid) is not int or not 1 <= grid <= MAX_GRID:
        raise UserError(
            f"{places.mllm} has grid = {grid!r:.40}, the codes along a side of its pictures: no "
            f"whole number from 1 to {MAX_GRID}",
            hint=f"tarkit inspect {places.mllm}",
        )
    return load_pixel_tokenizer(places.vqvae, grid=grid)


def _check_trained_on(part: Path, tokenizer: LoadedTaTok | LoadedVqvae) -> None:
    """Raises UserError when `part` was trained on the codes of another tokenizer.

    A published part does not say on which; sizes are compared all the same.
    """
    config = read_config(part)
    sha256 = config.get("tokenizer_sha256")
    is_silent = sha256 is None and PUBLISHED in config
    if sha256 != tokenizer.sha256 and not is_silent:
        folder = "ta_tok" if isinstance(tokenizer, LoadedTaTok) else "vqvae"
        raise UserError(
            f"{part} was trained on codes of tokenizer {str(sha256)[:12]}, but the {folder} folder "
            f"next to it holds {tokenizer.sha256[:12]}",
            hint=ASSEMBLE,
        )


def _check_sizes(
    places: ModelPaths,
    mllm: LoadedMllm,
    tokenizer: LoadedTaTok | LoadedVqvae,
    dtok: ArDetokenizer | DifDetokenizer | None,
) -> None:
    """Raises UserError for sizes that differ; published files do not name their tokenizer."""
    visual = mllm.vocabulary.visual
    sizes = [(places.mllm, "codes", visual and visual.num_codes, tokenizer.num_codes)]
    if isinstance(tokenizer, LoadedTaTok) and dtok is not None:
        width = tokenizer.model.arch.encoder.width
        path = places.ar_dtok or places.dif_dtok or places.mllm
        sizes.append((path, "condition_width", dtok.condition_width, width))
    for path, name, size, needed in sizes:
        if size is not None and size != needed:
            raise UserError(
                f"{path} has {name} {size}, but the other parts need {needed}",
                hint="name parts that belong together",
            )
