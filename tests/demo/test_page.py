"""Slow: persons use every tab of the demo's page in a headless Chromium.

Run by hand with gradio (pip install 'tarkit[demo]') and a Chromium on the path or in CHROME_BIN:
pytest -m slow tests/demo. A phone in dark colours, and a desktop in light ones.
"""

import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.demo.person import Person
from tests.report.browser import find_browser, open_browser

HOST = "127.0.0.1"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="no gradio"),
    pytest.mark.skipif(find_browser() is None, reason="no Chromium on the path and no CHROME_BIN"),
]
DEMO = [sys.executable, "-m", "tarkit.cli", "demo", "--port", "0"]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with subprocess.Popen(DEMO, stdout=subprocess.PIPE, text=True, env={**os.environ}) as server:
        assert server.stdout
        yield server.stdout.readline().strip()
        server.terminate()


@pytest.fixture(params=[(390, True), (1200, False)], ids=["phone, dark", "desktop, light"])
def person(
    address: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Person]:
    width_px, dark = request.param
    monkeypatch.setattr("tests.report.browser.TIMEOUT_S", 500)  # every tab, in one browser
    with open_browser(str(find_browser()), tmp_path / "profile") as browser:
        yield Person(browser, address, width_px=width_px, dark=dark)


def test_every_tab_does_what_a_person_asks_and_no_request_leaves(
    person: Person, tmp_path: Path
) -> None:
    # Draw; the pictures come one after the other.
    person.click("Draw")
    person.wait_for_pictures(4)
    # Ask
    person.go_to("Ask")
    person.click("Ask")
    person.wait_for("no picture yet")
    (tmp_path / "damaged.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"broken" * 20)
    person.give(tmp_path / "damaged.png")
    person.click("Ask")
    person.wait_for("cannot be read as a picture")
    Image.new("1", (30_000, 30_000)).save(tmp_path / "huge.png")
    person.open()
    person.go_to("Ask")
    person.give(tmp_path / "huge.png")
    person.click("Ask")
    person.wait_for("cannot be read as a picture")
    person.open()
    person.go_to("Ask")
    person.click("Take an example")
    person.wait_for_example()
    person.click("Ask")
    person.wait_for("heart")
    # Edit, Reconstruct, Reflect, Dialect
    person.go_to("Edit")
    person.click("Take an example")
    person.wait_for_example()
    person.click("Draw")
    person.wait_for_pictures(4)
    person.go_to("Reconstruct")
    person.click("Take an example")
    person.wait_for_example()
    person.click("Reconstruct")
    person.wait_for_pictures(4)
    person.go_to("Reflect")
    person.click("Draw and choose")
    person.wait_for("Done: the model chose candidate")
    person.go_to("Dialect")
    person.click("Take an example")
    person.wait_for_example()
    person.click("Show the words")
    person.wait_for("The words that tell most")
    # An empty prompt, a word that was never read, and a job that is stopped.
    person.go_to("Draw")
    person.write("What to draw", "")
    person.click("Draw")
    person.wait_for("The prompt is empty")
    person.write("What to draw", "a photo of a cat")
    person.click("Draw")
    person.wait_for("never read: cat")
    person.click("Stop")
    person.wait_for("Stopped.")
    assert person.hosts() == {HOST}
    assert "Traceback" not in person.text() and "Error" not in person.text()
    assert person.page_width_px() <= person.width_px, "nothing is wider than the screen"


def test_a_person_who_waits_sees_the_place_in_the_queue(address: str, tmp_path: Path) -> None:
    with (
        open_browser(str(find_browser()), tmp_path / "first") as one,
        open_browser(str(find_browser()), tmp_path / "second") as two,
    ):
        first = Person(one, address, width_px=1200, dark=False)
        second = Person(two, address, width_px=390, dark=True)
        first.click("Draw")
        second.click("Draw")
        second.wait_for("queue: 1/1")
        assert second.pictures() == 0
        first.wait_for_pictures(4)
        second.wait_for_pictures(4)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_demo_that_is_stopped_leaves_nothing(number: signal.Signals, tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    pipe = subprocess.PIPE
    with subprocess.Popen(DEMO, stdout=pipe, stderr=pipe, text=True, env=environment) as server:
        assert server.stdout and server.stderr
        server.stdout.readline()  # the address: the model and gradio are loaded
        assert list(tmp_path.glob("tarkit_demo_*"))
        server.send_signal(number)
        errors = server.stderr.read()
    assert server.returncode == 0
    assert "Warning" not in errors and "Traceback" not in errors, errors
    assert not list(tmp_path.glob("tarkit_demo_*"))
