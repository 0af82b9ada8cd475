"""Self-announcement: inform switches, on given interfaces, that a guest is now reached here.

One RARP frame is sent at once, and more at growing intervals, because the network may not be ready
for the first. Source of the schedule and its values: QEMU's QMP reference, `announce-self` and the
migration parameters `announce-initial`, `-max`, `-rounds`, `-step`.
"""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

from ..protocol.errors import VmferryError
from ..protocol.formats.rarp import announcement
from ..transport import settings

_ETHERNET = 1
"""The kernel's ARPHRD_ETHER, the hardware type of Ethernet."""
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", re.IGNORECASE)


class AnnounceError(VmferryError):
    """An announcement is impossible or has invalid parameters; the message is one line."""


@dataclass(frozen=True)
class AnnounceParameters:
    """The schedule of an announcement in milliseconds, with the names of `announce-self`.

    `initial` is the interval between the first two rounds; each later interval is `step` longer, up
    to `max`. Raises AnnounceError if a value is out of range.
    """

    initial: int = settings.ANNOUNCE_INITIAL.default
    max: int = settings.ANNOUNCE_MAX.default
    rounds: int = settings.ANNOUNCE_ROUNDS.default
    step: int = settings.ANNOUNCE_STEP.default

    def __post_init__(self) -> None:
        for setting, value in (
            (settings.ANNOUNCE_INITIAL, self.initial),
            (settings.ANNOUNCE_MAX, self.max),
            (settings.ANNOUNCE_ROUNDS, self.rounds),
            (settings.ANNOUNCE_STEP, self.step),
        ):
            if not setting.accepts(value):
                raise AnnounceError(f"{setting.name} {value}: not {setting.expects}")

    def pauses(self) -> Iterator[int]:
        """Yield the milliseconds to wait before each round; the first round does not wait."""
        for number in range(self.rounds):
            yield min(self.initial + (number - 1) * self.step, self.max) if number else 0


@dataclass(frozen=True)
class Interface:
    """An interface to announce on, and the address to announce; None means the interface's own."""

    name: str
    mac: bytes | None = None


def parse_interface(text: str) -> Interface:
    """Parse `IFACE[=MAC]`. Raises AnnounceError."""
    name, equals, mac = text.partition("=")
    if not name:
        raise AnnounceError(f"{text!r} is not IFACE[=MAC]")
    if not equals:
        return Interface(name)
    if not _MAC.fullmatch(mac):
        raise AnnounceError(f"{text!r}: {mac!r} is not an address such as 52:54:00:12:34:56")
    address = bytes.fromhex(mac.replace(":", ""))
    if address[0] & 1 or not any(address):
        raise AnnounceError(f"{text!r}: {mac} is not the address of one guest")
    return Interface(name, address)


class Announcer:
    """One announcement, a context manager. Raises AnnounceError if an interface cannot be used.

    `start` returns at once; then `finish` waits for the end, or `stop` ends it early.
    """

    def __init__(
        self, interfaces: Iterable[Interface], parameters: AnnounceParameters | None = None
    ) -> None:
        self._parameters = parameters or AnnounceParameters()
        self._stop = threading.Event()
        self._failures: dict[str, str] = {}
        self._thread = threading.Thread(target=self._run, name="vmferry-announce", daemon=True)
        with ExitStack() as sockets:
            self._frames = [(each.name, *_open(each, sockets)) for each in interfaces]
            self._sockets = sockets.pop_all()

    def __enter__(self) -> Announcer:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Send the first round at once and the others at intervals, in a thread."""
        if self._frames:
            self._thread.start()

    def stop(self) -> None:
        """Send no further round; callable from any thread, repeatedly, and without `start`."""
        self._stop.set()
        self.finish()

    def finish(self) -> list[str]:
        """Wait for the last round; return a line for each interface that failed to send a frame."""
        if self._thread.ident is not None:
            self._thread.join()
        self._sockets.close()
        return list(self._failures.values())

    def _run(self) -> None:
        for pause in self._parameters.pauses():
            if self._stop.wait(pause / 1000):
                return
            for name, sending, frame in self._frames:
                try:
                    sending.send(frame)
                except OSError as error:
                    # The other interfaces go on, and in the next round this one may work again.
                    self._failures[name] = f"announcing on {name}: {error.strerror}"


def _open(interface: Interface, sockets: ExitStack) -> tuple[socket.socket, bytes]:
    """Return a socket bound to the interface, which receives nothing, and the frame to send."""
    name = interface.name
    try:
        # `bind` would truncate a name that is too long.
        socket.if_nametoindex(name)
    except (OSError, ValueError):
        raise AnnounceError(f"announcing on {name!r}: no such interface here") from None
    try:
        sending = sockets.enter_context(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0))
        sending.bind((name, 0))
    except PermissionError:
        raise AnnounceError(f"announcing on {name}: it takes root, or CAP_NET_RAW") from None
    except OSError as error:
        raise AnnounceError(f"announcing on {name}: {error.strerror}") from None
    *_, hardware, own = sending.getsockname()
    if hardware != _ETHERNET:
        raise AnnounceError(f"announcing on {name}: not an Ethernet interface")
    return sending, announcement(interface.mac or own)
