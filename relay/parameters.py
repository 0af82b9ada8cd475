"""The parameters of a relay, and their limits."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from ..protocol.errors import ParameterError
from ..transport.compression import parse_compression
from ..transport.uri import Tcp, Unix, Uri, parse_uri

MAX_CONNECTIONS = 64
"""Limit for the connections of a link."""
WINDOW = 64 << 20
"""Bytes of all channels of one direction that are kept until the other end has handed them on."""
RECONNECT = 300.0
"""Seconds without any connection of the link after which a migration is given up."""


class Side(Enum):
    """The place of a relay: NEAR beside the source, FAR beside the destination."""

    NEAR = "near"
    FAR = "far"


@dataclass(frozen=True, kw_only=True)
class RelayParameters:
    """The parameters of one relay. Raises ParameterError or UriError for values it cannot use."""

    listen: str = ""
    """URI to listen on: where the source connects (near), or the other relay (far). A near relay in
    a program may have none, and be given its connections.
    """
    connect: str
    """URI to connect to: the other relay (near), or the destination (far)."""
    side: Side
    """The side of the link this relay is on."""
    compress: str = "none"
    """`none`, `zstd[:LEVEL]` or `adaptive`; each relay chooses for what it sends itself."""
    connections: int = 1
    """Connections of the link; the near relay makes them."""
    max_bandwidth: int = 0
    """Limit for what this relay sends over the link, in bytes per second; 0: no limit."""
    reconnect: float = RECONNECT
    """Seconds without a link until the migration fails at both ends."""
    one_way: bool = False
    """True if sources are let through whose destination does not confirm the end (law 8)."""
    once: bool = False
    """True if the relay ends after the first migration, with an error if that failed."""
    secret: bytes = field(default=b"", repr=False)
    """Secret that both relays know; empty: none."""

    def __post_init__(self) -> None:
        parse_compression(self.compress)
        given = self.side is Side.NEAR and not self.listen
        for text in (self.connect,) if given else (self.listen, self.connect):
            if not isinstance(parse_uri(text), (Tcp, Unix)):
                raise ParameterError(f"{text}: a relay needs tcp:HOST:PORT or unix:PATH")
        if not 1 <= self.connections <= MAX_CONNECTIONS:
            raise ParameterError(f"connections: 1 to {MAX_CONNECTIONS}")
        if self.max_bandwidth < 0:
            raise ParameterError("max_bandwidth: at least 0")
        if not 0 <= self.reconnect < 1 << 31:
            raise ParameterError("reconnect: a number of seconds from 0 on")
        if self.side is Side.FAR and self.connections != 1:
            raise ParameterError("connections: the near relay decides how many there are")

    @property
    def listen_uri(self) -> Uri:
        """Return where to listen; the far relay listens on this host alone if none is named."""
        uri = parse_uri(self.listen)
        if self.side is Side.FAR and isinstance(uri, Tcp) and not uri.host:
            return Tcp("127.0.0.1", uri.port)
        return uri

    @property
    def connect_uri(self) -> Uri:
        """Return where to connect."""
        return parse_uri(self.connect)
