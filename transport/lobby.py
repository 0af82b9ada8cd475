"""Keep connections waiting until one of them begins as the listener expects.

A connection that sends nothing does not keep out the right one, and a connection that sends
something else does not end the wait.
"""

from __future__ import annotations

import select
import socket
import struct
from collections.abc import Callable

from .channel import Channel, ChannelError, Listener
from .uri import Tcp

MAX_WAITING = 16
"""Limit for waiting connections; with one more, the oldest is dropped."""
_HEAD = 64
"""Limit for the bytes of a connection that are examined."""
_EVENTS = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET
_ENDED = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
_CREDENTIALS = struct.Struct("iII")

Begins = Callable[[bytes], "bool | None"]
"""Function that returns whether a connection begins as expected, given its first bytes.

Returns None if there are too few bytes to decide.
"""


class Lobby:
    """The connections of one listener that have not identified themselves.

    `on_refused` is called with one line for each connection that is refused.
    """

    def __init__(
        self, listener: Listener, begins: Begins, on_refused: Callable[[str], None]
    ) -> None:
        self._listener = listener
        self._begins = begins
        self._on_refused = on_refused
        self._waiting: dict[int, socket.socket] = {}

    def wait(self, wait_fd: Callable[[int], None]) -> Channel:
        """Return the channel that begins as expected, and close the others.

        `wait_fd` waits until a descriptor is readable; it may raise. Raises ChannelError.
        """
        if not self._listener.listens:
            wait_fd(self._listener.fileno())
            return self._listener.accept()
        try:
            with select.epoll() as poll:
                poll.register(self._listener.fileno(), select.EPOLLIN)
                while (found := self._look(poll)) is None:
                    wait_fd(poll.fileno())
                return self._listener.channel(found)
        except OSError as error:
            if isinstance(error, ChannelError):
                raise
            raise ChannelError(f"{self._listener.address}: {error.strerror}") from error
        finally:
            for sock in self._waiting.values():
                sock.close()
            self._waiting.clear()

    def _look(self, poll: select.epoll) -> socket.socket | None:
        """Handle the pending events; return the expected connection if it is there."""
        for fd, event in poll.poll(0):
            if fd == self._listener.fileno():
                self._let_in(poll)
            elif self._is_expected(fd, ended=bool(event & _ENDED)):
                return self._waiting.pop(fd)
        return None

    def _let_in(self, poll: select.epoll) -> None:
        sock = self._listener.accept_socket()
        if sock is None:
            return
        if len(self._waiting) == MAX_WAITING:
            self._refuse(next(iter(self._waiting)), "it said nothing, and too many wait")
        self._waiting[sock.fileno()] = sock
        poll.register(sock.fileno(), _EVENTS)

    def _is_expected(self, fd: int, *, ended: bool) -> bool:
        if fd not in self._waiting:
            # Another event of this poll has refused it.
            return False
        try:
            head = self._waiting[fd].recv(_HEAD, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError as error:
            self._refuse(fd, error.strerror or str(error))
            return False
        begins = self._begins(head)
        if begins is None and (ended or not head):
            self._refuse(fd, "it ended before it said what it is")
        elif begins is False:
            self._refuse(fd, "it does not begin as it should")
        return bool(begins)

    def _refuse(self, fd: int, reason: str) -> None:
        sock = self._waiting.pop(fd)
        line = f"a connection from {_peer(sock)} was refused: {reason}"
        sock.close()
        self._on_refused(line)


def _peer(sock: socket.socket) -> str:
    """Return a readable name for the other end."""
    try:
        if sock.family == socket.AF_UNIX:
            size = _CREDENTIALS.size
            data = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
            pid = _CREDENTIALS.unpack(data)[0]
            return f"process {pid}" if pid else "a process out of sight"
        return str(Tcp(*sock.getpeername()[:2])).removeprefix("tcp:")
    except OSError:
        return "somebody who has left"
