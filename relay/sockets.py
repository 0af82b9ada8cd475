"""A connected socket whose operations the event loop waits for."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from ..transport.pieces import drop_front
from ..transport.sockets import keep_unsent, reset_on_close

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
        self._unsent = 0
        self.closed = False
        self.heard = time.monotonic()
        """Time at which something has arrived last."""

    async def fill(self, *pieces: memoryview) -> None:
        """Fill all pieces, in order. Raises EOFError if the other end closes before, OSError."""
        rest = [piece for piece in pieces if piece]
        with suppress(BlockingIOError):
            self._receive(rest)
        if rest:
            loop = self._loop
            await self._until_done(rest, self._receive, loop.add_reader, loop.remove_reader)

    def _receive(self, rest: list[memoryview]) -> None:
        """Fill the first of these pieces with what is there. Raises EOFError, OSError."""
        count = self._socket.recvmsg_into(rest[:_MOST_PIECES])[0]
        if not count:
            raise EOFError
        self.heard = time.monotonic()
        drop_front(rest, count)

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
        with suppress(BlockingIOError):
            self._send(rest)
        if rest:
            loop = self._loop
            await self._until_done(rest, self._send, loop.add_writer, loop.remove_writer)

    def _send(self, rest: list[memoryview]) -> None:
        """Send what there is room for. Raises OSError."""
        drop_front(rest, self._socket.sendmsg(rest[:_MOST_PIECES], (), socket.MSG_NOSIGNAL))

    async def _until_done(
        self,
        rest: list[memoryview],
        move: Callable[[list[memoryview]], None],
        add: Callable[..., object],
        remove: Callable[[int], object],
    ) -> None:
        """Have the event loop `move` pieces whenever the socket is ready, until none is left."""
        done: asyncio.Future[None] = self._loop.create_future()
        add(self._fd, _go_on, rest, move, done)
        try:
            await done
        finally:
            # `close` has done that already, and its descriptor may be another socket's by now.
            if not self.closed:
                remove(self._fd)

    def keep_unsent(self, size: int) -> None:
        """Have the system take no more than it can send soon: so many bytes."""
        if size != self._unsent:
            self._unsent = size
            keep_unsent(self._socket, size)

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


def _go_on(
    rest: list[memoryview], move: Callable[[list[memoryview]], None], done: asyncio.Future[None]
) -> None:
    """Move pieces that are left, and tell once there are none; a task would wake for each."""
    if done.done():
        return
    try:
        move(rest)
    except BlockingIOError:
        return
    except (OSError, EOFError) as error:
        done.set_exception(error)
        return
    if not rest:
        done.set_result(None)
