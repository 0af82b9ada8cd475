"""The guard's process: let a stopped guest go on when its command has died, or hand it over."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from multiprocessing.connection import Connection

from ...transport.process import ENDING, receive_fd
from ...transport.shared import wait_readable
from ..handing_out import hand_out
from .bringing_back import bring_back
from .guard import Duty, HandOut, fds_of_guard
from .monitor import Monitor, QemuError

_AGAIN = 0.5
"""Seconds between two attempts to reach a QEMU that talks to somebody else."""


class Process:
    """The guard of a QEMU, a process whose QMP socket is at `path`, commanded over a connection."""

    def __init__(self, connection: Connection, process: int, path: str) -> None:
        self._connection = connection
        self._process = process
        self._path = path
        self._duty = Duty()

    def run(self) -> None:
        """Obey until the command has closed the connection or died, then do what is left."""
        with suppress(EOFError, OSError):
            while True:
                command = self._connection.recv()
                if isinstance(command, Duty):
                    self._duty = command
                elif isinstance(command, HandOut):
                    self._hand_out(command)
        self._do_duty()

    def _hand_out(self, command: HandOut) -> None:
        fd = receive_fd(self._connection)
        with Connection(receive_fd(self._connection)) as control:
            hand_out(fd, command.job, self, control)

    def commit(self) -> None:
        """Record that the guest never runs here again by itself."""
        self._duty = Duty()

    def resume(self) -> None:
        """Let the guest run again, which may have been given up, and was given back."""
        self._duty = Duty(run=True)
        self._do_duty()

    def _do_duty(self) -> None:
        """Do what is due; wait for a QEMU that is busy, or talks to somebody else."""
        while self._duty != Duty():
            try:
                monitor = Monitor(self._path)
                try:
                    if monitor.process == self._process:
                        bring_back(monitor, self._duty.settings, run=self._duty.run)
                finally:
                    monitor.close()
                self._duty = Duty()
            except QemuError:
                if self._ended(_AGAIN):
                    self._duty = Duty()

    def _ended(self, seconds: float) -> bool:
        """Return whether the QEMU has ended, or does so within some seconds."""
        try:
            pidfd = os.pidfd_open(self._process)
        except ProcessLookupError:
            return True
        try:
            return bool(wait_readable([pidfd], seconds))
        finally:
            os.close(pidfd)


def main() -> None:
    """Guard the QEMU that the command line names."""
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
    connection = fds_of_guard(sys.argv[1])
    # A reader of the command's output waits for its end, so this process must not keep it open.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)
    Process(connection, int(sys.argv[2]), sys.argv[3]).run()


if __name__ == "__main__":
    main()
