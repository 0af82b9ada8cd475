"""The process that passes what a QEMU sends: compressed, within a limit, and with the answers back.

The destination's last word, SHUT, is passed to QEMU and left on the channel. Whoever survives, this
process or the command, finds it there; and if both die at once, the channel is reset and not
closed, which keeps the destination from starting a guest that QEMU may have taken back (law 5).
"""

from __future__ import annotations

import os
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection

from ...guest.line import Line
from ...protocol.errors import StreamError
from ...protocol.formats.zstd import compressed_bound
from ...protocol.return_path import shut
from ...sender.compressed_sinks import Choice, FramedDirectSink
from ...sender.outlet import Outlet
from ...sender.sinks import DirectSink, pieces_on_wire
from ...transport import adaptive
from ...transport.channel import Channel, ChannelError
from ...transport.compression import Compression, LinkMeter
from ...transport.crew import Failed
from ...transport.process import processors, receive_channel, send_message
from ...transport.shared import wait_readable
from .answers import before_shut
from .carrying import Closed, Ends, Passed

SLOT = 512 << 10
"""Limit for the bytes of the stream in one frame."""
_BULK = 0.002
"""Seconds to wait for more after a piece that does not fill a frame: each frame costs the same."""
_PEEKED = 1 << 16
_SHUT_SIZE = len(shut(0))
_AGAIN = 0.01
"""Seconds until answers that are not whole yet are looked at again."""


@dataclass(frozen=True)
class OutSetup:
    """The setup of a carrier; the channel arrives over its connection."""

    ends: Ends
    compression: Compression


class _Answers(threading.Thread):
    """The thread that passes the destination's answers to QEMU."""

    def __init__(self, stream: socket.socket, channel: Channel, stop: int) -> None:
        super().__init__(daemon=True)
        self._stream = stream
        self._stop = stop
        self._socket = socket.socket(fileno=os.dup(channel.fileno()))
        self.answered = False
        """True once SHUT was passed to QEMU; it stays on the channel."""
        self.reason = ""
        """Why the answers ended before that."""

    def run(self) -> None:
        try:
            while not self.answered and self._pass():
                pass
        except (OSError, StreamError) as error:
            self.reason = getattr(error, "strerror", None) or str(error)
        if not self.answered:
            # QEMU hears that nobody answers any more, and keeps its guest.
            with suppress(OSError):
                self._stream.shutdown(socket.SHUT_RDWR)

    def _pass(self) -> bool:
        """Pass the answers that are there; return False at their end."""
        ready = wait_readable([self._socket.fileno(), self._stop])
        if self._stop in ready:
            return False
        data = self._socket.recv(_PEEKED, socket.MSG_PEEK)
        if not data:
            self.reason = "the destination closed the connection; its log says why"
            return False
        length, self.answered = before_shut(data)
        self._stream.sendall(data[:length])
        if self.answered:
            length -= _SHUT_SIZE
        elif not length:
            time.sleep(_AGAIN)
        while length:
            length -= len(self._socket.recv(length))
        return True


class CarrierOut:
    """The way from QEMU to one channel, and back."""

    def __init__(self, connection: Connection, setup: OutSetup, channel: Channel) -> None:
        ends = setup.ends
        self._connection = connection
        self._channel = channel
        self._ends = ends
        self._stop = ends.stop.fileno()
        self._stream = socket.socket(fileno=os.dup(ends.stream.fileno()))
        self._stream.setblocking(True)
        self._outlet = Outlet(channel, self._stop, ends.counters, self._limit)
        sink = DirectSink(compressed_bound(SLOT), connection, self._send, lambda _: None)
        threads = processors()
        pool = adaptive.Adaptive(adaptive.Pool(threads, depth=2), setup.compression.levels)
        choice = Choice(pool, ends.counters, LinkMeter(ends.counters, ends.limits))
        self._sink = FramedDirectSink(sink, SLOT, choice, threads)
        self._answers: _Answers | None = None
        self._unread = False

    def _limit(self) -> int | None:
        return self._ends.limits["max_bandwidth"] or None

    def _send(self, view: memoryview, kind: int) -> None:
        self._outlet.send(*pieces_on_wire(view, kind))

    def run(self) -> None:
        """Pass everything until QEMU closes its end. Raises ChannelError, EOFError when stopped."""
        if self._channel.bidirectional:
            self._answers = _Answers(self._stream, self._channel, self._stop)
            self._answers.start()
        try:
            while count := self._fill(self._sink.acquire()):
                self._sink.publish(count)
            self._sink.end_round(0)
        except ChannelError:
            # QEMU hears that nothing more is taken.
            with suppress(OSError):
                self._stream.shutdown(socket.SHUT_RDWR)
            raise
        if self._answers is not None and self._answers.reason:
            raise ChannelError(f"{self._channel.name}: {self._answers.reason}")

    @property
    def answered(self) -> bool:
        """Return whether the destination has answered, and QEMU had read that when it closed."""
        return self._answers is not None and self._answers.answered and not self._unread

    def _fill(self, view: memoryview) -> int:
        """Read what QEMU wrote; return 0 at its end. What waits is sent before a longer wait."""
        used, until = 0, 0.0
        while used < len(view):
            left = max(0.0, until - time.monotonic()) if used else 0.0
            ready = wait_readable([self._stream.fileno(), self._stop], left)
            if not ready and used:
                break
            if not ready:
                self._sink.end_round(0)
                ready = wait_readable([self._stream.fileno(), self._stop])
            if self._stop in ready:
                raise EOFError
            try:
                count = self._stream.recv_into(view[used:])
            except ConnectionError:
                # QEMU closed its end, and had not read all answers.
                self._unread, count = True, 0
            if not count:
                break
            used += count
            until = time.monotonic() + _BULK
        return used


def run_carrier_out(connection: Connection, setup: OutSetup) -> None:
    """Carry until QEMU closes its end, then close the channel as commanded; the process's entry."""
    channel = receive_channel(connection)
    carrier = CarrierOut(connection, setup, channel)
    send_message(connection, "ready")
    try:
        carrier.run()
    except EOFError:
        channel.abort()
        return
    except ChannelError as error:
        channel.abort()
        with suppress(OSError):
            send_message(connection, Failed(str(error)))
        return
    _finish(connection, channel, answered=carrier.answered)


def _finish(connection: Connection, channel: Channel, *, answered: bool) -> None:
    """Close the channel in order if the guest has left: the command knows that, if it lives.

    If it has died, QEMU's orderly end after it had read the answer says so.
    """
    try:
        send_message(connection, Passed(answered))
        connection.recv()
    except (EOFError, OSError):
        if not answered and channel.bidirectional:
            channel.abort()
            return
    close_in_order(channel)
    with suppress(OSError):
        send_message(connection, Closed())


def close_in_order(channel: Channel) -> None:
    """Close a connection so that the other end takes it for the end of a migration."""
    if not channel.bidirectional:
        channel.close()
        return
    line = Line(os.dup(channel.fileno()))
    channel.drop()
    line.drain()
    line.close()
