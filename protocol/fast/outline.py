"""The outline of an ordinary stream that lies whole in memory: found by stepping over its pages.

Most streams are ordinary: RAM in plain and zero pages of 4 KiB, then device sections with footers,
and the description, which tells where those end. Their outline takes no arrays and no declarations,
whose libraries take longer to load than all of this takes to run: it looks at the header of each
page and at nothing else of it. Whatever is not as expected raises NotOrdinary, which says nothing
of the stream: `reader` does, to whose events tests prove an outline equal.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import chain, compress, count
from mmap import mmap
from operator import ne
from typing import NamedTuple

from ..devices.description import Described, described
from ..wire.marks import (
    MAGIC,
    MAX_DEVICE_VERSION,
    MAX_SECTION_ID,
    VERSION,
    CommandType,
    RamFlag,
    SectionType,
)

PAGE_SIZE = 4096
MAX_TOTAL_RAM = 1 << 38
"""Bytes. A byte is kept for each page of it."""
MAX_DESCRIPTION = 64 << 20
"""Bytes of a description, as the reader has it."""
MAX_NAME = 255
MAX_ROUNDS = 1000
PLAIN, ZERO = 0, 1
"""Indexes of counts of pages."""

_BYTE = struct.Struct(">B")
_U32 = struct.Struct(">I")
_U64 = struct.Struct(">Q")
_HEADER = struct.Struct(">II")
_IDS = struct.Struct(">II")
_FOOTER = struct.Struct(">BI")
_COMMAND = struct.Struct(">HH")
_CONTINUE = int(RamFlag.CONTINUE)
_KINDS = {
    int(RamFlag.PAGE): (PLAIN, struct.Struct(f">Q{PAGE_SIZE}x")),
    int(RamFlag.ZERO): (ZERO, struct.Struct(">Qx")),
}
"""By flags: what is counted, and a record that continues a block."""
_GROUP = 1 << 12
"""Pages whose addresses differ in the bytes 5 and 6 of the be64 alone."""
_COLUMNS = (
    b"".join(bytes([byte]) * 16 for byte in range(256)),
    bytes(range(0, 256, 16)) * 256,
)
"""These bytes of the pages of a group, in order."""
_STEP = 32 << 20
"""Bytes of pages that are passed at once, at most, and after which that is told."""
_FEWEST = 16
"""Pages that are looked at together at first."""
_COMMANDS = {
    int(CommandType.OPEN_RETURN_PATH): 0,
    int(CommandType.PING): 4,
    int(CommandType.SWITCHOVER_START): 0,
}
"""Bytes of data of those that change nothing of what follows."""


_CONTROL = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f]")
_TRIES = 4
"""JSON has no such bytes; the length before it may look like the beginning of its own header."""


class NotOrdinary(Exception):  # noqa: N818 - not an error: the reader has to look
    """The stream is of a kind that the reader alone reads, or damaged."""


class Block:
    """A RAM block: `length` in bytes; `pages`: how many are PLAIN, how many ZERO."""

    def __init__(self, name: str, length: int) -> None:
        self.name = name
        self.length = length
        self.pages = [0, 0]
        self.sent = bytearray()
        """Of each page, whether this round has it."""


class Device(NamedTuple):
    """A device section: `size` bytes of payload, from `offset` in the stream on."""

    name: str
    section_id: int
    instance_id: int
    version: int
    offset: int
    size: int


@dataclass
class Outline:
    """What an ordinary stream of `size` bytes is made of.

    `rounds`: of each, its pages as in Block. `ram_pieces`, of which `ram_parts` are neither first
    nor last, have `ram_size` bytes together. `description`: bytes.
    """

    size: int
    machine: str = ""
    blocks: list[Block] = field(default_factory=list)
    rounds: list[list[int]] = field(default_factory=list)
    section_id: int = 0
    ram_pieces: int = 0
    ram_parts: int = 0
    ram_size: int = 0
    commands: list[int] = field(default_factory=list)
    devices: list[Device] = field(default_factory=list)
    description: int = 0


def outline(data: bytes | mmap, on_passed: Callable[[int, int], None] | None = None) -> Outline:
    """The outline of the stream that `data` is, from its first byte to its last.

    `on_passed`: told every so often of bytes (from, to) that will not be looked at again, so that
    a mapped file need not stay in memory. Raises NotOrdinary.
    """
    try:
        return _Walk(data, on_passed or (lambda *_: None)).run()
    except (struct.error, IndexError, ValueError, OverflowError, RecursionError):
        raise NotOrdinary from None


class _Walk:
    """One pass over a stream. Besides NotOrdinary, it may raise what `outline` turns into it."""

    def __init__(self, data: bytes | mmap, on_passed: Callable[[int, int], None]) -> None:
        self._data = data
        self._on_passed = on_passed
        self._passed = 0
        self._position = 0
        self._found = Outline(len(data))
        self._block: Block | None = None

    def run(self) -> Outline:
        found = self._found
        self._expect(self._take(_HEADER) == (MAGIC, VERSION))
        self._expect(self._byte() == SectionType.CONFIGURATION)
        found.machine = self._name(*self._take(_U32))
        self._ram()
        self._devices()
        return found

    def _part(self) -> int:
        """What begins here; commands are passed."""
        while (kind := self._byte()) == SectionType.COMMAND:
            command, size = self._take(_COMMAND)
            self._expect(_COMMANDS.get(command) == size)
            self._position += size
            self._found.commands.append(command)
        return kind

    def _ram(self) -> None:
        """All pieces of the one section `ram`."""
        found = self._found
        kind, start = self._part(), self._position - 1
        self._expect(kind == SectionType.START)
        (found.section_id,) = self._take(_U32)
        self._expect(self._name(self._byte()) == "ram" and self._take(_IDS) == (0, 4))
        self._block_list()
        while True:
            self._pages()
            self._expect(self._take(_FOOTER) == (SectionType.FOOTER, found.section_id))
            found.ram_pieces += 1
            found.ram_parts += kind == SectionType.PART
            found.ram_size += self._position - start
            if kind == SectionType.END:
                return
            kind, start = self._part(), self._position - 1
            self._expect(kind in (SectionType.PART, SectionType.END))
            self._expect(self._take(_U32) == (found.section_id,))

    def _block_list(self) -> None:
        (value,) = self._take(_U64)
        total = value - RamFlag.MEM_SIZE
        self._expect(0 < total <= MAX_TOTAL_RAM)
        while total > 0:
            block = Block(self._name(self._byte()), *self._take(_U64))
            self._expect(0 < block.length <= total and block.length % PAGE_SIZE == 0)
            self._expect(all(block.name != other.name for other in self._found.blocks))
            self._found.blocks.append(block)
            total -= block.length
        self._begin_round()

    def _begin_round(self) -> None:
        self._found.rounds.append([0, 0])
        self._expect(len(self._found.rounds) < MAX_ROUNDS)
        for block in self._found.blocks:
            block.sent = bytearray(block.length // PAGE_SIZE)

    def _pages(self) -> None:
        """The records of a piece, and the one that ends it."""
        while (value := self._take(_U64)[0]) != RamFlag.EOS:
            flags = value % PAGE_SIZE
            if flags & ~_CONTINUE not in _KINDS:
                raise NotOrdinary
            kind, layout = _KINDS[flags & ~_CONTINUE]
            if not flags & _CONTINUE:
                name = self._name(self._byte())
                self._block = next((b for b in self._found.blocks if b.name == name), None)
            self._position += layout.size - _U64.size
            self._expect(self._block is not None and value < self._block.length)
            self._expect(self._position <= len(self._data))
            many = 1 + self._next_pages(layout, value | _CONTINUE)
            self._position += (many - 1) * layout.size
            self._count(value // PAGE_SIZE, many, kind)
            if self._position - self._passed >= _STEP:
                self._on_passed(self._passed, self._position)
                self._passed = self._position

    def _next_pages(self, layout: struct.Struct, value: int) -> int:
        """How many records of pages in order follow the one of this be64."""
        left = min((len(self._data) - self._position) // layout.size, _STEP // PAGE_SIZE)
        found, limit, growth = 0, _FEWEST, 4
        while left > found:
            following = value + (found + 1) * PAGE_SIZE
            start = self._position + found * layout.size
            many = min(limit, left - found, _GROUP - following // PAGE_SIZE % _GROUP)
            if self._in_order(start, layout.size, following, many):
                found, limit = found + many, limit * growth
            elif many <= _FEWEST:
                return found + self._in_order_singly(start, layout, following, many)
            else:
                # Among these the run ends.
                limit, growth = many // 4, 1
        return found

    def _in_order(self, start: int, stride: int, value: int, many: int) -> bool:
        """Whether so many be64, of pages of one group, are this one and its next ones."""
        head = value.to_bytes(_U64.size, "big")
        first = value // PAGE_SIZE % _GROUP
        columns = [head[index : index + 1] * many for index in range(_U64.size)]
        columns[5:7] = [column[first : first + many] for column in _COLUMNS]
        end = start + many * stride
        return all(
            self._data[start + index : end : stride] == column
            for index, column in enumerate(columns)
        )

    def _in_order_singly(self, start: int, layout: struct.Struct, value: int, many: int) -> int:
        """How many of so many be64 are this one and its next ones."""
        piece = memoryview(self._data)[start : start + many * layout.size]
        values = chain.from_iterable(layout.iter_unpack(piece))
        # The index of the first that is not as expected.
        return next(compress(count(), map(ne, values, count(value, PAGE_SIZE))), many)

    def _count(self, page: int, many: int, kind: int) -> None:
        """`many` pages in order, from number `page` of the block on."""
        block = self._block
        assert block is not None
        self._expect((page + many) * PAGE_SIZE <= block.length)
        block.pages[kind] += many
        while many:
            again = block.sent.find(1, page, page + many)
            new = many if again < 0 else again - page
            block.sent[page : page + new] = b"\1" * new
            self._found.rounds[-1][kind] += new
            page, many = page + new, many - new
            if many:
                self._begin_round()

    def _devices(self) -> None:
        """The device sections, each of which is as the description at the very end lists it."""
        listed = self._description()
        end = len(self._data) - self._found.description - _FOOTER.size - 1
        ids = {self._found.section_id}
        for one in listed:
            self._expect(self._part() == SectionType.FULL and self._position < end)
            (section_id,) = self._take(_U32)
            name = self._name(self._byte())
            instance_id, version = self._take(_IDS)
            self._expect((name, instance_id) == (one.name, one.instance_id))
            self._expect(one.version in (None, version) and section_id not in ids)
            self._expect(section_id < MAX_SECTION_ID and version < MAX_DEVICE_VERSION)
            ids.add(section_id)
            size = one.length.size
            device = Device(name, section_id, instance_id, version, self._position, size)
            self._found.devices.append(device)
            self._position += size
            self._expect(self._take(_FOOTER) == (SectionType.FOOTER, section_id))
        self._expect(self._part() == SectionType.EOF and self._position == end + 1)

    def _description(self) -> list[Described]:
        """The devices, as the description that ends with the last byte lists them.

        Guests can write what looks like a description, but not behind the true one.
        """
        text = self._text_at_the_end()
        self._found.description = len(text)
        value = json.loads(text)
        self._expect(isinstance(value, dict))
        self._expect(value.get("page_size", PAGE_SIZE) == PAGE_SIZE)
        return described(value)

    def _text_at_the_end(self) -> bytes:
        size, end = len(self._data), len(self._data)
        for _ in range(_TRIES):
            end = self._data.rfind(b"\0\6", max(self._position, size - MAX_DESCRIPTION), end)
            if end < 0:
                break
            start = end + 1 + _FOOTER.size
            if int.from_bytes(self._data[end + 2 : start], "big") == size - start:
                text = self._data[start:]
                self._expect(text[:1] == b"{" and not _CONTROL.search(text))
                return text
        raise NotOrdinary

    def _take(self, layout: struct.Struct) -> tuple[int, ...]:
        values = layout.unpack_from(self._data, self._position)
        self._position += layout.size
        return values

    def _byte(self) -> int:
        return self._take(_BYTE)[0]

    def _name(self, size: int) -> str:
        self._expect(size <= MAX_NAME)
        raw = self._data[self._position : self._position + size]
        self._position += size
        name = raw.decode()
        self._expect(len(raw) == size and name.isprintable() and name != "")
        return name

    @staticmethod
    def _expect(ordinary: bool) -> None:
        if not ordinary:
            raise NotOrdinary
