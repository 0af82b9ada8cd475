"""A channel during the handover: bytes that arrive are looked at, and stay for whoever survives."""

from __future__ import annotations

import os
import select
import socket
import stat
import struct
import time

from ..transport.silence import GONE_AFTER, silence, unacknowledged

MAX_PEEKED = 1 << 16
"""Bytes that are looked at behind the end of a stream; no handover takes so many."""
LINGER = 2.0
"""Seconds that a side whose handover is over waits for the other end to close the connection."""
_RESET = struct.pack("ii", 1, 0)


class Line:
    """One end of a channel, over a descriptor that this object owns."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._socket: socket.socket | None = None
        if stat.S_ISSOCK(os.fstat(fd).st_mode):
            self._socket = socket.socket(fileno=fd)
            self._socket.setblocking(True)
        self.ended = False
        """Whether the other end closed its direction in an orderly way."""
        self.broken = ""
        """Why the connection broke; empty while it did not."""

    def peek(self) -> bytes:
        """Return all bytes that have arrived, and note in `ended` and `broken` what else is known.

        Once the other end has closed, the bytes before its end are still returned.
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
        """Note in `broken` if the other end's host is gone."""
        if self._socket is not None and silence(self._socket) > GONE_AFTER:
            self.broken = f"the other host has been silent for {GONE_AFTER:.0f} s"

    def _stirs(self, events: int) -> bool:
        poll = select.poll()
        poll.register(self._fd, events)
        return bool(poll.poll(0))

    def write(self, data: memoryview) -> int:
        """Return how many of these bytes the channel took; never waits for a socket or pipe."""
        if self.broken:
            return 0
        try:
            if self._socket is not None:
                return self._socket.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            # A pipe that is ready has room for that much.
            return os.write(self._fd, data[: select.PIPE_BUF]) if self._stirs(select.POLLOUT) else 0
        except BlockingIOError:
            return 0
        except OSError as error:
            self.broken = error.strerror or str(error)
            return 0

    @property
    def acknowledged(self) -> bool:
        """Whether the other end's system has received all that was written."""
        return unacknowledged(self._fd) == 0

    def wait(self, control: int | None, seconds: float, *, news: bool, room: bool) -> None:
        """Wait until `control` can be read; with `news`, also for bytes or the end of the channel.

        With `room`, also until the channel takes bytes; in any case at most `seconds`.
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
        """Take what has arrived off the channel: unread bytes would make a reset of a close."""
        try:
            while self._socket is not None and self._socket.recv(MAX_PEEKED, socket.MSG_DONTWAIT):
                continue
        except OSError:
            # Nothing is left, or the connection is gone.
            return

    def break_off(self) -> None:
        """Close, and have the connection reset once no other process has it open."""
        if self._socket is not None:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.drop()

    def close(self) -> None:
        """Close in order, behind the other end if that is quick: a reset could overtake bytes."""
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
                # It is gone or slow; nothing depends on it any more.
                return

    def drop(self) -> None:
        """Close this descriptor; the connection lives as long as others of it are open."""
        if self._socket is not None:
            self._socket.close()
        else:
            os.close(self._fd)
