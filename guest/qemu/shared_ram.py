"""Find the guest RAM that a QEMU shares with other processes, and open the files behind it.

QEMU lists the names of its memory backends and the address at which it has each of them; /proc of
Linux shows which file is mapped there. Backends may have no name in any folder (memfd, temporary
files), so the file is opened through QEMU's own descriptor of it.
Sources: QEMU's documentation of QMP (query-memdev) and of its monitor (gpa2hva, info mtree), and
proc(5) of Linux.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

from .monitor import Monitor, QemuError

_RANGE = re.compile(
    r"^ +(?P<start>[0-9a-f]{16})-[0-9a-f]{16} \(prio -?\d+, [a-z/-]+\): "
    r"(?P<name>\S.*?)(?: @(?P<offset>[0-9a-f]{16}))?(?: [A-Z]+)?\s*$",
    re.MULTILINE,
)
"""A range of guest-physical addresses, and the memory that the guest finds there."""
_HOST_ADDRESS = re.compile(r"\((?P<name>.*)\) is (?P<address>0x[0-9a-f]+)")
"""The answer to gpa2hva: the memory at an address of the guest, and where QEMU has it."""
_MAPPING = re.compile(
    r"(?P<start>[0-9a-f]+)-(?P<end>[0-9a-f]+) (?P<permissions>\S{4}) (?P<offset>[0-9a-f]+)"
    r" (?P<major>[0-9a-f]+):(?P<minor>[0-9a-f]+) (?P<inode>[0-9]+)"
)
"""The beginning of a line of /proc/PID/maps."""


@dataclass(frozen=True)
class Backend:
    """A memory backend of a QEMU; `size` in bytes, `shared`: other processes see its contents."""

    name: str
    size: int
    shared: bool

    def is_block(self, block: str) -> bool:
        """Return whether a RAM block of this name is the backend's."""
        return block in (self.name, f"/objects/{self.name}")


@dataclass(frozen=True)
class SharedFile:
    """The file with a RAM block's contents, open as `fd`, from `offset` on.

    `address` is where the QEMU has it.
    """

    fd: int
    offset: int
    address: int


def backends(monitor: Monitor) -> tuple[Backend, ...]:
    """Return the memory backends that have a name. Raises QemuError."""
    told = monitor.ask("query-memdev")
    return tuple(
        Backend(str(each["id"]), int(each["size"]), bool(each["share"]))
        for each in told
        if each.get("id")
    )


def backend_of(found: Sequence[Backend], block: str) -> Backend | None:
    """Return the backend of a RAM block, or None for memory of QEMU's own, such as ROMs."""
    return next((backend for backend in found if backend.is_block(block)), None)


def refuse_unshared(found: Sequence[Backend], blocks: Sequence[str]) -> None:
    """Raise QemuError with the options to start QEMU with, unless all guest memory is shared."""
    used = [backend for name in blocks if (backend := backend_of(found, name)) is not None]
    for backend in used:
        if not backend.shared:
            size = backend.size >> 20
            raise QemuError(
                f"the guest's memory {backend.name} is not shared: start QEMU with -object"
                f" memory-backend-file,id={backend.name},size={size}M,mem-path=/dev/shm,share=on"
                f" -machine memory-backend={backend.name}, or leave out ,scan"
            )
    if not used:
        raise QemuError(
            "the guest's memory is not shared: start QEMU with -object memory-backend-file,"
            "id=pc.ram,size=SIZE,mem-path=/dev/shm,share=on -machine memory-backend=pc.ram, or"
            " leave out ,scan"
        )


def open_block(monitor: Monitor, block: str, length: int) -> SharedFile:
    """Open the file with the contents of a shared RAM block of `length` bytes.

    The descriptor belongs to the caller. Raises QemuError.
    """
    address = _address(monitor, block)
    mapping = _mapping(monitor.process, block, address)
    start = int(mapping["start"], 16)
    if address + length > int(mapping["end"], 16) or mapping["permissions"][3] != "s":
        raise QemuError(f"the memory {block} of process {monitor.process} is not shared")
    offset = int(mapping["offset"], 16) + address - start
    return SharedFile(_open(monitor.process, mapping, block), offset, address)


def _address(monitor: Monitor, block: str) -> int:
    """Return the address at which QEMU has a RAM block."""
    tree = str(monitor.ask("human-monitor-command", **{"command-line": "info mtree -f"}))
    for found in _RANGE.finditer(tree):
        if found["name"] != block:
            continue
        command = f"gpa2hva 0x{found['start']}"
        told = str(monitor.ask("human-monitor-command", **{"command-line": command}))
        at = _HOST_ADDRESS.search(told)
        if at is not None and at["name"] == block:
            return int(at["address"], 16) - int(found["offset"] or "0", 16)
    raise QemuError(f"QEMU does not say where it has its memory {block}")


def _mapping(process: int, block: str, address: int) -> re.Match[str]:
    """Return the mapping of a process at this address."""
    try:
        with open(f"/proc/{process}/maps", encoding="utf-8", errors="replace") as file:
            for line in file:
                found = _MAPPING.match(line)
                if found and int(found["start"], 16) <= address < int(found["end"], 16):
                    return found
    except OSError as error:
        raise _unreachable(process, error) from error
    raise QemuError(f"process {process} does not have the memory {block}, as its QEMU says")


def _open(process: int, mapping: re.Match[str], block: str) -> int:
    """Open the file of a mapping again, by a descriptor that the process has of it."""
    folder = f"/proc/{process}/fd"
    device = os.makedev(int(mapping["major"], 16), int(mapping["minor"], 16))
    try:
        for name in os.listdir(folder):
            try:
                found = os.stat(f"{folder}/{name}")
            except FileNotFoundError:
                # QEMU has closed it meanwhile.
                continue
            if (found.st_dev, found.st_ino) == (device, int(mapping["inode"])):
                return os.open(f"{folder}/{name}", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise _unreachable(process, error) from error
    raise QemuError(f"QEMU (process {process}) has no open file with its memory {block}")


def _unreachable(process: int, error: OSError) -> QemuError:
    reason = f"the memory of QEMU (process {process}) cannot be reached: {error.strerror}"
    if isinstance(error, PermissionError):
        reason += "; run vmferry as the same user, or as root"
    return QemuError(reason)
