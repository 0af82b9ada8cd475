"""Open the ways on which the stream of a QEMU leaves it."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path

from ...guest.qemu.log import Log
from ...guest.qemu.monitor import Monitor
from ...transport.channel import Channel
from ...transport.connecting import Connecting
from ...transport.shared import wait_readable
from ...transport.uri import File, Unix, Uri

_REASON_WITHIN = 2.0
"""Seconds to wait for the reason why a way broke."""
NAME = "vmferry"
"""Name under which QEMU knows the descriptor that it is given."""
Wait = Callable[[int], None]
"""Function that waits until a descriptor is readable; it may raise."""


def connect(uri: Uri, wait: Wait) -> Channel:
    """Connect to a destination. Raises ChannelError, and what `wait` raises."""
    connecting = Connecting(uri)
    try:
        wait(connecting.fileno())
    except BaseException:
        connecting.abandon()
        raise
    return connecting.result()


class Route(ABC):
    """A way of the stream from a QEMU to its destination."""

    @abstractmethod
    def open(self, monitor: Monitor, wait: Wait) -> str:
        """Connect to the destination, and return the URI that `migrate` takes for it.

        Raises ChannelError, QemuError, and what `wait` raises.
        """

    def look(self) -> None:  # noqa: B027 - most ways need no help
        """Handle what has happened on the way; called again and again while QEMU sends."""

    def guest_stopped(self) -> None:  # noqa: B027 - most ways have no limit of their own
        """Lift the limit of bandwidth: it does not hold while the guest is stopped."""

    def fds(self) -> list[int]:
        """Return descriptors that are readable when there is something to see to; none at last."""
        return []

    def ask_why(self) -> None:
        """Wait a moment for the reason why the way broke, as QEMU may be the first to notice."""
        deadline = time.monotonic() + _REASON_WITHIN
        while self.fds() and time.monotonic() < deadline:
            wait_readable(self.fds(), deadline - time.monotonic())
            self.look()

    @property
    def log(self) -> str:
        """Return in words where the destination says why it refused a guest."""
        return "the destination's log says why"

    @abstractmethod
    def completed(self) -> None:
        """Close the way in order, after QEMU has sent everything.

        Raises ChannelError if that did not arrive.
        """

    @abstractmethod
    def abort(self) -> None:
        """Break the way; nothing happens if it is closed."""


class Itself(Route):
    """The way that QEMU opens by itself, for what takes several connections or places in a file."""

    def __init__(self, uri: Uri) -> None:
        self._uri = uri

    def open(self, monitor: Monitor, wait: Wait) -> str:
        """Return the URI; a path in it is not relative, as QEMU may run in another folder."""
        del monitor, wait
        if isinstance(self._uri, Unix):
            return str(Unix(str(Path(self._uri.path).absolute())))
        if isinstance(self._uri, File):
            return str(File(str(Path(self._uri.path).absolute()), self._uri.offset))
        return str(self._uri)

    def completed(self) -> None:
        """Do nothing: QEMU has closed what it opened."""

    def abort(self) -> None:
        """Do nothing: QEMU closes what it opened."""


class Direct(Route):
    """A connection that is made here and then is QEMU's own."""

    def __init__(self, uri: Uri) -> None:
        self._uri = uri
        self._channel: Channel | None = None
        self._log: Log | None = None

    @property
    def log(self) -> str:
        """Return the last words of a destination on this host, where they can be read."""
        return super().log if self._log is None else str(self._log)

    def open(self, monitor: Monitor, wait: Wait) -> str:
        """Connect, and give QEMU the connection."""
        self._channel = channel = connect(self._uri, wait)
        if isinstance(self._uri, Unix):
            self._log = Log(channel.peer_process, "the destination's")
        monitor.give(NAME, channel.fileno())
        if channel.bidirectional:
            # The other end sees QEMU close the connection only if nobody else has it open.
            channel.drop()
            self._channel = None
        return f"fd:{NAME}"

    def completed(self) -> None:
        """Wait for the command that reads the stream, or for the disk."""
        if self._channel is not None:
            channel, self._channel = self._channel, None
            channel.close()

    def abort(self) -> None:
        """Break the connection, as far as it is not QEMU's own."""
        if self._channel is not None:
            self._channel.abort()
            self._channel = None
