"""A receiver in a thread of its own, for migrations within one test."""

from __future__ import annotations

import threading

from vmferry.guest.errors import MigrationError
from vmferry.guest.synthetic import SyntheticGuest
from vmferry.receiver.coordinator import ReceiveParameters, Receiver

from tests.patience import PATIENCE


class Incoming:
    """Listens on `uri`; `address` is where to send to."""

    def __init__(self, uri: str, workers: int = 1) -> None:
        self.guest = SyntheticGuest.parse("")
        self.receiver = Receiver(self.guest, uri, ReceiveParameters(workers=workers, paused=True))
        self.error: MigrationError | None = None
        self.address = ""
        self._listening = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._listening.wait(PATIENCE)

    def _run(self) -> None:
        try:
            self.receiver.run(on_listening=self._heard)
        except MigrationError as error:
            self.error = error

    def _heard(self, address: str) -> None:
        self.address = address
        self._listening.set()

    def join(self) -> None:
        """Wait until the migration is over."""
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()

    def close(self) -> None:
        """End the migration and the guest."""
        self.receiver.cancel()
        self.join()
        self.guest.close()
