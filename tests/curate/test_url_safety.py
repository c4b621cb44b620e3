import socket
from typing import Any

import pytest

from tarkit.curate import url_safety
from tarkit.curate.url_safety import RefusedUrl, fetchable, is_public


@pytest.fixture(autouse=True)
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """What hosts resolve to; nothing is asked outside."""
    known = {
        "public.example": ["93.184.216.34"],
        "both.example": ["93.184.216.34", "10.0.0.1"],
        "inside.example": ["192.168.1.1"],
        "xn--bcher-kva.example": ["93.184.216.34"],
    }
    real = socket.getaddrinfo

    def look_up(host: str, *rest: Any, **options: Any) -> Any:
        if host in known:
            return [(0, 0, 0, "", (address, 0)) for address in known[host]]
        if host.replace(".", "").isdigit() or ":" in host:
            return real(host, *rest, **options)  # numbers need no network
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    for name in ("http_proxy", "https_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    url_safety._addresses.cache_clear()
    return known


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("169.254.169.254", False),  # where clouds keep credentials
        ("100.64.0.1", False),  # carrier-grade NAT
        ("0.0.0.0", False),
        ("224.0.1.1", False),
        ("240.0.0.1", False),
        ("::1", False),
        ("fe80::1", False),
        ("fd00::1", False),
        ("fec0::1", False),
        ("::ffff:127.0.0.1", False),
        ("64:ff9b::7f00:1", False),  # 127.0.0.1 through NAT64
        ("64:ff9b::808:808", True),  # 8.8.8.8 through NAT64
        ("2002:7f00:1::", False),  # 127.0.0.1 through 6to4
    ],
)
def test_an_address_is_public_or_it_is_not(address: str, public: bool) -> None:
    assert is_public(address) == public


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("ftp://public.example/a.jpg", "only http and https are fetched: ftp"),
        ("file:///etc/passwd", "only http and https are fetched: file"),
        ("a.jpg", "only http and https are fetched: it names neither"),
        ("http://", "not a plain host: ''"),
        ("http://[::1/a.jpg", "not a URL: "),
        ("http://public.example:99999/", "not a URL: "),
        ("http://public.example/a\nb.jpg", "not a URL: it has control characters"),
        ("http://me@public.example/", "not a plain host: "),
        ("http://public.example\\@127.0.0.1/", "not a plain host: "),
        ("http://%31%32%37.0.0.1/", "not a plain host: "),  # urllib would unquote it
        ("http://127.0.0.1/", "the host is a private address: 127.0.0.1 is 127.0.0.1"),
        ("http://2130706433/", "the host is a private address: 2130706433 is 127.0.0.1"),
        ("http://127.1:8000/", "the host is a private address: 127.1 is 127.0.0.1"),
        ("http://[::1]/", "the host is a private address: ::1 is ::1"),
        ("http://inside.example/", "the host is a private address: inside.example is 192.168.1.1"),
        ("http://both.example/", "the host is a private address: both.example is 10.0.0.1"),
        ("http://gone.example/", "the host is unknown: Name or service not known"),
    ],
)
def test_a_url_that_leads_inside_or_nowhere_is_refused_with_its_reason(
    url: str, reason: str
) -> None:
    with pytest.raises(RefusedUrl) as caught:
        fetchable(url)
    assert caught.value.message.startswith(reason)


def test_a_url_is_handed_over_in_ascii_and_means_the_same() -> None:
    plain = "https://public.example:8443/a/b.jpg?size=1&x=%20#part"
    assert fetchable(plain) == plain.removesuffix("#part")
    assert fetchable(" http://public.example/ä b.jpg ") == "http://public.example/%C3%A4%20b.jpg"
    assert fetchable("http://bücher.example/a.jpg") == "http://xn--bcher-kva.example/a.jpg"


def test_private_addresses_may_be_allowed_and_other_schemes_may_not() -> None:
    url = "http://127.0.0.1:8000/a.jpg"
    assert fetchable(url, allow_private=True) == url
    with pytest.raises(RefusedUrl, match="only http"):
        fetchable("file:///etc/passwd", allow_private=True)


def test_a_proxy_may_know_names_that_are_unknown_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://proxy.example:3128")
    monkeypatch.setenv("no_proxy", "direct.example")
    assert fetchable("http://gone.example/a.jpg") == "http://gone.example/a.jpg"
    for url in ("https://gone.example/", "http://direct.example/", "http://inside.example/"):
        with pytest.raises(RefusedUrl):
            fetchable(url)
