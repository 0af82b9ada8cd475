"""Move the bytes of a migration: channels, shared-memory ring, rate limit, child processes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..protocol.lazy import exported

if TYPE_CHECKING:
    from .channel import Channel, ChannelError
    from .uri import Exec, Fd, File, Tcp, Unix, UriError, parse_uri

__all__ = [
    "Channel",
    "ChannelError",
    "Exec",
    "Fd",
    "File",
    "Tcp",
    "Unix",
    "UriError",
    "parse_uri",
]

__getattr__ = exported(
    __name__,
    {
        "channel": "Channel ChannelError",
        "uri": "Exec Fd File Tcp Unix UriError parse_uri",
    },
)
