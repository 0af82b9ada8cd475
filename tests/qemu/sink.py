"""Run one end of a migration, answered over the return path, with a file at the other end."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

from vmferry.protocol.reader import StreamReader
from vmferry.protocol.return_path import shut

from tests.patience import PATIENCE
from tests.qemu.machine import Machine


class Sink:
    """Takes a migration into a file, and answers as a destination where all went well."""

    def __init__(self, path: Path, stream: Path) -> None:
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(path))
        self._server.listen(1)
        self._stream = stream
        self._thread = threading.Thread(target=self._take, daemon=True)
        self._thread.start()

    def _take(self) -> None:
        connection, _ = self._server.accept()
        reader = StreamReader()
        with connection, self._stream.open("wb") as file:
            connection.settimeout(1)
            try:
                while not reader.whole and (data := connection.recv(1 << 20)):
                    file.write(data)
                    reader.feed(data)
            except TimeoutError:
                # Without a description nothing says that all has come, but that the source waits.
                assert reader.rest is not None
                assert reader.rest.bare()
            connection.sendall(shut(0))
            connection.settimeout(PATIENCE)
            while data := connection.recv(1 << 20):
                file.write(data)

    def close(self) -> None:
        self._thread.join()
        self._server.close()


def replay(stream: Path, stock: Machine, place: Path) -> None:
    """Give a stream to a QEMU that wants to answer, at the socket `place`; nobody listens."""
    stock.ask("migrate-incoming", uri=f"unix:{place}")
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(place))
        connection.sendall(stream.read_bytes())
        stock.wait_for("completed")
