"""Check the rules that a guest at rest must follow, so that a stream can carry it.

They are the rules of migration streams: valid names, ids and sizes, and nothing twice. They are
checked when guest.json is read, because its contents are not trusted, and before it is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..protocol.devices.candidates import read_description
from ..protocol.devices.description import DescriptionError, described_lengths
from ..protocol.errors import StreamError
from ..protocol.reading.block_list import MAX_BLOCKS
from ..protocol.reading.configuration import (
    IGNORE_SHARED,
    MAPPED_RAM,
    MAX_CONFIGURATION,
    checked_page_size,
)
from ..protocol.wire.block import SECTOR_BITS
from ..protocol.wire.cursor import decode_name
from ..protocol.wire.marks import MAX_NAME
from ..protocol.wire.ram import SECTION_NAME
from .disks.image import MAX_DISK
from .disks.incoming import MAX_DISKS, SUFFIX
from .parts import BlockLayout, Machine

MAX_RAM = 1 << 46
"""Largest size in bytes of all RAM blocks that a destination accepts."""
MAX_BITMAPS = 64 << 20
"""Largest size in bytes of all dirty bitmaps."""
MAX_DEVICE_STATE = 8 << 30
"""Largest size in bytes of the state of all devices, which is held in memory."""
MAX_NESTING = 200
"""Largest depth of nested arrays and objects in the description, far below parsers' limits."""
_HEADER = 5
"""Bytes before a machine's name on the wire; those before capabilities are no more."""
MAX_SHOWN = 40
"""Largest number of characters of a wrong value in a message."""


class FormatError(ValueError):
    """A member of guest.json is missing or wrong; the message is one line that names it."""


@dataclass(frozen=True)
class BlockFile:
    """A RAM block, and the name of the file in `ram` that holds it."""

    layout: BlockLayout
    file: str


@dataclass(frozen=True)
class SectionFile:
    """A device section, and the name of the file in `devices` that holds its payload.

    `size` is that of the payload in bytes, or None in a guest.json that does not state it.
    """

    section_id: int
    name: str
    instance_id: int
    version: int
    file: str
    size: int | None


@dataclass(frozen=True)
class DiskFile:
    """A disk of `size` bytes, and the name of the file in `disks` that is its raw image."""

    name: str
    size: int
    file: str
    read_only: bool


def check_machine(machine: Machine) -> None:
    """Raise FormatError unless a configuration section can carry the machine."""
    _check_name("machine.name", machine.name, MAX_CONFIGURATION - _HEADER)
    _check_page_size(machine.page_size)
    if machine.uuid is not None and len(machine.uuid) != 16:
        raise FormatError(f"machine.uuid has {len(machine.uuid)} bytes, not 16")
    size = _HEADER
    for index, name in enumerate(machine.capabilities or ()):
        where = f"machine.capabilities[{index}]"
        _check_name(where, name)
        if name in (IGNORE_SHARED, MAPPED_RAM):
            raise FormatError(f"{where} is {name!r}, which no guest at rest has")
        size += 1 + len(name.encode())
    if size > MAX_CONFIGURATION:
        raise FormatError(f"machine.capabilities take {size} bytes, more than {MAX_CONFIGURATION}")


def check_blocks(blocks: Sequence[BlockFile], page_size: int) -> None:
    """Raise FormatError unless a list of RAM blocks can carry these; check the files, too."""
    if not 0 < len(blocks) <= MAX_BLOCKS:
        raise FormatError(f"blocks has {len(blocks)} entries, not 1 to {MAX_BLOCKS}")
    names, files, total = _Unique("block"), _Unique("file"), 0
    for index, block in enumerate(blocks):
        where, length = f"blocks[{index}]", block.layout.length
        _check_name(f"{where}.name", block.layout.name)
        names.add(f"{where}.name", block.layout.name)
        _check_file(f"{where}.file", block.file)
        files.add(f"{where}.file", block.file)
        total += length
        if length <= 0 or length % page_size or total > MAX_RAM:
            raise FormatError(f"{where}.length is {shown(length)}: not so many whole pages")


def check_disks(disks: Sequence[DiskFile]) -> None:
    """Raise FormatError unless a stream can carry these disks; check the files, too."""
    if len(disks) > MAX_DISKS:
        raise FormatError(f"disks has {len(disks)} entries, more than {MAX_DISKS}")
    names, files = _Unique("disk"), _Unique("file")
    for index, disk in enumerate(disks):
        where = f"disks[{index}]"
        _check_name(f"{where}.name", disk.name)
        names.add(f"{where}.name", disk.name)
        _check_file(f"{where}.file", disk.file)
        if disk.file.endswith(SUFFIX):
            raise FormatError(f"{where}.file is {shown(disk.file)}: half an image")
        files.add(f"{where}.file", disk.file)
        if not 0 < disk.size <= MAX_DISK or disk.size % (1 << SECTOR_BITS):
            raise FormatError(f"{where}.size is {shown(disk.size)}: not so many whole sectors")


def check_sections(
    ram_section_id: int, early: Sequence[SectionFile], sections: Sequence[SectionFile]
) -> None:
    """Raise FormatError unless a stream can carry these sections; check the files, too.

    Names and instance ids may be repeated, because QEMU itself repeats them for some machines.
    """
    _check_number("ram_section_id", ram_section_id)
    ids, files = _Unique("section id"), _Unique("file")
    ids.add("ram_section_id", ram_section_id)
    for member, listed in (("early", early), ("sections", sections)):
        for index, section in enumerate(listed):
            where = f"{member}[{index}]"
            _check_name(f"{where}.name", section.name)
            for name in ("section_id", "instance_id", "version"):
                _check_number(f"{where}.{name}", getattr(section, name))
            ids.add(f"{where}.section_id", section.section_id)
            if (section.name, section.instance_id) == (SECTION_NAME, 0):
                raise FormatError(f"{where}.name is that of RAM itself")
            _check_file(f"{where}.file", section.file)
            files.add(f"{where}.file", section.file)
            if section.size is not None and section.size < 0:
                raise FormatError(f"{where}.size is {shown(section.size)}")


def check_description(text: bytes | None, page_size: int) -> None:
    """Raise FormatError unless the description is a JSON object that a destination accepts."""
    if text is None:
        return
    try:
        described = read_description(text, 0, page_size).json
        described_lengths(described)
    except StreamError as error:
        raise FormatError(f"description: {error.message}") from None
    except (DescriptionError, RecursionError) as error:
        raise FormatError(f"description makes no sense: {error}") from None
    depth, level = 0, [described]
    while level:
        depth += 1
        if depth > MAX_NESTING:
            raise FormatError(f"description is nested more than {MAX_NESTING} deep")
        level = [inner for outer in level for inner in _inner(outer)]


def _inner(value: Any) -> list[Any]:
    """Return the arrays and objects that are members of an array or object."""
    members = value.values() if isinstance(value, dict) else value
    return [member for member in members if isinstance(member, (dict, list))]


class _Unique:
    """A set of values that may be used only once; `what` names their kind."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._seen: dict[str | int, str] = {}

    def add(self, where: str, value: str | int) -> None:
        """Raise FormatError if the value was added before, by another member."""
        if value in self._seen:
            first = self._seen[value]
            raise FormatError(f"{where} is {shown(value)}, the {self._what} of {first} as well")
        self._seen[value] = where


def _check_name(where: str, name: str, limit: int = MAX_NAME) -> None:
    try:
        raw = name.encode()
    except UnicodeEncodeError:
        raw = b""
    if decode_name(raw) is None or len(raw) > limit:
        raise FormatError(f"{where} is {shown(name)}: not a printable name of 1 to {limit} bytes")


def _check_file(where: str, name: str) -> None:
    try:
        good = 0 < len(name.encode()) <= MAX_NAME and not {"/", "\0"} & set(name)
    except UnicodeEncodeError:
        good = False
    if not good or name in (".", ".."):
        raise FormatError(f"{where} is {shown(name)}, not the name of a file in its folder")


def _check_page_size(size: int) -> None:
    try:
        checked_page_size(size, 0)
    except StreamError:
        raise FormatError(f"machine.page_size is {shown(size)}: not a size of pages") from None


def _check_number(where: str, value: int) -> None:
    if not 0 <= value < 1 << 32:
        raise FormatError(f"{where} is {shown(value)}, which does not fit 32 bits")


def shown(value: object) -> str:
    """Return a value for a message: one line, printable, and short."""
    if isinstance(value, str):
        value = value[: MAX_SHOWN + 1]
    text = "an object" if isinstance(value, dict) else repr(value)
    if isinstance(value, list):
        text = "an array"
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "..."
