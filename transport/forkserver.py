"""Run the server process that forks children, after it imported what they need.

It has one end of a socket pair and its parent the other; each message asks for a child and carries
the child's end of the connection to the parent (see `process`). It ends when the parent is gone.
Its death does not affect the children that it has forked.

multiprocessing's own fork server does not fit. It listens in a temporary folder, which is left
behind when it is killed; and it holds the pipes whose end says that a child died, so every child
looks dead when it dies.
"""

from __future__ import annotations

import gc
import io
import os
import pickle
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from multiprocessing.connection import Connection
from types import FrameType
from typing import Any

from .last_words import begin_last_words
from .process import ENDING, ChildDied, receive_fd, send_fd, send_message
from .shared import Readiness, SharedFd


def main(control_fd: int, modules: str) -> None:
    """Serve until the parent is gone.

    `modules`: names of modules to import first, separated by commas.
    """
    for number in ENDING:
        # These signals reach a whole group or service. The coordinator decides what they mean, and
        # ends the others by closing their connections.
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
    # The kernel reaps the children.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    # Imports make much and drop nothing.
    gc.disable()
    for name in filter(None, modules.split(",")):
        # The child that needs the module reports that it is missing.
        with suppress(ImportError):
            import_module(name)
    # A collection in a child would copy every page of what was imported here.
    gc.freeze()
    connection = _serve(socket.socket(fileno=control_fd))
    if connection is not None:
        gc.enable()
        status = 1
        try:
            status = _run(connection)
        finally:
            os._exit(status)


def _serve(control: socket.socket) -> Connection | None:
    """Fork one child per message.

    Returns the connection in a child, and None in the server once the parent is gone.
    """
    with control:
        while True:
            message, fds, _, _ = socket.recv_fds(control, 1, 1, socket.MSG_CMSG_CLOEXEC)
            if not message:
                return None
            if os.fork() == 0:
                return Connection(fds[0])
            os.close(fds[0])


def _run(connection: Connection) -> int:
    """Run as a child: send the process id, receive the target and its arguments, and call it."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    name = "?"
    try:
        send_message(connection, os.getpid())
        pidfd = os.pidfd_open(os.getpid())
        send_fd(connection, pidfd)
        os.close(pidfd)
        send_fd(connection, begin_last_words())
        name, parent, count = connection.recv()
        fds = [receive_fd(connection) for _ in range(count)]
        target, arguments = _Unpickler(connection.recv_bytes(), fds).load()
        if parent:
            _end_with(connection)
        target(connection, *arguments)
    except (EOFError, ConnectionError):
        # The coordinator is gone, or has closed the connection.
        return 0
    except Exception as error:
        reason = f"process {name}: {type(error).__name__}: {error}"
        died = ChildDied(reason, traceback.format_exc())
        try:
            send_message(connection, died)
        except OSError:
            print(f"vmferry: {died}", file=sys.stderr)
        return 1
    return 0


class _Unpickler(pickle.Unpickler):
    """Unpickler for a target and its arguments; each SharedFd is one of the `fds` that arrived."""

    def __init__(self, data: bytes, fds: list[int]) -> None:
        super().__init__(io.BytesIO(data))
        self._fds = fds

    def persistent_load(self, pid: Any) -> SharedFd:
        """Return the descriptor of this number."""
        return SharedFd(self._fds[pid])


def _end_with(connection: Connection) -> None:
    """End this process by SystemExit in its main thread once the other end is closed.

    A child with children of its own waits for them, not for its parent.
    """

    def end(number: int, _: FrameType | None) -> None:
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, end)
    threading.Thread(target=_watch, args=(connection.fileno(), _terminate), daemon=True).start()


def _watch(fd: int, then: Callable[[], None]) -> None:
    Readiness(fd, events=0).ready()
    then()


def _terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
