"""Run the incoming migration of a service: one guest arrives, or the service ends."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Any

from ..guest.base import Guest
from ..guest.errors import MigrationError
from ..protocol.states import MigrationStatus
from ..receiver.coordinator import ReceiveParameters
from ..receiver.errors import KeptError
from ..transport.settings import DIRECT_IO, MULTIFD_CHANNELS
from ..transport.uri import Tcp, Unix, UriError, parse_uri
from .capabilities import Capabilities
from .descriptors import Descriptors
from .errors import QmpError
from .migrating import AnyReceiver, new_receiver
from .migration_events import MigrationEvents
from .parameters import Parameters
from .run_state import RunControl

_S = MigrationStatus


class Incoming:
    """The incoming migration; it waits for `migrate-incoming` or a URI, then for the guest.

    In the loop's thread, `on_arrival` is called when the guest is here, and `on_failure` with one
    line when it will not arrive.
    """

    def __init__(
        self,
        guest: Guest,
        run: RunControl,
        settings: tuple[Capabilities, Parameters],
        descriptors: Descriptors,
        events: MigrationEvents,
    ) -> None:
        self._guest = guest
        self._capabilities, self._parameters = settings
        self._run = run
        self._descriptors = descriptors
        self._events = events
        self._receiver: AnyReceiver | None = None
        self._future: asyncio.Future[None] | None = None
        self._status = _S.NONE
        self._address: list[dict[str, Any]] = []
        self.on_arrival: Callable[[], None] = lambda: None
        self.on_refused: Callable[[str], None] = lambda _: None
        """Called, in another thread, with one line for each connection that is refused."""
        self.on_failure: Callable[[str], None] = lambda _: None

    @property
    def started(self) -> bool:
        """Return whether a source may connect, or has connected."""
        return self._receiver is not None

    async def start(self, uri: str) -> str:
        """Listen, and return the URI with its real port.

        Raises QmpError; another attempt is possible then.
        """
        if self._receiver is not None:
            raise QmpError("The incoming migration has already been started")
        try:
            uri, fd = self._descriptors.resolve(uri)
        except UriError as error:
            raise QmpError(str(error)) from error
        try:
            return await self._listen(uri)
        finally:
            # The channel has its own descriptor.
            if fd is not None:
                os.close(fd)

    async def _listen(self, uri: str) -> str:
        loop = asyncio.get_running_loop()
        listening: asyncio.Future[str] = loop.create_future()
        channels = self._parameters[MULTIFD_CHANNELS.name]
        parameters = ReceiveParameters(
            multifd_channels=channels if self._capabilities["multifd"] else None,
            paused=not self._run.autostart,
            # Only pages of a file are read so; other incoming guests do without, as in QEMU.
            direct_io=self._parameters[DIRECT_IO.name] and uri.startswith("file:"),
        )
        receiver = self._receiver = new_receiver(self._guest, uri, parameters)
        receiver.states.add_listener(self._changed)
        receiver.on_refused = self.on_refused

        def heard(address: str) -> None:
            loop.call_soon_threadsafe(listening.set_result, address)

        self._change(_S.SETUP)
        self._future = loop.run_in_executor(None, lambda: _receive(receiver, heard))
        await asyncio.wait((self._future, listening), return_when=asyncio.FIRST_COMPLETED)
        if not listening.done() and (error := self._future.exception()) is not None:
            self._receiver, self._status = None, _S.NONE
            raise QmpError(str(error)) from error
        self._future.add_done_callback(self._ended)
        address = await listening
        self._address = _socket_address(address)
        return address

    def _ended(self, future: asyncio.Future[None]) -> None:
        if future.cancelled():
            return
        error = future.exception()
        if error is None:
            self.on_arrival()
        elif isinstance(error, MigrationError):
            self.on_failure(str(error))
        else:
            self.on_failure(f"{type(error).__name__}: {error}")

    def _changed(self, _: MigrationStatus, new: MigrationStatus) -> None:
        if new is _S.COMPLETED:
            self._run.arrived()
        if new is not _S.SETUP:
            self._change(new)

    def _change(self, new: MigrationStatus) -> None:
        self._status = new
        self._events.changed(new)

    def set_autostart(self) -> None:
        """Update whether the guest starts on arrival, after `stop` or `cont` changed that."""
        if self._receiver is not None:
            self._receiver.paused = not self._run.autostart

    def query(self) -> dict[str, Any]:
        """Return the migration as `query-migrate` lays it out."""
        if self._status is _S.NONE:
            return {}
        answer: dict[str, Any] = {"status": str(self._status)}
        if self._status in (_S.SETUP, _S.ACTIVE) and self._address:
            answer["socket-address"] = self._address
        return answer

    @property
    def under_way(self) -> bool:
        """Return whether a guest may be arriving now."""
        return self._future is not None and not self._future.done()

    async def finish(self, *, late: bool) -> str:
        """Cancel a migration that is under way, and wait for its end.

        `late` says that it was under way when the service was ordered to end. Return a line about a
        guest that its source may not have any more, or an empty string.
        """
        if self._receiver is None or self._future is None or not (late or self.under_way):
            return ""
        self._receiver.leave()
        await asyncio.wait((self._future,))
        error = self._future.exception()
        if error is None:
            self._guest.release()
            return "the guest arrived while the service ended, and was left to itself"
        return str(error) if isinstance(error, KeptError) else ""


def _receive(receiver: AnyReceiver, heard: Callable[[str], None]) -> None:
    receiver.run(on_listening=heard)


def _socket_address(address: str) -> list[dict[str, Any]]:
    """Return QEMU's `SocketAddress` in a list, empty if there is no socket."""
    uri = parse_uri(address)
    if isinstance(uri, Tcp):
        family = "ipv6" if ":" in uri.host else "ipv4"
        return [{"type": "inet", "host": uri.host, "port": str(uri.port), family: True}]
    if isinstance(uri, Unix):
        return [{"type": "unix", "path": uri.path}]
    return []
