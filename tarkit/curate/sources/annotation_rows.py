"""The rows of captions and questions files in the forms that other programs write.

COCO's captions are {images: [{id, file_name}], annotations: [{image_id, caption}]}. Kohya's are
{name: {caption}} or {name: caption}. Conversations are ShareGPT's and LLaVA's (conversations of
{from, value}), OpenAI's and Qwen's (messages of {role, content}, whose content may be a list of
parts), Qwen-VL's (`<img>FILE</img>` in a question), Alpaca's (instruction, input, output) and
ms-swift's (query, response).
"""

import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from tarkit.artifacts.files import require_file
from tarkit.artifacts.tables import AGAIN, FileRow, read_json, read_rows
from tarkit.curate.sources.items import is_absent, lowered
from tarkit.errors import UserError

MESSAGES, CONVERSATIONS = "messages", "conversations"
OTHER_FORMS = (MESSAGES, "instruction", "input", "output", "query", "response")
QWEN_PICTURE = re.compile(r"(?:Picture \d+: ?)?<img>(.*?)</img>\n?")


def annotation_rows(path: Path, columns: Collection[str]) -> Iterator[FileRow]:
    """The rows of a csv, tsv, jsonl, json or Parquet file; raises UserError as `read_rows` does."""
    require_file(path)
    if path.suffix == ".json" and _begins_as_object(path):
        return _object_rows(path)
    return read_rows(path, columns=columns)


def usual_form(values: Mapping[Any, Any]) -> dict[str, Any]:
    """A row under names in lower case, without absent values, its conversation as ShareGPT's."""
    row = {name: value for name, value in lowered(values).items() if not is_absent(value)}
    for question, answer in (("instruction", "output"), ("query", "response")):
        if question in row and answer in row and not {"question", CONVERSATIONS} & row.keys():
            asked = [row[question], row.get("input") if question == "instruction" else None]
            row["question"] = "\n".join(text for text in asked if isinstance(text, str) and text)
            row["answer"] = row[answer]
    if CONVERSATIONS not in row and isinstance(row.get(MESSAGES), list):
        row[CONVERSATIONS] = [_turn(message, row) for message in row[MESSAGES]]
    if isinstance(row.get(CONVERSATIONS), list):
        row[CONVERSATIONS] = [_unmarked(turn, row) for turn in row[CONVERSATIONS]]
    return row


def _turn(message: Any, row: dict[str, Any]) -> Any:
    """A message of {role, content} as {from, value}; pictures in it become the row's."""
    if not isinstance(message, Mapping):
        return message
    content = message.get("content")
    if isinstance(content, list):
        parts = [part for part in content if isinstance(part, Mapping)]
        for part in parts:
            if isinstance(part.get("image"), str):
                _add_picture(row, part["image"])
        content = "\n".join(str(part["text"]) for part in parts if "text" in part)
    return {"from": message.get("role"), "value": content}


def _unmarked(turn: Any, row: dict[str, Any]) -> Any:
    """A turn without Qwen-VL's `<img>FILE</img>`, whose files become the row's pictures."""
    value = turn.get("value") if isinstance(turn, Mapping) else None
    if not isinstance(value, str) or "<img>" not in value:
        return turn
    for name in QWEN_PICTURE.findall(value):
        _add_picture(row, name)
    return {**turn, "value": QWEN_PICTURE.sub("", value)}


def _add_picture(row: dict[str, Any], name: str) -> None:
    names = row.get("images", [])
    if "image" not in row and isinstance(names, list) and name not in names:
        row["images"] = [*names, name]


def _begins_as_object(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{")
    except OSError:
        return False  # `read_rows` says why


def _object_rows(path: Path) -> Iterator[FileRow]:
    value = read_json(path)
    images, annotations = value.get("images"), value.get("annotations")
    if isinstance(images, list) and isinstance(annotations, list):
        return _coco_rows(path, images, annotations)
    if all(isinstance(each, (str, dict)) for each in value.values()):
        return (
            FileRow(
                path, "row", number, {"image": n, **(v if isinstance(v, dict) else {"caption": v})}
            )
            for number, (n, v) in enumerate(value.items())
        )
    raise UserError(
        f"{path} is neither a list of rows, COCO's captions (images and annotations), nor a table "
        f"of captions by picture; it has {', '.join(map(str, list(value)[:8]))}",
        hint=AGAIN,
    )


def _coco_rows(path: Path, images: list[Any], annotations: list[Any]) -> Iterator[FileRow]:
    names = {
        each["id"]: each.get("file_name")
        for each in images
        if isinstance(each, dict) and isinstance(each.get("id"), int | str)
    }
    for number, each in enumerate(annotations):
        fields = each if isinstance(each, dict) else {}
        number_of, caption = fields.get("image_id"), fields.get("caption")
        name = names.get(number_of) if isinstance(number_of, int | str) else None
        if not isinstance(name, str):
            error: str | None = f"is about the image {number_of!r}, not in the list"
        else:
            error = None if isinstance(caption, str) else "has no caption: only captions are read"
        yield FileRow(path, "row", number, {"image": name, "caption": caption}, error)
