"""Gather the connections of one multifd source: the main one and its channels, in any order."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing

from ...guest.errors import MigrationError
from ...protocol.errors import StreamError
from ...protocol.reading.multifd_reader import ChannelReader, Greeting
from ...protocol.wire import multifd
from ...transport.channel import Channel, ChannelError, Listener
from ...transport.lobby import Lobby, UnwelcomeError
from ...transport.uri import Tcp, Unix, Uri
from ..beginning import begins_stream

PATIENCE = 60.0
"""Limit in seconds, after the main channel is connected, for the arrival of all other channels.

A source with fewer channels would otherwise wait for an answer for ever.
"""

ENDED_PATIENCE = 2.0
"""Limit in seconds for the arrival of all connections once one of them has ended."""

_MAGIC = multifd.MAGIC.to_bytes(4, "big")


class Gathering:
    """The connections of one source: the main one and `count` channels, of which there may be none.

    `uuid` is that which the channels gave: zeros if the source's machine has none.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._main: Channel | None = None
        self._channels: dict[int, Channel] = {}
        self._lobby: Lobby | None = None
        self._main_since = self._ended = 0.0
        self.uuid = bytes(16)

    def gather(
        self,
        listener: Listener,
        wait_fd: Callable[[int], None],
        on_refused: Callable[[str], None],
    ) -> tuple[Channel, list[Channel]]:
        """Return the main channel and the others, by number, once all have arrived.

        Raises ChannelError, and what `wait_fd` raises.
        """
        lobby = self._lobby = Lobby(listener, self._begins, on_refused, 1 + self._count)
        if not self._count:
            return lobby.wait(wait_fd), []
        try:
            with closing(lobby.admit(wait_fd)) as admitted:
                while self._main is None or len(self._channels) < self._count:
                    self._enter(*next(admitted))
        except BaseException:
            self.abort()
            raise
        return self._main, [self._channels[number] for number in range(self._count)]

    def abort(self) -> None:
        """Break all connections that have arrived, so that the source notices."""
        for channel in (self._main, *self._channels.values()):
            if channel is not None:
                channel.abort()

    def check_patience(self) -> None:
        """Raise ChannelError if connections are missing that should have arrived by now."""
        now, arrived = time.monotonic(), len(self._channels)
        if self._lobby is not None and self._lobby.ended:
            # The source may have sent all, and so closed one, before another was let in here.
            self._ended = self._ended or now
            if now > self._ended + ENDED_PATIENCE:
                raise ChannelError("the source closed a connection before it had opened all")
        if self._main is None or now < self._main_since + PATIENCE:
            return
        raise ChannelError(
            f"{arrived} of {self._count} multifd channels arrived within {PATIENCE:.0f} s of the "
            "main channel: does the source use multifd, with as many channels (multifd-channels)?"
        )

    def check_uuid(self, uuid: bytes | None) -> None:
        """Raise MigrationError if the main channel's UUID, if it has one, is not the channels'."""
        if self._count and uuid is not None and uuid != self.uuid:
            given = f"{uuid.hex()} on the main channel, {self.uuid.hex()} on the others"
            raise MigrationError(f"the connections are of different machines: UUID {given}")

    def _begins(self, head: bytes) -> bool | None:
        if not head.startswith(_MAGIC):
            begins = begins_stream(head)
            if begins and self._main is not None:
                raise UnwelcomeError("a source is connected already")
            return None if begins is False and _MAGIC.startswith(head) else begins
        if not self._count:
            raise UnwelcomeError("it is a channel of multifd: receive with --multifd-channels")
        if len(head) < multifd.HELLO_SIZE:
            return None
        self._check(_greeting(head))
        return True

    def _check(self, hello: Greeting) -> None:
        if self._channels and hello.uuid != self.uuid:
            raise UnwelcomeError("it is a channel of another machine: its UUID differs")
        if hello.channel >= self._count:
            raise ChannelError(
                f"the source has a multifd channel {hello.channel}, the last one expected is "
                f"{self._count - 1}: both sides need the same number of channels (multifd-channels)"
            )
        if hello.channel in self._channels:
            raise UnwelcomeError(f"multifd channel {hello.channel} is connected already")

    def _enter(self, channel: Channel, head: bytes) -> None:
        if not head.startswith(_MAGIC):
            self._main, self._main_since = channel, time.monotonic()
            return
        hello = _greeting(head)
        self._channels[hello.channel], self.uuid = channel, hello.uuid


def check_uri(uri: Uri) -> None:
    """Raise MigrationError unless several connections can be made to this URI."""
    if not isinstance(uri, (Tcp, Unix)):
        raise MigrationError(f"{uri}: multifd takes several connections: listen on tcp: or unix:")


def _greeting(head: bytes) -> Greeting:
    try:
        return ChannelReader().greet(memoryview(head[: multifd.HELLO_SIZE]))
    except StreamError as error:
        raise UnwelcomeError(error.message) from None
