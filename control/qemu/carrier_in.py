"""The process that passes an incoming stream to a QEMU, decompressed, and its answers back.

QEMU's last word, SHUT, is not passed: it only says here that the guest is loaded. QEMU was told not
to start it. The command then hands the guest over as it does with vmferry's own guests, so that the
guest starts once the source has left in order; if the command dies, this process does.
"""

from __future__ import annotations

import os
import socket
import threading
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection

from ...protocol.errors import StreamError
from ...protocol.formats.zstd import is_compressed
from ...protocol.return_path import shut
from ...receiver.compression import Inflater, Slot
from ...receiver.exchange import LetGo
from ...receiver.handover import let_go
from ...receiver.slots import DATA_START
from ...transport.channel import Channel, ChannelError
from ...transport.crew import Failed
from ...transport.process import processors, receive_channel, send_message
from ...transport.shared import SharedFd, wait_readable
from .answers import before_shut
from .carrying import Ends, Loaded
from .run_state import RunStateReader

_MOST = 2 << 20
"""Limit for the bytes that are read at a time."""
_ANSWERS = 1 << 16
"""Limit for the bytes of answers that are read at a time."""
_HEAD = 4
"""Bytes of a stream that show whether it is compressed."""


@dataclass(frozen=True)
class InSetup:
    """The setup of a carrier; the channel arrives over its connection."""

    ends: Ends


class CarrierIn:
    """The way from one channel to QEMU, and back."""

    def __init__(self, setup: InSetup, channel: Channel) -> None:
        self._channel = channel
        self._counters = setup.ends.counters
        self._stop = setup.ends.stop.fileno()
        self._stream = socket.socket(fileno=os.dup(setup.ends.stream.fileno()))
        self._stream.setblocking(True)
        self._loaded = SharedFd.event()
        self._inflater = Inflater(processors(), self._take)
        self._run_state = RunStateReader()
        self._compressed: bool | None = None
        self._waiting = 0
        self.status: int | None = None
        """Status of QEMU's SHUT, once it has come."""
        self.error: Exception | None = None
        """Why the stream ended early."""

    def _take(self, slot: Slot, count: int) -> bool:
        self._put(slot.data[DATA_START : DATA_START + count])
        return True

    def _put(self, content: memoryview) -> None:
        self._counters.add("raw_bytes", len(content))
        self._run_state.feed(content)
        with suppress(BrokenPipeError, ConnectionResetError):
            # QEMU reads no more once it has failed, and says so by QMP.
            self._stream.sendall(content)

    @property
    def stopped(self) -> bool:
        """Return whether the guest was stopped before it migrated."""
        return self._run_state.stopped

    def run(self) -> None:
        """Carry until QEMU has loaded the guest, or closes its end. Raises EOFError if stopped."""
        forward = threading.Thread(target=self._forward, daemon=True)
        forward.start()
        try:
            while self._pass_answers():
                pass
        finally:
            os.eventfd_write(self._loaded.fileno(), 1)
            forward.join()
            self._inflater.stop()

    def _forward(self) -> None:
        """Pass the stream until its end, or until QEMU has loaded it; this is a thread."""
        try:
            while self._next():
                pass
            if self._compressed:
                self._inflater.close()
            self._stream.shutdown(socket.SHUT_WR)
        except (ChannelError, StreamError, OSError) as error:
            self.error = error
            with suppress(OSError):
                self._stream.shutdown(socket.SHUT_RDWR)

    def _next(self) -> bool:
        """Read what has arrived and pass it; return False at the end."""
        fds = [self._channel.fileno(), self._stop, self._loaded.fileno()]
        while not self._inflater.idle and not wait_readable(fds, 0):
            self._inflater.finish_one()
        ready = wait_readable(fds)
        if ready & set(fds[1:]):
            return False
        room = self._inflater.space[self._waiting : _MOST]
        count = self._channel.recv_into(room)
        self._counters.add("transferred", count)
        self._waiting += count
        if count and self._compressed is None and self._waiting < _HEAD:
            return True
        if self._compressed is None:
            self._compressed = is_compressed(self._inflater.space[: self._waiting])
        arrived, self._waiting = self._waiting, 0
        if self._compressed:
            self._inflater.filled(arrived)
        else:
            self._put(self._inflater.space[:arrived])
        return bool(count)

    def _pass_answers(self) -> bool:
        """Pass what QEMU says; return False once it has loaded the guest or closed its end."""
        ready = wait_readable([self._stream.fileno(), self._stop])
        if self._stop in ready:
            raise EOFError
        try:
            data = self._stream.recv(_ANSWERS)
        except ConnectionError:
            data = b""
        if not data:
            return False
        # QEMU writes each message as one piece.
        length, ends = before_shut(data)
        if ends:
            self.status = int(data[length - len(shut(0)) : length] != shut(0))
            length -= len(shut(0))
        if length and self._channel.bidirectional:
            self._channel.send(memoryview(data)[:length], stop_fd=self._stop)
        return not ends


def run_carrier_in(connection: Connection, setup: InSetup) -> None:
    """Carry until QEMU has the guest, then stand by for the command; the process's entry."""
    channel = receive_channel(connection)
    carrier = CarrierIn(setup, channel)
    send_message(connection, "ready")
    try:
        carrier.run()
    except (EOFError, ChannelError):
        channel.abort()
        return
    try:
        if carrier.error is not None:
            send_message(connection, Failed(str(carrier.error)))
        else:
            send_message(connection, Loaded(carrier.status, carrier.stopped))
        command = connection.recv()
    except (EOFError, OSError):
        channel.abort()
        return
    assert isinstance(command, LetGo)
    let_go(connection, channel, command)
