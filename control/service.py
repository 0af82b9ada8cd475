"""Run the service: one guest, the settings for its migrations, and the migrations themselves.

Commands work on it in the event loop's thread; a migration runs in its own thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

from ..guest.base import Guest
from ..protocol.errors import VmferryError
from .announce import Interface
from .announcing import Announcing
from .capabilities import Capabilities
from .descriptors import Descriptors
from .errors import QmpError
from .events import Events
from .incoming import Incoming
from .migration_events import MigrationEvents
from .outgoing import Outgoing
from .parameters import Parameters
from .run_state import RunControl, RunState

_HAND_OVER = 0.1
"""Seconds between two checks of a guest that died while it was handed over."""


class ServiceError(VmferryError):
    """The service ends because the guest did not arrive, or died; the message is one line."""


class Service:
    """The service of one guest; create it in a running event loop.

    `incoming` is a URI to receive from, `defer` to wait for `migrate-incoming`, or None if the
    guest is here. `paused` keeps the guest from running until a command starts it. `announce` lists
    the interfaces to announce on. Python code listens with `events.add_listener`. The guest belongs
    to the caller, who closes it when `run` is over.
    """

    def __init__(
        self,
        guest: Guest,
        incoming: str | None = None,
        *,
        paused: bool = False,
        announce: tuple[Interface, ...] = (),
    ) -> None:
        self.guest = guest
        self._loop = asyncio.get_running_loop()
        self._death_fd: int | None = None
        self.events = Events(self._loop)
        self.capabilities = Capabilities()
        self._migration_events = MigrationEvents(self.events, self.capabilities)
        self.parameters = Parameters()
        self.descriptors = Descriptors()
        self.announcing = Announcing(announce, self.parameters)
        self.run_control = RunControl(guest, incoming=incoming is not None, paused=paused)
        self.outgoing = Outgoing(
            guest,
            self.run_control,
            (self.capabilities, self.parameters),
            self.descriptors,
            self._migration_events,
        )
        self.incoming = None if incoming is None else self._new_incoming()
        self._uri = incoming
        self._late = False
        self._end: asyncio.Future[None] = self._loop.create_future()
        guest.add_listener(self._hear)

    def _hear(self, event: str) -> None:
        """Take in that the guest was stopped or started, maybe by others than this service."""
        self.events.emit(event.upper())
        if self.guest.moves_itself:
            # A command may hold the run control, and wait for the thread that calls this.
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self.run_control.follow, event == "resume")

    def _new_incoming(self) -> Incoming:
        incoming = Incoming(
            self.guest,
            self.run_control,
            (self.capabilities, self.parameters),
            self.descriptors,
            self._migration_events,
        )
        incoming.on_failure = self.fail
        incoming.on_arrival = self._arrived
        return incoming

    def take_in(self) -> Incoming:
        """Return the incoming migration, a new one if the last guest has left.

        What remains of that guest is then closed. Raises QmpError if a guest is here.
        """
        if self.run_control.state is RunState.POSTMIGRATE:
            if self.guest.moves_itself:
                raise QmpError("A QEMU takes in one guest: start it anew with -incoming defer")
            self._unwatch_guest()
            self.guest.close()
            self.run_control.wait_for_guest()
            self.outgoing.forget()
            self.incoming = self._new_incoming()
        if self.incoming is None:
            raise QmpError("'-incoming' was not specified on the command line")
        return self.incoming

    def _arrived(self) -> None:
        self._watch_guest()
        self.announcing.arrived()
        self.announce_if_running()

    def announce_if_running(self) -> None:
        """Announce an arrived guest if it runs."""
        if self.run_control.state is RunState.RUNNING:
            self.announcing.runs()

    async def run(self, ready: Callable[[], None] = lambda: None) -> None:
        """Run until `quit`. Raises ServiceError if the guest did not arrive, or died.

        `ready` is called once a source may connect to the given URI.
        """
        try:
            if self.incoming is None:
                self._watch_guest()
            elif self._uri != "defer":
                await self._start_incoming(self._uri or "")
            ready()
            await self._end
        finally:
            await self._finish()

    async def _start_incoming(self, uri: str) -> None:
        assert self.incoming is not None
        try:
            await self.incoming.start(uri)
        except QmpError as error:
            raise ServiceError(error.description) from error

    def _watch_guest(self) -> None:
        """Watch the process of a guest that is here, to notice its death."""
        self._death_fd = self.guest.death_fd
        if self._death_fd is not None:
            self._loop.add_reader(self._death_fd, self._died)

    def _unwatch_guest(self) -> None:
        if self._death_fd is not None:
            self._loop.remove_reader(self._death_fd)
        self._death_fd = None

    def _died(self) -> None:
        self._unwatch_guest()
        if self.run_control.state is RunState.FINISH_MIGRATE:
            # The migration finds out whether the guest died, or only what was left of it.
            self._loop.call_later(_HAND_OVER, self._died)
        elif self.run_control.state is not RunState.POSTMIGRATE:
            self.fail("the guest's process died")

    async def _finish(self) -> None:
        self._unwatch_guest()
        await self._loop.run_in_executor(None, self.outgoing.finish)
        late = "" if self.incoming is None else await self.incoming.finish(late=self._late)
        self.announcing.finish()
        self.events.deliver()
        self.descriptors.close()
        if late:
            raise ServiceError(late)

    def quit(self, reason: str) -> None:
        """End the service; `reason` is that of the event SHUTDOWN."""
        if not self._end.done():
            self._late = self.incoming is not None and self.incoming.under_way
            self.events.emit("SHUTDOWN", guest=False, reason=reason)
            self._end.set_result(None)

    def fail(self, message: str) -> None:
        """End the service with a ServiceError."""
        if not self._end.done():
            self._end.set_exception(ServiceError(message))
