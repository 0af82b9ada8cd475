"""A real QEMU that shares its memory, with a second monitor for vmferry."""

from __future__ import annotations

import subprocess
from contextlib import nullcontext, suppress
from pathlib import Path

import numpy as np

from tests.patience import wait_until
from tests.qemu.machine import MANY_PAGES, MIB, VMFERRY, Machine

SIZE = 32 * MIB
Bytes = np.ndarray[tuple[int], np.dtype[np.uint8]]


def memory(kind: str, folder: Path, size: int = SIZE, name: str = "pc.ram") -> tuple[str, str]:
    """Return options for one piece of memory: `file` and `memfd` are shared, `ram` is not."""
    options = {
        "file": f"memory-backend-file,id={name},size={size},share=on,mem-path={folder}-{name}",
        "memfd": f"memory-backend-memfd,id={name},size={size},share=on",
        "ram": f"memory-backend-ram,id={name},size={size}",
    }
    return ("-object", options[kind])


class ScanMachine(Machine):
    """A QEMU whose guest writes its memory all the time; `kind` says what the memory is."""

    def __init__(
        self,
        version: str,
        folder: Path,
        *options: str,
        kind: str = "file",
        machine: str = "pc-i440fx-7.2",
        code: bytes = MANY_PAGES,
    ) -> None:
        self._file = Path(f"{folder}-pc.ram") if kind == "file" else None
        self.guest = f"qemu:{folder}/scan,scan"
        super().__init__(
            version,
            folder,
            *memory(kind, folder),
            *("-machine", "memory-backend=pc.ram"),
            *("-qmp", f"unix:{folder}/scan,server=on,wait=off"),
            *options,
            machine=machine,
            code=code,
        )

    def ram(self) -> Bytes:
        """Return what the memory holds at this moment."""
        return np.fromfile(self._file or self.shared_memory(), np.uint8)

    @property
    def status(self) -> str:
        """Return what the QEMU says that it does."""
        return str(self.ask("query-status")["status"])

    @property
    def process(self) -> int:
        """Return the process number."""
        return self._process.pid

    @property
    def ended(self) -> bool:
        """Return whether the process has ended."""
        return self._process.poll() is not None

    def stop(self) -> None:
        """End the process, which may have ended by itself."""
        # The client tells of that when it is closed, too.
        with suppress(EOFError) if self.ended else nullcontext():
            super().stop()

    def settings(self) -> tuple[object, object]:
        """Return all settings of migrations."""
        return self.ask("query-migrate-capabilities"), self.ask("query-migrate-parameters")


def receiving(guest: str, folder: Path, *options: str) -> subprocess.Popen[bytes]:
    """Start a `receive` at `folder`/in of the guest, and wait until it listens.

    It writes to `folder`/log.
    """
    command = ("receive", f"unix:{folder}/in", "--guest", guest, "--workers", "2", *options)
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([*VMFERRY, *command], stderr=log)
    wait_until((folder / "in").exists)
    return process
