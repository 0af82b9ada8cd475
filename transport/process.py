"""Child processes: spawned, talked to over a connection, and gone within 5 s whoever dies.

A child learns of its parent's death by the end of its connection. A parent learns of a child's by
the process's sentinel. The kernel's parent-death signal is not used: it fires when the *thread*
that started the child ends, and a coordinator may run in a thread.
"""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from multiprocessing import reduction
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any

_CONTEXT = multiprocessing.get_context("spawn")


@dataclass(frozen=True)
class Child:
    """A running child and the parent's end of its connection."""

    process: SpawnProcess
    connection: Connection


@dataclass(frozen=True)
class ChildDied:
    """The last message of a child that ends by an exception; one line."""

    reason: str

    def __str__(self) -> str:
        return self.reason


def start_child(name: str, target: Callable[..., None], args: tuple[Any, ...]) -> Child:
    """Run `target(connection, *args)` in a new process; both must be importable and picklable."""
    ours, theirs = _CONTEXT.Pipe()
    process = _CONTEXT.Process(target=_main, name=name, args=(target, theirs, args), daemon=True)
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
            connection.send(ChildDied(f"process {name}: {type(error).__name__}: {error}"))
        except OSError:
            raise error from None


def send_fd(connection: Connection, fd: int) -> None:
    """Pass a descriptor to the process at the other end, which calls `receive_fd`."""
    reduction.send_handle(connection, fd, None)


def receive_fd(connection: Connection) -> int:
    """The descriptor that `send_fd` passed; raises EOFError when the other end is gone."""
    try:
        return reduction.recv_handle(connection)
    except (EOFError, OSError, RuntimeError):
        raise EOFError from None


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
