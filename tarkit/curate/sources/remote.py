"""Reads files at http and https URLs; no file is stored, or held in memory whole.

A URL may come from an untrusted list. So it is checked by `curate.url_safety`, and so are every
redirect and the address of the connection: a host that resolves to a public address when it is
checked and to a private one a moment later is refused before anything is sent.

`webdataset.gopen` is not used, and nothing here calls it. It runs `pipe:` names in a shell, starts
`curl` with `--location`, which follows redirects to private addresses, and rewrites URLs by an
environment variable; its safe mode (WDS_SECURE=1) is for the whole process and also refuses local
files.
"""

from __future__ import annotations

import functools
import http.client
import re
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from tarkit.curate.sources.items import MAX_FILE_BYTES, reason_of
from tarkit.curate.url_safety import RefusedUrl, fetchable, is_public
from tarkit.errors import UserError

MAX_SHARD_BYTES = 64 << 30
SKIP_BYTES = 16 << 20
"""To skip more bytes, a new request is made, if the server accepts requests for ranges."""
CHUNK_BYTES = 1 << 20
TIMEOUT_S = 30
"""Seconds without a byte."""
MIN_BYTES_PER_S = 1 << 10
"""The least mean speed of a read after TIMEOUT_S; a slower one is an error."""
NUM_TRIES = 3
PAUSE_S = 1.0
# HTTP errors that another try would not change.
LASTING = (400, 401, 403, 404, 405, 410, 416, 451)
CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


class SourceLost(UserError):
    """A remote file that can no longer be read. The run stops: it is not the fault of a picture."""


@dataclass(frozen=True)
class RemoteFile:
    """A file as its server described it: `url` may carry a signature."""

    url: str
    num_bytes: int
    etag: str | None
    allow_private: bool


def shown_url(url: str) -> str:
    """The URL without its query, which may hold a password."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}{parts.path}"


def remote_bytes(file: RemoteFile, offset: int, size: int) -> bytes:
    """`size` bytes from `offset`; raises SourceLost. Reads in order share one connection."""
    reader = _last_reader(file)
    reader.seek(offset)
    return reader.read(size)


@functools.lru_cache(maxsize=1)
def _last_reader(file: RemoteFile) -> RemoteReader:
    return RemoteReader(file.url, allow_private=file.allow_private, known=file)


class RemoteReader:
    """`read`, `seek` and `tell` of a remote file; seeking costs nothing until the next read.

    A lost connection is opened again where it broke. Raises SourceLost when that fails, when the
    server does not state the size of the file, and when the file has changed.
    """

    def __init__(
        self, url: str, *, allow_private: bool = False, known: RemoteFile | None = None
    ) -> None:
        self.url = url
        self.allow_private = allow_private
        self._file = known
        self._response: http.client.HTTPResponse | None = None
        self._response_position = 0
        self._takes_ranges = False
        self._position = 0

    @property
    def file(self) -> RemoteFile:
        """The file as its server describes it; its first use opens a connection."""
        if self._file is None:
            self._retried(lambda: self._open(0))
        assert self._file is not None
        return self._file

    def tell(self) -> int:
        return self._position

    def seek(self, position: int) -> int:
        self._position = position
        return position

    def read(self, size: int) -> bytes:
        """`size` bytes, fewer only at the end of the file; raises OSError above MAX_FILE_BYTES."""
        if not 0 <= size <= MAX_FILE_BYTES:
            raise OSError(f"{size} bytes are announced, more than {MAX_FILE_BYTES}")
        size = max(0, min(size, self.file.num_bytes - self._position))
        data = self._retried(lambda: self._read(size)) if size else b""
        self._position += len(data)
        return data

    def close(self) -> None:
        if self._response is not None:
            self._response.close()
            self._response = None

    def _read(self, size: int) -> bytes:
        distance = self._position - self._response_position
        skip_by_request = distance > SKIP_BYTES and self._takes_ranges
        if self._response is None or distance < 0 or skip_by_request:
            self._open(self._position)
        for _ in self._chunks(self._position - self._response_position):
            pass
        return b"".join(self._chunks(size))

    def _chunks(self, size: int) -> Iterator[bytes]:
        assert self._response is not None
        deadline_s = time.monotonic() + TIMEOUT_S + size / MIN_BYTES_PER_S
        while size:
            chunk = self._response.read1(min(size, CHUNK_BYTES))
            if not chunk:
                raise OSError("the connection ended early")
            if time.monotonic() > deadline_s:
                raise OSError(f"fewer than {MIN_BYTES_PER_S} bytes a second came")
            self._response_position += len(chunk)
            size -= len(chunk)
            yield chunk

    def _retried(self, action: Any) -> Any:
        for number in range(1, NUM_TRIES + 1):
            try:
                return action()
            except RefusedUrl as error:
                raise self._lost(error.message) from None
            except (OSError, http.client.HTTPException, ValueError) as error:
                self.close()
                lasting = isinstance(error, urllib.error.HTTPError) and error.code in LASTING
                if lasting or number == NUM_TRIES:
                    raise self._lost(_reason(error)) from None
                time.sleep(PAUSE_S * number)
        raise AssertionError("the last try returns or raises")

    def _open(self, start: int) -> None:
        """Open a response from `start` on, or from 0 if the server sends only whole files."""
        self.close()
        headers = {"User-Agent": "tarkit", "Accept-Encoding": "identity"}
        if start:
            headers["Range"] = f"bytes={start}-"
        url = fetchable(self.url, allow_private=self.allow_private)
        request = urllib.request.Request(url, headers=headers)
        response = _opener(self.allow_private).open(request, timeout=TIMEOUT_S)
        try:
            self._response_position, num_bytes = self._extent(response, start)
            self._check(response, num_bytes)
        except BaseException:
            response.close()
            raise
        self._takes_ranges = response.status == 206 or response.headers["Accept-Ranges"] == "bytes"
        self._response = response

    def _extent(self, response: http.client.HTTPResponse, start: int) -> tuple[int, int]:
        """(where the response begins, bytes of the whole file)."""
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise self._lost("the server sends it compressed")
        if response.status == 206:
            content_range = CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
            if content_range is None or int(content_range[1]) != start:
                raise self._lost("the server sends another part of the file than requested")
            return start, int(content_range[3])
        length = response.headers.get("Content-Length", "")
        if response.status != 200 or not re.fullmatch("[0-9]{1,18}", length):
            raise self._lost("the server does not say how long it is")
        return 0, int(length)

    def _check(self, response: http.client.HTTPResponse, num_bytes: int) -> None:
        if num_bytes > MAX_SHARD_BYTES:
            raise self._lost(f"it has {num_bytes} bytes, more than {MAX_SHARD_BYTES}")
        etag = response.headers.get("ETag")
        if self._file is None:
            self._file = RemoteFile(self.url, num_bytes, etag, self.allow_private)
        elif (num_bytes, etag) != (self._file.num_bytes, self._file.etag):
            raise self._lost("it is another file than when it was listed")

    def _lost(self, reason: str) -> SourceLost:
        private = "--allow-private reads from your own network too; or " * ("private" in reason)
        return SourceLost(
            f"{shown_url(self.url)} cannot be read: {reason}",
            hint=f"{private}run the same command again, or fetch the file and name it instead",
        )


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answers {error.code} {error.reason}"
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, Exception):
        return reason_of(error.reason)
    return reason_of(error)


# ---- connections --------------------------------------------------------------------------------


class _PublicConnection(http.client.HTTPConnection):
    """Sends nothing to an address that is not public, whatever the name resolved to before."""

    def connect(self) -> None:
        super().connect()
        address = str(self.sock.getpeername()[0])
        if not is_public(address):
            self.close()
            raise RefusedUrl(f"the host is a private address: {self.host} is {address}")


class _PublicHttpsConnection(http.client.HTTPSConnection, _PublicConnection):
    """Checked before the TLS handshake: HTTPSConnection connects by its next base class."""


class _Handler(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
    def __init__(self, allow_private: bool) -> None:
        super().__init__()
        self._allow_private = allow_private

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        plain = self._allow_private or _is_proxied(req)
        return self.do_open(http.client.HTTPConnection if plain else _PublicConnection, req)

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        plain = self._allow_private or _is_proxied(req)
        connection = http.client.HTTPSConnection if plain else _PublicHttpsConnection
        return self.do_open(connection, req, context=ssl.create_default_context())


class _Redirects(urllib.request.HTTPRedirectHandler):
    def __init__(self, allow_private: bool) -> None:
        self._allow_private = allow_private

    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        checked = fetchable(newurl, allow_private=self._allow_private)
        return super().redirect_request(req, fp, code, msg, headers, checked)


def _is_proxied(request: urllib.request.Request) -> bool:
    """Whether a request goes to a proxy, which may be on this network and resolves names itself."""
    return request.host != urlsplit(request.full_url).netloc


@functools.lru_cache(maxsize=2)
def _opener(allow_private: bool) -> urllib.request.OpenerDirector:
    """An opener of http and https URLs; urllib's default also opens file, ftp and data URLs."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        _Handler(allow_private),
        _Redirects(allow_private),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.HTTPDefaultErrorHandler(),
    ):
        opener.add_handler(handler)
    return opener
