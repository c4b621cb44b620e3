"""`tarkit generate`: pictures of one prompt, or of every prompt of a file.

The seed of a picture is `seed + 1000 * prompt row + sample`. The PNG and a .jsonl file hold it with
the prompt, the model and all sampling settings, so every picture can be drawn again. With a
`Reflection` the model draws several candidates of each picture, judges them and keeps one; the
record then has the judge, its score and the number of the candidate. The pictures of a file of
prompts are `DIR/00000/0000.png` (prompt row, sample); the same command again draws what is missing.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from tarkit.artifacts.files import write_whole
from tarkit.artifacts.manifest import begin_directory
from tarkit.artifacts.samples import SAMPLE_RECORDS, SAMPLE_SHEET, SAMPLES
from tarkit.checkpoints.hub import DtokName
from tarkit.checkpoints.load import model_sha256
from tarkit.checkpoints.tar_config import Sampling
from tarkit.config import provenance
from tarkit.errors import UserError
from tarkit.images import (
    contact_sheet,
    decode,
    png_bytes,
    read_picture,
    require_own_png,
    require_png,
)
from tarkit.inference.ar_detokenizer import note_acceptance
from tarkit.inference.content_credentials import Credentials, read_credentials
from tarkit.inference.self_reflect import BestCandidate, Reflection, best_of, draw
from tarkit.inference.tar_model import Tar, require_unguided
from tarkit.progress import Progress
from tarkit.terminal import print_note
from tarkit.vocab import IMAGE_MARK, Scale

BATCH_SIZE = 16
SEEDS_PER_PROMPT = 1000
SHEET_PICTURES = 100


class Sample(NamedTuple):
    """One picture to draw: the `row` of its prompt and its `number` among the prompt's samples."""

    row: int
    number: int
    prompt: str
    seed: int

    @property
    def file(self) -> str:
        return f"{self.row:05d}/{self.number:04d}.png"


@dataclass(frozen=True)
class Generated:
    """A folder of pictures, and the number of pictures in it."""

    path: Path
    num_pictures: int


def run(
    prompt: str,
    *,
    out: Path,
    model: str = "mini",
    images: Sequence[Path] = (),
    n: int = 1,
    seed: int = 0,
    scale: int | None = None,
    sampling: Mapping[str, float | int] | None = None,
    reflection: Reflection | None = None,
    device: str = "cpu",
    size_px: int | None = None,
    dtok: DtokName = "ar",
    precision: str = "float32",
    c2pa: Path | None = None,
    draft: Path | None = None,
    server: str | None = None,
) -> list[Path]:
    """Draw `n` pictures of `prompt`; returns the files: `out`, or `out` numbered when n > 1.

    `out` + ".jsonl" gets a line for each picture with the settings that drew it. `images` replace
    the `<image>` marks of the prompt in their order. `c2pa` is a PEM with the key and certificates
    that sign the pictures. Raises UserError for a prompt that cannot be drawn and for a key that
    cannot sign, before the model is loaded.
    """
    prompt = _checked(prompt, len(images), "the prompt")
    require_png(out)
    credentials = read_credentials(c2pa) if c2pa else None
    conditions = [read_picture(path) for path in images]
    tar = Tar.load(
        model,
        device=device,
        size_px=size_px,
        dtok=dtok,
        precision=precision,
        draft=draft,
        server=server,
    )
    _note_unknown_words(tar, model, [prompt])
    settings = _Settings.of(tar, model, scale, sampling, precision, reflection, draft, server)
    samples = _samples([prompt], n, seed)
    files = [_numbered(out, sample.number) if n > 1 else out for sample in samples]
    for file, sample in zip(files, samples, strict=True):
        require_own_png(file, settings.text(sample, None, conditions))
    for start in range(0, n, BATCH_SIZE):
        batch = samples[start : start + BATCH_SIZE]
        for sample, (picture, kept) in zip(
            batch, _draw(tar, batch, settings, conditions), strict=True
        ):
            file = files[sample.number]
            text = settings.text(sample, kept, conditions)
            write_whole(file, _png(picture, text, file, credentials))
    note_acceptance(tar.dtok)
    records = [_record(settings, sample, files[sample.number]) for sample in samples]
    _write_jsonl(out.with_name(f"{out.name}.jsonl"), records)
    return files


def run_file(
    prompts: Path,
    *,
    out: Path,
    model: str = "mini",
    n: int = 1,
    seed: int = 0,
    scale: int | None = None,
    sampling: Mapping[str, float | int] | None = None,
    limit: int | None = None,
    split: str | None = None,
    reflection: Reflection | None = None,
    device: str = "cpu",
    size_px: int | None = None,
    dtok: DtokName = "ar",
    precision: str = "float32",
    c2pa: Path | None = None,
    draft: Path | None = None,
    server: str | None = None,
) -> Generated:
    """Draw `n` pictures of each prompt into `out`, with `samples.jsonl` and `sheet.png`.

    `limit` takes the first prompts, and `split` the captions of these pictures of an images
    artifact. `c2pa` signs as in `run`. A run that is continued gives
    the same pictures: its batches stay the same, and a batch with a missing picture is drawn again
    as a whole.
    """
    from tarkit.artifacts.prompt_files import read_prompts  # pyarrow: not for a single prompt

    texts = read_prompts(prompts, limit=limit, split=split)
    texts = [_checked(text, 0, f"prompt {row} of {prompts}") for row, text in enumerate(texts)]
    credentials = read_credentials(c2pa) if c2pa else None
    tar = Tar.load(
        model,
        device=device,
        size_px=size_px,
        dtok=dtok,
        precision=precision,
        draft=draft,
        server=server,
    )
    _note_unknown_words(tar, model, texts)
    settings = _Settings.of(tar, model, scale, sampling, precision, reflection, draft, server)
    digest = hashlib.sha256("\n".join(texts).encode()).hexdigest()
    plan = {"prompts_sha256": digest, "num_prompts": len(texts), "n": n, "seed": seed}
    plan |= {"c2pa_certificate_sha256": credentials.sha256} if credentials else {}
    begin_directory(out, SAMPLES, settings={**plan, "batch_size": BATCH_SIZE, **settings.facts()})
    samples = _samples(texts, n, seed)
    with Progress("generate", total=len(samples), unit="pictures") as progress:
        for start in range(0, len(samples), BATCH_SIZE):
            batch = samples[start : start + BATCH_SIZE]
            missing = [sample for sample in batch if not _is_drawn(out / sample.file)]
            pictures = _draw(tar, batch, settings, ()) if missing else []
            for sample, (picture, kept) in zip(batch, pictures, strict=bool(missing)):
                if sample in missing:
                    file = out / sample.file
                    write_whole(file, _png(picture, settings.text(sample, kept), file, credentials))
            progress.advance(len(batch))
    note_acceptance(tar.dtok)
    records = [_record(settings, sample, out / sample.file, sample.file) for sample in samples]
    _write_jsonl(out / SAMPLE_RECORDS, records)
    write_whole(out / SAMPLE_SHEET, png_bytes(_sheet(out, samples, n)))
    return Generated(out, len(samples))


@dataclass(frozen=True)
class _Settings:
    """What all pictures of a run share: the model, the scales and all sampling settings."""

    model: str
    model_sha256: str
    precision: str
    scale: Scale
    read_scale: Scale
    sampling: Sampling
    reflection: Reflection | None
    draft_sha256: str | None
    """Identity of the model that proposed the codes of pictures, which other numbers then draw."""
    served: bool
    """Whether a server drew TA-Tok's codes."""

    @classmethod
    def of(
        cls,
        tar: Tar,
        model: str,
        scale: int | None,
        changes: Mapping[str, float | int] | None,
        precision: str,
        reflection: Reflection | None,
        draft: Path | None,
        server: str | None,
    ) -> _Settings:
        complete = tar.sampling.changed(changes)
        if server is not None:
            require_unguided(complete)
        return cls(
            model=model,
            model_sha256=_fingerprint(tar),
            precision=precision,
            scale=Scale(scale) if scale is not None else tar.default_scale,
            read_scale=tar.read_scale,
            sampling=complete,
            reflection=reflection,
            draft_sha256=None if draft is None else model_sha256(draft, "ar_dtok"),
            served=server is not None,
        )

    def facts(self) -> dict[str, Any]:
        """The settings for a manifest or a record."""
        facts: dict[str, Any] = {
            "model_sha256": self.model_sha256,
            "precision": self.precision,
            "scale": int(self.scale),
            "sampling": self.sampling.model_dump(mode="json"),
        }
        if self.draft_sha256:
            facts["draft_sha256"] = self.draft_sha256
        if self.served:
            facts["drawn_by"] = "server"  # its draws are other ones, whatever the seed
        if self.reflection:
            facts["reflection"] = {**asdict(self.reflection), "read_scale": int(self.read_scale)}
        return facts

    def text(
        self, sample: Sample, kept: BestCandidate | None, images: Sequence[Image.Image] = ()
    ) -> dict[str, str]:
        """The text chunks of a PNG.

        `reflection` holds the score of the kept candidate, and `images` the sha256 of the pixels of
        each picture in the prompt.
        """
        chosen = kept and {"score": kept.score, "candidate": kept.number, "tried": kept.tried}
        return {
            **({"reflection": json.dumps(chosen)} if chosen else {}),
            **({"draft_sha256": self.draft_sha256} if self.draft_sha256 else {}),
            **({"drawn_by": "server"} if self.served else {}),
            **({"images": json.dumps([_pixels_sha256(i) for i in images])} if images else {}),
            "prompt": sample.prompt,
            "model": self.model,
            "model_sha256": self.model_sha256,
            "precision": self.precision,
            "seed": str(sample.seed),
            "scale": str(int(self.scale)),
            "sampling": json.dumps(self.sampling.model_dump(mode="json")),
            "Software": f"tarkit {provenance()['tarkit']}",
        }


def _is_drawn(file: Path) -> bool:
    """Whether an earlier run drew this picture; UserError where it is damaged since."""
    if not file.exists():
        return False
    try:
        read_picture(file)
    except UserError as error:
        raise _damaged(file, error.message) from None
    return True


def _damaged(file: Path, why: str) -> UserError:
    hint = f"rm {shlex.quote(str(file))}; then the same command draws it again"
    return UserError(why, hint=hint)


def _record(
    settings: _Settings, sample: Sample, file: Path, name: str | None = None
) -> dict[str, Any]:
    """One line of the .jsonl file; the kept candidate is read from the PNG."""
    picture_facts = {"file": name or file.name, "prompt_row": sample.row, "sample": sample.number}
    record = {**picture_facts, "prompt": sample.prompt, "seed": sample.seed, **settings.facts()}
    if settings.reflection:
        with Image.open(file) as picture:
            text = picture.info.get("reflection", "")
        try:
            record["chosen"] = json.loads(text)
        except (RecursionError, TypeError, ValueError):
            raise _damaged(file, f"{file} does not say which candidate it is") from None
    return record


def _fingerprint(tar: Tar) -> str:
    """One sha256 of a model: of the identities of its parts, in their fixed order."""
    return hashlib.sha256("\n".join(tar.identities()).encode()).hexdigest()


def _pixels_sha256(picture: Image.Image) -> str:
    return hashlib.sha256(picture.tobytes()).hexdigest()


def _samples(prompts: Sequence[str], n: int, seed: int) -> list[Sample]:
    if n > SEEDS_PER_PROMPT:
        raise UserError(f"--n {n}: a prompt has at most {SEEDS_PER_PROMPT} samples")
    return [
        Sample(row, number, prompt, seed + SEEDS_PER_PROMPT * row + number)
        for row, prompt in enumerate(prompts)
        for number in range(n)
    ]


def _draw(
    tar: Tar, batch: Sequence[Sample], settings: _Settings, images: Sequence[Image.Image]
) -> list[tuple[Image.Image, BestCandidate | None]]:
    """The picture of each sample, and with a reflection its kept candidate."""
    prompts, seeds = [sample.prompt for sample in batch], [sample.seed for sample in batch]
    conditions = [list(images) for _ in batch] if images else None
    if settings.reflection is None:
        pictures = tar.imagine_many(
            prompts,
            seeds=seeds,
            scale=settings.scale,
            images=conditions,
            sampling=settings.sampling,
        )
        return [(picture, None) for picture in pictures]
    candidates = best_of(
        tar,
        prompts,
        seeds=seeds,
        reflection=settings.reflection,
        scale=settings.scale,
        sampling=settings.sampling,
        images=conditions,
    )
    return list(zip(draw(tar, candidates, sampling=settings.sampling), candidates, strict=True))


def _png(
    picture: Image.Image, texts: Mapping[str, str], file: Path, credentials: Credentials | None
) -> bytes:
    png = png_bytes(picture, texts)
    return credentials.sign(png, file.name) if credentials else png


def _checked(prompt: str, num_images: int, place: str) -> str:
    """The prompt; UserError unless it is text with one `<image>` mark for each picture."""
    marks = prompt.count(IMAGE_MARK)
    if marks != num_images:
        raise UserError(
            f"{place} has {marks} {IMAGE_MARK} marks for {num_images} pictures: {prompt!r}",
            hint=f'tarkit generate "a red {IMAGE_MARK}" --image FILE --out picture.png',
        )
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise UserError(f"{place} is not UTF-8 text: {prompt!r}") from None
    if not prompt.strip():
        raise UserError(f"{place} is empty")
    return prompt


def _note_unknown_words(tar: Tar, model: str, prompts: Sequence[str]) -> None:
    """One line on stderr for words that the model has never read."""
    unknown = tar.unknown_words(prompts)
    if not unknown:
        return
    some = ", ".join(unknown[:10]) + (", ..." if len(unknown) > 10 else "")
    print_note(
        f"{model} was trained without: {some}. It knows: {', '.join(tar.words)}. Models that know "
        "more: tarkit models"
    )


def _write_jsonl(file: Path, records: Sequence[Mapping[str, Any]]) -> None:
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    write_whole(file, "".join(lines).encode())


def _numbered(out: Path, number: int) -> Path:
    return out.with_name(f"{out.stem}-{number:04d}{out.suffix}")


def _sheet(out: Path, samples: Sequence[Sample], n: int) -> Image.Image:
    first = samples[:SHEET_PICTURES]
    pictures = [decode((out / sample.file).read_bytes()) for sample in first]
    columns = n if 4 <= n <= 10 else 8
    return contact_sheet(pictures, [sample.prompt for sample in first], columns=columns)
