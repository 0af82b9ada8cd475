"""A relay between two QEMUs that keeps what goes over each connection of a migration."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

from vmferry.protocol.wire import multifd


class Capture:
    """Listens at the socket `place`, passes on to `target`, and writes what the source sends over
    each connection to a file in `folder`. Its threads never keep a failed test from ending."""

    def __init__(self, place: Path, target: Path, folder: Path) -> None:
        folder.mkdir()
        self._target = target
        self._folder = folder
        self._threads: list[threading.Thread] = []
        self._sockets: list[socket.socket] = []
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(place))
        self._server.listen(16)
        self._listener = threading.Thread(target=self._accept, daemon=True)
        self._listener.start()

    def close(self) -> tuple[Path, list[Path]]:
        """Wait for the ends of all connections; the file of the main channel, and the others."""
        # Wakes the listener up.
        self._server.shutdown(socket.SHUT_RDWR)
        self._listener.join(20)
        for thread in self._threads:
            thread.join(20)
            assert not thread.is_alive()
        for each in (self._server, *self._sockets):
            each.close()
        files = sorted(self._folder.iterdir())
        magic = multifd.MAGIC.to_bytes(4, "big")
        others = [file for file in files if file.read_bytes()[:4] == magic]
        (main,) = (file for file in files if file not in others)
        return main, others

    def _accept(self) -> None:
        while True:
            try:
                source, _ = self._server.accept()
            except OSError:
                return
            target = socket.socket(socket.AF_UNIX)
            self._sockets += [source, target]
            target.connect(str(self._target))
            file = self._folder / str(len(self._threads))
            for pass_on in ((source, target, file), (target, source, None)):
                thread = threading.Thread(target=self._pass, args=pass_on, daemon=True)
                thread.start()
                self._threads.append(thread)

    def _pass(self, source: socket.socket, target: socket.socket, file: Path | None) -> None:
        with open(file or "/dev/null", "wb") as kept:
            try:
                while data := source.recv(1 << 20):
                    kept.write(data)
                    target.sendall(data)
            except (ConnectionResetError, BrokenPipeError):
                # A QEMU closes its connections in any order when all has been said.
                return
            try:
                target.shutdown(socket.SHUT_WR)
            except OSError:
                return
