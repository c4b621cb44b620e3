"""An OpenAI-compatible server that misbehaves as it is told to."""

import contextlib
import http.server
import json
import random
import threading
import time
from collections.abc import Iterator
from typing import Any

Reply = tuple[int, bytes]


def said(text: Any, *, finish: str = "stop") -> Reply:
    """A sound reply of 7 prompt tokens and 3 of its own."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}}
    return 200, json.dumps(
        {
            "id": "1",
            "object": "chat.completion",
            "created": 0,
            "model": "stub",
            "choices": [choice | {"finish_reason": finish}],
            "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10},
        }
    ).encode()


def drawn(body: dict[str, Any]) -> Reply:
    """vLLM's reply to a completion of token ids: allowed ids, drawn by the seed."""
    assert all(type(token) is int for token in body["prompt"])
    dice = random.Random(f"{body['seed']} {body['prompt']}")
    ids = [dice.choice(body["allowed_token_ids"]) for _ in range(body["max_tokens"])]
    return completed(ids)


def completed(ids: Any) -> Reply:
    choice = {"index": 0, "text": "", "finish_reason": "length", "token_ids": ids}
    return 200, json.dumps({"id": "1", "object": "text_completion", "choices": [choice]}).encode()


class Stub(http.server.ThreadingHTTPServer):
    """Gives `replies` in turn, the last one again and again; `asked` holds what came in."""

    daemon_threads = True

    def __init__(self, *replies: Any, models: Any = ("stub",)) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.models = models
        self.replies = list(replies)
        self.asked: list[dict[str, Any]] = []
        self.lock = threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Stub

    def do_GET(self) -> None:
        text = json.dumps({"data": [{"id": name} for name in self.server.models]}).encode()
        self.send_response(200 if self.path == "/v1/models" else 404)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with self.server.lock:
            number = len(self.server.asked)
            self.server.asked.append(body)
            reply = self.server.replies[min(number, len(self.server.replies) - 1)]
        if callable(reply):
            reply = reply(body)
        if reply == "drip":
            self._drip()
            return
        if reply == "endless":
            self._drip(b" " * (1 << 20), pause_s=0)
            return
        status, text, *more = reply
        self.send_response(status)
        for name, value in (more[0] if more else {}).items():
            self.send_header(name, value)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text)))
        self.send_header("retry-after-ms", "1")  # so that the client's backoff costs no test time
        self.end_headers()
        with contextlib.suppress(OSError):  # the client has seen enough
            self.wfile.write(text)

    def _drip(self, part: bytes = b" ", pause_s: float = 0.02) -> None:
        """A part now and then, for ever: no single read ever times out."""
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.end_headers()
        try:
            while True:
                self.wfile.write(part)
                self.wfile.flush()
                time.sleep(pause_s)
        except OSError:
            return

    def log_message(self, format: str, *args: Any) -> None:
        return


@contextlib.contextmanager
def serving(*replies: Any, models: Any = ("stub",)) -> Iterator[Stub]:
    stub = Stub(*replies, models=models)
    thread = threading.Thread(target=stub.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield stub
    finally:
        stub.shutdown()
        stub.server_close()
