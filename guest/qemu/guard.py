"""Start and command the guard: the process that lets a stopped guest go on if its command dies.

QEMU does not know why it was stopped, and would stay stopped for good. So a process of its own
knows at any time what is to be done then (a Duty), and it carries out the handover, as the process
of a synthetic guest does.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, Pipe

from ...transport.process import send_fd, send_message
from ..errors import GuestError
from ..handing_out import SourceJob
from .settings import Wanted

_PROGRAM = f"{__package__}.guard_process"
_LAST_WORK = 15.0
"""Seconds that a guard may need after its command to let the guest go on."""


@dataclass(frozen=True)
class Duty:
    """The work of the guard if the command dies: restore settings, and let the guest run."""

    settings: Wanted = field(default_factory=Wanted)
    run: bool = False


@dataclass(frozen=True)
class HandOut:
    """Command: hand the guest over on the channel whose descriptor follows.

    The descriptor of the connection to whoever watches follows it.
    """

    job: SourceJob


class Guard:
    """The guard of a QEMU, a process whose QMP socket is at `path`.

    Raises GuestError if none starts.
    """

    def __init__(self, process: int, path: str) -> None:
        self._connection, theirs = Pipe()
        # The process will ignore these signals; until then they stay blocked.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", _PROGRAM, str(theirs.fileno()), str(process), path],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    # A signal to the command's terminal or group must not end it.
                    start_new_session=True,
                    pass_fds=[theirs.fileno()],
                )
        except OSError as error:
            raise GuestError(f"no process can be started: {error.strerror}") from error
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    @property
    def alive(self) -> bool:
        """Return whether the process runs."""
        return self._process.poll() is None

    def set_duty(self, duty: Duty) -> None:
        """Set what the process does if this one dies. Raises GuestError if it is dead itself."""
        try:
            send_message(self._connection, duty)
        except OSError as error:
            raise GuestError("the process that guards the guest died") from error

    def hand_out(self, fd: int, job: SourceJob, control: Connection) -> None:
        """Have the process hand the guest over; the end of `control` says if it is dead."""
        with suppress(OSError):
            send_message(self._connection, HandOut(job))
            send_fd(self._connection, fd)
            send_fd(self._connection, control.fileno())

    def close(self) -> None:
        """Let the process end; it does its duty before, if it has any."""
        self._connection.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_LAST_WORK)


def fds_of_guard(number: str) -> Connection:
    """Return the guard's end of the connection, by the descriptor that it inherited."""
    os.set_inheritable(int(number), False)
    return Connection(int(number))
