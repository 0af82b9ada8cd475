"""Start and end child processes, forked from a server process that imported what they need.

If any process dies, the others are gone within 5 s, except after the death of the server process
(see `forkserver`): the children that it has forked live on, and a new server is started with the
next child. `preload` sets what the server imports.

A child learns of its parent's death by the end of its connection. A parent learns of a child's by
the same, and by a pidfd that the child sends first. The kernel's parent-death signal is not used:
it fires when the *thread* that started the child ends, and a coordinator may run in a thread.
"""

from __future__ import annotations

import atexit
import io
import logging
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import reduction
from multiprocessing.connection import Connection, Pipe
from typing import Any

from ..protocol.errors import VmferryError
from .channel import Channel
from .last_words import read_last_words
from .shared import SharedFd, wait_readable

_log = logging.getLogger(__name__)

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that ask a command to end."""

_SERVER_CODE = (
    "import sys; sys.path[:] = sys.argv[3:]; "
    f"from {__package__}.forkserver import main; main(int(sys.argv[1]), sys.argv[2])"
)
_SERVER_GRACE = 1.0
"""Seconds that the server process may take to end when this process does."""

_preloaded: list[str] = []


def preload(*modules: str) -> None:
    """Import these modules once in the server process; has to be called before the first start."""
    _preloaded.extend(modules)


class StartError(VmferryError, OSError):
    """A child that could not be started; the message is one line."""

    def __str__(self) -> str:
        return str(self.args[0])


class _Server:
    """The server process from which children are forked, as its parent sees it."""

    def __init__(self) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        path = (entry for entry in sys.path if isinstance(entry, str))
        words = [str(theirs.fileno()), ",".join(_preloaded), *path]
        # The signals stay blocked until the server ignores them.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _SERVER_CODE, *words],
                stdin=subprocess.DEVNULL,
                # A reader of the command's output does not have to wait for the server to end.
                stdout=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
            )
        except BaseException:
            self._control.close()
            raise
        finally:
            theirs.close()
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def fork(self, fd: int) -> bool:
        """Request a child with `fd` as its connection; return False if the server is dead."""
        try:
            socket.send_fds(self._control, [b"\0"], [fd])
        except ConnectionError:
            return False
        return True

    def close(self) -> None:
        """End the server process; its children live on."""
        self._control.close()
        try:
            self._process.wait(_SERVER_GRACE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


_server: _Server | None = None
_server_lock = threading.Lock()


def start_early() -> None:
    """Start the server process now, as that takes most of a second, rather than with a child.

    Raises StartError.
    """
    with _server_lock:
        _running_server()


def _running_server() -> _Server:
    global _server  # noqa: PLW0603
    if _server is None:
        try:
            _server = _Server()
        except OSError as error:
            raise StartError(f"no process can be started: {error.strerror}") from error
        atexit.register(_close_server)
    return _server


def _close_server() -> None:
    global _server
    server, _server = _server, None
    atexit.unregister(_close_server)
    if server is not None:
        server.close()


def _fork(fd: int) -> None:
    with _server_lock:
        if not _running_server().fork(fd):
            _close_server()
            if not _running_server().fork(fd):
                raise StartError("no process can be started: the one that forks them died")


@dataclass(frozen=True)
class Child:
    """A running child process, as its parent sees it.

    `last_words`: the descriptor of the record of the fault that killed it, if any did.
    `connection`: the parent's end.
    """

    name: str
    pid: int
    pidfd: int
    last_words: int
    connection: Connection

    def wait(self, timeout: float | None) -> bool:
        """Return whether the child ends within `timeout` seconds (None: no limit)."""
        return bool(wait_readable([self.pidfd], timeout))

    def death(self) -> str:
        """Return one line that says that the child died, and of which fault if that is known."""
        fault = read_last_words(self.last_words)
        return f"process {self.name} died" + (f" by {fault}" if fault else "")

    def close(self) -> None:
        """Close the descriptors, including the connection."""
        self.connection.close()
        os.close(self.pidfd)
        os.close(self.last_words)

    def kill(self) -> None:
        """Kill the child, if it still exists."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)


@dataclass(frozen=True)
class ChildDied:
    """The last message of a child that ends by an exception: one line, and the traceback."""

    reason: str
    traceback: str = ""

    def __str__(self) -> str:
        return self.reason

    def log(self) -> None:
        """Write the traceback to the log, at level debug."""
        _log.debug("%s\n%s", self.reason, self.traceback)


def processors() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0))


def default_workers() -> int:
    """Return the default number of workers besides the transport process, for this machine.

    Two processors are kept busy by the two transport processes of a migration within the machine:
    every further process that touches the bytes would cost throughput.
    """
    return max(0, processors() // 2 - 1)


def _wait(fd: int) -> None:
    wait_readable([fd])


def start_child(
    name: str,
    target: Callable[..., None],
    args: tuple[Any, ...],
    *,
    parent: bool = False,
    wait: Callable[[int], None] = _wait,
) -> Child:
    """Run `target(connection, *args)` in a new process; both must be importable and picklable.

    `parent`: the child has children of its own; it ends by SystemExit when this process is gone.
    `wait`: how to wait until a descriptor is readable; it may raise. Raises StartError.
    """
    ours, theirs = Pipe()
    try:
        with theirs:
            _fork(theirs.fileno())
        wait(ours.fileno())
        child = Child(name, ours.recv(), receive_fd(ours), receive_fd(ours), ours)
        try:
            _send_target(child, parent, target, args)
        except BaseException:
            child.close()
            raise
    except (EOFError, ConnectionError):
        ours.close()
        message = f"process {name} died as it started, or the process that forks it did"
        raise StartError(message) from None
    except BaseException:
        # If the child still starts, it ends at once.
        ours.close()
        raise
    return child


class _Pickler(pickle.Pickler):
    """Pickler for a target and its arguments, which puts their SharedFd objects into `fds`."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.fds: list[int] = []

    def persistent_id(self, obj: Any) -> int | None:
        """Return the number of a descriptor, or None for an object that is pickled as it is."""
        if not isinstance(obj, SharedFd):
            return None
        self.fds.append(obj.fileno())
        return len(self.fds) - 1


def _send_target(
    child: Child, parent: bool, target: Callable[..., None], args: tuple[Any, ...]
) -> None:
    data = io.BytesIO()
    pickler = _Pickler(data)
    pickler.dump((target, args))
    send_message(child.connection, (child.name, parent, len(pickler.fds)))
    for fd in pickler.fds:
        send_fd(child.connection, fd)
    child.connection.send_bytes(data.getvalue())


def send_message(connection: Connection, message: object) -> None:
    """Send an object that the process at the other end gets from `connection.recv()`.

    `Connection.send` would hold a view of a BytesIO while it writes. If the write fails and its
    exception ends in a reference cycle, CPython 3.12.0 and 3.12.1 crash as they collect that view:
    github.com/python/cpython/issues/111049.
    """
    connection.send_bytes(pickle.dumps(message))


def send_fd(connection: Connection, fd: int) -> None:
    """Send a descriptor to the process at the other end, which calls `receive_fd`."""
    reduction.send_handle(connection, fd, None)


def receive_fd(connection: Connection) -> int:
    """Return the descriptor that `send_fd` sent; raise EOFError if the other end is gone."""
    try:
        return reduction.recv_handle(connection)
    except (EOFError, OSError, RuntimeError):
        raise EOFError from None


def send_channel(connection: Connection, channel: Channel) -> None:
    """Share a channel with the process at the other end, which calls `receive_channel`."""
    send_message(connection, channel.name)
    send_fd(connection, channel.fileno())


def receive_channel(connection: Connection) -> Channel:
    """Return the channel that `send_channel` shared; raise EOFError if the other end is gone."""
    name: str = connection.recv()
    return Channel(receive_fd(connection), name)


def stop_children(children: Iterable[Child], timeout: float = 5.0) -> None:
    """Close the connections, wait, and kill children still alive after `timeout` seconds."""
    children = list(children)
    for child in children:
        child.connection.close()
    deadline = time.monotonic() + timeout
    for child in children:
        if not child.wait(max(0.0, deadline - time.monotonic())):
            child.kill()
            child.wait(timeout)
        child.close()
