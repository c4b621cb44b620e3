"""The caption in the answer of a vision-language model, which often writes something around it."""

from __future__ import annotations

import json
import re

from tarkit.curate.ask import Refused

NAMES = (
    r"(?:(?:the|an?|my|your|this|image|picture|final|new|generated|possible|short|brief|detailed"
    r"|rewritten|revised|alternative|text-to-image) )*"
    r"(?:prompt|caption|description|example|output|answer|response|result|rewrite"
    r"|提示词?|图片描述|描述|标题)"
    r"(?: (?:for|of) (?:the|this) (?:image|picture))?"
)
FENCE = re.compile(r"```[\w-]*\n(.*?)\n?```\s*", re.DOTALL)
LABEL = re.compile(rf"{NAMES}\s*(?:#?\d+)?[*_]*\s*[:：]", re.IGNORECASE)
HEADING = re.compile(rf"[#*_\s]*{NAMES}\s*(?:#?\d+)?[*_\s]*[:：]?[*_\s]*", re.IGNORECASE)
NEXT_EXAMPLE = re.compile(r"\bexample \d+[*_]*:", re.IGNORECASE)
OPENING = re.compile(
    r"(?:sure|certainly|of course|okay|ok|absolutely|here(?:['’]s| is| are)|below is)\b[^\n]{0,80}"
    r"\b(?:prompt|caption|description|sentence|version|answer|rewrite|response|image|picture)s?\b"
    r"[^\n:]{0,80}:"
    r"|(?:the|this) (?:image|picture)(?: is| shows)?:",
    re.IGNORECASE,
)
INTERJECTION = re.compile(
    r"(?:sure|certainly|of course|okay|absolutely)(?: thing)?[!,.]\s+", re.IGNORECASE
)
CLOSING = re.compile(
    r"[(*_]*(?:note\b|explanation\b|let me know|i hope (?:this|that|it)|feel free|would you like"
    r"|is there anything|please let me|this (?:prompt|caption|description) )",
    re.IGNORECASE,
)
GOODBYE = re.compile(r"\s(?:let me know if|i hope (?:this|that|it) helps)\b.*$", re.IGNORECASE)
APOLOGY = re.compile(
    r"(?:i['’]m |i am |we['’]re )?(?:very |so |really )?sorry\b"
    r"|(?:my )?apolog(?:y|ies)\b|i apologi[sz]e"
    r"|(?:unfortunately,? )?i (?:can(?:no|['’])t|could(?: no|n['’])t|do(?: no|n['’])t|am not able"
    r"|am unable|won['’]t|will not|was unable|must decline)\b"
    r"|(?:unfortunately,? )?i['’]m (?:not able|unable|afraid)\b"
    r"|as an? (?:ai|artificial|language model|large language|text-based)\b"
    r"|(?:there is|i see) no (?:image|picture)\b|no (?:image|picture) (?:was|is|has been)\b"
    r"|(?:please|could you|can you) (?:please )?(?:provide|upload|share|attach)\b",
    re.IGNORECASE,
)
ITEM = re.compile(r"(?:[-*•>]|\d{1,2}[.)])\s+")
ELEMENT = re.compile(r"<(\w+)>(.*)</\1>", re.DOTALL)
EMPHASIS = ("**", "__", "`", "*", "_")
QUOTES = (
    *(('"', '"'), ("'", "'"), ("“", "”"), ("‘", "’")),
    *(("«", "»"), ("「", "」"), ("『", "』")),
)


def caption_in(text: str) -> str:
    """The caption in an answer, as one line.

    A code fence, a JSON object of one text, a label, an opening sentence, emphasis and quotes
    around the caption are removed. Raises Refused for an apology, for several captions, and for
    what remains of a fence or an object.
    """
    if APOLOGY.match(text.strip().strip("\"'“*_ ")):
        raise Refused("the answer is an apology")
    if fence := FENCE.search(text):
        text = fence[1]
    if "```" in text:
        raise Refused("the answer has a part of a code fence")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    while len(lines) > 1 and (OPENING.fullmatch(lines[0]) or HEADING.fullmatch(lines[0])):
        lines = lines[1:]
    while len(lines) > 1 and CLOSING.match(lines[-1]):
        lines = lines[:-1]
    if sum(bool(ITEM.match(line)) for line in lines) > 1:
        raise Refused("the answer is a list")
    caption = _bare(" ".join(" ".join(lines).split()))
    if caption.startswith(("{", "[")):
        caption = _bare(_only_text(caption))
    if NEXT_EXAMPLE.search(caption) or any(LABEL.match(line.lstrip("#*_ ")) for line in lines[1:]):
        raise Refused("the answer has several captions")
    return caption


def _bare(text: str) -> str:
    """`text` without what stands around it, in whatever order it stands."""
    before = None
    while text != before:
        before = text
        text = _unwrapped(GOODBYE.sub("", text).strip())
        for pattern in (ITEM, INTERJECTION, LABEL, OPENING):
            start = 0 if pattern is ITEM else len(text) - len(text.lstrip("*_# "))
            if match := pattern.match(text, start):
                text = text[match.end() :].lstrip(" *_")
    return text


def _unwrapped(text: str) -> str:
    """`text` without one pair of quotes, emphasis marks or tags that spans it whole."""
    if element := ELEMENT.fullmatch(text):
        return element[2]
    for mark in EMPHASIS:
        inner = text[len(mark) : -len(mark)]
        if inner and text.startswith(mark) and text.endswith(mark) and mark not in inner:
            return inner
    inner = text[1:-1]
    for opening, closing in QUOTES:
        is_pair = inner and text[0] == opening and text[-1] == closing
        if is_pair and opening not in inner and closing not in inner:
            return inner
    return text


def _only_text(text: str) -> str:
    """The one text of a JSON object or list; raises Refused for anything else."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise Refused("the answer has brackets around it, and is not JSON") from None
    values = list(value.values()) if isinstance(value, dict) else value
    if len(values) != 1 or not isinstance(values[0], str):
        raise Refused("the answer is JSON of other values than one text")
    return str(values[0])
