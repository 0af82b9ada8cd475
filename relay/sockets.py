"""A connected socket whose operations the event loop waits for."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress

from ..transport.pieces import drop_front
from ..transport.sockets import reset_on_close

_MOST_PIECES = 1024
"""Limit for the pieces in one system call, as Linux has it."""


class Socket:
    """A stream socket that never blocks; one task may read from it while another one writes."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket = sock
        # The event loop handles numbers faster than objects.
        self._fd = sock.fileno()
        self._loop = asyncio.get_running_loop()
        self.closed = False

    async def recv_into(self, view: memoryview) -> int:
        """Read at least one byte into `view` and return how many; 0 at the end."""
        while True:
            try:
                return self._socket.recv_into(view)
            except BlockingIOError:
                await self._wait(self._loop.add_reader, self._loop.remove_reader)

    async def recv_exactly(self, view: memoryview) -> None:
        """Fill `view`. Raises EOFError if the other end closes before that."""
        used = 0
        while used < len(view):
            count = await self.recv_into(view[used:])
            if count == 0:
                raise EOFError
            used += count

    def recv_now(self, view: memoryview) -> int:
        """Read what is there; return 0 at the end. Raises BlockingIOError if there is nothing."""
        return self._socket.recv_into(view)

    def on_readable(self, call: Callable[[], None] | None) -> None:
        """Call `call` whenever there is something to read, until None replaces it."""
        if call is None:
            self._loop.remove_reader(self._fd)
        else:
            self._loop.add_reader(self._fd, call)

    async def send(self, pieces: Sequence[memoryview | bytes]) -> None:
        """Send all pieces, in order. Raises OSError."""
        rest = [memoryview(piece) for piece in pieces if piece]
        while rest:
            try:
                count = self._socket.sendmsg(rest[:_MOST_PIECES], (), socket.MSG_NOSIGNAL)
                drop_front(rest, count)
            except BlockingIOError:
                await self._wait(self._loop.add_writer, self._loop.remove_writer)

    async def _wait(self, add: Callable[..., object], remove: Callable[..., object]) -> None:
        """Wait until the socket is ready for what `add` asks of the event loop."""
        ready = self._loop.create_future()
        add(self._fd, _complete, ready)
        try:
            await ready
        finally:
            # `close` has done that already, and its descriptor may be another socket's by now.
            if not self.closed:
                remove(self._fd)

    def end_sending(self) -> None:
        """Close the direction to the other end, which may have closed everything already."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._fd

    def shut_down(self) -> None:
        """Close both directions, for other processes that have this connection, too."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection in order."""
        if not self.closed:
            self.closed = True
            self._loop.remove_reader(self._fd)
            self._loop.remove_writer(self._fd)
            self._socket.close()

    def reset(self) -> None:
        """Break the connection, so that the other end does not take it for an orderly end."""
        if not self.closed:
            with suppress(OSError):
                reset_on_close(self._socket)
            self.close()


def _complete(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
