"""Run `vmferry` as a user does: in a process of its own, or (quicker) in this one."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
from click.testing import CliRunner, Result
from vmferry.tools.cli import main

from tests.patience import PATIENCE


@dataclass(frozen=True)
class Ran:
    """Result of a command; `seconds`: until all its processes had ended; `rss`: its largest size in
    KiB.
    """

    status: int
    out: str
    err: str
    seconds: float
    rss: int

    @property
    def error(self) -> str:
        """Return the one line of error, without the lines of progress."""
        told = ("listening on ", "receiving: ", "sending: ", "migrating: ")
        lines = [line for line in self.err.splitlines() if not line.startswith(told)]
        assert len(lines) == 1, self.err
        assert lines[0].startswith("vmferry: "), self.err
        return lines[0].removeprefix("vmferry: ")


def run_process(
    *arguments: str, feed: bytes | None = None, limit: float = PATIENCE, folder: Path
) -> Ran:
    """Run `vmferry ARGUMENTS` in a process, and wait until all that it started has ended."""
    command = [sys.executable, "-m", "vmferry.tools.cli", *arguments]
    (folder / "in").write_bytes(feed or b"")
    with (
        open(folder / "in", "rb") as stdin,
        open(folder / "out", "wb") as stdout,
        open(folder / "err", "wb") as stderr,
    ):
        started = time.monotonic()
        process = subprocess.Popen(
            command, stdin=stdin, stdout=stdout, stderr=stderr, start_new_session=True
        )
        rss = wait(process, started + limit)
        seconds = time.monotonic() - started
    out, err = ((folder / name).read_text(errors="replace") for name in ("out", "err"))
    return Ran(process.returncode, out, err, seconds, rss)


def wait(process: subprocess.Popen[bytes], deadline: float) -> int:
    """Wait until a process and its children have ended; return the peak memory of one in KiB."""
    most, pause = 0, 0.02
    while True:
        alive = _alive(process.pid)
        most = max([most, *map(_peak, alive)])
        if not alive:
            process.wait()
            return most
        if time.monotonic() > deadline:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise TimeoutError(f"{alive} take too long, or were left behind")
        time.sleep(pause)
        # To look at every process costs time that a command of many seconds could use.
        pause = min(pause * 1.1, 0.2)


def _alive(group: int) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found


def _peak(process: psutil.Process) -> int:
    # Asked of the kernel while it lives: who reaps the process may be somebody else.
    try:
        status = Path(f"/proc/{process.pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    found = re.search(r"VmHWM:\s+(\d+)", status)
    return int(found[1]) if found else 0


class Vmferry:
    """Runs `vmferry`; `folder` is the test's own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def call(self, *arguments: str, feed: bytes | None = None) -> Result:
        """Run a command in this process; an exception that nobody caught fails the test."""
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = {number: signal.getsignal(number) for number in numbers}
        try:
            return CliRunner().invoke(main, arguments, input=feed, catch_exceptions=False)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def run(self, *arguments: str, feed: bytes | None = None, limit: float = PATIENCE) -> Ran:
        """Run a command in a process of its own."""
        place = self.folder / "standard"
        place.mkdir(exist_ok=True)
        return run_process(*arguments, feed=feed, limit=limit, folder=place)

    def write(self, name: str, data: bytes) -> str:
        """Write a file with this content, and return its path."""
        path = self.folder / name
        path.write_bytes(data)
        return str(path)
