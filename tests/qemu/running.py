"""A running QEMU that vmferry migrates: a guest with a heartbeat, a second monitor, and a log."""

from __future__ import annotations

import subprocess
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import psutil

from tests.patience import PATIENCE, wait_until
from tests.qemu.machine import MANY_PAGES, VMFERRY, Machine

Told = tuple[Any, Any]


class Running(Machine):
    """A QEMU with a monitor at `socket` that vmferry may use, besides that of the tests."""

    def __init__(self, version: str, folder: Path, *options: str, **more: Any) -> None:
        # A socket's name may not be long.
        self.socket = folder.parent / f"{folder.name}.qmp"
        self.log = folder.parent / f"{folder.name}.log"
        self._before = ("sh", "-c", f'exec "$@" 2>>{self.log}', "sh")
        second = ("-qmp", f"unix:{self.socket},server=on,wait=off")
        more.setdefault("code", MANY_PAGES)
        super().__init__(version, folder, *second, *options, **more)

    @property
    def text(self) -> str:
        """Return the name of this guest on a command line."""
        return f"qemu:{self.socket}"

    def settings(self) -> Told:
        """Return all capabilities and parameters."""
        return self.ask("query-migrate-capabilities"), self.ask("query-migrate-parameters")

    def state(self) -> str:
        return str(self.ask("query-status")["status"])

    def wait_state(self, state: str) -> None:
        wait_until(lambda: self.state() == state, self.state)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def stop(self) -> None:
        """End the process, which may have ended by itself."""
        # The client tells of that when it is closed, too.
        with suppress(EOFError) if self.ended else nullcontext():
            super().stop()


class Command:
    """`vmferry ARGUMENTS` in the background; what it says is in `log`."""

    def __init__(self, log: Path, *arguments: str) -> None:
        self.log = log
        with log.open("wb") as file:
            self.process = subprocess.Popen([*VMFERRY, *arguments], stdout=file, stderr=file)

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def wait(self) -> int:
        return self.process.wait(PATIENCE)

    def wait_said(self, words: str) -> None:
        def there() -> bool:
            assert self.process.poll() is None or words in self.said(), self.said()
            return words in self.said()

        wait_until(there, self.said)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


class Receiving:
    """A QEMU that waits for a guest, and a command that receives it."""

    def __init__(
        self, version: str, folder: Path, *options: str, command: tuple[str, ...] = ()
    ) -> None:
        waiting = ("-incoming", "defer")
        self.qemu = Running(version, folder / "destination", *waiting, *options)
        self.uri = f"unix:{folder}/in"
        try:
            arguments = ("receive", self.uri, "--guest", self.qemu.text, *command)
            self.command = Command(folder / "received", *arguments)
            self.command.wait_said("listening on")
        except BaseException:
            self.qemu.stop()
            raise

    def close(self) -> None:
        self.command.kill()
        self.qemu.stop()


def carriers(command: Command) -> list[int]:
    """Return the processes of a command between QEMU and the link, which count bytes."""
    found = []
    with suppress(psutil.NoSuchProcess):
        for below in psutil.Process(command.process.pid).children(recursive=True):
            with suppress(OSError):
                opened = [path.readlink().name for path in Path(f"/proc/{below.pid}/fd").iterdir()]
                if any(name.startswith("memfd:vmferry-counters") for name in opened):
                    found.append(below.pid)
    return found
