"""Define what coordinator and transport process send each other, and read the commands.

`sender.exchange` is the counterpart.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TypeVar

from ..guest.disks.image import Disk
from ..guest.handing_in import DestinationJob
from ..protocol import events
from ..protocol.handover import Peer
from ..transport.process import receive_fd, send_fd, send_message
from ..transport.shared import Readiness

Command = TypeVar("Command")


@dataclass(frozen=True)
class Arrived:
    """Report: events that are not pages, in order.

    Payloads that are too large for a message are in files, numbered from 0 on in the order of their
    reports (Spilled).
    """

    events: tuple[events.Event, ...]


@dataclass(frozen=True)
class Spilled:
    """Report: the descriptor of a file with payloads of the next events follows."""


@dataclass(frozen=True)
class Complete:
    """Report: the stream ended well and every page was applied.

    `return_path`: the source wants an answer. `framed`: the stream was compressed.
    """

    peer: Peer
    return_path: bool
    framed: bool


@dataclass(frozen=True)
class Continue:
    """Command: every worker has mapped RAM, pages may flow."""


@dataclass(frozen=True)
class DiskWanted:
    """Report: the first block of the disk with this name has arrived; what is its image?"""

    name: str


@dataclass(frozen=True)
class OpenDisk:
    """Command: write the disk that was asked for into this image; its descriptor follows."""

    name: str
    size: int | None
    path: str

    @classmethod
    def send(cls, connection: Connection, disk: Disk) -> None:
        """Send the command and the descriptor."""
        send_message(connection, cls(disk.name, disk.size, disk.path))
        send_fd(connection, disk.fd)

    def receive(self, connection: Connection) -> Disk:
        """Return the disk with the descriptor that follows this command."""
        return Disk(self.name, self.size, receive_fd(connection), self.path)


@dataclass(frozen=True)
class StandBy:
    """Command: call `remove` if the coordinator dies before it commands LetGo."""

    remove: Callable[[], None]


@dataclass(frozen=True)
class Dismissed:
    """Command: end, because the coordinator lives and does the rest itself."""


@dataclass(frozen=True)
class LetGo:
    """Command: leave the channel, because the guest is whole and its handover begins elsewhere.

    `finisher` completes the guest if the coordinator dies during the handover. It is None if
    another process holds the guest, or if the guest dies with the coordinator.
    """

    job: DestinationJob
    finisher: Callable[[], None] | None


@dataclass(frozen=True)
class Released:
    """Report: this process leaves the channel alone for as long as the coordinator lives."""


@dataclass(frozen=True)
class Promised:
    """Command: the source was promised that the guest is whole; record it."""


class Commands:
    """The commands of the coordinator, as the transport process reads them."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._arrived = Readiness(connection.fileno())
        self._remove: Callable[[], None] | None = None

    def check(self) -> None:
        """Raise EOFError if there is a command: none arrives before it is waited for.

        The coordinator is gone or has given up.
        """
        if self._arrived.now():
            raise EOFError

    def wait_for(self, kind: type[Command] | tuple[type[Command], ...]) -> Command:
        """Return the next command of this kind. Raises EOFError when none will arrive."""
        while True:
            command: object = self._connection.recv()
            if isinstance(command, StandBy):
                self._remove = command.remove
            elif isinstance(command, (Dismissed, LetGo)):
                self._remove = None
            if isinstance(command, Dismissed):
                raise EOFError
            if isinstance(command, kind):
                return command

    def remove_unfinished(self) -> None:
        """Remove the guest once the coordinator has died, unless it dismisses this process first.

        After LetGo there is nothing to remove.
        """
        with suppress(EOFError, ConnectionError):
            while self._remove is not None:
                self.wait_for(object)
        if self._remove is not None:
            self._remove()
