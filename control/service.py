"""The service: one guest, what is set for its migrations, and the migrations themselves.

Commands work on it in the event loop's thread; a migration runs in a thread of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ..guest.base import Guest
from .announce import Interface
from .announcing import Announcing
from .capabilities import Capabilities
from .descriptors import Descriptors
from .errors import QmpError
from .events import Events
from .incoming import Incoming
from .outgoing import Outgoing
from .parameters import Parameters
from .run_state import RunControl, RunState

_HAND_OVER = 0.1
"""Seconds between two looks at a guest that died while it was handed over."""


class ServiceError(Exception):
    """The service has nothing left to do: the guest did not arrive, or died; one line."""


class Service:
    """Make it in a running event loop. The guest is the caller's, to close when `run` is over.

    `incoming`: a URI to receive from, `defer` to be told by `migrate-incoming`, or None: the guest
    is here. `paused`: it shall not run before a command lets it. `announce`: where.
    Python code listens with `events.add_listener`.
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
        self.parameters = Parameters()
        self.descriptors = Descriptors()
        self.announcing = Announcing(announce, self.parameters)
        self.run_control = RunControl(guest, incoming=incoming is not None, paused=paused)
        self.outgoing = Outgoing(
            guest,
            self.run_control,
            (self.capabilities, self.parameters),
            self.descriptors,
            self.events,
        )
        self.incoming = None if incoming is None else self._new_incoming()
        self._uri = incoming
        self._late = False
        self._end: asyncio.Future[None] = self._loop.create_future()
        guest.add_listener(lambda event: self.events.emit(event.upper()))

    def _new_incoming(self) -> Incoming:
        incoming = Incoming(
            self.guest, self.run_control, self.capabilities, self.descriptors, self.events
        )
        incoming.on_failure = self.fail
        incoming.on_arrival = self._arrived
        return incoming

    def take_in(self) -> Incoming:
        """Return what waits for a guest, which may be the next one where a guest has left.

        What is here of the one that left is given up then. Raises QmpError where a guest is here.
        """
        if self.run_control.state is RunState.POSTMIGRATE:
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
        """Where a guest that has come is reached, once it runs."""
        if self.run_control.state is RunState.RUNNING:
            self.announcing.runs()

    async def run(self, ready: Callable[[], None] = lambda: None) -> None:
        """Until `quit`. Raises ServiceError when a guest was to arrive and did not, or died.

        `ready` is called once a source may connect to the URI given.
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
        """Notice it when the process of a guest that is here dies."""
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
            # The migration says whether it was the guest that died, or what was left of it.
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
