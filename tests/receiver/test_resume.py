"""What must be done before a guest resumes at the destination, and in which order (law 4)."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from vmferry.guest.base import BlockLayout, DeviceState, Machine
from vmferry.guest.synthetic import SyntheticGuest
from vmferry.guest.synthetic_options import parse_options
from vmferry.receiver.coordinator import Receiver
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


def test_order() -> None:
    """Broken: a guest would run on devices, disks or memory that are not what they were."""
    source, guest = SyntheticGuest.parse("2M,dirty-rate=1M"), Watched()
    addresses: list[str] = []
    listening = threading.Event()

    def heard(address: str) -> None:
        addresses.append(address)
        listening.set()

    receiver = Receiver(guest, "tcp:127.0.0.1:0")
    thread = threading.Thread(target=lambda: receiver.run(on_listening=heard))
    thread.start()
    try:
        assert listening.wait(20)
        Sender(source, addresses[0]).run()
    finally:
        receiver.cancel()
        thread.join(20)
        source.close()
        steps = list(guest.steps)
        guest.close()
    assert steps == ["prepare", "load", "invalidate", "resume"]
