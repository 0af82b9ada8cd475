"""The parameters of a relay: what it refuses before it listens, and where it listens."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from vmferry.protocol.errors import ParameterError
from vmferry.relay.parameters import RelayParameters, Side
from vmferry.relay.proofs import MIN_SECRET, read_secret
from vmferry.transport.uri import Tcp


def far(**changes: Any) -> RelayParameters:
    """Return usable parameters of a far relay, with these changes."""
    values = {"listen": "tcp::7010", "connect": "unix:there", "side": Side.FAR}
    return RelayParameters(**{**values, **changes})


def test_the_link_is_for_this_host_alone_unless_an_address_is_named() -> None:
    """Broken: the port of a destination would be open to the network without a word."""
    assert far().listen_uri == Tcp("127.0.0.1", 7010)
    assert far(listen="tcp:0.0.0.0:7010").listen_uri == Tcp("0.0.0.0", 7010)
    assert far(side=Side.NEAR).listen_uri == Tcp("", 7010)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"listen": "fd:3"}, "a relay needs tcp:HOST:PORT or unix:PATH"),
        ({"connect": "exec:cat"}, "a relay needs tcp:HOST:PORT or unix:PATH"),
        ({"connections": 2}, "the near relay decides"),
        ({"connections": 65, "side": Side.NEAR}, "1 to 64"),
        ({"compress": "lz4"}, "none of none, zstd"),
        ({"reconnect": -1}, "from 0 on"),
        ({"max_bandwidth": -1}, "at least 0"),
    ],
)
def test_what_cannot_be_used_is_refused(changes: dict[str, Any], words: str) -> None:
    """Broken: a relay would fail only when a migration is under way."""
    with pytest.raises(ValueError, match=words):
        far(**changes)


def test_a_secret_is_long_and_private(tmp_path: Path) -> None:
    """Broken: a secret that others can read or guess would let them in."""
    path = tmp_path / "secret"
    path.write_bytes(b"x" * MIN_SECRET + b"\n")
    os.chmod(path, 0o600)
    assert read_secret(str(path)) == b"x" * MIN_SECRET
    os.chmod(path, 0o640)
    with pytest.raises(ParameterError, match="chmod 600"):
        read_secret(str(path))
    path.write_bytes(b"short")
    os.chmod(path, 0o600)
    with pytest.raises(ParameterError, match="at least"):
        read_secret(str(path))
    with pytest.raises(ParameterError, match="No such file"):
        read_secret(str(tmp_path / "absent"))
