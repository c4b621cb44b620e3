"""The caption alone: what models write around it goes, what is no caption is refused."""

import pytest

from tarkit.curate.ask import Refused
from tarkit.curate.caption_text import caption_in

CAPTION = "A red square on a table."


@pytest.mark.parametrize(
    "answer",
    [
        CAPTION,
        f"```\n{CAPTION}\n```",
        f"```text\n{CAPTION}```",
        f"Example 4: {CAPTION}",
        f"Example 4\n{CAPTION}",
        f"**Prompt:** {CAPTION}",
        f"**Prompt**: {CAPTION}",
        f"# Prompt\n\n{CAPTION}",
        f'Prompt: "{CAPTION}"',
        f"Image prompt: {CAPTION}",
        f"提示词：{CAPTION}",
        f"The image is: {CAPTION}",
        f"Sure! {CAPTION}",
        f"Sure, here's a caption for this image: {CAPTION}",
        f"Here is the prompt for the image:\n\n**{CAPTION}**\n\nLet me know if it fits!",
        f"{CAPTION}\n\nNote: the table may be a desk.",
        f"{CAPTION} I hope this helps!",
        f'{{"prompt": "{CAPTION}"}}',
        f'```json\n{{"caption": "{CAPTION}"}}\n```',
        f"<caption>{CAPTION}</caption>",
        f"> {CAPTION}",
        f"- {CAPTION}",
        f"1. {CAPTION}",
        f"`{CAPTION}`",
        f"“{CAPTION}”",
    ],
)
def test_what_stands_around_a_caption_is_removed(answer: str) -> None:
    assert caption_in(answer) == CAPTION


@pytest.mark.parametrize(
    "caption",
    [
        'A sign that says "STOP"',
        '"STOP" on one sign and "GO" on another: "STOP"',
        "A photo: a red fox, 2. place",
        "Here are two dogs on a lawn: one is brown.",
        "A note on a table, it says: let me in.",
        "Example sentences on a blackboard, 1. a fox",
    ],
)
def test_a_caption_keeps_its_own_quotes_colons_and_numbers(caption: str) -> None:
    assert caption_in(caption) == caption


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("I'm sorry, but I can't help with that.", "apology"),
        ("I cannot see the image.", "apology"),
        ("Unfortunately, I am unable to view images.", "apology"),
        ("As an AI language model, I have no eyes.", "apology"),
        ("Please provide the image.", "apology"),
        (f"1. {CAPTION}\n2. {CAPTION}", "list"),
        (f"{CAPTION}\n\nExample 5: A blue one.", "several captions"),
        (f"Example 4: {CAPTION} Example 5: A blue one.", "several captions"),
        (f"{CAPTION}\n```", "code fence"),
        (f"[{CAPTION}]", "brackets"),
        ('{"prompt": "A fox", "style": "oil"}', "other values"),
    ],
)
def test_what_is_no_caption_is_refused(answer: str, reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        caption_in(answer)
