"""Keep connections waiting until one of them, or several, begin as the listener expects.

A connection that sends nothing does not keep out the right one, and a connection that sends
something else does not end the wait.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Callable, Generator
from contextlib import closing

from ..protocol.errors import VmferryError
from .channel import Channel, ChannelError, Listener
from .sockets import credentials_of_peer
from .uri import Tcp

MAX_WAITING = 16
"""Limit for waiting connections that are not awaited; with one more, the oldest is dropped."""
HEAD_BYTES = 64
"""Limit for the bytes of a connection that are examined."""
_EVENTS = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET
_ENDED = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR

Begins = Callable[[bytes], "bool | None"]
"""Function that returns whether a connection begins as expected, given its first bytes.

Returns None if there are too few bytes to decide. It may raise UnwelcomeError.
"""


class UnwelcomeError(VmferryError):
    """A connection that is refused; the message completes "it was refused: "."""


class Lobby:
    """The connections of one listener that have not identified themselves.

    `on_refused` is called with one line for each connection that is refused. `awaited` is the
    number of connections that the source opens.
    """

    def __init__(
        self,
        listener: Listener,
        begins: Begins,
        on_refused: Callable[[str], None],
        awaited: int = 1,
    ) -> None:
        self._listener = listener
        self._begins = begins
        self._on_refused = on_refused
        self._awaited = awaited - 1
        self._waiting: dict[int, socket.socket] = {}
        self._admitted: set[int] = set()
        self.ended = False
        """True once a connection that was let in has ended; it may hold all that it had to."""

    def wait(self, wait_fd: Callable[[int], None]) -> Channel:
        """Return the channel that begins as expected, and close the others.

        `wait_fd` waits until a descriptor is readable; it may raise. Raises ChannelError.
        """
        if not self._listener.listens:
            wait_fd(self._listener.fileno())
            return self._listener.accept()
        with closing(self.admit(wait_fd)) as admitted:
            return next(admitted)[0]

    def admit(self, wait_fd: Callable[[int], None]) -> Generator[tuple[Channel, bytes], None, None]:
        """Yield each channel that begins as expected, and its first bytes, which it still has.

        Those that wait are closed with the iterator. Raises ChannelError, and what `wait_fd` and
        the function that looks at beginnings raise.
        """
        try:
            with select.epoll() as poll:
                poll.register(self._listener.fileno(), select.EPOLLIN)
                while True:
                    # Each is looked at only when the caller has taken the one before.
                    found = poll.poll(0)
                    for fd, event in found:
                        head = self._look(poll, fd, event)
                        if head:
                            self._admitted.add(fd)
                            yield self._listener.channel(self._waiting.pop(fd)), head
                    if not found:
                        wait_fd(poll.fileno())
        except OSError as error:
            if isinstance(error, ChannelError):
                raise
            raise ChannelError(f"{self._listener.address}: {error.strerror}") from error
        finally:
            for sock in self._waiting.values():
                sock.close()
            self._waiting.clear()
            self._admitted.clear()

    def _look(self, poll: select.epoll, fd: int, event: int) -> bytes:
        """Handle an event; return the first bytes of its connection if that is expected."""
        ended = bool(event & _ENDED)
        if fd == self._listener.fileno():
            self._let_in(poll)
            return b""
        head = self._expected_head(fd, ended=ended) if fd in self._waiting else b""
        self.ended |= ended and (bool(head) or fd in self._admitted)
        return head

    def _let_in(self, poll: select.epoll) -> None:
        sock = self._listener.accept_socket()
        if sock is None:
            return
        if len(self._waiting) == MAX_WAITING + self._awaited:
            self._refuse(next(iter(self._waiting)), "it said nothing, and too many wait")
        self._waiting[sock.fileno()] = sock
        poll.register(sock.fileno(), _EVENTS)

    def _expected_head(self, fd: int, *, ended: bool) -> bytes:
        """Return the first bytes of a connection if it begins as expected, else nothing."""
        try:
            head = self._waiting[fd].recv(HEAD_BYTES, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return b""
        except OSError as error:
            self._refuse(fd, error.strerror or str(error))
            return b""
        try:
            begins = self._begins(head)
        except UnwelcomeError as error:
            self._refuse(fd, str(error))
            return b""
        if begins is None and (ended or not head):
            self._refuse(fd, "it ended before it said what it is")
        elif begins is False:
            self._refuse(fd, "it does not begin as it should")
        return head if begins else b""

    def _refuse(self, fd: int, reason: str) -> None:
        sock = self._waiting.pop(fd)
        line = f"a connection from {_peer(sock)} was refused: {reason}"
        sock.close()
        self._on_refused(line)


def _peer(sock: socket.socket) -> str:
    """Return a readable name for the other end."""
    try:
        if sock.family == socket.AF_UNIX:
            pid = credentials_of_peer(sock).pid
            return f"process {pid}" if pid else "a process out of sight"
        return str(Tcp(*sock.getpeername()[:2])).removeprefix("tcp:")
    except OSError:
        return "somebody who has left"
