"""Let a user decide that a kept synthetic guest runs here after all.

The guest listens on a socket in the abstract namespace, named by its process, which leaves nothing
behind. Only the guest's own user and root are accepted.
"""

from __future__ import annotations

import os
import socket

from ..transport.sockets import credentials_of_peer
from .errors import GuestError

_ANSWER = b"running\n"
_TIMEOUT = 10.0
"""Seconds that a guest may take to answer a knock."""


def _address(pid: int) -> bytes:
    return b"\0vmferry-guest-%d" % pid


class Door:
    """The guest's end of the socket, which is polled."""

    def __init__(self) -> None:
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(_address(os.getpid()))
        self._listening.listen()
        self._listening.setblocking(False)
        self._visitor: socket.socket | None = None

    def knocked(self) -> bool:
        """Return whether a permitted user has asked the guest to run."""
        try:
            visitor, _ = self._listening.accept()
        except BlockingIOError:
            return False
        if credentials_of_peer(visitor).user not in (0, os.getuid()):
            visitor.close()
            return False
        self._visitor = visitor
        return True

    def open(self) -> None:
        """Answer that the guest runs, and stop listening."""
        self._listening.close()
        if self._visitor is not None:
            with self._visitor:
                self._visitor.settimeout(0)
                try:
                    self._visitor.send(_ANSWER)
                except OSError:
                    # The visitor did not wait for the answer; the guest runs all the same.
                    return


def knock(pid: int) -> None:
    """Let the guest run that process `pid` keeps. Raises GuestError if it keeps none."""
    with socket.socket(socket.AF_UNIX) as visitor:
        visitor.settimeout(_TIMEOUT)
        try:
            visitor.connect(_address(pid))
            answer = visitor.recv(len(_ANSWER))
        except OSError as error:
            raise GuestError(
                f"synthetic: process {pid} keeps no guest: {error.strerror}"
            ) from error
    if answer != _ANSWER:
        raise GuestError(f"synthetic: process {pid} does not let its guest run")
