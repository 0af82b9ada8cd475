"""Waits for the first byte of a migration, as its destination."""

from __future__ import annotations

import socket
import time

from .cases import BenchError


def wait_first_byte(server: socket.socket, timeout: float) -> float:
    """Return when the first byte arrived, by the monotonic clock. Raises BenchError."""
    server.settimeout(timeout)
    try:
        channel, _ = server.accept()
        with channel:
            channel.settimeout(timeout)
            if not channel.recv(1):
                raise BenchError("the source closed the connection before the first byte")
            return time.monotonic()
    except TimeoutError:
        raise BenchError(f"no byte of a migration arrived in {timeout:.0f} s") from None
