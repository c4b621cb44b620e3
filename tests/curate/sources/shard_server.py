"""A server of shards on this machine, with the ways in which servers differ and fail."""

import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class _Handler(BaseHTTPRequestHandler):
    server: "ShardServer"

    def do_GET(self) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._answer()

    def _answer(self) -> None:
        server, path = self.server, self.path.split("?")[0]
        range_header = self.headers.get("Range")
        server.requests.append((path, range_header))
        if path in server.redirects:
            self._head(302, {"Location": server.redirects[path]})
            return
        if path not in server.files or server.failures > 0:
            server.failures -= 1
            self._head(404 if path not in server.files else 503, {"Content-Length": "0"})
            return
        body = server.files[path]
        headers = {"ETag": server.etag, **server.headers}
        start = 0
        if server.takes_ranges:
            headers["Accept-Ranges"] = "bytes"
            start = int(range_header.removeprefix("bytes=").rstrip("-")) if range_header else 0
        if start:
            headers["Content-Range"] = f"bytes {start + server.shift}-{len(body) - 1}/{len(body)}"
        if server.says_length:
            headers["Content-Length"] = str(len(body) - start)
        self._head(206 if start else 200, headers)
        sent = body[start:]
        if server.breaks_after:
            sent, server.breaks_after = sent[: server.breaks_after[0]], server.breaks_after[1:]
        self.wfile.write(sent)

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        return


class ShardServer(ThreadingHTTPServer):
    """`requests` are (path, Range header); the other attributes may be changed."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.requests: list[tuple[str, str | None]] = []
        self.files: dict[str, bytes] = {}
        self.redirects: dict[str, str] = {}
        self.headers: dict[str, str] = {}
        self.takes_ranges = True
        self.says_length = True
        self.etag = '"1"'
        self.failures = 0
        self.shift = 0
        self.breaks_after: list[int] = []

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.server_address[1]}{path}"


@contextlib.contextmanager
def serving() -> Iterator[ShardServer]:
    server = ShardServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
