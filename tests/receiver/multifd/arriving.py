"""A multifd migration into vmferry from a source that is made up, one connection at a time."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from vmferry.guest.directory import DirectoryGuest
from vmferry.guest.errors import MigrationError
from vmferry.protocol.return_path import shut
from vmferry.receiver.coordinator import ReceiveParameters, Receiver
from vmferry.receiver.figures import Figures

from tests.patience import PATIENCE, wait_until


@dataclass
class Slowly:
    """Sends in pieces of `size` bytes, with a pause of `pause` seconds behind each."""

    size: int
    pause: float

    def __call__(self, connection: socket.socket, data: bytes) -> None:
        for first in range(0, len(data), self.size):
            connection.sendall(data[first : first + self.size])
            time.sleep(self.pause)


def at_once(connection: socket.socket, data: bytes) -> None:
    """Send all channels at once."""
    connection.sendall(data)


Way = Callable[[socket.socket, bytes], None]


@dataclass
class Source:
    """The connections of a source, which keeps each open until the destination has answered."""

    address: str
    answered: threading.Event = field(default_factory=threading.Event)
    threads: list[threading.Thread] = field(default_factory=list)

    def connect(self, data: bytes, way: Way = at_once, *, ends: bool = False) -> None:
        """Send these bytes over a connection of their own, which `ends` behind them."""
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(self.address)
        arguments = (connection, data, way, ends)
        self.threads.append(threading.Thread(target=self._run, args=arguments, daemon=True))
        self.threads[-1].start()

    def main(self, data: bytes, way: Way = at_once) -> None:
        """Send the main channel's bytes, and take the answer."""
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(self.address)
        arguments = (connection, data, way)
        self.threads.append(threading.Thread(target=self._lead, args=arguments, daemon=True))
        self.threads[-1].start()

    def _run(self, connection: socket.socket, data: bytes, way: Way, ends: bool) -> None:
        with connection, suppress(OSError):
            way(connection, data)
            if not ends:
                # As a stock QEMU does: the channels stay open for as long as the main one.
                connection.settimeout(PATIENCE)
                connection.recv(1)

    def _lead(self, connection: socket.socket, data: bytes, way: Way) -> None:
        answers = b""
        with connection, suppress(OSError):
            way(connection, data)
            connection.settimeout(PATIENCE)
            while shut(0) not in answers and (piece := connection.recv(4096)):
                answers += piece
        if shut(0) in answers:
            self.answered.set()


class Arriving:
    """A receiver that waits for a source at a Unix socket, and how it ended."""

    def __init__(self, folder: Path, channels: int | None, workers: int | None = None) -> None:
        self.folder = folder
        self.guest = DirectoryGuest(str(folder / "guest"))
        uri = f"unix:{folder / 'in'}"
        parameters = ReceiveParameters(workers=workers, multifd_channels=channels)
        self._receiver = Receiver(self.guest, uri, parameters)
        self.refused: list[str] = []
        self._receiver.on_refused = self.refused.append
        self.error = ""
        self.figures: Figures | None = None
        listening = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(listening,), daemon=True)
        self._thread.start()
        assert listening.wait(PATIENCE)
        self.source = Source(str(folder / "in"))

    def _run(self, listening: threading.Event) -> None:
        try:
            self.figures = self._receiver.run(on_listening=lambda _: listening.set())
        except MigrationError as error:
            self.error = str(error)

    def until_refused(self, count: int) -> None:
        """Wait until so many connections have been refused."""
        wait_until(lambda: len(self.refused) >= count)

    def end(self) -> str:
        """Wait for the end, and return the error, if any."""
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()
        for thread in self.source.threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()
        return self.error

    def fails(self) -> str:
        """Return the error of a migration that has to fail, and leave nothing behind."""
        error = self.end()
        assert error
        assert "\n" not in error
        assert not self.source.answered.is_set()
        assert not (self.folder / "guest").exists()
        return error

    def arrives(self) -> dict[str, bytes]:
        """Return the RAM of a guest that has to arrive, by block."""
        error = self.end()
        assert error == ""
        assert self.source.answered.is_set()
        return {path.name: path.read_bytes() for path in (self.folder / "guest" / "ram").iterdir()}

    def close(self) -> None:
        self._receiver.cancel()
        self._thread.join(PATIENCE)
        self.guest.close()


Start = Callable[..., Arriving]
"""Function that starts a receiver; its arguments are those of `Arriving` behind the folder."""
