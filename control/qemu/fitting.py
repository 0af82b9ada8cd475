"""Compare the beginning of a stream with the QEMU that is to load it, before QEMU sees a byte."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ...guest.qemu import queries
from ...guest.qemu.monitor import Monitor, QemuError
from ...guest.qemu.queries import Block
from ...guest.sizes import format_size
from ...protocol.errors import StreamError
from ...protocol.events import Configuration, RamBlock, RamBlocks
from ...protocol.reader import StreamReader

MOST = 1 << 16
"""Limit for the bytes in which a stream has to say what machine it is of, and what memory it has.
"""


class Beginning:
    """The machine and the RAM blocks that the first bytes of a stream name."""

    def __init__(self) -> None:
        self.machine: str | None = None
        """Type of the machine; None for machines whose streams do not carry it."""
        self.blocks: RamBlocks | None = None
        """List of RAM blocks, once it has arrived."""

    @classmethod
    def of(cls, head: bytes) -> Beginning:
        """Return what `head` says, which may be less than all. Raises StreamError."""
        found = cls()
        for event in StreamReader().feed(memoryview(head)):
            if isinstance(event, Configuration):
                found.machine = event.machine
            elif isinstance(event, RamBlocks):
                found.blocks = event
        return found


def check_beginning(monitor: Monitor, head: bytes) -> int | None:
    """Return the bytes of memory that will arrive, or None if `head` does not say that yet.

    Raises QemuError in one line if the QEMU could not load such a stream.
    """
    try:
        beginning = Beginning.of(head)
    except StreamError as error:
        raise QemuError(f"what arrives is no stream that a QEMU can load: {error}") from error
    if beginning.machine is not None:
        _check_machine(monitor, beginning.machine)
    if beginning.blocks is None:
        return None
    reasons = list(_misfits(beginning.blocks.blocks, queries.ram_blocks(monitor)))
    if reasons:
        raise QemuError(f"{monitor.path}: this QEMU cannot load the stream: {'; '.join(reasons)}")
    return beginning.blocks.total


def _check_machine(monitor: Monitor, machine: str) -> None:
    ours = queries.machine_type(monitor)
    if machine != ours:
        raise QemuError(
            f"{monitor.path}: the stream is of a machine {machine}, and this QEMU has {ours}; start"
            f" it with -machine {machine}"
        )


def _misfits(theirs: Iterable[RamBlock], ours: Mapping[str, Block]) -> Iterable[str]:
    """Yield in words which RAM blocks of a stream the QEMU cannot load."""
    if not ours:
        # This QEMU does not list its blocks.
        return
    for block in theirs:
        mine = ours.get(block.name)
        if mine is None:
            yield f"it has no RAM block {block.name}, so it lacks a device of the source"
        elif not mine.takes(block.length):
            sizes = f"{format_size(block.length)}, not {format_size(mine.used)}"
            hint = ""
            if block.name.endswith("ram") and block.length % (1 << 20) == 0:
                hint = f" (-m {block.length >> 20}M)" if "/" not in block.name else ""
            yield f"its RAM block {block.name} should have {sizes}{hint}"
