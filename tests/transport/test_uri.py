"""Test how URIs are parsed and refused."""

from __future__ import annotations

import pytest
from vmferry.transport.uri import File, Tcp, UriError, parse_uri


@pytest.mark.parametrize(
    "text", ["tcp:localhost:4444", "tcp:[::1]:0", "unix:/a:b", "exec:cat > x", "fd:3", "file:/x"]
)
def test_uri_prints_as_it_was_written(text: str) -> None:
    """Broken: messages would name another place than the user did."""
    assert str(parse_uri(text)) == text


def test_parts() -> None:
    """Broken: brackets and offsets would be taken for parts of the host or the path."""
    assert parse_uri("tcp:[::1]:4444") == Tcp("::1", 4444)
    assert parse_uri("file:/x,offset=0x1000") == File("/x", 4096)


def test_unknown_scheme_lists_the_known_ones() -> None:
    """Broken: the user would have to guess."""
    with pytest.raises(UriError, match=r"'rdma:x'.*tcp: unix: exec: fd: file:"):
        parse_uri("rdma:x")


@pytest.mark.parametrize("text", ["tcp:host", "tcp:::1:3", "fd:x", "file:/x,offset=y", "unix:"])
def test_malformed(text: str) -> None:
    """Broken: a malformed URI would fail late, and elsewhere."""
    with pytest.raises(UriError):
        parse_uri(text)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("tcp://host:4444", "write tcp:host:4444"),
        ("tcp:host:65536", "ports end at 65535"),
        ("host:4444", "write tcp:host:4444"),
        ("a/b", "write unix:a/b for a socket, file:a/b for a file"),
        ("a.sock", "write unix:a.sock for a socket, file:a.sock for a file"),
    ],
)
def test_hints(text: str, hint: str) -> None:
    """Broken: whoever writes an address as other tools want it would not learn what to write."""
    with pytest.raises(UriError, match=f"{hint}$"):
        parse_uri(text)
