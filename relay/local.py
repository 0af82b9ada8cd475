"""Accept and make connections in the event loop."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from ..transport.channel import CONNECT_TIMEOUT, Listener, tuned
from ..transport.uri import Tcp, Unix, Uri
from .deadline import Deadline
from .sockets import Socket

_RETRY = 0.5
"""Seconds until a connection that could not be accepted is tried again."""


async def accepted(listener: Listener, report: Callable[[str], None]) -> Socket:
    """Return the next connection to a listener.

    Where none can be accepted, for want of descriptors or memory, that is reported once, and
    whoever connects waits.
    """
    loop = asyncio.get_running_loop()
    told = False
    while True:
        try:
            sock = listener.accept_socket()
        except OSError as error:
            if not told:
                told = True
                report(f"no connection can be accepted: {error.strerror}; it waits")
            await asyncio.sleep(_RETRY)
            continue
        if sock is not None:
            return Socket(tuned(sock))
        ready: asyncio.Future[None] = loop.create_future()
        loop.add_reader(listener.fileno(), _complete, ready)
        try:
            await ready
        finally:
            loop.remove_reader(listener.fileno())


async def connected(uri: Uri) -> Socket:
    """Return a connection to a `tcp:` or `unix:` URI. Raises OSError or TimeoutError."""
    with Deadline(CONNECT_TIMEOUT):
        return await _connected(uri)


async def _connected(uri: Uri) -> Socket:
    loop = asyncio.get_running_loop()
    if isinstance(uri, Unix):
        return await _connect(socket.AF_UNIX, uri.path)
    assert isinstance(uri, Tcp)
    found = await loop.getaddrinfo(uri.host or "localhost", uri.port, type=socket.SOCK_STREAM)
    for place, (family, _, _, _, address) in enumerate(found):
        try:
            return await _connect(family, address)
        except OSError:
            if place + 1 == len(found):
                raise
    raise OSError(f"{uri}: no address")


async def _connect(family: int, address: object) -> Socket:
    sock = socket.socket(family)
    try:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, address)  # type: ignore[arg-type]
        return Socket(tuned(sock))
    except BaseException:
        sock.close()
        raise


def _complete(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
