"""A guest of the user's own program: four methods, and the library does the rest."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from vmferry.guest.errors import GuestError, MigrationError
from vmferry.guest.parts import BlockLayout, DeviceState, Machine
from vmferry.guest.program import ProgramGuest
from vmferry.protocol.errors import ParameterError
from vmferry.receiver.coordinator import Receiver
from vmferry.sender.coordinator import Sender

PAGE = 4096


class Notes(ProgramGuest):
    """Remembers what was asked of it."""

    def __init__(self, ram: dict[str, int] | None = None) -> None:
        super().__init__("notes-1", ram)
        self.done: list[str] = []
        self.state = b"state"

    def start(self) -> None:
        self.done.append("start")

    def stop(self) -> None:
        self.done.append("stop")

    def save(self) -> bytes:
        return self.state

    def load(self, state: bytes) -> None:
        if state == b"broken":
            raise GuestError("this state is broken")
        self.state = state


@pytest.fixture
def source() -> Iterator[Notes]:
    guest = Notes({"ram": 64 * PAGE, "more": PAGE})
    guest.memory("ram")[:] = 7
    guest.memory("more")[5] = 1
    yield guest
    guest.close()


@pytest.fixture
def target() -> Iterator[Notes]:
    guest = Notes()
    yield guest
    guest.close()


def layout(guest: Notes) -> list[BlockLayout]:
    return [BlockLayout(block.name, block.length, block.page_size) for block in guest.blocks]


def move(source: Notes, target: Notes, path: str) -> None:
    """Send to a file, and receive from it."""
    Sender(source, f"file:{path}").run()
    Receiver(target, f"file:{path}").run()


@pytest.mark.parametrize("running", [True, False])
def test_moves(source: Notes, target: Notes, tmp_path: object, running: bool) -> None:
    """Broken: memory or state would be lost, or a stopped guest be started where it arrives."""
    source.state = b"\0\xff" * 100
    if running:
        source.resume()
    move(source, target, f"{tmp_path}/stream")
    assert not source.running
    assert target.running is running
    assert target.done == ["start"] * running
    assert target.state == source.state
    for block in source.blocks:
        assert (target.memory(block.name) == source.memory(block.name)).all()


def test_state_that_cannot_be_loaded(source: Notes, target: Notes, tmp_path: object) -> None:
    """Broken: a guest would run on with a state that it has refused."""
    source.state = b"broken"
    source.resume()
    with pytest.raises(MigrationError, match="this state is broken"):
        move(source, target, f"{tmp_path}/stream")
    assert not target.running
    assert target.blocks == ()


def test_other_guests_are_refused(source: Notes, target: Notes) -> None:
    """Broken: the memory of one kind of guest would be given to another."""
    with pytest.raises(GuestError, match=r"^notes-1: cannot be a 'pc' with pages of 4096 bytes$"):
        target.prepare(Machine("pc"), layout(source))
    with pytest.raises(GuestError, match=r"^notes-1: a guest is here already$"):
        source.prepare(source.machine, layout(source))
    target.prepare(source.machine, layout(source))
    with pytest.raises(GuestError, match=r"device sections \[\] are not its own$"):
        target.load_devices(source.machine, DeviceState((), (), None, 2))


def test_values_are_checked() -> None:
    """Broken: a guest that no stream can carry would be found out when it migrates."""
    for name in ("", "x" * 256):
        with pytest.raises(ParameterError, match=r"^name: "):
            ProgramGuest.__init__(Notes(), name)
    with pytest.raises(ParameterError, match=r"^length: 100 is not whole pages of 4096$"):
        Notes({"ram": 100})


def test_listeners(source: Notes) -> None:
    """Broken: a service would not report that its guest was stopped or runs again."""
    heard: list[str] = []
    source.add_listener(heard.append)
    source.resume()
    source.pause()
    assert heard == ["resume", "stop"]
    source.resume()
    source.close()
    assert source.done == ["start", "stop"] * 2
