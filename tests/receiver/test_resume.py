"""What must be done before a guest resumes at the destination, and in which order (law 4)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import pytest
from vmferry.guest.base import BlockLayout, DeviceState, Machine
from vmferry.guest.synthetic import SyntheticGuest
from vmferry.guest.synthetic_options import parse_options
from vmferry.receiver.coordinator import Receiver
from vmferry.receiver.transport import Answer
from vmferry.sender.coordinator import Sender


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

    def resume(self) -> None:
        super().resume()
        self.steps.append("resume")


def _migrate(guest: Watched, prepare: Callable[[Receiver], None]) -> None:
    """Send a guest to this one; `prepare` the receiver before."""
    source = SyntheticGuest.parse("2M,dirty-rate=1M")
    addresses: list[str] = []
    listening = threading.Event()

    def heard(address: str) -> None:
        addresses.append(address)
        listening.set()

    receiver = Receiver(guest, "tcp:127.0.0.1:0")
    prepare(receiver)
    thread = threading.Thread(target=lambda: receiver.run(on_listening=heard))
    thread.start()
    try:
        assert listening.wait(20)
        Sender(source, addresses[0]).run()
        thread.join(20)
    finally:
        receiver.cancel()
        thread.join(20)
        source.close()
        guest.close()


def test_order() -> None:
    """Broken: a guest would run on devices, disks or memory that are not what they were."""
    guest = Watched()
    _migrate(guest, lambda _: None)
    assert guest.steps == ["prepare", "load", "invalidate", "resume"]


def test_cancel_comes_too_late_once_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken: the source would have let its guest go, and it would run nowhere (law 5)."""

    def cancel_with_the_answer(receiver: Receiver) -> None:
        command = receiver._processes.command_transport

        def command_then_cancel(message: object) -> None:
            command(message)
            if isinstance(message, Answer):
                receiver.cancel()

        monkeypatch.setattr(receiver._processes, "command_transport", command_then_cancel)

    guest = Watched()
    _migrate(guest, cancel_with_the_answer)
    assert guest.steps[-1] == "resume"
