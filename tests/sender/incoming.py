"""A receiver in a thread of its own, for migrations within one test."""

from __future__ import annotations

import threading

from vmferry.guest.errors import MigrationError
from vmferry.guest.synthetic import SyntheticGuest
from vmferry.receiver.coordinator import ReceiveParameters, Receiver

from tests.patience import PATIENCE


class Incoming:
    """Listens on `uri`; `address` is where to send to."""

    def __init__(
        self,
        uri: str = "tcp:127.0.0.1:0",
        workers: int | None = 1,
        multifd_channels: int | None = None,
    ) -> None:
        self.guest = SyntheticGuest.parse("")
        parameters = ReceiveParameters(
            workers=workers, paused=True, multifd_channels=multifd_channels
        )
        self.receiver = Receiver(self.guest, uri, parameters)
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

    def arrives(self, source: SyntheticGuest) -> None:
        """Wait until the migration is over; the guest has to be here, as it was at its source."""
        self.join()
        assert self.error is None
        assert (source.page_digests() == self.guest.page_digests()).all()
        assert self.guest.verify() == []

    def fails(self) -> None:
        """Wait until the migration is over; it has to fail, and no guest may run here."""
        self.join()
        assert self.error is not None
        assert not self.guest.running

    def __enter__(self) -> Incoming:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the migration and the guest."""
        self.receiver.cancel()
        self.join()
        self.guest.close()
