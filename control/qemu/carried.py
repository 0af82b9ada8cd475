"""The way of a stream from a QEMU through a carrier, a process that compresses it."""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress

from ...guest.line import Line
from ...guest.qemu.monitor import Monitor
from ...protocol.errors import StreamError
from ...protocol.return_path import ReturnPathReader, Shut, shut
from ...sender.errors import UnconfirmedError
from ...sender.figures import CompressionFigures
from ...transport.channel import Channel, ChannelError
from ...transport.compression import Compression
from ...transport.crew import Crew, CrewError
from ...transport.process import send_channel, send_message
from ...transport.uri import Uri
from .carrier_out import OutSetup, close_in_order, run_carrier_out
from .carrying import Close, Closed, Passed, new_ends
from .route import NAME, Route, Wait, connect


class Carried(Route):
    """A connection on which a carrier sends what QEMU writes to it, compressed.

    `answers`: the destination says on it what it has.
    """

    def __init__(
        self, uri: Uri, compression: Compression, max_bandwidth: int, *, answers: bool
    ) -> None:
        self._uri = uri
        self._answers = answers
        self._compression = compression
        self._ends, self._theirs = new_ends()
        self._ends.limits.set("max_bandwidth", max_bandwidth)
        self._crew = Crew(self._ends.stop.fileno(), lambda: None)
        self._channel: Channel | None = None
        self._passed = False
        self._reason = ""
        self._alive = False

    def open(self, monitor: Monitor, wait: Wait) -> str:
        """Connect, start the carrier, and give QEMU its end."""
        self._channel = connect(self._uri, wait)
        setup = OutSetup(self._ends, self._compression)
        child = self._crew.start("vmferry-carrier", run_carrier_out, (setup,))
        send_channel(child.connection, self._channel)
        self._crew.wait_for(str)
        self._alive, self._child = True, child
        monitor.give(NAME, self._theirs.fileno())
        self._theirs.close()
        return f"fd:{NAME}"

    def set_max_bandwidth(self, limit: int) -> None:
        """Change the limit of what is sent, in bytes per second (0: no limit)."""
        self._ends.limits.set("max_bandwidth", limit)

    def guest_stopped(self) -> None:
        """Lift the limit of bandwidth: it does not hold while the guest is stopped."""
        if self._alive:
            self.set_max_bandwidth(0)

    def figures(self) -> CompressionFigures:
        """Return what compression has done so far."""
        counters = self._ends.counters
        sizes = (counters["raw_bytes"], counters["compressed_bytes"])
        return CompressionFigures(str(self._compression), (counters["level"],), *sizes)

    def fds(self) -> list[int]:
        """Return the descriptors of the carrier: its reports, and its death."""
        return [self._child.connection.fileno(), self._child.pidfd] if self._alive else []

    @property
    def log(self) -> str:
        """Return why the carrier failed, or in words where the destination says why it did."""
        return self._reason or super().log

    def look(self) -> None:
        """Take the reports of the carrier; if it has died, take its place."""
        if not self._alive:
            return
        try:
            report = self._crew.next_report((), time.monotonic())
        except CrewError as error:
            self._alive = False
            self._reason = str(error)
            self._take_over()
            return
        if isinstance(report, Passed):
            self._passed = True

    def _take_over(self) -> None:
        """Pass the last answer if the carrier died before it could; else break both ends.

        A destination that has not answered does not start the guest when its connection is reset.
        """
        with suppress(OSError):
            stream = socket.socket(fileno=os.dup(self._ends.stream.fileno()))
            with stream:
                if self._has_answer():
                    stream.sendall(shut(0))
                else:
                    self._break_channel()
                    stream.shutdown(socket.SHUT_RDWR)

    def _has_answer(self) -> bool:
        """Return whether the destination has said that it has the guest whole."""
        if self._channel is None or not self._channel.bidirectional:
            return False
        line = Line(os.dup(self._channel.fileno()))
        try:
            return Shut(0) in ReturnPathReader().feed(line.peek())
        except StreamError:
            return False
        finally:
            line.drop()

    def completed(self) -> None:
        """Have the channel closed in order, so that the destination starts the guest.

        Without answers, raise ChannelError if not all was passed: the guest may run on here. With
        them QEMU has given its guest up, and UnconfirmedError says that the destination may not
        know that.
        """
        assert self._channel is not None
        channel, broken = self._channel, self._broken()
        try:
            if not self._passed:
                self._crew.wait_for(Passed)
            send_message(self._child.connection, Close())
            self._crew.wait_for(Closed)
        except (CrewError, OSError) as error:
            if not self._answers:
                raise ChannelError(self._reason or str(error)) from error
            close_in_order(channel)
        finally:
            self._alive = False
            self._crew.stop()
        channel.drop()
        self._ends.close()
        if not channel.bidirectional:
            channel.close()
        elif broken and self._answers:
            raise UnconfirmedError(
                f"the destination has the whole guest, but the connection broke ({broken}) before"
                f" it was told to start it; look there: {self._uri}"
            )

    def _broken(self) -> str:
        """Return why the connection to the destination broke; empty while it is intact."""
        if self._channel is None or not self._channel.bidirectional:
            return ""
        line = Line(os.dup(self._channel.fileno()))
        line.peek()
        line.drop()
        return line.broken

    def abort(self) -> None:
        """Break the channel, and end the carrier."""
        self._alive = False
        if self._ends.stop.fileno() >= 0:
            os.eventfd_write(self._ends.stop.fileno(), 1)
        self._theirs.close()
        self._break_channel()
        self._crew.stop()
        with suppress(OSError), socket.socket(fileno=os.dup(self._ends.stream.fileno())) as stream:
            stream.shutdown(socket.SHUT_RDWR)
        self._ends.close()

    def _break_channel(self) -> None:
        if self._channel is not None:
            self._channel.abort()
