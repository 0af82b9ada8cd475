"""Ask a running QEMU what it is, what it runs, and what would keep it from migrating."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .monitor import Monitor, QemuError

UNDER_WAY = frozenset(
    (
        *("setup", "wait-unplug", "active", "pre-switchover", "device", "cancelling", "colo"),
        *("postcopy-active", "postcopy-paused", "postcopy-recover", "postcopy-recover-setup"),
    )
)
"""States that `query-migrate` reports of a migration that has not ended."""
INMIGRATE = "inmigrate"
POSTMIGRATE = "postmigrate"
FINISH_MIGRATE = "finish-migrate"
_MACHINE = "-machine"
_HEX = r"\s+0x([0-9a-f]+)"
_BLOCK = re.compile(rf"^\s*(\S.*?)\s+\d+ \S+{_HEX}{_HEX}{_HEX}", re.MULTILINE)
"""A line of x-query-ramblock: name, page size, place, size in use, largest size."""


@dataclass(frozen=True)
class Version:
    """The version of a QEMU."""

    major: int
    minor: int
    micro: int

    def __str__(self) -> str:
        return f"QEMU {self.major}.{self.minor}.{self.micro}"


def version(monitor: Monitor) -> Version:
    """Return the version of the QEMU."""
    told = monitor.ask("query-version")["qemu"]
    return Version(told["major"], told["minor"], told["micro"])


def machine_type(monitor: Monitor) -> str:
    """Return the machine type with its version, such as pc-i440fx-7.2, as streams have it."""
    told: str = monitor.ask("qom-get", path="/machine", property="type")
    return told.removesuffix(_MACHINE)


def ram_size(monitor: Monitor) -> int:
    """Return the guest's memory in bytes, plugged memory included, without ROMs and video."""
    told = monitor.ask("query-memory-size-summary")
    return int(told["base-memory"]) + int(told.get("plugged-memory", 0))


@dataclass(frozen=True)
class Block:
    """A RAM block of a running QEMU: bytes in use, and the most that it may have."""

    used: int
    most: int

    def takes(self, length: int) -> bool:
        """Return whether a block of a stream that has this length in bytes can be loaded into it.

        Only some blocks, such as those for tables of ACPI, may change their size.
        """
        return length == self.used or (self.used < self.most and length <= self.most)


def ram_blocks(monitor: Monitor) -> dict[str, Block]:
    """Return the RAM blocks by name; none for a QEMU that does not list them (before 6.2)."""
    try:
        told = monitor.ask("x-query-ramblock")["human-readable-text"]
    except QemuError as error:
        if error.kind != "CommandNotFound":
            raise
        return {}
    return {
        name: Block(int(used, 16), int(most, 16)) for name, _, used, most in _BLOCK.findall(told)
    }


def run_state(monitor: Monitor) -> str:
    """Return the run state, as `query-status` names it."""
    return str(monitor.ask("query-status")["status"])


def is_running(monitor: Monitor) -> bool:
    """Return whether the guest executes now."""
    return bool(monitor.ask("query-status")["running"])


def migration(monitor: Monitor) -> dict[str, Any]:
    """Return what `query-migrate` says; its status is `none` before any migration."""
    return {"status": "none", **monitor.ask("query-migrate")}


def blockers(monitor: Monitor) -> list[str]:
    """Return in words what keeps the guest from migrating, in QEMU's own words where it has any."""
    found = [str(reason) for reason in migration(monitor).get("blocked-reasons", [])]
    for job in monitor.ask("query-block-jobs"):
        found.append(f"the block job {job['device']} ({job['type']}) has not ended")
    for drive in monitor.ask("query-block"):
        if drive.get("io-status", "ok") != "ok":
            found.append(
                f"the drive {drive['device'] or drive.get('qdev')} had an error: "
                f"{drive['io-status']}"
            )
    return found


def command_line(monitor: Monitor) -> list[str]:
    """Return the words with which the QEMU was started; none if its process is not visible."""
    try:
        data = Path(f"/proc/{monitor.process}/cmdline").read_bytes()
    except OSError:
        return []
    return [os.fsdecode(word) for word in data.split(b"\0")[:-1]]
