"""A headless Chromium for tests, controlled over its debugging pipe, without a driver."""

import base64
import fcntl
import io
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

NAMES = ("chromium", "google-chrome", "chromium-browser", "chrome", "chrome-headless-shell")
OPTIONS = ["--headless", "--no-sandbox", "--no-zygote", "--disable-gpu", "--hide-scrollbars"]
OPTIONS += ["--no-first-run", "--disable-background-networking", "--disable-component-update"]
OPTIONS += ["--disable-sync", "--disable-default-apps", "--disable-extensions"]
TIMEOUT_S = 90


def find_browser() -> str | None:
    """The program that CHROME_BIN names, or the first known one on the path."""
    named = os.environ.get("CHROME_BIN")
    return named or next((found for name in NAMES if (found := shutil.which(name))), None)


class Browser:
    """One page; messages are JSON, each ended by a zero byte."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self.writing, self.reading = os.fdopen(to_browser, "wb"), os.fdopen(from_browser, "rb")
        self.count = 0
        self.session: str | None = None
        self.events: list[dict[str, Any]] = []
        self.rest = b""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        self.call("Page.enable")
        self.call("Network.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of a command of the browser's debugging protocol."""
        self.count += 1
        message = {"id": self.count, "method": method, "params": params}
        message |= {"sessionId": self.session} if self.session else {}
        self.writing.write(json.dumps(message).encode() + b"\0")
        self.writing.flush()
        while True:
            answer = self._read()
            if answer.get("id") == self.count:
                assert "error" not in answer, f"{method}: {answer['error']}"
                result: dict[str, Any] = answer["result"]
                return result
            self.events.append(answer)

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self.rest:
            part = os.read(self.reading.fileno(), 1 << 16)
            assert part, "the browser has ended"
            self.rest += part
        one, self.rest = self.rest.split(b"\0", 1)
        message: dict[str, Any] = json.loads(one)
        return message

    def show(self, page: Path, *, width_px: int, dark: bool) -> "RenderedPage":
        """The whole page at a width, and every address that it requested."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        size = {"width": width_px, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        self.events = []
        self.call("Page.navigate", url=page.as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._read())
        layout = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": width_px, "height": layout["height"], "scale": 1}
        shot = self.call("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        events = [event["params"] | {"method": event.get("method")} for event in self.events]
        # A request that the page's own policy blocks has an event too, but is never sent.
        blocked = {each["requestId"] for each in events if each.get("blockedReason") == "csp"}
        urls = [
            each["request"]["url"]
            for each in events
            if each["method"] == "Network.requestWillBeSent" and each["requestId"] not in blocked
        ]
        with Image.open(io.BytesIO(base64.b64decode(shot["data"]))) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        return RenderedPage(pixels, layout["width"], urls)


class RenderedPage:
    """Pixels (H, W, 3) of a page, the width it takes, and the addresses that it requested."""

    def __init__(self, pixels: np.ndarray, width_px: float, urls: list[str]) -> None:
        self.pixels, self.width_px = pixels, width_px
        # The first request is for the page itself.
        self.requests = [url for url in urls[1:] if not url.startswith("data:")]


@contextmanager
def open_browser(program: str, folder: Path) -> Iterator[Browser]:
    """A browser that is ended at the end, or after a time without an answer."""
    pipes = [os.pipe(), os.pipe()]
    (child_reads, we_write), (we_read, child_writes) = pipes
    # Out of the way of 3 and 4, by which the browser knows its pipe.
    high = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (child_reads, child_writes)]

    def settle() -> None:
        os.dup2(high[0], 3)
        os.dup2(high[1], 4)

    process = subprocess.Popen(
        [program, *OPTIONS, "--remote-debugging-pipe", f"--user-data-dir={folder}", "about:blank"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=settle,
        pass_fds=(3, 4),
    )
    for end in (child_reads, child_writes, *high):
        os.close(end)
    stop = threading.Timer(TIMEOUT_S, process.kill)
    stop.start()
    try:
        yield Browser(we_write, we_read)
    finally:
        stop.cancel()
        process.kill()
        process.wait()
