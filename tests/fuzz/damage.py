"""Ways to damage a file: bits, lengths, ranges, other files, and values of other types.

`damaged` returns the bytes of a file after one random damage that fits its kind of file.
"""

import json
import random
import struct
from collections.abc import Sequence
from typing import Any

DEEP = 100_000
# Literals of JSON; a literal that json.dumps cannot write is put in by its text.
VALUES = (
    *("null", "true", "false", "0", "-1", "1", "2", "1e308", "-1e999", "NaN", "Infinity"),
    *('""', '"x"', '"\\ud800"', '"\\u0000"', '"../../../outside"', '"\\u001b[2J\\u202e"', "[]"),
    *("{}", "[null]", '{"a": 1}', "[[[]]]", "0.5", "4294967296", "9223372036854775808"),
    *("1000000000", "1" + "0" * 400, "1" * 5_000, "[" * DEEP + "]" * DEEP),
    *('{"a":' * DEEP + "1" + "}" * DEEP, '"' + "y" * 200_000 + '"'),
)
TOML_VALUES = (
    *("true", "-1", "0", "1e308", "nan", "inf", '""', '"x"', "[]", "{}", "[[1]]", "1" * 5_000),
    *("1000000000000", "1979-05-27", '"../../outside"', '"\\u0000"', "[" * 5_000 + "]" * 5_000),
    *("0.5", "2", "[1, 2]", "{ a = 1 }", ""),
)
LINES = (
    *(
        b"\x00\x00",
        b"\xff\xfe",
        b'"',
        b",,,,,,,,",
        b"{",
        b"[]",
        b"null",
        b"\xed\xa0\x80",
        b"<image>",
    ),
    *(b"\r", b"\xef\xbb\xbf", b"z" * 300_000, b"[" * DEEP, b"\x1b]0;title\x07", b"1" * 5_000),
)


def damaged(rng: random.Random, name: str, data: bytes, others: Sequence[bytes] = ()) -> bytes:
    """The bytes of a file of this name after one damage; `others` are files of the same kind."""
    suffix = name.rsplit(".", 1)[-1]
    ways = [_flipped, _header_flipped, _cut, _zeroed, _noise, _repeated, _appended]
    if suffix in ("json", "jsonl"):
        ways += [_json_value] * 7
    if suffix == "http":
        ways += [_answer_value] * 9
    if suffix == "safetensors":
        ways += [_safetensors_header] * 4
    if suffix == "toml":
        ways += [_toml_value] * 7
    if suffix in ("jsonl", "csv", "txt"):
        ways += [_line] * 3
    if others and rng.random() < 0.08:
        return rng.choice(others)
    for _ in range(20):
        changed = rng.choice(ways)(rng, data)
        if changed != data:
            return changed
    return b""


def _flipped(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 30))):
        changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _header_flipped(rng: random.Random, data: bytes) -> bytes:
    """Bits of the first or last 600 bytes, where most formats keep their sizes."""
    changed = bytearray(data)
    span = min(600, len(data))
    start = rng.choice((0, len(data) - span))
    for _ in range(rng.choice((1, 2, 8))):
        changed[start + rng.randrange(span)] = rng.randrange(256)
    return bytes(changed)


def _cut(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.choice((0, 1, rng.randrange(len(data)), len(data) - 1))]


def _zeroed(rng: random.Random, data: bytes) -> bytes:
    start, stop = _range(rng, data)
    return data[:start] + bytes(stop - start) + data[stop:]


def _noise(rng: random.Random, data: bytes) -> bytes:
    start, stop = _range(rng, data)
    return data[:start] + rng.randbytes(stop - start) + data[stop:]


def _repeated(rng: random.Random, data: bytes) -> bytes:
    start, stop = _range(rng, data)
    return data[:stop] + data[start:]


def _appended(rng: random.Random, data: bytes) -> bytes:
    return data + rng.randbytes(rng.choice((1, 100, 5_000)))


def _range(rng: random.Random, data: bytes) -> tuple[int, int]:
    start = rng.randrange(len(data))
    return start, min(len(data), start + 1 + rng.randrange(rng.choice((8, 200, len(data)))))


def _line(rng: random.Random, data: bytes) -> bytes:
    lines = data.split(b"\n")
    at = rng.randrange(len(lines))
    lines[at : at + rng.randrange(2)] = [rng.choice(LINES)]
    return b"\n".join(lines)


def _toml_value(rng: random.Random, data: bytes) -> bytes:
    lines = data.decode().split("\n")
    at = rng.choice([n for n, line in enumerate(lines) if line.strip()])
    if "=" not in lines[at] or rng.random() < 0.2:
        lines[at : at + 1] = rng.choice(([], [lines[at]] * 2, [lines[at] + "x"]))
    else:
        lines[at] = lines[at].split("=")[0] + "= " + rng.choice(TOML_VALUES)
    return "\n".join(lines).encode()


def _json_value(rng: random.Random, data: bytes) -> bytes:
    """One value of one line replaced, left out, or put under another name."""
    lines = data.split(b"\n") if b"\n{" in data else [data]
    at = rng.choice([n for n, line in enumerate(lines) if line.strip()])
    lines[at] = _with_value(rng, json.loads(lines[at]))
    return b"\n".join(lines)


def _with_value(rng: random.Random, document: Any) -> bytes:
    mark = "\ue000mark\ue000"
    place = rng.choice(list(_places(document)))
    value = rng.choice(VALUES)
    if not place:
        return value.encode()
    inner = document
    for key in place[:-1]:
        inner = inner[key]
    if rng.random() < 0.25:
        del inner[place[-1]]
    elif isinstance(inner, dict) and rng.random() < 0.1:
        inner["renamed"] = inner.pop(place[-1])
    else:
        inner[place[-1]] = mark
    return json.dumps(document).replace(json.dumps(mark), value).encode()


def _places(value: Any, before: tuple[Any, ...] = ()) -> Any:
    yield before
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        if isinstance(inner, dict | list):
            yield from _places(inner, (*before, key))
        else:
            yield (*before, key)


def _answer_value(rng: random.Random, data: bytes) -> bytes:
    """One value of the JSON in an HTTP response; its length in the header fits, mostly."""
    header, _, body = data.partition(b"\r\n\r\n")
    changed = _with_value(rng, json.loads(body))
    if rng.random() < 0.8:
        lengths = (b"length: %d" % len(body), b"length: %d" % len(changed))
        header = header.replace(*lengths)
    return header + b"\r\n\r\n" + changed


def _safetensors_header(rng: random.Random, data: bytes) -> bytes:
    (length,) = struct.unpack("<Q", data[:8])
    header = _with_value(rng, json.loads(data[8 : 8 + length]))
    claimed = rng.choice((len(header), len(header), len(header), 1 << 40, 0, len(header) - 1))
    return struct.pack("<Q", claimed) + header + data[8 + length :]
