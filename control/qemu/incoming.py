"""Run an incoming migration of a running QEMU; `receiver.coordinator` is the same for other guests.

    listening -> a source connects -> its first bytes are compared with the machine -> QEMU gets
        the connection (`migrate-incoming`), and `query-migrate` is watched -> completed

QEMU answers on the return path by itself: it lets the guest run, and then says that it has it.
"""

from __future__ import annotations

import logging
import os
import socket
import stat
import time
from collections.abc import Callable
from typing import Any

from ...guest.errors import GuestError, MigrationCancelledError, MigrationError
from ...guest.qemu import queries
from ...guest.qemu.checks import check_destination
from ...guest.qemu.guest import QemuGuest
from ...guest.qemu.log import Log
from ...guest.qemu.monitor import GoneError, QemuError
from ...guest.qemu.settings import Settings, Wanted
from ...guest.requests import Requests
from ...protocol.errors import ParameterError
from ...protocol.formats.zstd import is_compressed
from ...protocol.states import MigrationStatus, StateMachine
from ...receiver.beginning import begins_stream
from ...receiver.coordinator import ReceiveParameters
from ...receiver.figures import Figures
from ...transport.channel import Channel, ChannelError, Listener, listen
from ...transport.crew import Crew, CrewError
from ...transport.lobby import Lobby
from ...transport.meter import Meter
from ...transport.settings import DIRECT_IO
from ...transport.shared import Bell, wait_readable
from ...transport.uri import Tcp, Unix, UriError, parse_uri
from .carried_in import CarriedIn
from .fitting import MOST, check_beginning
from .route import Itself

_log = logging.getLogger(__name__)
_S = MigrationStatus

PERIOD = 0.1
"""Seconds between two queries; a change of state is asked for at once."""
_NAME = "vmferry-incoming"
_BEGINS_WITHIN = 10.0
"""Seconds that a source may take to say what memory it has; later it is not compared any more."""
_ASKS_WHY = (9, 1)
"""Version of QEMU from which on it can stay to be asked why it refused a guest."""


class QemuReceiver:
    """One incoming migration into a QEMU that was started with `-incoming defer`; `run` it once.

    Raises ParameterError for what a QEMU cannot do.
    """

    def __init__(
        self, guest: QemuGuest, uri: str, parameters: ReceiveParameters | None = None
    ) -> None:
        self._guest = guest
        self._monitor = guest.monitor
        self._uri = uri
        self._parameters = parameters or ReceiveParameters()
        if self._parameters.workers is not None:
            raise ParameterError("workers: QEMU loads memory by itself; leave it out")
        if self._parameters.direct_io != DIRECT_IO.default:
            raise ParameterError("direct_io: QEMU reads files by itself; leave it out")
        self.states = StateMachine()
        self.states.add_listener(lambda old, new: _log.info("%s -> %s", old.value, new.value))
        self.paused = self._parameters.paused
        """True if the guest is not resumed at the end; it may change until the source connects."""
        self.on_refused: Callable[[str], None] = lambda _: None
        """Called with one line for each connection that is refused because no source made it."""
        self._requests = Requests()
        self._crew = Crew(self._requests.fileno(), self._requests.check)
        self._bell = Bell()
        self._listener: Listener | None = None
        self._channel: Channel | None = None
        self._settings: Settings | None = None
        self._log_of_qemu = Log(guest.monitor.process)
        self._on_progress: Callable[[Figures], None] = lambda _: None
        self._meter = Meter()
        self._total = 0
        self._taken = False
        self._carried: CarriedIn | None = None

    def cancel(self) -> None:
        """Stop waiting for a source; callable from any thread or signal handler.

        A guest that QEMU takes in can only be cancelled at its source, which then runs it on.
        """
        self._requests.cancel()

    def leave(self) -> None:
        """End within seconds; QEMU goes on with a guest that it takes in."""
        self._requests.leave()

    def run(
        self,
        on_progress: Callable[[Figures], None] | None = None,
        on_listening: Callable[[str], None] | None = None,
    ) -> Figures:
        """Receive the guest and return the final figures.

        Raises MigrationError if the guest did not arrive. `on_listening` is called with the URI,
        which has the real port, once a source may connect.
        """
        self._on_progress = on_progress or self._on_progress
        try:
            self._receive(on_listening or (lambda _: None))
        except BaseException as error:
            self._give_up(error)
            if isinstance(error, GoneError) and self._taken:
                reason = f"QEMU ended as the guest arrived; {self._log_of_qemu}"
                raise MigrationError(reason) from error
            if isinstance(error, (ChannelError, UriError, GuestError, CrewError)):
                raise MigrationError(str(error)) from error
            raise
        finally:
            self._monitor.remove_listener(self._hear)
            self._release()
        final = self.figures()
        self._on_progress(final)
        return final

    def _receive(self, on_listening: Callable[[str], None]) -> None:
        uri = parse_uri(self._uri)
        several = self._parameters.multifd_channels
        if several and not isinstance(uri, (Tcp, Unix)):
            raise MigrationError(f"{uri}: multifd takes several connections: tcp: or unix:")
        check_destination(self._monitor)
        self._settings = Settings(self._monitor)
        self.states.to(_S.SETUP)
        if several:
            self._settings.change(Wanted({"multifd": True}, {"multifd-channels": several}))
            address = self._take_in(Itself(uri).open(self._monitor, self._crew.wait_fd))
            on_listening(address)
        else:
            self._listener = listen(uri)
            on_listening(self._listener.address)
            self._connect(self._listener)
        self.states.to(_S.ACTIVE)
        self._meter.begin("total")
        self._watch()
        if self._carried is not None:
            self._carried.hand_over(self._tick)
        self._meter.end("total")
        self._settings.restore()
        self.states.to(_S.COMPLETED)

    def _connect(self, listener: Listener) -> None:
        """Wait for a source whose stream fits the machine, and give QEMU its connection."""
        channel = Lobby(listener, begins_stream, self.on_refused).wait(self._crew.wait_fd)
        self._channel = channel
        listener.close()
        if _is_pipe(channel) or is_compressed(_peek(channel)):
            self._carried = CarriedIn(self._guest, channel, self._requests, self._finds_running())
            self._channel = None
            self._take_in(self._carried.open())
            return
        self._compare(channel)
        self._monitor.give(_NAME, channel.fileno())
        if channel.bidirectional:
            # The source sees QEMU close the connection only if nobody else has it open.
            channel.drop()
            self._channel = None
        self._take_in(f"fd:{_NAME}")

    def _compare(self, channel: Channel) -> None:
        """Look at the beginning of the stream, without taking it from the channel.

        Raises QemuError if the QEMU cannot load it.
        """
        deadline, before = time.monotonic() + _BEGINS_WITHIN, -1
        while time.monotonic() < deadline:
            head = _peek(channel)
            total = None if len(head) == before else check_beginning(self._monitor, head)
            if total is not None:
                self._total = total
            if total is not None or not head or len(head) >= MOST:
                return
            before = len(head)
            wait_readable([self._requests.fileno()], 0.01)
            self._requests.check()

    def _take_in(self, uri: str) -> str:
        """Have QEMU take a guest in, and return where it listens, if it does."""
        if self.paused or self._carried is not None:
            # A QEMU that waits for a guest remembers that it shall not start it.
            self._monitor.ask("stop")
        self._monitor.add_listener(self._hear)
        told = queries.version(self._monitor)
        stays = {"exit-on-error": False} if (told.major, told.minor) >= _ASKS_WHY else {}
        self._taken = True
        self._monitor.ask("migrate-incoming", uri=uri, **stays)
        address = queries.migration(self._monitor).get("socket-address")
        return _uri_of(address[0]) if address else uri

    def _hear(self, name: str, _: dict[str, Any]) -> None:
        if name.startswith("MIGRATION"):
            self._bell.set()

    def _watch(self) -> None:
        """Return once QEMU has the guest. Raises QemuError if it did not arrive."""
        while True:
            told = queries.migration(self._monitor)
            if told["status"] == _S.COMPLETED and (not self._carried or self._carried.loaded):
                return
            if told["status"] in (_S.FAILED, _S.CANCELLED):
                why = told.get("error-desc") or "it gives no reason"
                raise QemuError(f"QEMU could not load the guest: {why}; {self._log_of_qemu}")
            self._tick()
            if self._requests.cancelled:
                if self._carried is not None:
                    raise MigrationCancelledError("cancelled; the source has the guest")
                raise MigrationCancelledError(
                    "QEMU takes the guest in by itself, and goes on; cancel it at its source"
                )
            fds = [] if self._carried is None else self._carried.fds()
            wait_readable([self._bell.fileno(), self._requests.fileno(), *fds], PERIOD)
            self._bell.clear()
            if self._carried is not None:
                self._carried.look()

    def _tick(self) -> None:
        self._meter.window(self._transferred, 0)
        self._on_progress(self.figures())

    @property
    def _transferred(self) -> int:
        return 0 if self._carried is None else self._carried.transferred

    def _finds_running(self) -> bool:
        """Return whether a guest is to run here that ran at its source."""
        return not self.paused and "-S" not in queries.command_line(self._monitor)

    def _give_up(self, error: BaseException) -> None:
        if self._carried is not None:
            self._carried.abort()
        if self._channel is not None:
            self._channel.abort()
        self.states.end_early(cancelled=isinstance(error, MigrationCancelledError))

    def _release(self) -> None:
        self._crew.stop()
        if self._listener is not None:
            self._listener.close()
        if self._channel is not None:
            self._channel.drop()
        self._requests.close()
        self._bell.close()

    def figures(self) -> Figures:
        """Return the present figures; what arrives only QEMU sees, which does not report it."""
        return Figures(
            status=self.states.state,
            total=self._total,
            transferred=self._transferred,
            mbps=self._meter.mbps,
            total_time=self._meter.milliseconds("total"),
        )


def _is_pipe(channel: Channel) -> bool:
    """Return whether nothing can be seen of a stream that is not taken from its channel."""
    mode = os.fstat(channel.fileno()).st_mode
    return not stat.S_ISREG(mode) and not stat.S_ISSOCK(mode)


def _peek(channel: Channel) -> bytes:
    """Return the first bytes of a file, or those that have arrived at a socket."""
    fd = channel.fileno()
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return os.pread(fd, MOST, os.lseek(fd, 0, os.SEEK_CUR))
    with socket.socket(fileno=os.dup(fd)) as sock:
        try:
            return sock.recv(MOST, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return b""


def _uri_of(address: dict[str, Any]) -> str:
    if address["type"] == "inet":
        return str(Tcp(address["host"], int(address["port"])))
    return str(Unix(address.get("path", "")))
