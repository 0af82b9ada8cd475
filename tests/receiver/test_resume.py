"""Test what must be done before a guest resumes at the destination, and in which order (law 4)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from vmferry.guest.directory import DirectoryGuest
from vmferry.guest.errors import GuestError, MigrationError
from vmferry.guest.handing_in import DestinationJob
from vmferry.guest.parts import BlockLayout, DeviceState, Machine
from vmferry.guest.synthetic import SyntheticGuest
from vmferry.guest.synthetic_options import parse_options
from vmferry.receiver.coordinator import ReceiveParameters, Receiver
from vmferry.sender.coordinator import Sender

from tests.patience import PATIENCE


class Watched(SyntheticGuest):
    """Notes what is done to it."""

    def __init__(self) -> None:
        super().__init__(parse_options(""))
        self.steps: list[str] = []

    def prepare(self, machine: Machine, blocks: Sequence[BlockLayout]) -> None:
        super().prepare(machine, blocks)
        self.steps.append("prepare")

    def load_devices(self, machine: Machine, state: DeviceState) -> None:
        super().load_devices(machine, state)
        self.steps.append("load" if not self.running and not self.verify() else "too late")

    def invalidate_caches(self) -> None:
        super().invalidate_caches()
        self.steps.append("invalidate")

    def seal(self, *, running: bool) -> None:
        super().seal(running=running)
        self.steps.append("seal")

    def begin_handing_in(self, fd: int, job: DestinationJob) -> Connection:
        self.steps.append("begin_handing_in" if not self.running else "too late")
        return super().begin_handing_in(fd, job)


def _migrate(guest: Watched, prepare: Callable[[Receiver], None]) -> tuple[str, str]:
    """Send a guest to this one, with its receiver prepared; return how both ends say it went."""
    source = SyntheticGuest.parse("2M,dirty-rate=1M")
    addresses: list[str] = []
    listening = threading.Event()
    ends = {}

    def heard(address: str) -> None:
        addresses.append(address)
        listening.set()

    def receive() -> None:
        try:
            receiver.run(on_listening=heard)
        except MigrationError as error:
            ends["destination"] = str(error)

    receiver = Receiver(guest, "tcp:127.0.0.1:0")
    prepare(receiver)
    thread = threading.Thread(target=receive, daemon=True)
    thread.start()
    try:
        assert listening.wait(PATIENCE)
        try:
            Sender(source, addresses[0]).run()
        except MigrationError as error:
            ends["source"] = str(error)
        thread.join(20)
        assert source.running is ("source" in ends)
    finally:
        receiver.cancel()
        thread.join(20)
        source.close()
        guest.close()
    return ends.get("source", ""), ends.get("destination", "")


def test_order() -> None:
    """Broken: a guest would run on devices, disks or memory that are not what they were."""
    guest = Watched()
    assert _migrate(guest, lambda _: None) == ("", "")
    assert guest.steps == ["prepare", "load", "invalidate", "seal", "begin_handing_in"]


def test_nothing_can_fail_behind_the_promise() -> None:
    """Broken: the source would give its guest up to an end that then cannot run it (law 5)."""

    class Unsealable(Watched):
        def seal(self, *, running: bool) -> None:
            raise GuestError(f"no space left on device, to run: {running}")

    guest = Unsealable()
    source, destination = _migrate(guest, lambda _: None)
    assert "no space left" in destination
    assert source
    assert "begin_handing_in" not in guest.steps


def test_cancel_behind_the_promise_gives_the_guest_back() -> None:
    """Broken: a cancelled destination would leave the guest running nowhere (law 5)."""

    class Cancelled(Watched):
        def begin_handing_in(self, fd: int, job: DestinationJob) -> Connection:
            # A source that confirms before the cancel is seen keeps the guest running here.
            receivers[0].cancel()
            return super().begin_handing_in(fd, job)

    receivers: list[Receiver] = []
    source, destination = _migrate(Cancelled(), receivers.append)
    assert ("source has the guest" in destination) is bool(source)


def test_cancel_just_before_the_promise(tmp_path: Path) -> None:
    """Broken: the transport process would promise a guest that is removed (law 5)."""
    source, guest = SyntheticGuest.parse("2M"), DirectoryGuest(str(tmp_path / "guest"))
    receiver = Receiver(guest, "tcp:127.0.0.1:0", ReceiveParameters(workers=0))
    ends: list[str] = []

    def cancel(transport: Connection) -> None:
        # Once it has answered, the transport process stands by for our death.
        assert transport.poll(PATIENCE)
        receiver.cancel()

    def send(address: str) -> None:
        try:
            Sender(source, address).run()
        except MigrationError as error:
            ends.append(str(error))

    receiver.on_let_go = cancel
    threads: list[threading.Thread] = []

    def listening(address: str) -> None:
        threads.append(threading.Thread(target=send, args=(address,), daemon=True))
        threads[0].start()

    try:
        with pytest.raises(MigrationError, match="cancelled"):
            receiver.run(on_listening=listening)
        threads[0].join(20)
        assert ends
        assert source.running
        assert list(tmp_path.iterdir()) == []
    finally:
        source.close()
