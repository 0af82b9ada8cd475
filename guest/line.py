"""Access a channel during the handover: bytes are read without being consumed.

They stay on the channel for the process that survives.
"""

from __future__ import annotations

import os
import select
import socket
import stat
import time

from ..transport.silence import GONE_AFTER, silence, unacknowledged
from ..transport.sockets import reset_on_close

MAX_PEEKED = 1 << 16
"""Most bytes that are read behind the end of a stream; no handover needs so many."""
LINGER = 2.0
"""Seconds that a finished side waits for the other end to close the connection."""


class Line:
    """One end of a channel, over a descriptor that this object owns."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._socket: socket.socket | None = None
        if stat.S_ISSOCK(os.fstat(fd).st_mode):
            self._socket = socket.socket(fileno=fd)
            self._socket.setblocking(True)
        self.ended = False
        """True once the other end has closed its direction in order."""
        self.broken = ""
        """The reason why the connection broke; empty while it is intact."""

    def peek(self) -> bytes:
        """Return all bytes that have arrived, and update `ended` and `broken`.

        After the other end has closed, the bytes before its end are still returned.
        """
        if self._socket is None:
            return b""
        try:
            hung_up = self._stirs(select.POLLRDHUP)
            data = self._socket.recv(MAX_PEEKED, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return b""
        except OSError as error:
            self.broken = error.strerror or str(error)
            return b""
        self.ended = hung_up or not data
        return data

    def check(self) -> None:
        """Set `broken` if the other end's host is gone."""
        if self._socket is not None and silence(self._socket) > GONE_AFTER:
            self.broken = f"the other host has been silent for {GONE_AFTER:.0f} s"

    def _stirs(self, events: int) -> bool:
        poll = select.poll()
        poll.register(self._fd, events)
        return bool(poll.poll(0))

    def write(self, data: memoryview) -> int:
        """Return how many of these bytes the channel accepted; never wait for a socket or pipe."""
        if self.broken:
            return 0
        try:
            if self._socket is not None:
                return self._socket.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            # A pipe that is ready has room for this many bytes.
            return os.write(self._fd, data[: select.PIPE_BUF]) if self._stirs(select.POLLOUT) else 0
        except BlockingIOError:
            return 0
        except OSError as error:
            self.broken = error.strerror or str(error)
            return 0

    @property
    def acknowledged(self) -> bool:
        """Return whether the other end's system has received all that was written."""
        return unacknowledged(self._fd) == 0

    def wait(self, control: int | None, seconds: float, *, news: bool, room: bool) -> None:
        """Wait until `control` is readable, but at most `seconds`.

        With `news`, wait also for bytes or the end of the channel. With `room`, wait also until the
        channel accepts bytes.
        """
        poll = select.poll()
        if control is not None:
            poll.register(control, select.POLLIN)
        events = select.POLLOUT if room else 0
        if self._socket is not None and news:
            events |= select.POLLIN | select.POLLRDHUP
        if events:
            poll.register(self._fd, events)
        poll.poll(max(0.0, seconds) * 1000)

    def drain(self) -> None:
        """Read and discard what has arrived: with unread bytes, a close would become a reset."""
        try:
            while self._socket is not None and self._socket.recv(MAX_PEEKED, socket.MSG_DONTWAIT):
                continue
        except OSError:
            # Nothing is left, or the connection is gone.
            return

    def break_off(self) -> None:
        """Close this descriptor, and reset the connection once no other process has it open."""
        if self._socket is not None:
            reset_on_close(self._socket)
        self.drop()

    def close(self) -> None:
        """Close in order, after the other end if it closes soon: a reset could overtake bytes."""
        if self._socket is None:
            self.drop()
            return
        with self._socket:
            deadline = time.monotonic() + LINGER
            try:
                self._socket.shutdown(socket.SHUT_WR)
                self._socket.settimeout(LINGER)
                while self._socket.recv(MAX_PEEKED) and time.monotonic() < deadline:
                    continue
            except OSError:
                # The other end is gone or slow; nothing depends on it any more.
                return

    def drop(self) -> None:
        """Close this descriptor; the connection lives as long as others of it are open."""
        if self._socket is not None:
            self._socket.close()
        else:
            os.close(self._fd)
