import io
import os
import struct
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile, PngImagePlugin

from tarkit import images
from tarkit.errors import UserError
from tarkit.images import (
    ImageError,
    contact_sheet,
    decode,
    image_format,
    kept_bytes,
    middle_square,
    plain_bytes,
    png_bytes,
    read_picture,
    resize,
    to_uint8,
)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def halves(left: tuple[int, ...], right: tuple[int, ...], mode: str = "RGB") -> Image.Image:
    """40 x 20, one colour on the left half and another on the right."""
    image = Image.new(mode, (40, 20), left)
    image.paste(right, (20, 0, 40, 20))
    return image


RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


@pytest.mark.parametrize(
    ("kind", "options"),
    [("JPEG", {"quality": 95}), ("PNG", {}), ("WEBP", {"lossless": True}), ("BMP", {})],
)
def test_ordinary_pictures_of_every_format_decode(kind: str, options: dict[str, object]) -> None:
    pixels = to_uint8(decode(encoded(halves(RED, BLUE), kind, **options)))
    assert pixels.shape == (20, 40, 3)
    # JPEG at quality 95 moves a flat colour by at most 2 levels.
    assert np.abs(pixels[10, 5].astype(int) - RED).max() <= 2
    assert np.abs(pixels[10, 35].astype(int) - BLUE).max() <= 2


def test_a_cmyk_jpeg_becomes_rgb() -> None:
    blob = encoded(halves((0, 255, 255, 0), (255, 255, 0, 0), "CMYK"), "JPEG", quality=95)
    pixels = to_uint8(decode(blob))
    # No cyan, all magenta and yellow = red; all cyan and magenta = blue.
    assert np.abs(pixels[10, 5].astype(int) - RED).max() <= 8
    assert np.abs(pixels[10, 35].astype(int) - BLUE).max() <= 8


def test_a_sixteen_bit_picture_is_scaled_and_not_clipped() -> None:
    deep = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    blob = encoded(Image.fromarray(deep), "PNG")
    # 257 / 257 = 1, 32896 / 257 = 128, 65535 / 257 = 255; clipping would give 0, 255, 255, 255.
    assert to_uint8(decode(blob))[0, :, 0].tolist() == [0, 1, 128, 255]
    tiff = encoded(Image.fromarray(deep), "TIFF")
    assert to_uint8(decode(tiff))[0, :, 0].tolist() == [0, 1, 128, 255]


def test_pixels_without_a_known_range_are_refused() -> None:
    floats = Image.fromarray(np.array([[0.0, 1e6]], dtype=np.float32))
    with pytest.raises(ImageError, match=r"F pixels \(32 bits\) have no known range"):
        decode(encoded(floats, "TIFF"))


@pytest.mark.parametrize(
    ("orientation", "size", "red_at"),
    # The 40 x 20 picture is red on its left; each number turns or mirrors that side elsewhere.
    [
        (1, (40, 20), "left"),
        (2, (40, 20), "right"),
        (3, (40, 20), "right"),
        (4, (40, 20), "left"),
        (5, (20, 40), "top"),
        (6, (20, 40), "top"),
        (7, (20, 40), "bottom"),
        (8, (20, 40), "bottom"),
    ],
)
def test_exif_rotation_is_applied(orientation: int, size: tuple[int, int], red_at: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    blob = encoded(halves(RED, BLUE), "JPEG", quality=95, exif=exif)
    image = decode(blob)
    assert image.size == size
    width, height = size
    spots = {
        "left": (5, height // 2),
        "right": (width - 5, height // 2),
        "top": (width // 2, 5),
        "bottom": (width // 2, height - 5),
    }
    found = {name: image.getpixel(spot)[0] > 200 for name, spot in spots.items()}  # type: ignore[index]
    assert found[red_at]
    opposite = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}[red_at]
    assert not found[opposite]


def test_transparency_shows_white_in_palette_grey_and_full_colour_pictures() -> None:
    clear = halves((255, 0, 0, 255), (0, 0, 255, 0), "RGBA")
    assert decode(encoded(clear, "PNG")).getpixel((35, 10)) == WHITE
    assert decode(encoded(clear, "PNG")).getpixel((5, 10)) == RED
    palette = halves(RED, BLUE).quantize(2)
    index = palette.getpixel((35, 10))
    blob = encoded(palette, "PNG", transparency=index)
    assert decode(blob).getpixel((35, 10)) == WHITE
    assert decode(blob).getpixel((5, 10)) == RED
    half = Image.new("LA", (4, 4), (0, 128))
    # Black at opacity 128/255 over white: 255 x (1 - 128/255) = 127.
    assert decode(encoded(half, "PNG")).getpixel((0, 0)) == (127, 127, 127)


def test_an_animation_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, BLUE)]
    blob = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=100)
    assert decode(blob).getpixel((4, 4)) == RED


def test_a_truncated_file_is_refused_with_its_reason() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for kind in ("JPEG", "PNG", "WEBP"):
        blob = encoded(Image.fromarray(noise), kind)
        with pytest.raises(ImageError, match="truncated|damaged"):
            decode(blob[: len(blob) // 2])
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


def test_text_empty_files_and_formats_that_run_programs_are_refused() -> None:
    with pytest.raises(ImageError, match="not a picture.*begins b'hello wo'"):
        decode(b"hello world, I am a.png")
    with pytest.raises(ImageError, match="empty"):
        decode(b"")
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    with pytest.raises(ImageError, match="not a picture"):
        decode(postscript)


def bomb_png(side: int) -> bytes:
    """A PNG of side x side black pixels whose rows compress to almost nothing."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    rows = zlib.compress(b"\0" * 1000)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_decompression_bomb_is_refused_before_its_pixels_are_made() -> None:
    with pytest.raises(ImageError, match="pixels"):
        decode(bomb_png(30_000))  # 9e8 pixels = 2.7 GB
    with pytest.raises(ImageError, match="12000 x 12000 = 144000000 pixels, more than 64000000"):
        decode(bomb_png(12_000))
    with pytest.raises(ImageError, match="40 x 20 = 800 pixels, more than 799"):
        decode(encoded(halves(RED, BLUE), "PNG"), max_pixels=799)
    assert decode(encoded(halves(RED, BLUE), "PNG"), max_pixels=800).size == (40, 20)


def corruptions() -> list[Callable[[bytes, np.random.Generator], bytes]]:
    def flip(blob: bytes, rng: np.random.Generator) -> bytes:
        data = bytearray(blob)
        for place in rng.integers(0, len(data), 8):
            data[place] = rng.integers(0, 256)
        return bytes(data)

    def cut_out(blob: bytes, rng: np.random.Generator) -> bytes:
        place = int(rng.integers(0, len(blob)))
        return blob[:place] + blob[place + 9 :]

    return [flip, cut_out]


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")
def test_random_damage_either_decodes_or_raises_image_error() -> None:
    rng = np.random.default_rng(1)
    blobs = [
        encoded(halves(RED, BLUE), kind) for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
    ]
    outcomes = {"decoded": 0, "refused": 0}
    for _ in range(40):
        for blob in blobs:
            for corrupt in corruptions():
                try:
                    assert decode(corrupt(blob, rng), max_pixels=100_000).mode == "RGB"
                    outcomes["decoded"] += 1
                except ImageError:
                    outcomes["refused"] += 1
    # 40 x 6 x 2 = 480 damaged files; both things happen, and nothing else.
    assert sum(outcomes.values()) == 480 and min(outcomes.values()) > 0


def test_squash_keeps_everything_and_crop_keeps_the_aspect() -> None:
    image = Image.new("RGB", (60, 20), RED)
    image.paste(BLUE, (20, 0, 40, 20))  # the middle 20 x 20 square is blue
    cropped = to_uint8(resize(image, 10, "crop"))
    assert (cropped == BLUE).all()
    squashed = to_uint8(resize(image, 12, "squash"))
    # The 12 columns stand for 5 px each: 4 red, 4 blue, 4 red; bicubic edges ring by a few levels.
    reds = squashed[6, :, 0] > 128
    assert reds.tolist() == [True] * 4 + [False] * 4 + [True] * 4
    assert squashed[6, 1].tolist() == list(RED)
    with pytest.raises(ValueError, match="'stretch'"):
        resize(image, 12, "stretch")  # type: ignore[arg-type]


def test_png_bytes_keep_pixels_and_text_and_repeat_exactly() -> None:
    pixels = np.random.default_rng(2).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    blob = png_bytes(pixels, {"prompt": "a photo of a ☃", "seed": "3"})
    assert (to_uint8(decode(blob)) == pixels).all()
    with Image.open(io.BytesIO(blob)) as image:
        assert image.info == {"prompt": "a photo of a ☃", "seed": "3"}
    assert blob == png_bytes(Image.fromarray(pixels), {"prompt": "a photo of a ☃", "seed": "3"})
    assert image_format(blob) == "PNG" and image_format(b"text") == ""


def test_a_contact_sheet_has_a_cell_for_each_picture_and_its_caption() -> None:
    images = [Image.new("RGB", (8, 8), RED), Image.new("RGB", (16, 8), BLUE)]
    sheet = contact_sheet([*images, images[0]], ["one", "two", "☃" * 300], columns=2, cell_px=64)
    # Two columns of 64 px with margins of 6: 6 + 70 + 70 = 146 wide.
    # Two rows of 64 + 3 lines x 14 + 6 = 112, and a margin: 6 + 224 = 230 high.
    assert sheet.size == (146, 230)
    assert sheet.getpixel((6 + 32, 6 + 32)) == RED
    # The 16 x 8 picture fills 64 x 32 of its cell, so the row above it is white.
    assert sheet.getpixel((76 + 32, 6 + 32)) == BLUE
    assert sheet.getpixel((76 + 32, 6 + 4)) == WHITE
    below = np.asarray(sheet)[6 + 64 : 6 + 64 + 42, 6:70]
    assert below.min() < 100  # the caption's ink
    with pytest.raises(ValueError, match="2 pictures but 1 captions"):
        contact_sheet(images, ["one"])


def test_strips_change_no_pixel(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    pictures = [
        Image.fromarray(rng.integers(0, 256, (70, 50, 4), dtype=np.uint8)),
        Image.fromarray(rng.integers(0, 256, (70, 50, 2), dtype=np.uint8)),
        Image.fromarray(rng.integers(0, 65_536, (70, 50)).astype(np.uint16)),
    ]
    pictures.append(Image.fromarray(rng.integers(0, 256, (70, 50), dtype=np.uint8)).convert("P"))
    pictures[-1].info["transparency"] = 3
    whole = [np.asarray(images.to_rgb(picture)) for picture in pictures]
    monkeypatch.setattr(images, "STRIP_PIXELS", 1_000)
    for picture, pixels in zip(pictures, whole, strict=True):
        np.testing.assert_array_equal(np.asarray(images.to_rgb(picture)), pixels)


def test_threads_decode_large_pictures_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 5_000)
    blob = png_bytes(Image.new("RGB", (60, 50)))  # 3,000 pixels: one at a time
    most = 0

    def to_rgb(picture: Image.Image) -> Image.Image:
        nonlocal most
        most = max(most, images._decoded.in_use)
        time.sleep(0.01)
        return picture.convert("RGB")

    monkeypatch.setattr(images, "to_rgb", to_rgb)
    with ThreadPoolExecutor(4) as pool:
        assert len(list(pool.map(decode, [blob] * 8))) == 8
    assert most == 3_000
    assert images._decoded.in_use == 0


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "sparse"])
def test_only_files_of_a_bounded_size_are_read(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.png"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path = Path("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    else:
        path.touch()
        os.truncate(path, 300 << 30)
    with pytest.raises(UserError, match="not a file|more than 268435456"):
        read_picture(path)


@pytest.mark.parametrize("name", ["AVIF", "JPEG2000", "MPO", "HEIF", "JXL"])
def test_pictures_of_cameras_and_phones_are_read_or_say_what_reads_them(name: str) -> None:
    blobs = {"HEIF": b"\0\0\0\x18ftypheic" + bytes(20), "JXL": b"\xff\x0a" + bytes(20)}
    buffer = io.BytesIO()
    colours = Image.fromarray(np.tile(np.arange(48, dtype=np.uint8)[:, None], (1, 60))).convert(
        "RGB"
    )
    if name == "MPO":
        colours.save(buffer, name, save_all=True, append_images=[colours.rotate(180)])
    elif name in (*images.readable_formats(), "MPO"):
        colours.save(buffer, name)
    else:
        with pytest.raises(
            images.ImageError, match=r"not read here: pip install 'tarkit\[formats\]'"
        ):
            decode(blobs[name])
        return
    picture = decode(buffer.getvalue())
    assert (picture.size, picture.mode) == ((60, 48), "RGB")
    assert np.abs(np.asarray(picture).astype(int) - np.asarray(colours)).mean() < 4
    assert images.kept_bytes(buffer.getvalue(), picture)[0] == "png"  # every program reads it


# ---- one picture, one reading


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_tiff_is_turned_upright_as_a_png_is(orientation: int, compression: str) -> None:
    picture = halves(RED, BLUE)
    picture.paste(WHITE, (0, 0, 5, 5))
    exif = Image.Exif()
    exif[0x0112] = orientation
    png = encoded(picture, "PNG", exif=exif.tobytes())
    tiff = encoded(picture, "TIFF", tiffinfo={0x0112: orientation}, compression=compression)
    assert np.array_equal(to_uint8(decode(tiff)), to_uint8(decode(png)))


def transparent() -> Image.Image:
    return Image.new("RGBA", (40, 20), (0, 0, 0, 0))


def sideways() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif.tobytes()


def deep_grey() -> Image.Image:
    return Image.fromarray(np.tile(np.linspace(0, 65535, 40).astype(np.uint16), (20, 1)))


@pytest.mark.parametrize(
    ("picture", "kind", "options", "is_kept"),
    [
        (halves(RED, BLUE), "PNG", {}, True),
        (halves(RED, BLUE), "JPEG", {"quality": 95}, True),
        (halves(RED, BLUE).convert("L"), "PNG", {}, True),
        (halves(RED, BLUE).convert("P"), "PNG", {}, True),
        (
            halves(RED, BLUE),
            "JPEG",
            {"exif": sideways()},
            False,
        ),
        (halves(RED, BLUE), "TIFF", {"tiffinfo": {0x0112: 6}}, False),
        (halves(RED, BLUE), "GIF", {}, False),
        (deep_grey(), "PNG", {}, False),
        (transparent(), "PNG", {}, False),
        (transparent(), "WEBP", {}, False),
        (transparent().convert("LA"), "PNG", {}, False),
        (halves((0, 255, 255, 0), (255, 255, 0, 0), "CMYK"), "JPEG", {}, False),
    ],
)
def test_the_plain_bytes_of_a_picture_are_read_alike_by_everybody(
    picture: Image.Image, kind: str, options: dict[str, object], is_kept: bool
) -> None:
    blob = encoded(picture, kind, **options)
    subtype, plain = plain_bytes(blob)
    with Image.open(io.BytesIO(plain)) as opened:  # as a server does: no EXIF, no care
        assert opened.format == subtype.upper()
        theirs = np.asarray(opened.convert("RGB"))
    assert np.array_equal(theirs, to_uint8(decode(blob)))
    assert (plain == blob) == is_kept


def zlib_text() -> bytes:
    """A zTXt chunk that unpacks to 5 MB."""
    data = b"c\0\0" + zlib.compress(b"x" * (5 << 20))
    crc = struct.pack(">I", zlib.crc32(b"zTXt" + data))
    return struct.pack(">I", len(data)) + b"zTXt" + data + crc


@pytest.mark.parametrize("name", ["iCCP", "zTXt", "iTXt"])
def test_a_png_is_read_whatever_its_texts_unpack_to(name: str) -> None:
    info = PngImagePlugin.PngInfo()
    if name == "zTXt":
        info.add_text("c", "x" * (2 << 20), zip=True)
    if name == "iTXt":
        info.add_itxt("c", "x" * (2 << 20), zip=True)
    profile = {"icc_profile": b"\0" * (2 << 20)} if name == "iCCP" else {}
    blob = encoded(halves(RED, BLUE), "PNG", pnginfo=info, **profile)
    assert name.encode() in blob
    picture = decode(blob)
    assert np.array_equal(to_uint8(picture), np.asarray(halves(RED, BLUE)))
    # Stored without them, for programs that refuse such a picture.
    extension, kept = kept_bytes(blob, picture)
    assert extension == "png" and name.encode() not in kept
    # As are texts that follow the pixels, where Pillow reads them while it decodes.
    moved = blob[:-12] + zlib_text() + blob[-12:]
    assert b"zTXt" in moved and b"zTXt" not in plain_bytes(moved)[1]


def test_a_limit_above_that_of_pillow_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Pillow refuses twice as many
    blob = encoded(halves(RED, BLUE), "PNG")
    assert decode(blob).size == (40, 20)
    assert image_format(blob) == "PNG" and plain_bytes(blob) == ("png", blob)
    assert middle_square(decode(blob)).size == (20, 20)
    with pytest.raises(ImageError, match="40 x 20 = 800 pixels, more than 799"):
        decode(blob, max_pixels=799)


@pytest.mark.parametrize("length", [9, 60, 300])
def test_a_picture_cut_short_is_damaged_and_not_of_another_format(length: int) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("prompt", "a photo of a ring " * 40)  # as `generate` writes it
    whole = encoded(halves(RED, BLUE), "PNG", pnginfo=info)
    with pytest.raises(ImageError, match="damaged picture: it begins as PNG|truncated"):
        decode(whole[:length])


def test_a_folder_is_no_name_of_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for out in (Path("."), tmp_path, Path("..")):
        with pytest.raises(UserError, match="must end in .png") as error:
            images.require_png(out)
        assert error.value.hint == f"--out {out / 'picture.png'}"


@pytest.mark.parametrize("length", [30, 60, 200, 400])
def test_a_png_that_was_cut_off_says_so(length: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    with pytest.raises(ImageError, match="truncated|ends too early"):
        decode(png_bytes(pixels)[:length])


def test_a_name_that_is_not_there_is_asked_about(tmp_path: Path) -> None:
    (tmp_path / "picture.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"pictur\.png \(did you mean picture\.png\?\)"):
        read_picture(tmp_path / "pictur.png")
    with pytest.raises(UserError, match=r"there is no picture .*photo\.jpg\n"):
        read_picture(tmp_path / "photo.jpg")
    with pytest.raises(UserError, match=r"there is no picture .*a\.png\n"):
        read_picture(tmp_path / "no folder/a.png")
