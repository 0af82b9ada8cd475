"""Signals that ask a command to end, at any moment: one line or none, and nothing is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.patience import PATIENCE

VMFERRY = [sys.executable, "-m", "vmferry.tools"]
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

COMMANDS = {
    "send": ["send", "exec:sleep 100", "--guest", "synthetic:16M,orphan=1"],
    "receive": ["receive", "unix:migrate", "--guest", "dir:guest"],
    "serve": ["serve", "--guest", "synthetic:1M", "--qmp", "unix:qmp"],
    "demo": ["demo", "--size", "64M", "--dirty-rate", "1M", "--max-bandwidth", "1M"],
    "ctl": ["ctl", "listening", "watch"],
}
"""Commands that do not end by themselves within seconds."""
MARK = "VMFERRY_TEST_OF_SIGNALS"


def left(mark: str) -> list[psutil.Process]:
    """Return the processes that have this mark in their environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            # It ended meanwhile, or is a kernel's.
            continue
    return found


def wait_until_gone(mark: str) -> None:
    """Wait until all of them have ended."""
    deadline = time.monotonic() + PATIENCE
    while processes := left(mark):
        assert time.monotonic() < deadline, [process.cmdline() for process in processes]
        time.sleep(0.05)


def wait_until_begun(pid: int) -> None:
    """Wait until the interpreter has started: until then SIGINT is its own, and a traceback."""
    deadline = time.monotonic() + PATIENCE
    started = False
    while time.monotonic() < deadline:
        status = Path(f"/proc/{pid}/status").read_text().split()
        caught = int(status[status.index("SigCgt:") + 1], 16)
        interrupt, alarm = (bool(caught >> number - 1 & 1) for number in (2, signal.SIGALRM))
        if alarm or (started and not interrupt):
            return
        started = started or interrupt
    raise TimeoutError


@pytest.mark.parametrize("after", [0.0, 0.3, 1.5])
@pytest.mark.parametrize("command", COMMANDS)
def test_ends_in_order(command: str, after: float, tmp_path: Path) -> None:
    """Broken: Ctrl-C, a closed terminal or a stopped service is a traceback, or leaves things."""
    work, temporary = tmp_path / "work", tmp_path / "temporary"
    work.mkdir()
    temporary.mkdir()
    number = SIGNALS[(len(command) + int(after * 10)) % 3]
    environment = {**os.environ, "TMPDIR": str(temporary), MARK: str(tmp_path)}
    with subprocess.Popen(
        [*VMFERRY, *COMMANDS[command]],
        cwd=work,
        env=environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
        text=True,
    ) as process:
        wait_until_begun(process.pid)
        time.sleep(after)
        # As a terminal does it: to the whole group.
        os.killpg(process.pid, number)
        _, said = process.communicate(timeout=PATIENCE)
    told = ("listening on ", "sending: ", "migrating: ", "QMP on ")
    assert [line for line in said.splitlines() if not line.startswith(told)] in (
        [],
        ["vmferry: cancelled"],
        # There is nobody; and the signal came behind it.
        ["vmferry: listening: No such file or directory"],
    ), said
    assert process.returncode in (-number, 128 + number, 1, 0 if command == "serve" else 1)
    wait_until_gone(str(tmp_path))
    assert [*work.iterdir(), *temporary.iterdir()] == []


def test_status_tells_the_signal(tmp_path: Path) -> None:
    """Broken: a script could not tell a command that was ended from one that failed."""
    os.mkfifo(tmp_path / "stream")
    for number in SIGNALS:
        process = subprocess.Popen([*VMFERRY, "dump", tmp_path / "stream"], stderr=subprocess.PIPE)
        # It reads by now.
        with open(tmp_path / "stream", "wb"):
            assert _status_after(process, number) in (128 + number, -number)
        assert process.communicate()[1] == b""


def _status_after(process: subprocess.Popen[Any], number: int) -> int:
    """Return the exit status after a signal.

    One that arrives just before the command waits for input is seen only behind it; the next one is
    not.
    """
    for _ in range(10):
        process.send_signal(number)
        try:
            return process.wait(3)
        except subprocess.TimeoutExpired:
            continue
    process.kill()
    raise TimeoutError("it does not end")


@pytest.mark.parametrize("command", ["receive", "serve"])
def test_hangup_that_is_ignored_stays_ignored(command: str, tmp_path: Path) -> None:
    """Broken: `nohup vmferry receive` would end with the terminal all the same."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        process = subprocess.Popen(
            [*VMFERRY, *COMMANDS[command]], cwd=tmp_path, stderr=subprocess.PIPE, text=True
        )
    finally:
        signal.signal(signal.SIGHUP, before)
    assert process.stderr is not None
    assert process.stderr.readline()
    process.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)
    process.terminate()
    assert process.wait(PATIENCE) == (0 if command == "serve" else 1)
    process.stderr.close()


LOST = """
import os, signal, time
from vmferry.tools.console import interruption

class Deaf:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)

interruption.begin()
Deaf()
time.sleep(60)
print("not ended")
"""


def test_signal_where_exceptions_are_dropped() -> None:
    """Broken: a signal at an unlucky moment would be a traceback, and do nothing."""
    ran = subprocess.run(
        [sys.executable, "-c", LOST], capture_output=True, timeout=PATIENCE, check=False
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (128 + signal.SIGTERM, b"", b"")


def test_little_is_imported_before_signals_are_handled() -> None:
    """Broken: Ctrl-C in the first moment would show a traceback, the likelier the longer it is."""
    code = (
        "import sys; before = set(sys.modules); import vmferry.tools.console.interruption;"
        " print(*sorted(name for name in set(sys.modules) - before if 'vmferry' not in name))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert "signal" in done.stdout.split()
    assert {"typing", "asyncio", "click"}.isdisjoint(done.stdout.split())
