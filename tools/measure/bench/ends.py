"""The ends of a migration of vmferry, each a process that is the coordinator, as a command is.

Nothing is imported here that `send` and `receive` would not import, so that their memory is theirs.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from multiprocessing.connection import Connection

from ....guest.base import Guest
from ....guest.errors import GuestError
from ....guest.open import open_guest
from ....guest.synthetic import SyntheticGuest
from ....guest.synthetic_memory import PAGE_SIZE
from ....protocol.states import MigrationStatus
from ....receiver.coordinator import ReceiveParameters, Receiver
from ....sender.coordinator import Sender
from ....sender.parameters import SendParameters
from ....transport.process import send_message
from ....transport.shared import SharedFd
from .cpu import CpuMeter
from .results import Run
from .still_guest import StillGuest


@dataclass(frozen=True)
class Still:
    """A paused guest whose RAM of `size` bytes is there."""

    memory: SharedFd
    size: int

    def make(self) -> Guest:
        """Return the guest that is to be sent."""
        return StillGuest(self.memory.fileno(), self.size)


@dataclass(frozen=True)
class Live:
    """A synthetic guest, as the `text` behind `synthetic:` says, that runs or is to arrive."""

    text: str
    incoming: bool

    def make(self) -> Guest:
        """Return the guest, once it has filled its memory."""
        guest = open_guest(f"synthetic:{self.text}", incoming=self.incoming)
        if not self.incoming:
            _written(guest)
        return guest


@dataclass(frozen=True)
class Arrived:
    """The report of the destination: the CPU time in seconds of its setup, and of the rest."""

    setup_cpu: float
    cpu: float


def _written(guest: Guest) -> int:
    """Return the pages that a guest has written, 0 for one that does not run."""
    return guest.counter() if isinstance(guest, SyntheticGuest) else 0


def _tell_digest(connection: Connection, guest: Guest) -> None:
    """Send the digest of a synthetic guest's memory, when asked: it takes memory of its own."""
    connection.recv()
    send_message(connection, guest.digest() if isinstance(guest, SyntheticGuest) else "")


def _pid(guest: Guest) -> int:
    """Return the id of the guest's process, or 0 if it has none, yet or any more."""
    try:
        return guest.pid if isinstance(guest, SyntheticGuest) else 0
    except GuestError:
        return 0


def send(
    connection: Connection, uri: str, source: Still | Live, parameters: SendParameters
) -> None:
    """Send the guest: report that it is there, after an answer send it; report the Run, and after
    another answer the digest of its memory.
    """
    guest = source.make()
    meter = CpuMeter(lambda: _pid(guest))
    try:
        send_message(connection, "ready")
        connection.recv()
        with meter.running():
            send_message(connection, _send(guest, uri, parameters, meter))
        _tell_digest(connection, guest)
    finally:
        guest.close()


def _send(guest: Guest, uri: str, parameters: SendParameters, meter: CpuMeter) -> Run:
    at: dict[MigrationStatus, float] = {}

    def changed(_: MigrationStatus, new: MigrationStatus) -> None:
        # Processes come and go at such a time.
        at[new] = meter.spent()

    started, written, spent = time.monotonic(), _written(guest), meter.spent()
    sender = Sender(guest, uri, parameters)
    sender.states.add_listener(changed)
    figures = sender.run()
    whole = time.monotonic() - started
    seconds = (figures.total_time - figures.setup_time) / 1000
    return Run(
        seconds=seconds,
        downtime=figures.downtime / 1000,
        cpu=meter.spent() - at[MigrationStatus.ACTIVE],
        setup=whole - seconds,
        setup_cpu=at[MigrationStatus.ACTIVE] - spent,
        transferred=figures.transferred,
        written=(_written(guest) - written) * PAGE_SIZE / whole,
    )


def receive(connection: Connection, destination: Still | Live, channels: int | None) -> None:
    """Receive the guest, which stays paused, over `channels` of multifd beside the main one.

    Report where it is expected, then Arrived, and after an answer the digest of its memory.
    """
    started = time.monotonic()
    guest = destination.make()
    meter = CpuMeter(lambda: _pid(guest))
    spent = [meter.spent()]

    def listening(uri: str) -> None:
        spent.append(meter.spent())
        send_message(connection, (uri, time.monotonic() - started))

    def changed(_: MigrationStatus, new: MigrationStatus) -> None:
        # Processes come and go at such a time.
        del new
        meter.spent()

    try:
        parameters = ReceiveParameters(paused=True, multifd_channels=channels)
        receiver = Receiver(guest, "tcp:127.0.0.1:0", parameters)
        receiver.states.add_listener(changed)
        with meter.running():
            receiver.run(on_listening=listening)
            cpu = meter.spent() - spent[1]
        send_message(connection, Arrived(spent[1] - spent[0], cpu))
        _tell_digest(connection, guest)
    finally:
        guest.close()
