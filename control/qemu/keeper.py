"""The process that does the rest if the command is killed: it cancels, and puts settings back.

A guest that may be at its destination already is left alone.
"""

from __future__ import annotations

import time
from contextlib import suppress
from multiprocessing.connection import Connection

from ...guest.qemu import queries
from ...guest.qemu.monitor import Monitor, QemuError
from ...guest.qemu.settings import Wanted, put
from ...transport.crew import Crew
from ...transport.process import Child, send_message
from .doubt import may_be_there

PERIOD = 0.2
"""Seconds between two looks at whether QEMU's migration has ended."""


class Keeper:
    """The keeper of the settings of the QEMU at `path`, which were `before`; `close` ends it."""

    def __init__(self, crew: Crew, path: str, before: Wanted) -> None:
        self._crew = crew
        self._child: Child | None = crew.start("vmferry-keeper", keep_settings, (path, before))

    def close(self) -> None:
        """End the process: the settings are as they were."""
        child, self._child = self._child, None
        if child is not None:
            with suppress(OSError):
                send_message(child.connection, "restored")
            self._crew.retire()


def keep_settings(connection: Connection, path: str, before: Wanted) -> None:
    """Wait until the command has ended, and do its work if it was killed; the process's entry."""
    try:
        connection.recv()
    except (EOFError, OSError):
        # QEMU may be gone, too, and somebody else may have taken its monitor.
        with suppress(QemuError):
            _restore(path, before)


def _restore(path: str, before: Wanted) -> None:
    monitor = Monitor(path)
    try:
        while (told := queries.migration(monitor))["status"] in queries.UNDER_WAY:
            if not may_be_there(monitor, told):
                # It may have ended meanwhile.
                with suppress(QemuError):
                    monitor.ask("migrate_cancel")
            time.sleep(PERIOD)
        put(monitor, before)
    finally:
        monitor.close()
