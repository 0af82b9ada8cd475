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
from ...transport.crew import CrewError
from ...transport.process import Child, StartError, send_message, start_child, stop_children
from .doubt import Doubt

PERIOD = 0.2
"""Seconds between two looks at whether QEMU's migration has ended."""


class Keeper:
    """The keeper of the settings of the QEMU at `path`, which were `before`.

    Raises CrewError if there can be no such process.
    """

    def __init__(self, path: str, before: Wanted) -> None:
        self._child: Child | None = None
        try:
            self._child = start_child("vmferry-keeper", keep_settings, (path, before))
        except StartError as error:
            raise CrewError(str(error)) from error

    def close(self) -> None:
        """End the process: the settings are as they were."""
        child, self._child = self._child, None
        if child is not None:
            with suppress(OSError):
                send_message(child.connection, "restored")
            stop_children([child])

    def leave(self) -> None:
        """Have the process do its work now, as this one ends before QEMU's migration does."""
        child, self._child = self._child, None
        if child is not None:
            child.close()


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
        doubt = Doubt(monitor)
        while (told := queries.migration(monitor))["status"] in queries.UNDER_WAY:
            if not doubt.may_be_there(told):
                # It may have ended meanwhile.
                with suppress(QemuError):
                    monitor.ask("migrate_cancel")
            time.sleep(PERIOD)
        put(monitor, before)
    finally:
        monitor.close()
