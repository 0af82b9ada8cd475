"""Give a QEMU that waits for a guest (`-incoming defer`) everything except the memory it shares.

The memory that it shares was written before, by others. QEMU leaves a page as it is that no record
brings, so its own stream has none for that memory.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from ...protocol import events
from ...protocol.wire.marks import SectionType
from ...protocol.writer import StreamWriter
from ..errors import GuestError
from ..parts import BlockLayout, DeviceState, Machine
from ..written import written_section
from ..zero import zero_mask
from . import queries
from .bringing_back import start
from .local_migration import wait_until
from .local_stream import SILENCE, Pages
from .log import Log
from .monitor import GoneError, Monitor, QemuError
from .settings import Settings, Wanted

_NAME = "vmferry-scan"
"""Name of the descriptor from which QEMU takes the guest."""
_PIECE_PAGES = 256
"""Pages that are put into one piece of the stream."""
_LATE_ACTIVATE = "late-block-activate"
"""Capability with which QEMU takes hold of its disks only as the guest starts."""
_HARMLESS = frozenset(("events", _LATE_ACTIVATE))


def load(
    monitor: Monitor,
    machine: Machine,
    blocks: Sequence[BlockLayout],
    state: DeviceState,
    pages: Mapping[str, Pages],
) -> None:
    """Load a guest whose shared memory is in place; it is not started.

    `pages` has the RAM blocks that are not shared. Raises QemuError, after which the QEMU is of no
    use any more.
    """
    settings = Settings(monitor)
    off = {
        name: False for name, on in settings.capabilities.items() if on and name not in _HARMLESS
    }
    settings.change(Wanted({**off, _LATE_ACTIVATE: True}))
    try:
        # Otherwise QEMU would start the guest by itself.
        monitor.ask("stop")
        _send(monitor, _stream(machine, blocks, state, pages))
    finally:
        settings.restore()


def _send(monitor: Monitor, stream: Iterator[bytes]) -> None:
    """Have QEMU load a stream, and wait until it has."""
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            monitor.give(_NAME, theirs.fileno())
        _begin(monitor)
        ours.settimeout(SILENCE)
        # What QEMU says of itself explains more than that it does not read on.
        with suppress(OSError):
            for piece in stream:
                ours.sendall(piece)
            ours.shutdown(socket.SHUT_WR)
        _wait_loaded(monitor)


def _begin(monitor: Monitor) -> None:
    uri = f"fd:{_NAME}"
    try:
        # A QEMU that stays says why it refuses a guest; older ones cannot.
        monitor.ask("migrate-incoming", **{"uri": uri, "exit-on-error": False})
    except GoneError:
        raise
    except QemuError:
        monitor.ask("migrate-incoming", uri=uri)


def _wait_loaded(monitor: Monitor) -> None:
    """Wait until QEMU has loaded all. Raises QemuError with its reason if it cannot."""
    log = Log(monitor.process)

    def over() -> bool:
        return queries.migration(monitor)["status"] not in ("none", *queries.UNDER_WAY)

    try:
        wait_until(over, "QEMU does not load the guest")
        found = queries.migration(monitor)
    except GoneError as error:
        raise QemuError(f"QEMU refused the guest and has ended; {log}") from error
    if found["status"] != "completed":
        raise QemuError(f"QEMU refused the guest: {found.get('error-desc', log)}")


def _stream(
    machine: Machine,
    blocks: Sequence[BlockLayout],
    state: DeviceState,
    pages: Mapping[str, Pages],
) -> Iterator[bytes]:
    """Yield a stream that brings the pages of some of the blocks only."""
    write = StreamWriter().write
    yield write(events.Header(offset=0))
    yield write(
        events.Configuration(
            offset=0,
            machine=machine.name,
            page_size=machine.page_size if machine.page_bits_sent else None,
            capabilities=machine.capabilities,
            uuid=machine.uuid,
        )
    )
    for section in state.early:
        yield written_section(section)
    listed = tuple(events.RamBlock(block.name, block.length) for block in blocks)
    total = sum(block.length for block in blocks)
    yield write(events.RamSection(0, SectionType.START, state.ram_section_id))
    yield write(events.RamBlocks(offset=0, total=total, blocks=listed))
    yield _end_of_piece(state.ram_section_id)
    for index, block in enumerate(listed):
        if block.name in pages:
            yield from _pages(state.ram_section_id, index, block, pages[block.name])
    yield write(events.RamSection(0, SectionType.END, state.ram_section_id))
    yield _end_of_piece(state.ram_section_id)
    for section in state.sections:
        yield written_section(section)
    yield write(events.EndOfStream(offset=0))
    if state.description is not None:
        found = json.loads(state.description)
        yield write(events.Description(offset=0, text=state.description, json=found))


def _pages(section_id: int, index: int, block: events.RamBlock, pages: Pages) -> Iterator[bytes]:
    """Yield pieces of `ram` with all pages of a block, zero or not: it may hold others."""
    write = StreamWriter().write
    for first in range(0, len(pages), _PIECE_PAGES):
        part = pages[first : first + _PIECE_PAGES]
        zero = zero_mask(part)
        pieces = [write(events.RamSection(0, SectionType.PART, section_id))]
        for mask, data in ((zero, None), (~zero, part[~zero])):
            numbers = np.flatnonzero(mask)
            if len(numbers):
                offsets = ((first + numbers) * pages.shape[1]).astype(np.uint64)
                run = events.PageRun(
                    offset=0, block=block, block_index=index, offsets=offsets, data=data
                )
                pieces.append(write(run))
        yield b"".join((*pieces, _end_of_piece(section_id)))


def _end_of_piece(section_id: int) -> bytes:
    write = StreamWriter().write
    return write(events.EndOfRam(offset=0)) + write(events.Footer(offset=0, section_id=section_id))


@dataclass(frozen=True)
class Starter:
    """A call that starts the loaded guest of a QEMU from any process; a second is harmless."""

    path: str
    process: int
    run: bool

    def __call__(self) -> None:
        """Let the guest run, if it is to. Raises GuestError."""
        monitor = _same_qemu(self.path, self.process)
        try:
            if self.run and not queries.is_running(monitor):
                start(monitor)
        finally:
            monitor.close()


@dataclass(frozen=True)
class Ender:
    """A call that ends a QEMU with a guest that belongs elsewhere, from any process."""

    path: str
    process: int

    def __call__(self) -> None:
        """End the QEMU, unless it still waits for a guest. Raises GuestError."""
        monitor = _same_qemu(self.path, self.process)
        try:
            end(monitor)
        finally:
            monitor.close()


def end(monitor: Monitor) -> None:
    """End a QEMU whose guest belongs elsewhere, unless it runs or still waits for a guest."""
    with suppress(GoneError):
        waits = queries.run_state(monitor) == queries.INMIGRATE
        begun = queries.migration(monitor)["status"] != "none"
        if not queries.is_running(monitor) and (begun or not waits):
            monitor.ask("quit")


def _same_qemu(path: str, process: int) -> Monitor:
    monitor = Monitor(path)
    if monitor.process != process:
        monitor.close()
        raise GuestError(f"{path}: the QEMU that received the guest has ended")
    return monitor
