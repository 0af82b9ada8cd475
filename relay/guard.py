"""Keep a process that takes over the source's connection if this relay is killed."""

from __future__ import annotations

import pickle
import socket
import subprocess
import sys
from contextlib import suppress

from .guardian import Charge

_CODE = (
    "import sys; sys.path[:] = sys.argv[2:]; "
    f"from {__package__}.guardian import main; main(int(sys.argv[1]))"
)
_GRACE = 5.0
"""Seconds that the process may take to end with its relay."""
_left: list[subprocess.Popen[bytes]] = []
"""Processes that outlive their relay."""


class Guard:
    """The guardian process of one near relay; it is started with the first migration."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def hold(self, charge: Charge, fd: int) -> None:
        """Have the process hold a connection. Raises OSError if there can be no such process."""
        if self._process is not None and self._process.poll() is not None:
            self.close()
        if self._control is None:
            self._start()
        assert self._control is not None
        socket.send_fds(self._control, [pickle.dumps(charge)], [fd])

    def _start(self) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        path = [entry for entry in sys.path if isinstance(entry, str)]
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _CODE, str(theirs.fileno()), *path],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                # What is typed at a terminal, or kills the group of the relay, does not reach it.
                start_new_session=True,
            )
        except OSError:
            self._control.close()
            self._control = None
            raise
        finally:
            theirs.close()

    def drop(self) -> None:
        """Have the process let go of the connection."""
        if self._control is not None:
            with suppress(OSError):
                self._control.send(b"\0")

    def leave(self) -> None:
        """Leave the connection to the process, which outlives this relay."""
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._process is not None:
            _left.append(self._process)
            self._process = None

    def close(self) -> None:
        """End the process."""
        self.drop()
        process = self._process
        self.leave()
        if process is not None:
            try:
                process.wait(_GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            _left.remove(process)
