"""Find the outline of an ordinary stream that is whole in memory, by stepping over its pages.

Most streams are ordinary: RAM in plain and zero pages of 4 KiB, then device sections with footers,
and the description, which says where those end. Their outline takes no arrays and no declarations,
whose libraries take longer to load than all of this takes to run: only the header of each page is
examined. Anything unexpected raises NotOrdinary, which does not mean that the stream is bad:
`reader` decides that, and tests prove that its events match the outline.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import chain, compress, count
from mmap import mmap
from operator import ne
from typing import NamedTuple

from ..devices.description import CONTROL, MAX_DESCRIPTION, Described, described
from ..wire.marks import (
    COMMAND_LENGTHS,
    DEFAULT_PAGE_SIZE,
    MAGIC,
    MAX_DEVICE_VERSION,
    MAX_NAME,
    MAX_SECTION_ID,
    RAM_SECTION,
    RAM_VERSION,
    VERSION,
    CommandType,
    RamFlag,
    SectionType,
)

PAGE_SIZE = DEFAULT_PAGE_SIZE
"""The only page size in bytes of an ordinary stream."""
MAX_TOTAL_RAM = 1 << 38
"""Limit for the RAM of a stream, in bytes; a byte is kept for each page of it."""
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
"""Index of the count, and layout of a record with the flag CONTINUE, by the flags of a record."""
_GROUP = 1 << 12
"""Number of pages in a group, whose addresses differ only in bytes 5 and 6 of the be64."""
_COLUMNS = (
    b"".join(bytes([byte]) * 16 for byte in range(256)),
    bytes(range(0, 256, 16)) * 256,
)
"""Bytes 5 and 6 of the addresses of a group's pages, in order."""
_STEP = 32 << 20
"""Limit for the bytes of pages skipped at once; also the interval for `on_passed`."""
_FEWEST = 16
"""Number of pages that are first compared together."""
_COMMANDS = {
    int(command): COMMAND_LENGTHS[command]
    for command in (CommandType.OPEN_RETURN_PATH, CommandType.PING, CommandType.SWITCHOVER_START)
}
"""Bytes of data of each command that does not change the meaning of what follows."""


_TRIES = 4
"""Number of candidates for the beginning of a description that are examined.

JSON does not contain the bytes of that mark, but the length before it may look like it.
"""


class NotOrdinary(Exception):  # noqa: N818 - not an error: the reader has to look
    """A stream that only the reader can read, or that is damaged."""


class Block:
    """A RAM block; `length` in bytes; `pages`: the numbers of PLAIN and ZERO pages."""

    def __init__(self, name: str, length: int) -> None:
        self.name = name
        self.length = length
        self.pages = [0, 0]
        self.sent = bytearray()
        """One byte per page: 1 if the page was sent in this round."""


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
    """The parts of an ordinary stream of `size` bytes.

    `rounds`: the numbers of PLAIN and ZERO pages of each round. `ram_pieces`, of which `ram_parts`
    are PARTs, have `ram_size` bytes together. `description`: bytes.
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
    """Return the outline of the stream `data`, from its first byte to its last.

    `on_passed`: called from time to time with the bytes (from, to) that will not be read again, so
    that a mapped file need not stay in memory. Raises NotOrdinary.
    """
    try:
        return _Walk(data, on_passed or (lambda *_: None)).run()
    except (struct.error, IndexError, ValueError, OverflowError, RecursionError):
        raise NotOrdinary from None


class _Walk:
    """One pass over a stream; raises NotOrdinary, or errors that `outline` turns into it."""

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
        """Skip commands, and return the type of the next part."""
        while (kind := self._byte()) == SectionType.COMMAND:
            command, size = self._take(_COMMAND)
            self._expect(_COMMANDS.get(command) == size)
            self._position += size
            self._found.commands.append(command)
        return kind

    def _ram(self) -> None:
        """Read all pieces of the section `ram`."""
        found = self._found
        kind, start = self._part(), self._position - 1
        self._expect(kind == SectionType.START)
        (found.section_id,) = self._take(_U32)
        self._expect(self._name(self._byte()) == RAM_SECTION)
        self._expect(self._take(_IDS) == (0, RAM_VERSION))
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
        """Read the records of a piece, up to and including its EOS."""
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
        """Return how many records of consecutive pages follow the one whose be64 is `value`."""
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
                # The run ends among these.
                limit, growth = many // 4, 1
        return found

    def _in_order(self, start: int, stride: int, value: int, many: int) -> bool:
        """Return whether the next `many` be64, of pages of one group, count up from `value`."""
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
        """Return how many of the next `many` be64 count up from `value`."""
        piece = memoryview(self._data)[start : start + many * layout.size]
        values = chain.from_iterable(layout.iter_unpack(piece))
        # The index of the first unexpected value.
        return next(compress(count(), map(ne, values, count(value, PAGE_SIZE))), many)

    def _count(self, page: int, many: int, kind: int) -> None:
        """Count `many` consecutive pages, from number `page` of the block on."""
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
        """Read the device sections, each of which must be as the description lists it."""
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
        """Return the devices as listed by the description that ends with the last byte.

        A guest can write bytes that look like a description, but not after the true one.
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
                self._expect(text[:1] == b"{" and not CONTROL.search(text))
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
