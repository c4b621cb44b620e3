"""What the demo's page does with a model, without a browser and without gradio."""

import builtins
import importlib.util
import socket
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from tarkit.cli.app import app
from tarkit.demo.studio import DrawSettings, Studio, chosen, read_upload
from tarkit.errors import UserError
from tarkit.inference.self_reflect import Reflection, best_of

PROMPT = "a photo of a ring above a heart"


@pytest.fixture(scope="module")
def studio() -> Studio:
    return Studio.load("mini")


@pytest.fixture(scope="module")
def drawn(studio: Studio) -> Image.Image:
    (*_, last) = studio.draw(PROMPT, n=1)
    return last.pictures[0][0]


def test_a_picture_more_comes_with_each_step_and_is_that_of_its_seed(studio: Studio) -> None:
    steps = list(studio.draw(PROMPT, DrawSettings(seed=5), n=3))
    assert [len(step.pictures) for step in steps] == [0, 1, 2, 3]
    assert steps[-1].lines[0] == "Done: 3 of 3."
    for number, (picture, caption) in enumerate(steps[-1].pictures):
        assert caption == f"seed {5 + number}"
        assert picture.tobytes() == studio.tar.imagine(PROMPT, seed=5 + number).tobytes()


def test_two_persons_at_once_draw_what_each_draws_alone(studio: Studio) -> None:
    other = "a photo of two white diamonds"
    alone = [list(studio.draw(prompt, n=2))[-1] for prompt in (PROMPT, other)]
    jobs = studio.draw(PROMPT, n=2), studio.draw(other, n=2)
    together = [list(pair) for pair in zip(*jobs, strict=True)]
    for one, two in zip(alone, together[-1], strict=True):
        assert [p.tobytes() for p, _ in one.pictures] == [p.tobytes() for p, _ in two.pictures]


def test_the_chosen_candidate_is_that_of_generate(studio: Studio) -> None:
    found = list(studio.candidates(PROMPT, n=3))
    for by in ("gain", "yes"):
        (kept,) = best_of(
            studio.tar,
            [PROMPT],
            seeds=[0],
            reflection=Reflection(3, by, "pixels", until_yes=False),
            scale=studio.tar.default_scale,
            sampling=studio.tar.sampling,
        )
        assert chosen(found, by) == kept.number
        assert found[kept.number].scores[by] == pytest.approx(kept.score, abs=1e-5)


def test_pictures_are_read_edited_and_reconstructed(studio: Studio, drawn: Image.Image) -> None:
    assert studio.answer(drawn, "is there a heart in the image?") in ("yes", "no")
    assert len(list(studio.edit(drawn, "a photo of <image> above a heart", n=1))[-1].pictures) == 1
    captions = [caption for _, caption in list(studio.reconstruct(drawn))[-1].pictures]
    assert captions == ["your picture", "144 codes", "36 codes", "16 codes"]
    (*_, last) = studio.dialect(drawn)
    assert last.lines[0].startswith("The words that tell most: ")


@pytest.mark.parametrize(
    ("prompt", "settings", "n", "sentence"),
    [
        (" ", DrawSettings(), 1, "The prompt is empty"),
        ("a photo of <image>", DrawSettings(), 1, "go to Edit"),
        ("a" * 501, DrawSettings(), 1, "501 characters"),
        ("a \ud800", DrawSettings(), 1, "not text"),
        (PROMPT, DrawSettings(), 9, "between 1 and 8"),
        (PROMPT, DrawSettings(seed=-1), 1, "The seed must be between"),
    ],
)
def test_a_mistake_is_a_sentence_before_anything_is_drawn(
    studio: Studio, prompt: str, settings: DrawSettings, n: int, sentence: str
) -> None:
    with pytest.raises(UserError) as error:
        next(studio.draw(prompt, settings, n=n))
    assert sentence in str(error.value)


def test_a_word_that_the_model_never_read_is_named(studio: Studio) -> None:
    lines = next(studio.draw("a photo of a cat", n=1)).lines
    assert any("never read: cat." in line for line in lines)


def test_uploads_of_any_kind_are_pictures_or_sentences(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no picture yet"):
        read_upload(None)
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"broken" * 20)
    Image.new("1", (30_000, 30_000)).save(tmp_path / "huge.png")
    for name in ("text.jpg", "cut.png", "huge.png"):
        with pytest.raises(UserError, match="cannot be read as a picture"):
            read_upload(tmp_path / name)


def test_the_command_refuses_before_it_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "gradio" else find_spec(name)
    )
    done = CliRunner().invoke(app, ["demo"])
    assert done.exit_code == 1
    assert "pip install 'tarkit[demo]'" in done.stderr
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: builtins.object())
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = CliRunner().invoke(app, ["demo", "--port", str(port)])
        assert done.exit_code == 1
        assert f"port {port}" in done.stderr and "--port 0" in done.stderr
    done = CliRunner().invoke(app, ["demo", "--port", "0", "--model", "minni"])
    assert done.exit_code == 1
    assert "minni" in done.stderr
    assert "Traceback" not in done.output
