"""A server on this machine with every kind of picture that the open internet has."""

import contextlib
import io
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
from PIL import Image


def encoded(kind: str, size: tuple[int, int] = (40, 30), mode: str = "RGB") -> bytes:
    rng = np.random.default_rng([len(kind), *size])
    pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, kind)
    return buffer.getvalue()


JPEG = encoded("JPEG")
BODIES = {
    "/good.jpg": JPEG,
    "/good.png": encoded("PNG"),
    "/good.webp": encoded("WEBP"),
    "/good.gif": encoded("GIF"),
    "/name with blank.jpg": JPEG,
    "/slow.jpg": JPEG,
    "/text.txt": encoded("PNG", (24, 20)),  # called text, and a picture
    "/lying.jpg": b"<html>no picture here</html>",  # called a picture, and text
    "/truncated.jpg": JPEG[: len(JPEG) // 2],
    "/short.jpg": JPEG,  # announced as longer than it is
    "/small.png": encoded("PNG", (8, 40)),
    "/pixels.png": encoded("PNG", (200, 100), "1"),  # 20,000 pixels
    "/long.png": encoded("PNG", (70, 70)),  # over 14,000 bytes: noise does not shrink
}


class _Handler(BaseHTTPRequestHandler):
    server: "PictureServer"

    def do_GET(self) -> None:
        path = self.path.replace("%20", " ").split("?")[0]
        self.server.hits[path] += 1
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._answer(path)

    def _answer(self, path: str) -> None:
        if path in ("/redirect", "/loop"):
            self._head(302, Location="/good.jpg" if path == "/redirect" else "/loop")
        elif path in ("/endless", "/huge"):
            self._endless(path)
        elif path in self.server.bodies:
            body = self.server.bodies[path]
            if path == "/slow.jpg":
                self.server.closing.wait(self.server.slow_s)
            announced = len(body) + (path == "/short.jpg")
            kind = "text/html" if path.endswith(".txt") else "image/jpeg"
            self._head(200, **{"Content-Length": str(announced), "Content-Type": kind})
            self.wfile.write(body)
        else:
            self._head(404)

    def _endless(self, path: str) -> None:
        """A byte every now and then, or as much as goes through, and never an end."""
        self._head(200)
        chunk, pause_s = (b"x", 0.05) if path == "/endless" else (bytes(1 << 20), 0.0)
        while not self.server.closing.wait(pause_s):
            self.wfile.write(chunk)
            self.wfile.flush()

    def _head(self, status: int, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        return


class PictureServer(ThreadingHTTPServer):
    """`hits` counts the requests of every path; `bodies` may be changed."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128  # with the usual 5, bursts wait a second for a second try

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hits: Counter[str] = Counter()
        self.bodies = dict(BODIES)
        self.slow_s = 0.2
        self.closing = threading.Event()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}{path}"


@contextlib.contextmanager
def serving() -> Iterator[PictureServer]:
    server = PictureServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()
