"""A guest that runs in a QEMU, which stops, starts and moves it by itself when QMP says so."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NoReturn

from ..base import Guest
from ..errors import GuestError
from ..parts import BlockLayout, DeviceState, Machine, RamBlock
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
            self._ram_size = queries.ram_size(self.monitor)
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
    def ram_size(self) -> int:
        """Return the bytes of the guest's memory."""
        return self._ram_size

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

    def complete(self, *, running: bool) -> None:
        """Let a loaded guest run, which QEMU was told not to start by itself."""
        if running:
            self.resume()

    def finisher_of(self, *, running: bool) -> Callable[[], None]:
        """Return what completes a loaded guest from another process, once this one has died."""
        return partial(_complete, self.monitor.path, running=running)

    def keep(self) -> str:
        """Leave a loaded guest as it is, and return in words where it is."""
        return f"the guest is whole in the QEMU at {self.monitor.path}, stopped: `cont` starts it"

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

    def abort_incoming(self) -> None:
        """Raise GuestError: QEMU throws an incoming guest away by itself."""
        _refuse()


def _complete(path: str, *, running: bool) -> None:
    guest = QemuGuest(path)
    try:
        guest.complete(running=running)
    finally:
        guest.close()


def _refuse(*_: object) -> NoReturn:
    raise GuestError("QEMU moves this guest by itself")
