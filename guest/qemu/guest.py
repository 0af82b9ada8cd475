"""A guest that runs in a QEMU, which stops, starts and moves it by itself when QMP says so."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NoReturn

from ..base import BlockLayout, DeviceState, Guest, Machine, RamBlock
from ..errors import GuestError
from . import queries
from .monitor import Monitor

_EVENTS = {"STOP": "stop", "RESUME": "resume"}


class QemuGuest(Guest):
    """The guest of the QEMU with a monitor at the socket `path`. Raises QemuError.

    Its memory and devices are QEMU's own business: `control.qemu` drives QEMU's migration.
    """

    def __init__(self, path: str) -> None:
        super().__init__()
        self.monitor = Monitor(path)
        """The connection to the QEMU."""
        self._death_fd: int | None = None
        try:
            self._machine = Machine(queries.machine_type(self.monitor))
            if self.monitor.process:
                # A process of another namespace has no number here.
                with suppress(OSError):
                    self._death_fd = os.pidfd_open(self.monitor.process)
        except BaseException:
            self.monitor.close()
            raise
        self.monitor.add_listener(self._hear)

    def _hear(self, name: str, _: dict[str, Any]) -> None:
        if name in _EVENTS:
            self._notify(_EVENTS[name])

    @property
    def machine(self) -> Machine:
        """Return the machine's type, with its version."""
        return self._machine

    @property
    def blocks(self) -> tuple[RamBlock, ...]:
        """Return nothing: QEMU alone has the memory."""
        return ()

    @property
    def running(self) -> bool:
        """Return whether the guest is executing now."""
        return queries.is_running(self.monitor)

    @property
    def moves_itself(self) -> bool:
        """Return True: QEMU sends and loads memory and devices."""
        return True

    @property
    def death_fd(self) -> int | None:
        """Return a descriptor that becomes readable when the QEMU ends, if its process is known."""
        return self._death_fd

    @property
    def blockers(self) -> tuple[str, ...]:
        """Return the reasons why the guest may not migrate now, those of QEMU among them."""
        return (*super().blockers, *queries.blockers(self.monitor))

    def pause(self) -> None:
        """Stop the guest."""
        self.monitor.ask("stop")

    def resume(self) -> None:
        """Let the guest execute again."""
        self.monitor.ask("cont")

    def close(self) -> None:
        """Close the connection to the QEMU, which runs on."""
        self.monitor.close()
        fd, self._death_fd = self._death_fd, None
        if fd is not None:
            os.close(fd)

    # What a migration by vmferry's own workers would ask.

    def throttle(self, percentage: int) -> None:
        """Raise GuestError: QEMU throttles its guest by itself."""
        _refuse(percentage)

    def save_devices(self, *, running: bool = True) -> DeviceState:
        """Raise GuestError: QEMU sends the state of its devices by itself."""
        _refuse(running)

    def commit(self) -> None:
        """Raise GuestError: QEMU keeps its guest stopped by itself."""
        _refuse()

    def prepare(self, machine: Machine, blocks: Sequence[BlockLayout]) -> None:
        """Raise GuestError: QEMU loads memory by itself."""
        _refuse(machine, blocks)

    def load_devices(self, machine: Machine, state: DeviceState) -> None:
        """Raise GuestError: QEMU loads devices by itself."""
        _refuse(machine, state)

    def invalidate_caches(self) -> None:
        """Raise GuestError: QEMU drops its caches by itself."""
        _refuse()

    def complete(self, *, running: bool) -> None:
        """Raise GuestError: QEMU starts its guest by itself."""
        _refuse(running)

    def abort_incoming(self) -> None:
        """Raise GuestError: QEMU throws an incoming guest away by itself."""
        _refuse()


def _refuse(*_: object) -> NoReturn:
    raise GuestError("QEMU moves this guest by itself")
