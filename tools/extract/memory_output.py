"""The guest's memory as extract writes it: into one file, as far as it is known which block it is.

Blocks that are the memory stand in the output from the start. Those of which devices tell only
behind the RAM whether they are memory, or where, wait in files without a name beside it.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from ...protocol.events import Description, DeviceSection, RamBlock
from ...protocol.formats.memory_image import Region, elf_head
from ..console.failure import CommandError, named
from ..machines import cpu_notes, plugged
from ..machines.main_ram import Choice, Guest, LayoutError, choose, regions
from ..machines.plugged import LeftOut
from ..machines.table import TARGETS, Target
from ..rebuild.block_file import BlockFile
from .memory_file import MemoryFile, Part, lay_out

PIECE = 4 << 20
"""Bytes that are copied at once."""


class OutputError(CommandError):
    """What is asked for cannot be had from this stream; one line."""


@dataclass(frozen=True)
class Asked:
    """What a user asks for: `kind`, one of FORMATS; `blocks`: the memory, by name; `placed`: blocks
    beside it and where they are; `target`: what the processor is, if the user says so."""

    kind: str
    blocks: tuple[str, ...] = ()
    placed: tuple[tuple[str, int], ...] = ()
    target: str | None = None


@dataclass(frozen=True)
class Written:
    """What the output holds: `parts` in their order; `left`: what is left out; `processors`: how
    many have their registers in it, None: no ELF core; `notices`: further lines for the user."""

    parts: list[Part]
    left: list[LeftOut] = field(default_factory=list)
    processors: int | None = None
    notices: list[str] = field(default_factory=list)


class MemoryOutput:
    """Takes the pages and devices of one stream; `files`: what takes the pages of each block."""

    def __init__(
        self,
        asked: Asked,
        guest: Guest,
        blocks: Sequence[RamBlock],
        page_size: int,
        stack: ExitStack,
    ) -> None:
        """Raises LayoutError, OutputError where it is known already that this will fail."""
        self.files: dict[str, BlockFile] = {}
        self._asked = asked
        self._guest = guest
        self._blocks = {block.name: block for block in blocks}
        self._page_size = page_size
        self._stack = stack
        self._choice = self._chosen()
        self._fixed = self._known_layout()
        self._devices: list[DeviceSection] = []
        self._processors: list[DeviceSection] = []

    def open(self, fd: int, out: Path) -> None:
        """Write to this file, which will be at `out`. Raises OSError."""
        self._fd, self._out = fd, out
        if self._fixed is not None:
            with named(out):
                os.ftruncate(fd, self._fixed.size)
            for block, _, places in self._fixed.parts:
                self.files[block.name] = BlockFile(fd, block.length, self._page_size, places)
        for block in self._waiting():
            with named(out):
                folder = os.path.dirname(os.path.realpath(out))
                waiting, name = tempfile.mkstemp(dir=folder)
                self._stack.callback(os.close, waiting)
                os.unlink(name)
                os.ftruncate(waiting, block.length)
            self.files[block.name] = BlockFile(waiting, block.length, self._page_size)

    def take(self, section: DeviceSection) -> None:
        """Remember what tells of processors and memory."""
        if section.name == cpu_notes.SECTION_NAME:
            self._processors.append(section)
        elif plugged.is_told_by(section):
            self._devices.append(section)

    def finish(
        self,
        description: Description | None,
        absent: Collection[str] = (),
        *,
        damaged: bool = False,
    ) -> Written:
        """The stream has ended; `absent`: names of blocks that it left out as shared; `damaged`:
        devices that are not as described are no error, but as if they were not there.

        Raises StreamError, LayoutError, OutputError, OSError.
        """
        kind = self._asked.kind
        blocks = list(self._blocks.values())
        tables = self._tables()
        facts = plugged.look(self._devices, description, blocks, tables, damaged=damaged)
        choice = plugged.settle(self._choice, facts)
        main, notices = choice.main or [], self._doubts(choice)
        if kind == "raw":
            found = lay_out(kind, main, None)
            self._write(found)
            return Written(found.parts, self._left_of_raw(choice, facts), notices=notices)
        processors = cpu_notes.look(self._processors, description, damaged=damaged)
        target, unsure = self._target(processors)
        notices += unsure
        guest = self._guest.of(target.name)
        seen = regions(guest, main)
        placed, left = plugged.place(guest, seen, self._without_placed(choice), blocks, facts)
        placed += [
            plugged.whole(self._blocks[name], address) for name, address in self._asked.placed
        ]
        left = [each for each in left if each.block.name not in dict(self._asked.placed)]
        left += [plugged.not_brought(each.block) for each in placed if each.block.name in absent]
        placed = [each for each in placed if each.regions and each.block.name not in absent]
        start = sum(block.length for block in main)
        for block, inside, _ in placed:
            seen += [Region(start + r.start, r.length, r.address) for r in inside]
            start += block.length
        _check_apart(seen)
        found = lay_out(kind, [*main, *(block for block, _, _ in placed)], seen)
        self._write(found)
        if kind == "lime":
            return Written(found.parts, left, notices=notices)
        self._write_head(found, target, processors.notes)
        if processors.count > processors.known:
            rest = processors.count - processors.known
            notices.append(f"registers of {rest} processors ({target.name}) are left out")
        return Written(found.parts, left, processors.known, notices)

    def _chosen(self) -> Choice:
        named_blocks = [*self._asked.blocks, *(name for name, _ in self._asked.placed)]
        for name in named_blocks:
            if name not in self._blocks:
                names = ", ".join(self._blocks)
                raise OutputError(f"no RAM block {name!r} in the stream; it has {names}")
        blocks = list(self._blocks.values())
        if self._asked.blocks:
            return Choice([self._blocks[name] for name in self._asked.blocks], [])
        placed = dict(self._asked.placed)
        return choose([b for b in blocks if b.name not in placed], self._guest.machines)

    def _known_layout(self) -> MemoryFile | None:
        """Where the memory stands in the output, if that is known before any device."""
        kind, main = self._asked.kind, self._choice.main
        if main is None:
            return None
        try:
            seen = None if kind == "raw" else regions(self._guest, main)
        except LayoutError:
            if len(self._guest.machines) < 2:
                raise
            # The processor will tell which of these machines it is.
            return None if kind == "lime" else lay_out(kind, main, None)
        return lay_out(kind, main, seen)

    def _waiting(self) -> list[RamBlock]:
        """Blocks whose place is not known yet."""
        if self._choice.main is None:
            found = list(self._choice.others)
        else:
            found = [] if self._fixed is not None else list(self._choice.main)
            if self._asked.kind != "raw":
                found += self._choice.others
        if self._asked.kind != "raw":
            wanted = dict(self._asked.placed)
            found += [
                block
                for name, block in self._blocks.items()
                if name in wanted or (plugged.may_be_plugged(name) and not self._asked.blocks)
            ]
        tables = self._blocks.get(plugged.TABLES)
        if self._choice.others and tables is not None and tables.length <= plugged.MAX_TABLES:
            found.append(tables)
        return [block for block in dict.fromkeys(found) if block.name not in self.files]

    def _tables(self) -> bytes:
        """The guest's ACPI tables, if they are wanted."""
        file = self.files.get(plugged.TABLES)
        return b"" if file is None else os.pread(file.fd, file.length, 0)

    def _doubts(self, choice: Choice) -> list[str]:
        """What the user should know of a choice that devices made."""
        if self._choice.main is not None:
            return []
        return [
            f"{one.name} and {other.name} have one size: {one.name}, which QEMU made first, is "
            f"taken for the memory; --block {other.name} says otherwise"
            for one in choice.main or []
            for other in choice.others
            if one.length == other.length
        ]

    def _without_placed(self, choice: Choice) -> Choice:
        placed = dict(self._asked.placed)
        return Choice(choice.main, [b for b in choice.others if b.name not in placed])

    def _left_of_raw(self, choice: Choice, facts: plugged.Facts) -> list[LeftOut]:
        if self._asked.blocks:
            return []
        found = list(choice.others)
        found += [self._blocks[name] for name in facts.virtio_mem]
        return [plugged.unplaced(block) for block in found]

    def _target(self, processors: cpu_notes.Processors) -> tuple[Target, list[str]]:
        """What the processor is: by the user, by the stream, or by the machine."""
        machines = self._guest.machines
        names = {target for machine in machines for target in machine.targets}
        if self._asked.target is not None:
            told = processors.target
            chosen = TARGETS[self._asked.target]
            return told if told is not None and told.name == chosen.name else chosen, []
        if processors.target is not None:
            return processors.target, []
        if len(names) == 1:
            return TARGETS[names.pop()], []
        for usual in ("x86_64", "aarch64"):
            if usual in names and len({machine.windows for machine in machines}) == 1:
                line = f"the stream does not tell the processor: taken for {usual} (--arch NAME)"
                return TARGETS[usual], [line]
        listed = " or ".join(sorted(names))
        raise OutputError(
            "the stream does not tell what the processor is: say it by --arch"
            + (f" {listed}" if listed else " NAME")
        )

    def _write(self, found: MemoryFile) -> None:
        """All that does not stand in the output yet."""
        with named(self._out):
            os.ftruncate(self._fd, found.size)
            for place, header in found.headers:
                os.pwrite(self._fd, header, place)
            for block, seen, places in found.parts:
                file = self.files[block.name]
                if file.fd == self._fd:
                    continue
                whole = [Region(0, block.length, 0)]
                for region, (start, place) in zip(seen or whole, places, strict=True):
                    _copy(file.fd, start, region.length, self._fd, place)

    def _write_head(self, found: MemoryFile, target: Target, notes: bytes) -> None:
        try:
            head = elf_head(found.segments, target.processor, notes)
        except ValueError as error:
            raise OutputError(f"an ELF core has no room for {error}") from None
        with named(self._out):
            os.pwrite(self._fd, head, 0)


def _check_apart(seen: list[Region]) -> None:
    """Raises OutputError where the guest would see two things at one address."""
    ordered = sorted(seen, key=lambda region: region.address)
    for before, behind in pairwise(ordered):
        if before.address + before.length > behind.address:
            raise OutputError(f"two RAM blocks would be at {behind.address:#x}")


def _copy(source: int, start: int, length: int, fd: int, place: int) -> None:
    """A part of a file into another, but for holes. Raises OSError."""
    at_byte, end = start, start + length
    while at_byte < end:
        try:
            at_byte = os.lseek(source, at_byte, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            # Nothing but a hole follows.
            return
        hole = min(os.lseek(source, at_byte, os.SEEK_HOLE), end)
        while at_byte < hole:
            piece = os.pread(source, min(PIECE, hole - at_byte), at_byte)
            done = os.pwrite(fd, piece, place + at_byte - start)
            at_byte += done
