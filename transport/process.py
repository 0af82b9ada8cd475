"""Child processes: forked from a server process that has imported what they need; see `preload`.

Whoever dies, the others are gone within 5 s.

A child learns of its parent's death by the end of its connection. A parent learns of a child's by
the process's sentinel. The kernel's parent-death signal is not used: it fires when the *thread*
that started the child ends, and a coordinator may run in a thread.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from multiprocessing import forkserver, reduction
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from typing import Any

from .channel import Channel

_CONTEXT = multiprocessing.get_context("forkserver")
_preloaded: list[str] = []


def preload(*modules: str) -> None:
    """Import these once, in the process that children are forked from; before the first start."""
    _preloaded.extend(modules)
    _CONTEXT.set_forkserver_preload(_preloaded)


def start_early() -> None:
    """Start that process now, which takes most of a second, and not with the first child."""
    forkserver.ensure_running()


@dataclass(frozen=True)
class Child:
    """A running child and the parent's end of its connection."""

    process: ForkServerProcess
    connection: Connection


@dataclass(frozen=True)
class ChildDied:
    """The last message of a child that ends by an exception; one line."""

    reason: str

    def __str__(self) -> str:
        return self.reason


def processors() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0))


def default_workers() -> int:
    """Workers of a migration beside its transport process, by what this machine bears.

    Two processors are kept busy by the two transport processes of a migration within the machine:
    every further process that touches the bytes would cost throughput.
    """
    return max(0, processors() // 2 - 1)


def start_child(
    name: str, target: Callable[..., None], args: tuple[Any, ...], *, parent: bool = False
) -> Child:
    """Run `target(connection, *args)` in a new process; both must be importable and picklable.

    `parent`: the child will have children of its own.
    """
    ours, theirs = _CONTEXT.Pipe()
    process = _CONTEXT.Process(target=_main, name=name, args=(target, theirs, args))
    process.daemon = not parent
    process.start()
    theirs.close()
    return Child(process, ours)


def _main(target: Callable[..., None], connection: Connection, args: tuple[Any, ...]) -> None:
    # Ctrl-C reaches the whole group; the coordinator decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        target(connection, *args)
    except (EOFError, ConnectionError):
        # The coordinator is gone, or wants no more.
        return
    except Exception as error:
        name = multiprocessing.current_process().name
        try:
            send_message(connection, ChildDied(f"process {name}: {type(error).__name__}: {error}"))
        except OSError:
            raise error from None


def send_message(connection: Connection, message: object) -> None:
    """Send what the process at the other end gets from `connection.recv()`.

    `Connection.send` would hold a view of a BytesIO while it writes. Where the write fails and its
    exception ends in a reference cycle, CPython 3.12.0 and 3.12.1 crash as they collect that view:
    github.com/python/cpython/issues/111049.
    """
    connection.send_bytes(pickle.dumps(message))


def send_fd(connection: Connection, fd: int) -> None:
    """Pass a descriptor to the process at the other end, which calls `receive_fd`."""
    reduction.send_handle(connection, fd, None)


def receive_fd(connection: Connection) -> int:
    """The descriptor that `send_fd` passed; raises EOFError when the other end is gone."""
    try:
        return reduction.recv_handle(connection)
    except (EOFError, OSError, RuntimeError):
        raise EOFError from None


def send_channel(connection: Connection, channel: Channel) -> None:
    """Share a channel with the process at the other end, which calls `receive_channel`."""
    send_message(connection, channel.name)
    send_fd(connection, channel.fileno())


def receive_channel(connection: Connection) -> Channel:
    """The channel that `send_channel` shared; raises EOFError when the other end is gone."""
    name: str = connection.recv()
    return Channel(receive_fd(connection), name)


def stop_children(children: Iterable[Child], timeout: float = 5.0) -> None:
    """Close the connections and wait; whoever is still there after `timeout` seconds is killed."""
    children = list(children)
    for child in children:
        child.connection.close()
    deadline = time.monotonic() + timeout
    for child in children:
        child.process.join(max(0.0, deadline - time.monotonic()))
        if child.process.is_alive():
            child.process.kill()
            child.process.join()
        child.process.close()
