"""The kinds of shards, their columns, and the checks that every row passes before it is written."""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

KEY = re.compile(r"[0-9]+(-[0-9]+)*")
NUM_CODES_MAX = 65_536  # exactly the range of uint16

Row = Mapping[str, Any]

STRINGS = pa.list_(pa.string())
QA = pa.list_(pa.struct([("question", pa.string()), ("answer", pa.string())]))
CODE_LISTS = pa.struct([(f"codes_{scale}", pa.list_(pa.uint16())) for scale in (1, 2, 3)])
# With pixel codes, those of an image VQ, also the key of the picture, which an encoder may read.
PIXEL_CODES = pa.struct([*CODE_LISTS, ("key", pa.string())])
MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
OUTCOME = [("status", pa.string()), ("error", pa.string())]

# The columns that `encode` copies from a picture's row.
ABOUT_PICTURE = [
    ("key", pa.string()),
    ("parent_key", pa.string()),
    ("group", pa.string()),
    ("role", pa.string()),
    ("split", pa.string()),
]
TEXTS = [
    ("prompt", pa.string()),
    ("captions", STRINGS),
    ("qa", QA),
    ("template", pa.string()),
    ("scene", pa.string()),
]
IMAGES = pa.schema(
    [
        *ABOUT_PICTURE,
        ("source", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        *TEXTS,
        ("seed", pa.int64()),
        ("licence", pa.string()),
        *OUTCOME,
    ]
)
# Of images that were found on the web; the artifact's setting `origin` says that they are there.
ORIGIN = [
    pa.field("url", pa.string()),
    pa.field("original_width", pa.int32()),
    pa.field("original_height", pa.int32()),
]
PROMPTS = pa.schema(
    [
        (name, pa.string())
        for name in ("key", "parent_key", "prompt", "template", "phrase", "source", "licence")
    ]
    + OUTCOME
)
JUDGEMENTS = pa.schema(
    [(name, pa.string()) for name in ("key", "prompt", "verdict", "reason", "licence")] + OUTCOME
)
CHATS = pa.schema(
    [
        ("key", pa.string()),
        ("task", pa.string()),
        ("split", pa.string()),
        ("messages", MESSAGES),
        ("images", pa.list_(CODE_LISTS)),
        *OUTCOME,
    ]
)
CHOICES = {
    "status": ("ok", "failed"),
    "role": ("target", "similar", "reference"),
    "split": ("train", "test", "heldout", None),
    "verdict": ("yes", "no"),
    "task": ("t2i", "i2t", "text", "i2i", "ti2i"),
}
KINDS = ("images", "prompts", "tokens", "chats", "scores", "judgements")

# By kind, settings that are needed to read an artifact; they are also stored in every shard.
NEEDED_SETTINGS = {
    "tokens": ("tokenizer_sha256", "codebook_size", "sides", "resize", "dtype"),
    "scores": ("columns",),
}
# Further settings of tokens that hold the codes of an image VQ, all of them or none: its sha256,
# the size of its codebook, the side of its grid of codes, and the side of the pictures in pixels.
VQ_SETTINGS = ("vqvae_sha256", "vq_codebook_size", "vq_side", "vq_size_px")
# Of tokens that hold the latents of a SANA's VAE: its sha256, channels and side of the latents, and
# the side of the pictures in pixels.
LATENT_SETTINGS = ("vae_sha256", "latent_channels", "latent_side", "latent_size_px")


MAX_CODEBOOK_SIZES = {"codebook_size": 1 << 16, "vq_codebook_size": 1 << 24}
"""The codes of TA-Tok are stored with 16 bits; no published image VQ has more than 2^18 codes."""


def needed_settings(kind: str, settings: Mapping[str, Any]) -> tuple[str, ...]:
    """The settings that an artifact of the kind needs, and that every shard holds as metadata."""
    needed = NEEDED_SETTINGS.get(kind, ())
    for optional in (VQ_SETTINGS, LATENT_SETTINGS) if kind == "tokens" else ():
        needed += optional if any(key in settings for key in optional) else ()
    return needed


def code_type(codebook_size: int) -> pa.DataType:
    """The narrowest unsigned integer that holds every code of a book of this size."""
    fitting = (t for bits, t in ((8, pa.uint8()), (16, pa.uint16())) if codebook_size <= 2**bits)
    return next(fitting, pa.uint32())


def schema_of(kind: str, settings: Mapping[str, Any]) -> pa.Schema:
    """Columns of a shard; except for prompts and judgements they depend on the artifact's settings.

    Raises ValueError for a size of a codebook that none has: counts of its codes are of that size.
    """
    if kind == "tokens":
        for name, most in MAX_CODEBOOK_SIZES.items():
            size = settings.get(name, 1)
            if type(size) is not int or not 1 <= size <= most:
                raise ValueError(f"{name} = {size!r:.40} is no whole number from 1 to {most}")
        codes = [
            (f"codes_{scale}", pa.list_(pa.uint16(), side * side))
            for scale, side in sorted(settings["sides"].items())
        ]
        if "vq_side" in settings:
            width = code_type(settings["vq_codebook_size"])
            codes.append(("vq_codes", pa.list_(width, settings["vq_side"] ** 2)))
        if "latent_side" in settings:
            values = settings["latent_channels"] * settings["latent_side"] ** 2
            codes.append(("latents", pa.list_(pa.float32(), values)))
        return pa.schema([*ABOUT_PICTURE, *TEXTS, *codes, *OUTCOME])
    if kind == "scores":
        scores = [(name, pa.float64()) for name in settings["columns"]]
        return pa.schema([("key", pa.string()), *scores, *OUTCOME])
    if kind == "chats" and settings.get("codes") == "vq":
        place = CHATS.get_field_index("images")
        return CHATS.set(place, pa.field("images", pa.list_(PIXEL_CODES)))
    if kind == "images" and settings.get("origin"):
        return pa.schema([*IMAGES, *ORIGIN])
    fixed = {"images": IMAGES, "prompts": PROMPTS, "chats": CHATS, "judgements": JUDGEMENTS}
    return fixed[kind]


def checked_table(
    kind: str, settings: Mapping[str, Any], rows: Sequence[Row] | pa.Table
) -> pa.Table:
    """`rows` in the kind's schema; ValueError for any wrong name, type, choice, key or code."""
    schema = schema_of(kind, settings)
    if isinstance(rows, pa.Table):
        _check_names(rows.schema.names, schema.names, "the table")
        table = rows.select(schema.names).cast(schema)
    else:
        for number, row in enumerate(rows):
            check_row(row, schema, number)
        table = pa.Table.from_pylist(list(rows), schema=schema)
    _check_columns(table)
    if kind == "tokens":
        _check_codes(table, settings["codebook_size"], settings.get("vq_codebook_size"))
    return table


def check_row(row: Row, schema: pa.Schema, number: int) -> None:
    """ValueError for a misspelt, missing or unknown key, at any depth."""
    _check_value(row, pa.struct(list(schema)), f"row {number}")


def _check_names(keys: Iterable[str], known: Sequence[str], place: str) -> None:
    """Needed because pa.Table.from_pylist drops misspelt keys and fills in missing ones."""
    names = set(keys)
    for name in sorted(names - set(known)):
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        meant = f" (did you mean {near[0]}?)" if near else ""
        raise ValueError(f"{place} has an unknown key {name!r}{meant}")
    missing = [name for name in known if name not in names]
    if missing:
        raise ValueError(f"{place} lacks the key {missing[0]!r}")


def _check_value(value: Any, kind: pa.DataType, place: str) -> None:
    if value is None:
        return
    if pa.types.is_struct(kind):
        if not isinstance(value, Mapping):
            raise ValueError(f"{place} is {type(value).__name__}, not a dict")
        names = [kind.field(number).name for number in range(kind.num_fields)]
        _check_names(value, names, place)
        for name in names:
            _check_value(value[name], kind.field(name).type, f"{place} {name}")
    elif pa.types.is_list(kind) and pa.types.is_struct(kind.value_type):
        for number, item in enumerate(value):
            if item is None:
                raise ValueError(f"{place}[{number}] is None")
            _check_value(item, kind.value_type, f"{place}[{number}]")


def _check_columns(table: pa.Table) -> None:
    keys = table["key"].to_pylist()
    for key in keys:
        if key is None or not KEY.fullmatch(key):
            raise ValueError(f"key {key!r}: expected digits and dashes such as 00003-000017")
    if len(set(keys)) != len(keys):
        raise ValueError("a key occurs twice in the shard")
    for name, choices in CHOICES.items():
        if name in table.schema.names:
            wrong = [value for value in table[name].unique().to_pylist() if value not in choices]
            # A failed row may lack a choice, such as the task of a chat.
            if wrong and not (wrong == [None] and _only_failed(table, name)):
                raise ValueError(f"{name} {wrong[0]!r}: expected one of {choices}")
    failed = pc.equal(table["status"], "failed")
    if not pc.all(pc.equal(failed, pc.is_valid(table["error"])), min_count=0).as_py():
        raise ValueError("a failed row needs an error, and an ok row has none")


def _only_failed(table: pa.Table, column: str) -> bool:
    nulls = table.filter(pc.is_null(table[column]))
    return pc.all(pc.equal(nulls["status"], "failed"), min_count=0).as_py() is True


def _check_codes(table: pa.Table, codebook_size: int, vq_codebook_size: int | None) -> None:
    if not 0 < codebook_size <= NUM_CODES_MAX:
        raise ValueError(f"codebook_size {codebook_size}: codes are stored in 16 bits")
    sizes = {n: codebook_size for n in table.schema.names if n.startswith("codes_")}
    if vq_codebook_size is not None:
        sizes["vq_codes"] = vq_codebook_size
    sound = pc.equal(table["status"], "ok")
    latents = [name for name in table.schema.names if name == "latents"]
    for name in [*sizes, *latents]:
        if not pc.all(pc.equal(sound, pc.is_valid(table[name])), min_count=0).as_py():
            raise ValueError(f"{name}: an ok row has them and a failed row has none")
    for name, size in sizes.items():
        highest = pc.max(pc.list_flatten(table[name])).as_py()
        if highest is not None and highest >= size:
            raise ValueError(f"{name} has the code {highest} of a codebook of {size}")
