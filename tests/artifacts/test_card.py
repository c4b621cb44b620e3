"""Cards of model directories: their text is kept, and their lines are read back."""

from pathlib import Path

from tarkit.artifacts.card import CARD, own_text, trained_on, write_card
from tarkit.artifacts.manifest import begin_directory

LINES = ["mllm: `a - b`", "  chats: `words` (chats, sha256 12)", "    text: `x`", "vqvae: `y`"]


def test_the_lines_of_a_card_are_read_back_as_they_were_given(tmp_path: Path) -> None:
    (tmp_path / CARD).write_text(write_card("library_name: tarkit", "# Title\n\nText.", LINES))
    assert trained_on(tmp_path) == LINES


def test_a_card_keeps_the_text_and_sections_of_its_author() -> None:
    card = write_card("a: b", "# Title\n\n## Figures\n\n- one", LINES).split("---\n", 2)[2]
    assert own_text(card) == "# Title\n\n## Figures\n\n- one"
    longer = card + "\n## Thanks\n\nTo all.\n"
    assert own_text(longer) == own_text(card) + "\n\n## Thanks\n\nTo all."
    assert own_text("# A card of somebody else\n") == "# A card of somebody else"


def test_a_part_of_a_model_was_trained_on_what_its_card_says(tmp_path: Path) -> None:
    part = tmp_path / "model" / "mllm"
    part.mkdir(parents=True)
    (tmp_path / "model" / CARD).write_text(write_card("a: b", "# Title", LINES))
    assert trained_on(part) == []  # a folder beside any card is no part of a model
    (tmp_path / "model" / "config.json").write_text("{}")
    assert trained_on(part) == LINES


def test_inputs_that_name_each_other_end(tmp_path: Path) -> None:
    begin_directory(tmp_path / "a", "model", settings={})
    begin_directory(tmp_path / "b", "model", settings={}, parents={"start": tmp_path / "a"})
    manifest = (tmp_path / "b" / "manifest.json").read_text()
    (tmp_path / "a" / "manifest.json").write_text(manifest.replace("../a", "../b"))
    names = [line.strip().split(" (")[0] for line in trained_on(tmp_path / "b")]
    assert names == ["start: `a`", "start: `b`", "start: `a`"]
