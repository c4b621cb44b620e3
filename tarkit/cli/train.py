"""`tarkit train`: one part of the system at a time."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tarkit.cli.command import command, new_group
from tarkit.cli.options import (
    Device,
    Images,
    Json,
    Model,
    Out,
    Set,
    Tokenizer,
    TrainingConfig,
    Vqvae,
)
from tarkit.cli.output import device_of, part_of, trained
from tarkit.terminal import print_note

if TYPE_CHECKING:
    from tarkit.train.defaults import Defaults

group = new_group("Train one part of the system; the same command again continues.")


def _settings(
    config: Path | None, overrides: list[str] | None, choose: Callable[[], "Defaults"]
) -> tuple[Path, Sequence[str]]:
    """The TOML of a training and what is changed in it; without one, a recipe's, which is said."""
    given = overrides or ()
    if config is not None:
        return config, given
    from tarkit.recipes import recipe_file
    from tarkit.train.defaults import brief

    chosen = choose()
    file = recipe_file(chosen.recipe)
    if _is_first_process():
        changed = "".join(f" --set {change}" for change in chosen.overrides)
        print_note(
            f"no TOML was given: the settings are those of {chosen.recipe}{changed} "
            f"({brief(file)}); tarkit cat {chosen.recipe} prints them"
        )
    return file, (*chosen.overrides, *given)


def _announce(
    stage: str,
    config: Path,
    *,
    out: Path,
    overrides: Sequence[str],
    images: Sequence[Path] = (),
    chats: Sequence[Path] = (),
    **starts: Path | None,
) -> None:
    """Say what a training takes before its first step, where its costs are known."""
    if (out / "model.safetensors").exists() or not _is_first_process():
        return
    from tarkit.train.forecast import forecast

    expected = forecast(stage, config, overrides=overrides, images=images, chats=chats, **starts)
    if expected:
        print_note(f"{stage}: {expected.in_words()}")


def _is_first_process() -> bool:
    return os.environ.get("RANK", "0") == "0"


@command(group, "vqvae")
def train_vqvae(
    images: Images,
    out: Out,
    config: TrainingConfig = None,
    start: Annotated[
        Path | None,
        typer.Option(
            "--start",
            metavar="DIR|NAME",
            help="An image VQ to go on with: its codebook is kept, and used from the first step.",
        ),
    ] = None,
    lpips: Annotated[
        list[Path] | None,
        typer.Option(
            "--lpips",
            metavar="FILE",
            help="Weights of LPIPS for the perceptual loss: once VGG16's, once the heads'.",
        ),
    ] = None,
    overrides: Set = None,
    as_json: Json = False,
) -> int:
    """Train the image VQ, from pixels to codes and back.

    LPIPS and a discriminator are off by default; the settings perceptual and discriminator_from
    turn them on.
    """
    from tarkit.train import defaults, vqvae

    begun = part_of(start, "vqvae") if start else None
    config, changes = _settings(
        config, overrides, lambda: defaults.vqvae_defaults(lpips=lpips or (), start=begun)
    )
    _announce("vqvae", config, out=out, overrides=changes, images=images)
    path = vqvae.run(
        config, images=images, out=out, start=begun, lpips=lpips or (), overrides=changes
    )
    return trained(path, as_json)


@command(group, "encoder")
def train_encoder(
    images: Images,
    out: Out,
    config: TrainingConfig = None,
    overrides: Set = None,
    as_json: Json = False,
) -> int:
    """Train a small SigLIP on pictures and captions, instead of the pretrained one of the paper."""
    from tarkit.shapes.regions import regions_of
    from tarkit.train import defaults, encoder

    config, changes = _settings(config, overrides, defaults.encoder_defaults)
    _announce("encoder", config, out=out, overrides=changes, images=images)
    path = encoder.run(config, images=images, out=out, overrides=changes, regions_of=regions_of)
    return trained(path, as_json)


@command(group, "tokenizer")
def train_tokenizer(
    images: Images,
    encoder: Annotated[
        Path,
        typer.Option(
            "--encoder",
            metavar="DIR|HUB-ID",
            help="The vision encoder: SigLIP or SigLIP 2 of a fixed resolution, or a trained one.",
        ),
    ],
    lm: Annotated[
        Path,
        typer.Option(
            "--lm",
            metavar="DIR|HUB-ID|FILE",
            help="The causal language model whose embeddings make the codebook, or a safetensors "
            "file of it.",
        ),
    ],
    out: Out,
    config: TrainingConfig = None,
    overrides: Set = None,
    as_json: Json = False,
) -> int:
    """Train TA-Tok, whose codebook is made of the embeddings of a language model.

    The encoder is also the frozen teacher. Of the language model only its table of embeddings is
    read. Hub ids are taken from the local cache; nothing is downloaded.
    """
    from tarkit.train import defaults, tokenizer

    config, changes = _settings(
        config,
        overrides,
        lambda: defaults.tokenizer_defaults(images=images, encoder=encoder, lm=lm),
    )
    _announce(
        "tokenizer", config, out=out, overrides=changes, images=images, encoder=encoder, lm=lm
    )
    path = tokenizer.run(config, images=images, encoder=encoder, lm=lm, out=out, overrides=changes)
    return trained(path, as_json)


@command(group, "ar-dtok")
def train_ar_dtok(
    tokenizer: Tokenizer,
    vqvae: Vqvae,
    out: Out,
    config: TrainingConfig = None,
    tokens: Annotated[
        list[Path] | None,
        typer.Option(
            "--tokens",
            metavar="DIR",
            help="Codes made by `tarkit encode --vqvae`; may be repeated.",
        ),
    ] = None,
    images: Annotated[
        list[Path] | None,
        typer.Option(
            "--images",
            metavar="DIR",
            help="An images artifact to encode while training, in place of --tokens; several are "
            "mixed by images_weights.",
        ),
    ] = None,
    start: Annotated[
        Path | None,
        typer.Option(
            "--start",
            metavar="DIR|NAME",
            help="An AR-DTok to start from; one of another resolution fits too.",
        ),
    ] = None,
    overrides: Set = None,
    as_json: Json = False,
) -> int:
    """Train the autoregressive de-tokenizer, from codes of TA-Tok to codes of the image VQ.

    Give --tokens or --images.
    """
    from tarkit.train import ar_dtok, defaults

    ta_tok, image_vq = part_of(tokenizer, "ta_tok"), part_of(vqvae, "vqvae")
    begun = part_of(start, "ar_dtok") if start else None
    config, changes = _settings(
        config,
        overrides,
        lambda: defaults.ar_dtok_defaults(tokenizer=ta_tok, vqvae=image_vq, start=begun),
    )
    _announce(
        "ar_dtok",
        config,
        out=out,
        overrides=changes,
        images=images or (),
        tokenizer=ta_tok,
        vqvae=image_vq,
    )
    path = ar_dtok.run(
        config,
        images=images or (),
        tokens=tokens or (),
        tokenizer=ta_tok,
        vqvae=image_vq,
        out=out,
        start=begun,
        overrides=changes,
    )
    return trained(path, as_json)


@command(group, "dif-dtok")
def train_dif_dtok(
    tokenizer: Tokenizer,
    sana: Annotated[
        str,
        typer.Option(
            "--sana",
            metavar="DIR|HUB-ID",
            help="The SANA (or Dif-DTok) to start from, in the layout of diffusers.",
        ),
    ],
    out: Out,
    config: TrainingConfig = None,
    tokens: Annotated[
        list[Path] | None,
        typer.Option(
            "--tokens",
            metavar="DIR",
            help="Codes and latents made by `tarkit encode --sana`; may be repeated.",
        ),
    ] = None,
    images: Annotated[
        list[Path] | None,
        typer.Option(
            "--images",
            metavar="DIR",
            help="Pictures to encode while training, in place of --tokens; may be repeated, mixed "
            "by images_weights.",
        ),
    ] = None,
    overrides: Set = None,
    as_json: Json = False,
) -> int:
    """Train the diffusion de-tokenizer: a pretrained SANA learns to draw from codes of TA-Tok.

    Give --tokens or --images.
    Only its cross-attention and its condition embedding are trained.
    A hub id is looked for in the hub's cache; nothing is downloaded.
    The result is a folder in the published layout, for `tarkit assemble --dif-dtok`.
    """
    from tarkit.train import defaults, dif_dtok

    config, changes = _settings(
        config, overrides, lambda: defaults.dif_dtok_defaults(sana=Path(sana))
    )
    ta_tok = part_of(tokenizer, "ta_tok")
    _announce(
        "dif_dtok",
        config,
        out=out,
        overrides=changes,
        images=images or (),
        tokenizer=ta_tok,
        sana=Path(sana),
    )
    path = dif_dtok.run(
        config,
        images=images or (),
        tokens=tokens or (),
        tokenizer=ta_tok,
        sana=sana,
        out=out,
        overrides=changes,
    )
    return trained(path, as_json)


@command(group, "mllm")
def train_mllm(
    chats: Annotated[
        list[Path],
        typer.Option("--chats", metavar="DIR", help="A chats artifact; may be repeated."),
    ],
    out: Out,
    config: TrainingConfig = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option("--tokenizer", metavar="DIR", help="The TA-Tok that made the codes."),
    ] = None,
    lm: Annotated[
        Path | None,
        typer.Option(
            "--lm",
            metavar="DIR|NAME|HUB-ID",
            help="The language model to start from: a folder, a model such as tar-1.5b, or a hub "
            "id in the local cache; default: from scratch.",
        ),
    ] = None,
    ar_dtok: Annotated[
        Path | None,
        typer.Option(
            "--ar-dtok", metavar="DIR", help="The de-tokenizer for sample sheets; needs --vqvae."
        ),
    ] = None,
    vqvae: Annotated[
        Path | None,
        typer.Option(
            "--vqvae",
            metavar="DIR|NAME",
            help="The image VQ for sample sheets, with --ar-dtok; with representation vq, separate "
            "or hybrid the one that made the codes.",
        ),
    ] = None,
    encoder: Annotated[
        Path | None,
        typer.Option(
            "--encoder",
            metavar="DIR|HUB-ID",
            help="With representation separate: the frozen encoder that reads pictures, a trained "
            "one or a SigLIP of transformers.",
        ),
    ] = None,
    images: Annotated[
        list[Path] | None,
        typer.Option(
            "--images",
            metavar="DIR",
            help="With representation separate: the pictures of the chats; may be repeated.",
        ),
    ] = None,
    overrides: Set = None,
    as_json: Json = False,
) -> int:
    """Train the language model on text and pictures.

    With --tokenizer pictures are codes of TA-Tok.
    For the other representations set `representation` and give --vqvae in its place.
    Without either it trains on text alone.
    """
    from tarkit.checkpoints.hub import find_folder, find_language_model
    from tarkit.train import defaults, mllm

    ta_tok = part_of(tokenizer, "ta_tok") if tokenizer else None
    image_vq = part_of(vqvae, "vqvae") if vqvae else None
    begun = find_language_model(lm) if lm else None
    config, changes = _settings(
        config,
        overrides,
        lambda: defaults.mllm_defaults(
            chats=chats, tokenizer=ta_tok, vqvae=None if ar_dtok else image_vq, lm=begun
        ),
    )
    reader = find_folder(encoder) if encoder else None
    _announce(
        "mllm",
        config,
        out=out,
        overrides=changes,
        chats=chats,
        tokenizer=ta_tok,
        vqvae=image_vq,
        encoder=reader,
        lm=begun,
    )
    path = mllm.run(
        config,
        chats=chats,
        tokenizer=ta_tok,
        lm=begun,
        ar_dtok=part_of(ar_dtok, "ar_dtok") if ar_dtok else None,
        vqvae=image_vq,
        encoder=reader,
        images=images or (),
        out=out,
        overrides=changes,
    )
    return trained(path, as_json)


@command(group, "grpo")
def train_grpo(
    prompts: Annotated[
        Path,
        typer.Option("--prompts", metavar="PATH", help="The prompts, a file or an artifact."),
    ],
    scorer: Annotated[
        str,
        typer.Option(
            "--scorer", metavar="NAME", help="The reward: a scorer of `tarkit curate score`."
        ),
    ],
    out: Out,
    config: TrainingConfig = None,
    model: Model = "mini",
    scorer_model: Annotated[
        str | None,
        typer.Option("--scorer-model", metavar="DIR|HUB-ID|NAME", help="The model of the scorer."),
    ] = None,
    column: Annotated[
        str | None,
        typer.Option(
            "--column", metavar="NAME", help="The column of the scorer that is the reward."
        ),
    ] = None,
    chats: Annotated[
        list[Path] | None,
        typer.Option(
            "--chats", metavar="DIR", help="Chats to train on at the same time; may be repeated."
        ),
    ] = None,
    device: Device = "auto",
    overrides: Set = None,
    as_json: Json = False,
) -> int:
    """Train a model by reinforcement learning (GRPO) on the scores of the pictures that it draws.

    --scorer shapes rewards pictures of the shapes world that show their prompt.
    --device is for the scorer; accelerate places the model.
    The result is a language model for `tarkit assemble`.
    """
    from tarkit.train import defaults, grpo

    config, changes = _settings(
        config, overrides, lambda: defaults.grpo_defaults(chats=chats or ())
    )
    lm, ta_tok, dtok, image_vq = grpo.places_of(model)
    _announce(
        "grpo",
        config,
        out=out,
        overrides=changes,
        lm=lm,
        tokenizer=ta_tok,
        ar_dtok=dtok,
        vqvae=image_vq,
    )
    path = grpo.run(
        config,
        model=model,
        prompts=prompts,
        scorer=scorer,
        scorer_model=scorer_model,
        column=column,
        chats=chats or (),
        out=out,
        device=device_of(device),
        overrides=changes,
    )
    return trained(path, as_json)
