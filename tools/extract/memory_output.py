"""Writes the guest's memory to one output file while the RAM blocks that form it are identified.

Blocks that are known to be main memory are written to the output directly. Other blocks, of which
only the devices after RAM show whether they are memory, or where, wait in unnamed files in the same
folder.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from ...protocol.events import Description, DeviceSection, RamBlock
from ...protocol.formats.memory_image import Region, elf_head
from ...transport.sparse import data_parts, write_at
from ..console.failure import CommandError, named
from ..machines import cpu_notes, plugged
from ..machines.main_ram import Choice, Guest, LayoutError, choose, regions
from ..machines.plugged import LeftOut
from ..machines.table import TARGETS, Target
from ..rebuild.block_file import BlockFile
from .memory_file import MemoryFile, Part, lay_out

PIECE = 4 << 20
"""The number of bytes that are copied at once."""


class OutputError(CommandError):
    """Raised if the stream does not contain what was requested; the message is one line."""


@dataclass(frozen=True)
class Asked:
    """The options of the memory output.

    `kind` is one of FORMATS; `blocks` names the main memory; `placed` has further blocks and their
    addresses; `target` is the processor, if the user gave one.
    """

    kind: str
    blocks: tuple[str, ...] = ()
    placed: tuple[tuple[str, int], ...] = ()
    target: str | None = None


@dataclass(frozen=True)
class Written:
    """The content of the memory output: `parts` in their order.

    `left` is memory that was left out; `processors` is the number of those with registers in the
    output, or None if it is not an ELF core; `notices` are further lines for the user.
    """

    parts: list[Part]
    left: list[LeftOut] = field(default_factory=list)
    processors: int | None = None
    notices: list[str] = field(default_factory=list)


class MemoryOutput:
    """A writer of one stream's pages, which also collects devices.

    `files` maps each block's name to the file that receives its pages.
    """

    def __init__(
        self,
        asked: Asked,
        guest: Guest,
        blocks: Sequence[RamBlock],
        page_size: int,
        stack: ExitStack,
    ) -> None:
        """Choose the main memory. Raises LayoutError, OutputError if it is already known that this
        fails.
        """
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
        """Write to this file, which will be renamed to `out`. Raises OSError."""
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
        """Keep a section that has facts on processors or memory."""
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
        """Complete the output at the end of the stream.

        `absent` names the blocks that the stream left out as shared. With `damaged`, devices that
        do not match their description are ignored and are not an error. Raises StreamError,
        LayoutError, OutputError, OSError.
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
        """Return the layout of the output, or None if it depends on devices."""
        kind, main = self._asked.kind, self._choice.main
        if main is None:
            return None
        try:
            seen = None if kind == "raw" else regions(self._guest, main)
        except LayoutError:
            if len(self._guest.machines) < 2:
                raise
            # The state of the processors will show which of these machines it is.
            return None if kind == "lime" else lay_out(kind, main, None)
        return lay_out(kind, main, seen)

    def _waiting(self) -> list[RamBlock]:
        """Return the blocks whose place in the output is not known yet."""
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
        """Return the guest's ACPI tables, or b"" if they are not needed."""
        file = self.files.get(plugged.TABLES)
        return b"" if file is None else os.pread(file.fd, file.length, 0)

    def _doubts(self, choice: Choice) -> list[str]:
        """Return notices about a choice of main memory that depends on devices and may be wrong."""
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
        """Return the processor, as given by the user, the stream or the machine, and lines on
        doubts.
        """
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
                line = f"the stream does not name the processor: taken for {usual} (--arch NAME)"
                return TARGETS[usual], [line]
        listed = " or ".join(sorted(names))
        raise OutputError(
            "the stream does not name the processor: give --arch"
            + (f" {listed}" if listed else " NAME")
        )

    def _write(self, found: MemoryFile) -> None:
        """Write everything that is not in the output yet."""
        with named(self._out):
            os.ftruncate(self._fd, found.size)
            for place, header in found.headers:
                write_at(self._fd, header, place)
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
            write_at(self._fd, head, 0)


def _check_apart(seen: list[Region]) -> None:
    """Raise OutputError if two regions overlap in the guest's address space."""
    ordered = sorted(seen, key=lambda region: region.address)
    for before, behind in pairwise(ordered):
        if before.address + before.length > behind.address:
            raise OutputError(f"two RAM blocks would be at {behind.address:#x}")


def _copy(source: int, start: int, length: int, fd: int, place: int) -> None:
    """Copy a part of a file into another one, except for holes. Raises OSError."""
    for at_byte, hole in data_parts(source, start, start + length):
        done = at_byte
        while done < hole:
            piece = os.pread(source, min(PIECE, hole - done), done)
            write_at(fd, piece, place + done - start)
            done += len(piece)
