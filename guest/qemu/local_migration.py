"""Have a QEMU migrate to this process, in order to learn what only its own stream has.

`look` breaks that off behind the list of RAM blocks, and the guest runs on meanwhile. `take`
lets a stopped QEMU send all, after which it is in the state `postmigrate`: it has let go of its
disks, and `cont` lets it go on.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from . import queries
from .local_stream import IGNORE_SHARED, Head, LocalStream, Pages
from .monitor import Monitor, QemuError
from .settings import Settings, Wanted

_NAME = "vmferry-scan"
"""Name of the descriptor that QEMU migrates to."""
_STEP = 0.002
"""Seconds between two looks at a migration that is about to end."""
_PATIENCE = 60.0
"""Seconds that a migration may take to end after its stream has."""
_HARMLESS = frozenset(("events", "late-block-activate", IGNORE_SHARED))
"""Capabilities that do not change what QEMU sends."""
_SLOW = {"max-bandwidth": 100, "downtime-limit": 1}
"""Parameters with which a migration does not complete; bytes per second, and milliseconds."""
_QUICK = {"max-bandwidth": 1 << 40, "downtime-limit": 2_000_000}
"""Parameters with which a migration completes at once."""
_PLAIN: Mapping[str, Any] = {"tls-creds": "", "mode": "normal"}
"""Parameters that a migration to this process needs, where QEMU has them."""


def wanted(settings: Settings, *, quick: bool) -> Wanted:
    """Return the settings of a migration to this process. Raises QemuError if QEMU is too old."""
    if IGNORE_SHARED not in settings.capabilities:
        raise QemuError(f"this QEMU has no capability {IGNORE_SHARED}; leave out ,scan")
    off = {name: False for name, on in settings.capabilities.items() if on}
    capabilities = {name: on for name, on in off.items() if name not in _HARMLESS}
    plain = {name: value for name, value in _PLAIN.items() if name in settings.parameters}
    parameters = {**plain, **(_QUICK if quick else _SLOW)}
    return Wanted({**capabilities, IGNORE_SHARED: True}, parameters)


Remember = Callable[[Wanted], None]
"""Function that is called with the settings as they were, before they change, and are restored."""


def look(monitor: Monitor, remember: Remember) -> Head:
    """Return what does not change while the guest runs; it may run. Raises QemuError."""
    with _migrating(monitor, remember, quick=False) as sock:
        head = LocalStream(sock).read_head()
        with suppress(QemuError):
            monitor.ask("migrate_cancel")
    return head


def take(monitor: Monitor, remember: Remember, pages: Mapping[str, Pages]) -> LocalStream:
    """Return the stream of a QEMU that is stopped, and put the `pages` that it has into place.

    `pages`: as for LocalStream. Raises QemuError; the guest can go on in any case.
    """
    with _migrating(monitor, remember, quick=True) as sock:
        stream = LocalStream(sock, pages)
        stream.read_all()
        status = _end_of_migration(monitor)
        if status["status"] != "completed":
            why = status.get("error-desc", status["status"])
            raise QemuError(f"QEMU cannot save the state of its devices: {why}")
    return stream


@contextmanager
def _migrating(monitor: Monitor, remember: Remember, *, quick: bool) -> Iterator[socket.socket]:
    """Begin a migration, and give the socket on which it arrives; end it, and leave no trace."""
    settings = Settings(monitor)
    change = wanted(settings, quick=quick)
    remember(_present(settings, change))
    settings.change(change)
    try:
        ours, theirs = socket.socketpair()
        try:
            with ours:
                with theirs:
                    monitor.give(_NAME, theirs.fileno())
                _begin(monitor)
                yield ours
        finally:
            # QEMU takes no settings as long as a migration is under way.
            _end_of_migration(monitor)
    finally:
        settings.restore()
    remember(Wanted())


def _present(settings: Settings, change: Wanted) -> Wanted:
    """Return the present values of settings that are to change."""
    return Wanted(
        {name: settings.capabilities[name] for name in change.capabilities},
        {name: settings.parameters[name] for name in change.parameters},
    )


def _begin(monitor: Monitor) -> None:
    try:
        monitor.ask("migrate", uri=f"fd:{_NAME}")
    except QemuError:
        monitor.take_back(_NAME)
        raise


def _end_of_migration(monitor: Monitor) -> dict[str, Any]:
    """Wait until no migration is under way, and return what became of the last one."""
    found: dict[str, Any] = {}

    def over() -> bool:
        found.update(queries.migration(monitor))
        return found["status"] not in queries.UNDER_WAY

    wait_until(over, "QEMU does not end its migration")
    return found


def wait_until(condition: Callable[[], bool], otherwise: str) -> None:
    """Wait until a QEMU has done what it was told. Raises QemuError after a minute."""
    deadline = time.monotonic() + _PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise QemuError(otherwise)
        time.sleep(_STEP)
