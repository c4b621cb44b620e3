"""Pictures: decoding of untrusted bytes, resizing, PNG bytes and contact sheets.

No global setting of Pillow is changed, because it would hold for the whole process: with
LOAD_TRUNCATED_IMAGES, for example, every truncated file would decode without an error.
"""

import contextlib
import difflib
import functools
import importlib
import io
import itertools
import os
import stat
import struct
import textwrap
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from tarkit.errors import UserError

KEPT_AS_THEY_ARE = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "HEIF", "JXL")
"""Those that Pillow or one of `PLUGINS` reads are read; MPO is read as a JPEG."""
PLUGINS = {"pillow_heif": "register_heif_opener", "pillow_jxl": ""}
"""Modules of the extra `formats`, and the function that adds the format to Pillow (where there is
one; else the import does)."""
MAX_PIXELS = 64_000_000  # 8000 x 8000: 192 MB as RGB
MAX_FILE_BYTES = 256 << 20
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_TEXTS = (b"iCCP", b"iTXt", b"tEXt", b"zTXt")
STRIP_PIXELS = 1 << 20

# EXIF tag 0x0112, and the operation for each of its values that turns a picture upright.
ORIENTATION_TAG = 0x0112
TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

PICTURE_SUFFIXES = frozenset(
    "avif bmp gif heic heif hif j2k jfif jp2 jpe jpeg jpf jpg jpx jxl mpo png tif tiff webp".split()
)
# The beginnings of files whose reader may be missing: (offset, bytes, format, what is missing).
BEGINNINGS = (
    (4, b"ftypheic", "HEIF", "HEIC"),
    (4, b"ftypheix", "HEIF", "HEIC"),
    (4, b"ftyphevc", "HEIF", "HEIC"),
    (4, b"ftypheim", "HEIF", "HEIC"),
    (4, b"ftypmif1", "HEIF", "HEIF"),
    (4, b"ftypmsf1", "HEIF", "HEIF"),
    (4, b"ftypavif", "AVIF", "AVIF"),
    (4, b"ftypavis", "AVIF", "AVIF"),
    (0, b"\xff\x0a", "JXL", "JPEG XL"),
    (0, b"\x00\x00\x00\x0cJXL ", "JXL", "JPEG XL"),
    (0, b"\x00\x00\x00\x0cjP  ", "JPEG2000", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG2000", "JPEG 2000"),
)
MAX_NAMES = 10_000
"""Names of a folder that are compared with one that is not there."""
INGEST = "name another file; tarkit curate ingest FOLDER --out DIR records which are damaged"

ResizeMode = Literal["squash", "crop"]


class ImageError(UserError):
    """A picture that cannot be used; the message is the reason, kept in a failed row."""


def _opened(blob: bytes) -> Image.Image:
    """The picture that Pillow's reader of its format finds in `blob`, not yet decoded.

    As `Image.open`, but without its limit of 179 million pixels, which is one for the process.
    """
    damaged = ""
    for name in readable_formats():
        reader, accepts = Image.OPEN[name]
        begins_so = accepts is not None and accepts(blob[:16]) is True
        if accepts is None or begins_so:
            # What a reader raises for another format, as Pillow has it.
            try:
                return reader(io.BytesIO(blob), "")
            except (SyntaxError, IndexError, TypeError, struct.error) as error:
                if begins_so:
                    # Pillow makes a SyntaxError of what it raises where bytes are missing.
                    is_whole = isinstance(error, SyntaxError) and error.__cause__ is None
                    why = str(error) if is_whole else "it ends too early"
                    damaged = f"it begins as {name}, and {why}"
    if damaged:
        raise ValueError(damaged)
    raise Image.UnidentifiedImageError


def _without_texts(blob: bytes) -> bytes:
    """A PNG without its texts and its colour profile, which Pillow refuses above 1 MB unpacked."""
    if not blob.startswith(PNG_SIGNATURE):
        return blob
    parts, at, kept_from = [], len(PNG_SIGNATURE), 0
    while at + 8 <= len(blob):
        length, name = struct.unpack_from(">I4s", blob, at)
        end = at + 12 + length
        if name in PNG_TEXTS:
            parts.append(blob[kept_from:at])
            kept_from = min(end, len(blob))
        at = end
    return b"".join([*parts, blob[kept_from:]]) if parts else blob


def decode(blob: bytes, *, max_pixels: int = MAX_PIXELS, min_side_px: int = 1) -> Image.Image:
    """RGB picture of encoded bytes: EXIF rotation applied, first frame, transparency on white.

    16-bit grey is scaled to 8 bits. Threads that decode large pictures wait for each other: all
    that are decoded at once have at most MAX_PIXELS pixels, or are a single one. Raises ImageError
    for anything that is not one whole picture of an allowed format with at most `max_pixels`
    pixels, or has a side below `min_side_px`.
    """
    if not blob:
        raise ImageError("the file is empty (0 bytes)")
    try:
        with _opened(_without_texts(blob)) as picture:
            width, height = picture.size
            if width * height > max_pixels:
                raise ImageError(
                    f"{width} x {height} = {width * height} pixels, more than {max_pixels}"
                )
            with _decoding(width * height):
                picture.load()
                # Read after load(): Pillow turns a TIFF upright itself, and then drops its tag.
                orientation = _orientation(picture)
                rgb = to_rgb(picture)
    except ImageError:
        raise
    except Image.UnidentifiedImageError:
        if missing := _missing_reader(blob):
            raise ImageError(missing) from None
        kinds = ", ".join(readable_formats())
        raise ImageError(f"not a picture ({kinds}); the file begins {blob[:8]!r}") from None
    except (struct.error, EOFError):
        raise ImageError("truncated picture: the file ends too early") from None
    except Exception as error:  # decoders raise many types for bad bytes
        reason = str(error) or type(error).__name__
        known = "truncated" if "truncated" in reason.lower() else "damaged"
        raise ImageError(f"{known} picture: {reason}") from None
    if orientation in TRANSPOSE:
        rgb = rgb.transpose(TRANSPOSE[orientation])
    if min(rgb.size) < min_side_px:
        raise ImageError(f"a side is below {min_side_px} px: {rgb.width} x {rgb.height}")
    return rgb


@functools.cache
def readable_formats() -> tuple[str, ...]:
    """Those of `FORMATS` that Pillow reads here, with the plug-ins that are installed."""
    for module, register in PLUGINS.items():
        with contextlib.suppress(ImportError):
            plugin = importlib.import_module(module)
            if register:
                getattr(plugin, register)()
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _missing_reader(blob: bytes) -> str | None:
    """What reads a picture of a known format that cannot be read here; None for other bytes."""
    for offset, beginning, name, shown in BEGINNINGS:
        if blob[offset : offset + len(beginning)] == beginning and name not in readable_formats():
            return f"a picture in {shown}, which is not read here: pip install 'tarkit[formats]'"
    return None


def image_format(blob: bytes) -> str:
    """Pillow's name of the format of encoded bytes ("JPEG"), or "" for any other format."""
    try:
        with _opened(blob) as picture:
            return picture.format or ""
    except Exception:  # as in decode
        return ""


def to_uint8(image: Image.Image) -> np.ndarray:
    """(H, W, 3) uint8 pixels of an RGB picture; ValueError for another mode."""
    if image.mode != "RGB":
        raise ValueError(f"to_uint8 needs an RGB picture, got mode {image.mode}")
    return np.array(image)


def resize(image: Image.Image, size_px: int, mode: ResizeMode) -> Image.Image:
    """A size_px x size_px picture, bicubic and antialiased.

    "squash" stretches the whole picture to the square, as the published tokenizer does. "crop"
    resizes the middle square. Raises ValueError for another mode.
    """
    if mode == "crop":
        # Not resize(box=): its filter would mix in pixels from outside the square.
        image = middle_square(image)
    elif mode != "squash":
        raise ValueError(f"resize mode {mode!r}: expected 'squash' or 'crop'")
    return image.resize((size_px, size_px), Image.Resampling.BICUBIC)


class SizedPicture(NamedTuple):
    """One picture as the squares that several models read."""

    squares: tuple[np.ndarray, ...]  # (size, size, 3) each, uint8 by `resize`
    smallest_side: int  # of the picture that was resized, in pixels


def squashed(
    sizes_px: Sequence[int], picture: Image.Image, *, square: Literal["crop"] | None = None
) -> SizedPicture:
    """A picture at each of `sizes_px`, squashed; with "crop" its middle square alone."""
    if square == "crop":
        picture = middle_square(picture)
    squares = tuple(to_uint8(resize(picture, size_px, "squash")) for size_px in sizes_px)
    return SizedPicture(squares, min(picture.size))


def middle_square(image: Image.Image) -> Image.Image:
    """The largest square around the middle of a picture."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    # Not crop(), which has Pillow's limit of pixels.
    return Image.fromarray(np.asarray(image)[top : top + side, left : left + side])


def png_bytes(image: np.ndarray | Image.Image, text: Mapping[str, str] | None = None) -> bytes:
    """PNG of an (H, W, 3) uint8 array or a picture, with text chunks; same input, same bytes."""
    picture = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    info = PngImagePlugin.PngInfo()
    for key, value in (text or {}).items():
        info.add_text(key, value)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", pnginfo=info)
    return buffer.getvalue()


def kept_bytes(blob: bytes, picture: Image.Image) -> tuple[str, bytes]:
    """(extension, bytes) to store a picture with: `blob` if it is JPEG, PNG or WebP, else a PNG.

    `picture` is the result of `decode(blob)`.
    """
    extension = KEPT_AS_THEY_ARE.get(image_format(blob))
    return (extension, blob) if extension else ("png", png_bytes(picture))


def plain_bytes(blob: bytes, *, max_pixels: int = MAX_PIXELS) -> tuple[str, bytes]:
    """(MIME subtype, bytes) that any other program reads as the picture of `decode(blob)`.

    They are `blob` itself, a PNG without its texts, where nothing of it can be read in two ways:
    an upright JPEG, PNG or WebP in 8 bits without transparency; else a PNG. Raises ImageError as
    `decode` does.
    """
    picture = decode(blob, max_pixels=max_pixels)
    blob = _without_texts(blob)
    kind = image_format(blob)
    if kind in KEPT_AS_THEY_ARE:
        with _opened(blob) as stored, _decoding(stored.width * stored.height):
            stored.load()
            is_plain = (
                stored.mode in ("RGB", "L", "P", "1")
                and "transparency" not in stored.info
                and getattr(stored, "n_frames", 1) == 1
                and _orientation(stored) not in TRANSPOSE
            )
        if is_plain:
            return kind.lower(), blob
    return "png", png_bytes(picture)


def contact_sheet(
    images: Sequence[Image.Image],
    captions: Sequence[str],
    *,
    columns: int = 6,
    cell_px: int = 160,
    caption_lines: int = 3,
) -> Image.Image:
    """A white sheet of pictures in rows of `columns`, each with its caption below.

    A picture fits into a square of `cell_px`; a caption is cut off after `caption_lines`. Raises
    ValueError without pictures, or when pictures and captions differ in number.
    """
    if len(images) != len(captions):
        raise ValueError(f"{len(images)} pictures but {len(captions)} captions")
    if not images:
        raise ValueError("a contact sheet needs at least one picture")
    margin, font_px = 6, 11
    line_px = font_px + 3
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    cell_height = cell_px + (line_px * caption_lines if any(captions) else 0) + margin
    size = (columns * (cell_px + margin) + margin, rows * cell_height + margin)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(font_px)
    for index, (image, caption) in enumerate(zip(images, captions, strict=True)):
        left = margin + index % columns * (cell_px + margin)
        top = margin + index // columns * cell_height
        fitted = _fit(image, cell_px)
        centred = (left + (cell_px - fitted.width) // 2, top + (cell_px - fitted.height) // 2)
        sheet.paste(fitted, centred)
        lines = textwrap.wrap(
            caption, width=cell_px // 6, max_lines=caption_lines, placeholder=" ..."
        )
        for number, line in enumerate(lines):
            draw.text((left, top + cell_px + 2 + number * line_px), line, fill="black", font=font)
    return sheet


def _fit(image: Image.Image, cell_px: int) -> Image.Image:
    """The picture scaled to the cell, aspect kept; nearest neighbour where that enlarges it."""
    scale = cell_px / max(image.size)
    size = tuple(max(1, round(side * scale)) for side in image.size)
    resampling = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.BICUBIC
    return image.convert("RGB").resize((size[0], size[1]), resampling)


def _orientation(picture: Image.Image) -> int:
    """EXIF orientation 1-8; 1 (as stored) when the EXIF block is absent or unreadable."""
    try:
        value: Any = picture.getexif().get(ORIENTATION_TAG, 1)
    except Exception:  # a damaged EXIF block is common in pictures that decode well
        return 1
    return value if value in TRANSPOSE else 1


def to_rgb(picture: Image.Image) -> Image.Image:
    """RGB copy of an opened picture: transparency on white, 16-bit grey scaled to 8 bits.

    Raises ImageError for pixels without a known range.
    """
    if picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format == "PNG"):
        # 65535 / 257 = 255: the whole range is scaled, where convert("L") would clip at 255.
        deep = np.asarray(picture)
        grey = np.empty(deep.shape, np.uint8)
        for top, bottom in _strips(picture):
            grey[top:bottom] = np.round(deep[top:bottom].astype(np.float64) / 257)
        return Image.fromarray(grey).convert("RGB")
    if picture.mode in ("I", "F"):
        raise ImageError(f"{picture.mode} pixels (32 bits) have no known range")
    if "A" in picture.getbands() or "a" in picture.getbands() or "transparency" in picture.info:
        rgb = Image.new("RGB", picture.size)
        for top, bottom in _strips(picture):
            colour = picture.crop((0, top, picture.width, bottom)).convert("RGBA")
            white = Image.new("RGBA", colour.size, "white")
            rgb.paste(Image.alpha_composite(white, colour).convert("RGB"), (0, top))
        return rgb
    # convert() returns a copy in every case, so nothing points into the closed file.
    return picture.convert("RGB")


def _strips(picture: Image.Image) -> Iterator[tuple[int, int]]:
    """(top, bottom) of strips of a picture: copies of a strip are small, those of all are not."""
    rows = max(1, STRIP_PIXELS // picture.width)
    for top in range(0, picture.height, rows):
        yield top, min(top + rows, picture.height)


@contextlib.contextmanager
def _decoding(num_pixels: int) -> Iterator[None]:
    """Wait until a picture of this size may be decoded beside those that are being decoded."""
    with _decoded.waiting:
        _decoded.waiting.wait_for(
            lambda: _decoded.in_use == 0 or _decoded.in_use + num_pixels <= MAX_PIXELS
        )
        _decoded.in_use += num_pixels
    try:
        yield
    finally:
        with _decoded.waiting:
            _decoded.in_use -= num_pixels
            _decoded.waiting.notify_all()


class _DecodedPixels:
    """Pixels of the pictures that the threads of this process decode now."""

    def __init__(self) -> None:
        self.in_use = 0
        self.waiting = threading.Condition()


_decoded = _DecodedPixels()


def read_picture(path: Path) -> Image.Image:
    """The RGB picture in a file; raises UserError with the file's name and the reason."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            what = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe or a device"
            raise UserError(f"it is {what}, not a file")
        if status.st_size > MAX_FILE_BYTES:
            raise UserError(f"it has {status.st_size} bytes, more than {MAX_FILE_BYTES}")
        return decode(path.read_bytes())
    except FileNotFoundError:
        raise UserError(
            f"there is no picture {path}{_nearest_name(path)}", hint="name a file that exists"
        ) from None
    except (OSError, UserError) as error:
        why = error.message if isinstance(error, UserError) else error.strerror
    raise UserError(f"the picture {path} cannot be read: {why}", hint=INGEST)


def _nearest_name(path: Path) -> str:
    """A question that names the file of the same folder whose name is nearest; "" without one."""
    names: list[str] = []
    with contextlib.suppress(OSError), os.scandir(path.parent) as entries:
        names = [entry.name for entry in itertools.islice(entries, MAX_NAMES)]
    near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.7)
    return f" (did you mean {near[0]}?)" if near else ""


def require_png(out: Path) -> None:
    """Raises UserError where `out` cannot be the name of a PNG."""
    if out.suffix.lower() != ".png":
        raise UserError(
            f"--out {out}: pictures are written as PNG, so the name must end in .png",
            hint=f"--out {out / 'picture.png' if out.is_dir() else out.with_suffix('.png')}",
        )
    if out.is_dir():
        raise UserError(f"--out {out} is a folder; give the name of a picture in it")


def require_own_png(out: Path, text: Mapping[str, str]) -> None:
    """Raises UserError where `out` exists and is not a PNG with these text chunks.

    A command that is given again draws its own picture again, and overwrites no other.
    """
    if not out.exists():
        return
    try:
        with Image.open(out, formats=["PNG"]) as picture:
            same = text.items() <= dict(picture.info).items()
    except (OSError, ValueError, SyntaxError):
        same = False
    if not same:
        raise UserError(f"--out {out} exists and is another picture", hint="give another --out")
