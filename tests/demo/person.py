"""A person at the page: types, clicks and gives files in a headless Chromium, and reads."""

import base64
import io
import json
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from PIL import Image

from tests.report.browser import Browser

WAIT_S = 90
# What a person can see: gradio keeps the tabs that are not chosen in the page.
VISIBLE = "const seen = e => e && e.getClientRects().length > 0;"


class Person:
    """A person whose browser shows an address, at a width and in light or dark colours."""

    def __init__(self, browser: Browser, address: str, *, width_px: int, dark: bool) -> None:
        self.browser, self.address, self.width_px = browser, address, width_px
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        browser.call("Emulation.setEmulatedMedia", features=[scheme])
        size = {"width": width_px, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        browser.call("Emulation.setDeviceMetricsOverride", **size)
        self.open()

    def open(self) -> None:
        """Open the page, as new."""
        self.browser.call("Page.navigate", url=self.address)
        time.sleep(0.5)
        self.wait("document.querySelectorAll('button[role=tab]').length > 1")

    def read(self, expression: str) -> Any:
        """The value of an expression of the page's language."""
        code = f"(() => {{ {VISIBLE} return {expression} }})()"
        done = self.browser.call("Runtime.evaluate", expression=code, returnByValue=True)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def wait(self, expression: str, seconds: float = WAIT_S) -> Any:
        """The expression's value as soon as it is true."""
        end = time.monotonic() + seconds
        while not (value := self.read(expression)):
            assert time.monotonic() < end, f"{expression}\n{self.text()[-1500:]}"
            time.sleep(0.1)
        return value

    def text(self) -> str:
        """All visible text of the page."""
        return str(self.read("document.body.innerText"))

    def go_to(self, tab: str) -> None:
        """Choose a tab; on a phone the last ones are in a menu."""
        choose = (
            "(e => e && (e.click(), true))([...document.querySelectorAll("
            "'.tab-container[role=tablist] button, .overflow-dropdown button')].find("
            f"e => seen(e) && e.innerText.trim() === {json.dumps(tab)}))"
        )
        if not self.read(choose):
            self.read("[...document.querySelectorAll('.overflow-menu > button')].pop()?.click()")
            self.wait(choose)
        time.sleep(0.3)

    def click(self, button: str) -> None:
        """Click the visible button with this text, in the tab that is chosen."""
        self.wait(
            "(e => e && (e.click(), true))([...document.querySelectorAll("
            "'[role=tabpanel] button')].find("
            f"e => seen(e) && e.innerText.trim() === {json.dumps(button)}))"
        )

    def write(self, label: str, text: str) -> None:
        """Replace the text of the field with this label."""
        self.wait(
            "(e => e && (e.focus(), e.select(), true))([...document.querySelectorAll("
            "'label')].filter(seen).find(e => e.querySelector('[data-testid=block-info]')"
            f"?.innerText.trim() === {json.dumps(label)})?.querySelector('textarea, input'))"
        )
        if text:
            self.browser.call("Input.insertText", text=text)
        else:
            for kind in ("keyDown", "keyUp"):
                self.browser.call(
                    "Input.dispatchKeyEvent", type=kind, key="Delete", windowsVirtualKeyCode=46
                )
        time.sleep(0.2)

    def give(self, file: Path) -> None:
        """Choose a file in the visible tab, which has none yet."""
        at = "[...document.querySelectorAll('input[type=file]')].find(e => seen(e.parentElement))"
        self.wait(f"!!{at}")
        found = self.browser.call("Runtime.evaluate", expression=f"{VISIBLE} {at}")
        self.browser.call(
            "DOM.setFileInputFiles", files=[str(file)], objectId=found["result"]["objectId"]
        )

    def wait_for_example(self) -> None:
        """Wait until the visible tab shows the picture that it was given."""
        self.wait(
            "[...document.querySelectorAll('[data-testid=image] img')]"
            ".some(e => seen(e) && e.naturalWidth > 0)"
        )

    def pictures(self) -> int:
        """How many drawn pictures the visible tab shows, all loaded."""
        return int(
            self.read(
                "[...document.querySelectorAll('.gallery-container img, .grid-wrap img')]"
                ".filter(e => seen(e) && e.naturalWidth > 0).length"
            )
        )

    def wait_for_pictures(self, count: int) -> None:
        end = time.monotonic() + WAIT_S
        while self.pictures() != count:
            assert time.monotonic() < end, f"{self.pictures()} of {count}\n{self.text()[-1500:]}"
            time.sleep(0.1)

    def wait_for(self, text: str) -> None:
        self.wait(f"document.body.innerText.includes({json.dumps(text)})")

    def dismiss(self) -> None:
        """Close every notice."""
        self.read("document.querySelectorAll('.toast-close').forEach(e => e.click())")
        self.wait("document.querySelectorAll('.toast-body').length === 0")

    def page_width_px(self) -> int:
        return int(self.read("document.documentElement.scrollWidth"))

    def hosts(self) -> set[str]:
        """Every host that the page asked or tried to ask for something."""
        self.read("1")  # what has come until now
        urls = [
            event["params"].get("request", event["params"]).get("url", "")
            for event in self.browser.events
            if event.get("method") in ("Network.requestWillBeSent", "Network.webSocketCreated")
        ]
        return {
            urlsplit(url).hostname or "" for url in urls if not url.startswith(("data:", "blob:"))
        }

    def screenshot(self) -> Image.Image:
        height = self.browser.call("Page.getLayoutMetrics")["cssContentSize"]["height"]
        clip = {"x": 0, "y": 0, "width": self.width_px, "height": height, "scale": 1}
        shot = self.browser.call("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        return Image.open(io.BytesIO(base64.b64decode(shot["data"])))
