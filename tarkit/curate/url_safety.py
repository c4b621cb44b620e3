"""Checks the URLs of untrusted lists: only http and https URLs of public addresses are fetched.

A list can name a service of this machine or of its network, such as http://169.254.169.254/. Such a
URL would be fetched from inside the network and its contents stored among the pictures.
"""

from __future__ import annotations

import functools
import ipaddress
import re
import socket
from urllib.parse import SplitResult, quote, urlsplit, urlunsplit
from urllib.request import getproxies, proxy_bypass

from tarkit.errors import UserError

# tarkit and the downloader must find the same host in a URL, so it has no user name, escapes or
# backslashes. (urllib unquotes a host: http://%31%32%37.0.0.1/ is this machine.)
PLAIN_PLACE = re.compile(r"([a-z0-9_-][a-z0-9._-]*|\[[0-9a-f:.]+\])(:[0-9]{1,5})?", re.IGNORECASE)
CONTROLS = re.compile(r"[\x00-\x1f\x7f]")
URL_CHARACTERS = "%/:=&?~#+!$,;'@()*[]"
NAT64 = ipaddress.ip_network("64:ff9b::/96")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class RefusedUrl(UserError):
    """A URL that must not be fetched; the message becomes the error of its failed row."""


def fetchable(url: str, *, allow_private: bool = False) -> str:
    """`url` in ASCII, for a downloader; raises RefusedUrl.

    Unless `allow_private`, the host is resolved and all its addresses must be public. A host that
    cannot be resolved here is accepted where a proxy is set, which resolves it.
    """
    parts = _parts(url)
    if not allow_private:
        _require_public(parts)
    path = quote(parts.path, URL_CHARACTERS)
    query = quote(parts.query, URL_CHARACTERS)
    return urlunsplit((parts.scheme, parts.netloc, path, query, ""))


def is_public(address: str) -> bool:
    """Whether an IP address, or the IPv4 address embedded in it, is one of the open internet."""
    parsed = ipaddress.ip_address(address)
    parsed = _embedded(parsed) or parsed
    special = parsed.is_multicast or parsed.is_reserved or _is_site_local(parsed)
    return parsed.is_global and not special


def _parts(url: str) -> SplitResult:
    """The parts of a URL, its host in ASCII."""
    if CONTROLS.search(url):
        raise RefusedUrl("not a URL: it has control characters")
    try:
        parts = urlsplit(url.strip())
        place = parts.netloc if parts.netloc.isascii() else parts.netloc.encode("idna").decode()
        port = parts.port
    except ValueError as error:  # or UnicodeError, a kind of ValueError
        raise RefusedUrl(f"not a URL: {error}") from None
    if parts.scheme not in ("http", "https"):
        raise RefusedUrl(f"only http and https are fetched: {parts.scheme or 'it names neither'}")
    if not PLAIN_PLACE.fullmatch(place) or port == 0:
        raise RefusedUrl(f"not a plain host: {place!r}")
    return parts._replace(netloc=place)


def _require_public(parts: SplitResult) -> None:
    host = parts.hostname or ""
    addresses = _addresses(host)
    if isinstance(addresses, str):
        if parts.scheme in getproxies() and not proxy_bypass(host):
            return
        raise RefusedUrl(f"the host is unknown: {addresses}")
    private = [address for address in addresses if not is_public(address)]
    if private:
        raise RefusedUrl(f"the host is a private address: {host} is {private[0]}")


@functools.lru_cache(maxsize=1 << 16)  # a list has many URLs of one host
def _addresses(host: str) -> tuple[str, ...] | str:
    """Every address of a host, or why it has none."""
    try:
        entries = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        return (isinstance(error, OSError) and error.strerror) or str(error)
    return tuple(sorted({str(address[0]) for *_, address in entries}))


def _embedded(address: Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address that a router takes from an IPv6 address, if there is one."""
    if isinstance(address, ipaddress.IPv4Address):
        return None
    if address in NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour


def _is_site_local(address: Address) -> bool:
    return isinstance(address, ipaddress.IPv6Address) and address.is_site_local
