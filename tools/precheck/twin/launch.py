"""Starts a twin of a QEMU, asks it, and ends it."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from ....guest.qemu.monitor import GoneError, Monitor, QemuError
from .options import TwinError, twin_options

START = 60.0
"""Seconds that a twin has until it can be asked."""
_ALWAYS = ("-S", "-display", "none", "-monitor", "none", "-no-shutdown")
_PDEATHSIG = 1
"""The number of the request PR_SET_PDEATHSIG of prctl(2)."""
_LIBRARY = ctypes.CDLL(None)


@dataclass(frozen=True)
class Program:
    """A QEMU to start: the words of its command line, and the process they were taken from.

    `executable`: the file of the program, where the first word does not name it. `environment` and
    `folder` are the variables and the working directory, or None for those of this process.
    """

    words: Sequence[str]
    executable: str | None = None
    environment: Mapping[str, str] | None = None
    folder: str | None = None
    notes: Sequence[str] = field(default=())

    @property
    def name(self) -> str:
        """Return the name of the program."""
        return self.words[0]


@dataclass(frozen=True)
class Twin:
    """A running twin: its monitor, its process, and what it writes to its standard error."""

    monitor: Monitor
    process: subprocess.Popen[bytes]
    log: IO[bytes]

    def said(self) -> list[str]:
        """Return the lines that the twin wrote, without its name."""
        return _lines(self.log)


@contextmanager
def started(program: Program, *more: str) -> Iterator[Twin]:
    """Start a twin with more options, paused, and kill it in the end. Raises TwinError."""
    words = [*twin_options(program.words[1:]), *_ALWAYS, *more]
    with ExitStack() as stack:
        log = stack.enter_context(tempfile.TemporaryFile())
        door = stack.enter_context(socket.socket(socket.AF_UNIX))
        # A command that is killed leaves nothing behind but in this short time.
        with tempfile.TemporaryDirectory(prefix="vmferry-") as folder:
            path = str(Path(folder, "qmp"))
            # The socket is there before the QEMU is: nobody has to wait until it has made it.
            door.bind(path)
            door.listen()
            process = _launch(program, [*words, *_monitor(door)], door.fileno(), log)
            stack.callback(_kill, process)
            monitor = _reach(path, process, log, program.name)
        stack.callback(monitor.close)
        yield Twin(monitor, process, log)


def _monitor(door: socket.socket) -> list[str]:
    """Return the options of a monitor at a socket that is listening."""
    chardev = f"socket,id=vmferry-qmp,fd={door.fileno()},server=on,wait=off"
    return ["-chardev", chardev, "-mon", "chardev=vmferry-qmp,mode=control"]


def _launch(
    program: Program, words: Sequence[str], door: int, log: IO[bytes]
) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            [program.name, *words],
            executable=program.executable,
            env=program.environment,
            cwd=program.folder,
            pass_fds=[door],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            # One system call: nothing that another thread could hold is needed.
            preexec_fn=_end_with_parent,  # noqa: PLW1509
        )
    except OSError as error:
        raise TwinError(f"{program.name}: {error.strerror or error}") from error


def _end_with_parent() -> None:
    """Have the kernel end this process when the one that started it ends, however that happens."""
    _LIBRARY.prctl(_PDEATHSIG, signal.SIGKILL)


def _reach(path: str, process: subprocess.Popen[bytes], log: IO[bytes], name: str) -> Monitor:
    deadline = time.monotonic() + START
    while True:
        try:
            return Monitor(path)
        except QemuError as error:
            # The exit of a process is seen a moment after its socket has closed.
            with suppress(subprocess.TimeoutExpired):
                process.wait(1 if isinstance(error, GoneError) else 0.2)
            if process.poll() is not None:
                raise TwinError(f"{name} does not start: {_last(log)}") from error
            if time.monotonic() > deadline:
                raise TwinError(f"{name} cannot be asked: {error}") from error


def _kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def _lines(log: IO[bytes]) -> list[str]:
    log.seek(0, os.SEEK_SET)
    lines = log.read().decode(errors="replace").splitlines()
    return [line.partition(": ")[2] if line.startswith("qemu") else line for line in lines if line]


def _last(log: IO[bytes]) -> str:
    lines = _lines(log)
    return lines[-1] if lines else "it ended without a word"
