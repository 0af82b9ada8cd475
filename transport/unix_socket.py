"""Listen on Unix sockets: the file of a dead socket is replaced, files of others are kept."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

_PATIENCE = 1.0
"""Seconds to wait for the lock of a folder that another process holds."""
_LOOK_AGAIN = 0.01
"""Seconds between two attempts to lock the folder."""
_ATTEMPTS = 5
"""Limit for the attempts to bind the name while others bind and remove it."""


class UnixListener:
    """A listening socket with a name in the file system.

    Raises OSError if anything but a dead socket has the name.
    """

    def __init__(self, path: str, backlog: int) -> None:
        self._path = path
        self.socket = _bound(path)
        try:
            self._identity = _identity(os.lstat(path))
            self.socket.listen(backlog)
        except OSError:
            self.socket.close()
            raise

    def close(self) -> None:
        """Stop listening, and remove the file if it is still this socket's."""
        # The file is removed first: while this socket listens, no other process replaces it.
        with suppress(FileNotFoundError):
            if _identity(os.lstat(self._path)) == self._identity:
                os.unlink(self._path)
        self.socket.close()


def _bound(path: str) -> socket.socket:
    for _ in range(_ATTEMPTS):
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.bind(path)
        except OSError as error:
            sock.close()
            if error.errno != errno.EADDRINUSE:
                raise
        else:
            return sock
        _remove_dead(path)
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


def _remove_dead(path: str) -> None:
    """Remove the file of a socket that no process has. Raises OSError if it is in use."""
    # The lock keeps another process from binding the name between the check and the removal.
    with _locked(os.path.dirname(path) or "."), suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise OSError(errno.EEXIST, "there is something that is not a socket")
        if _in_use(path):
            raise OSError(errno.EADDRINUSE, "somebody listens there already")
        os.unlink(path)


@contextmanager
def _locked(folder: str) -> Iterator[None]:
    """Lock the folder against others that lock it, too.

    If the lock cannot be had within a while, or at all, continue without it.
    """
    with ExitStack() as stack:
        with suppress(OSError):
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, fd)
            deadline = time.monotonic() + _PATIENCE
            while time.monotonic() < deadline and not _lock(fd):
                time.sleep(_LOOK_AGAIN)
        yield


def _lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _in_use(path: str) -> bool:
    """Return whether a process has this socket, which does not notice the check.

    Connecting to a socket of another type fails with another error if there is none.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return False
        except OSError as error:
            if error.errno != errno.EPROTOTYPE:
                raise
    return True


def _identity(found: os.stat_result) -> tuple[int, int, int]:
    """Return values that identify the file.

    An inode's number may be used again, so the time of its last change is included; values that
    chmod changes are not.
    """
    return found.st_dev, found.st_ino, found.st_mtime_ns
