"""`tarkit demo`: serves the page of a model at an address of this computer, until it is stopped.

The server listens on 127.0.0.1 only and answers to that name only, so that no other computer and no
page of another site reaches it. Nothing is sent anywhere. Files that persons upload lie in a
temporary folder, which is removed at the end.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import socket
import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tarkit.demo.studio import Studio
from tarkit.errors import UserError
from tarkit.terminal import print_note, print_result

if TYPE_CHECKING:
    from fastapi import FastAPI
    from gradio import Blocks

HOST = "127.0.0.1"
STOPS = (signal.SIGINT, signal.SIGTERM)
# gradio's packages ask for them when they are imported.
QUIET = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
# The browser loads nothing from elsewhere, whatever a package's page or a prompt may name.
POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; font-src 'self' data:; "
    "script-src 'self' 'unsafe-inline' blob:; style-src 'self' 'unsafe-inline'; "
    "media-src 'self' blob:; worker-src 'self' blob:; form-action 'none'; frame-ancestors 'none'"
)


def run(
    *, model: str = "mini", port: int = 7860, device: str = "cpu", precision: str = "float32"
) -> None:
    """Load the model, print the address of its page, and serve it until Ctrl-C or SIGTERM.

    Port 0 is any free one. Raises UserError without gradio, for a port that is taken, and for a
    model that cannot be loaded.
    """
    if importlib.util.find_spec("gradio") is None:
        raise UserError("the page needs gradio", hint="pip install 'tarkit[demo]'")
    with (
        _stops_as_interrupts(),
        _listening(port) as listening,
        tempfile.TemporaryDirectory(prefix="tarkit_demo_") as uploads,
        contextlib.suppress(KeyboardInterrupt),
    ):
        os.environ.update(QUIET | {"GRADIO_TEMP_DIR": uploads})
        studio = Studio.load(model, device=device, precision=precision)
        # gradio takes seconds to import: after everything that can be refused.
        import uvicorn

        from tarkit.demo.page import page_of

        address = f"http://{HOST}:{listening.getsockname()[1]}"
        config = uvicorn.Config(
            served(page_of(studio)), log_level="warning", timeout_graceful_shutdown=1
        )
        server = uvicorn.Server(config)
        # The server ends by itself, also at a signal that comes before it runs.
        for number in STOPS:
            signal.signal(number, server.handle_exit)
        print_result(address)
        print_note(f"open {address} in a browser on this computer; Ctrl-C ends it")
        server.run(sockets=[listening])


@contextlib.contextmanager
def _stops_as_interrupts() -> Iterator[None]:
    """Let SIGTERM raise KeyboardInterrupt as Ctrl-C does, so that the temporary folder goes."""
    before = {number: signal.getsignal(number) for number in STOPS}
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def served(page: Blocks) -> FastAPI:
    """The application of a page: for this computer alone, with a policy against other sites."""
    import gradio
    from fastapi import FastAPI
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.types import Message, Receive, Scope, Send

    from tarkit.demo.page import CSS, theme

    app = gradio.mount_gradio_app(
        FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
        page,
        "",
        server_name=HOST,
        footer_links=[],
        show_error=False,
        ssr_mode=False,
        mcp_server=False,
        theme=theme(),
        css=CSS,
    )

    class ContentPolicy:
        def __init__(self, inner: FastAPI) -> None:
            self.inner = inner

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            async def send_with_policy(message: Message) -> None:
                if message["type"] == "http.response.start":
                    message["headers"] = [
                        *message["headers"],
                        (b"content-security-policy", POLICY.encode()),
                        (b"referrer-policy", b"no-referrer"),
                    ]
                await send(message)

            await self.inner(scope, receive, send_with_policy)

    app.add_middleware(ContentPolicy)
    # Another site's name that resolves to 127.0.0.1 is refused.
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])
    return app


def _listening(port: int) -> socket.socket:
    """A socket that listens on a port of this computer alone."""
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((HOST, port))
        listening.listen(128)
    except OSError as error:
        listening.close()
        raise UserError(
            f"port {port} of this computer cannot be used: {error.strerror}",
            hint="tarkit demo --port 0",
        ) from None
    return listening
