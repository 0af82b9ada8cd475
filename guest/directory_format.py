"""`guest.json`: what a guest at rest is, but for the bytes of its RAM and devices.

A JSON object: `format` (1), `running`, `machine`, `blocks`, `ram_section_id`, `early`, `sections`
and `description`. Nothing in it is trusted: names, ids and sizes follow the rules of the stream
that the guest comes from and leaves in, so that whatever is accepted here can be sent. The checks
are made before it is written, too: what was written can be read.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from ..protocol.block_list import MAX_BLOCKS
from ..protocol.configuration import (
    IGNORE_SHARED,
    MAPPED_RAM,
    MAX_CONFIGURATION,
    checked_page_size,
)
from ..protocol.cursor import decode_name
from ..protocol.description import DescriptionError, described_lengths
from ..protocol.ending import read_description
from ..protocol.errors import StreamError
from ..protocol.ram import SECTION_NAME
from .base import BlockLayout, DeviceSection, Machine
from .file_names import file_name

FORMAT = 1
MAX_NAME = 255
"""Bytes of a name on the wire, and of a file's name."""
MAX_TEXT = 64 << 20
"""Bytes of guest.json. Parsed, it takes up to twenty times as many."""
MAX_RAM = 1 << 46
"""Bytes of all RAM blocks: what a destination reads."""
MAX_NESTING = 200
"""Arrays and objects in each other in the description: far fewer than where parsers give up."""
_HEADER = 5
"""Bytes before a machine's name on the wire, and no fewer than before capabilities."""
MAX_SHOWN = 40
"""Characters of a wrong value in a message."""

_T = TypeVar("_T")


class FormatError(ValueError):
    """A member of guest.json is missing or wrong; one line that names it."""


@dataclass(frozen=True)
class BlockFile:
    """A RAM block, and the name of the file in `ram` that holds it."""

    layout: BlockLayout
    file: str


@dataclass(frozen=True)
class SectionFile:
    """A device section, and the name of the file in `devices` that holds its payload.

    `size`: bytes of the payload; None where an earlier version did not write it down.
    """

    section_id: int
    name: str
    instance_id: int
    version: int
    file: str
    size: int | None


@dataclass(frozen=True)
class Contents:
    """All that guest.json says."""

    machine: Machine
    running: bool
    blocks: tuple[BlockFile, ...]
    ram_section_id: int
    early: tuple[SectionFile, ...]
    sections: tuple[SectionFile, ...]
    description: bytes | None

    def check(self) -> None:
        """Raise FormatError for the first thing that no stream could carry."""
        check_machine(self.machine)
        check_blocks(self.blocks, self.machine.page_size)
        check_sections(self.ram_section_id, self.early, self.sections)
        check_description(self.description, self.machine.page_size)


def block_files(layouts: Sequence[BlockLayout]) -> tuple[BlockFile, ...]:
    """Return the blocks with the names that their files get."""
    return tuple(BlockFile(x, file_name(number, x.name)) for number, x in enumerate(layouts))


def section_files(sections: Sequence[DeviceSection], first: int = 0) -> tuple[SectionFile, ...]:
    """Return the sections with the names that their files get, counted from `first` on."""
    return tuple(
        SectionFile(
            section_id=section.section_id,
            name=section.name,
            instance_id=section.instance_id,
            version=section.version,
            file=file_name(number, section.name),
            size=len(section.payload),
        )
        for number, section in enumerate(sections, first)
    )


def check_machine(machine: Machine) -> None:
    """Raise FormatError unless a configuration section can say it."""
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
    """Raise FormatError unless a list of RAM blocks can say it; files are checked, too."""
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


def check_sections(
    ram_section_id: int, early: Sequence[SectionFile], sections: Sequence[SectionFile]
) -> None:
    """Raise FormatError unless a stream can bring these sections; files are checked, too.

    Names and instance ids may be repeated, as QEMU itself does for some machines.
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
    """Raise FormatError unless it is a JSON object that a destination accepts."""
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
    """Return the arrays and objects that stand in an array or object."""
    members = value.values() if isinstance(value, dict) else value
    return [member for member in members if isinstance(member, (dict, list))]


def parse(text: bytes) -> Contents:
    """Return what guest.json says. Raises FormatError."""
    try:
        document = json.loads(text.decode())
    except RecursionError:
        raise FormatError("is nested too deep") from None
    except ValueError as error:
        raise FormatError(f"is not JSON: {error}") from None
    known = _field(document, "", "format", int)
    if known != FORMAT:
        raise FormatError(f"format is {shown(known)}, where {FORMAT} is known")
    machine = _machine(_field(document, "", "machine", dict))
    description = _optional(document, "", "description", str)
    contents = Contents(
        machine=machine,
        running=_field(document, "", "running", bool),
        blocks=tuple(
            _block(entry, f"blocks[{index}].", machine.page_size)
            for index, entry in enumerate(_field(document, "", "blocks", list))
        ),
        ram_section_id=_field(document, "", "ram_section_id", int),
        early=_sections(document, "early"),
        sections=_sections(document, "sections"),
        description=None if description is None else _wire_text(description),
    )
    contents.check()
    return contents


def _machine(entry: dict[str, Any]) -> Machine:
    at = "machine."
    capabilities = _optional(entry, at, "capabilities", list)
    for index, name in enumerate(capabilities or ()):
        if not isinstance(name, str):
            raise FormatError(f"machine.capabilities[{index}] is {shown(name)}, not a name")
    uuid = _optional(entry, at, "uuid", str)
    try:
        uuid_bytes = None if uuid is None else bytes.fromhex(uuid)
    except ValueError:
        raise FormatError(f"machine.uuid is {shown(uuid)}, not hexadecimal") from None
    return Machine(
        name=_field(entry, at, "name", str),
        page_size=_field(entry, at, "page_size", int),
        capabilities=None if capabilities is None else tuple(capabilities),
        uuid=uuid_bytes,
        page_bits_sent=_field(entry, at, "page_bits_sent", bool),
    )


def _block(entry: Any, at: str, page_size: int) -> BlockFile:
    name, length = _field(entry, at, "name", str), _field(entry, at, "length", int)
    return BlockFile(BlockLayout(name, length, page_size), _field(entry, at, "file", str))


def _sections(document: dict[str, Any], member: str) -> tuple[SectionFile, ...]:
    listed = _field(document, "", member, list)
    return tuple(_section(entry, f"{member}[{index}].") for index, entry in enumerate(listed))


def _section(entry: Any, at: str) -> SectionFile:
    return SectionFile(
        section_id=_field(entry, at, "section_id", int),
        name=_field(entry, at, "name", str),
        instance_id=_field(entry, at, "instance_id", int),
        version=_field(entry, at, "version", int),
        file=_field(entry, at, "file", str),
        size=_optional(entry, at, "size", int),
    )


def build(contents: Contents) -> bytes:
    """Return guest.json. Raises FormatError for what could not be read again or sent."""
    contents.check()
    machine, description = contents.machine, contents.description
    document = {
        "format": FORMAT,
        "running": contents.running,
        "machine": {
            "name": machine.name,
            "page_size": machine.page_size,
            "page_bits_sent": machine.page_bits_sent,
            "capabilities": machine.capabilities,
            "uuid": None if machine.uuid is None else machine.uuid.hex(),
        },
        "blocks": [
            {"name": block.layout.name, "length": block.layout.length, "file": block.file}
            for block in contents.blocks
        ],
        "ram_section_id": contents.ram_section_id,
        "early": [vars(section) for section in contents.early],
        "sections": [vars(section) for section in contents.sections],
        "description": None if description is None else _json_text(description),
    }
    text = json.dumps(document, indent=1).encode()
    if len(text) > MAX_TEXT:
        raise FormatError(f"would have {len(text)} bytes, more than {MAX_TEXT}")
    return text


def _json_text(description: bytes) -> str:
    """Return the description so that every byte of it is found again by `_wire_text`."""
    return description.decode("utf-8", "surrogateescape")


def _wire_text(description: str) -> bytes:
    try:
        return description.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise FormatError("description has characters that cannot be encoded") from None


class _Unique:
    """Values of which none may be used twice; `what` they are."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._seen: dict[str | int, str] = {}

    def add(self, where: str, value: str | int) -> None:
        """Raise FormatError if the value was added before, by another member."""
        if value in self._seen:
            first = self._seen[value]
            raise FormatError(f"{where} is {shown(value)}, the {self._what} of {first} as well")
        self._seen[value] = where


def _field(entry: Any, at: str, name: str, kind: type[_T]) -> _T:
    """Return a member of a JSON object. Raises FormatError when it is missing or of another type.

    `at`: where the object stands, up to the dot before the member.
    """
    if not isinstance(entry, dict):
        raise FormatError(f"{at.rstrip('.') or 'all of it'} is {shown(entry)}, not an object")
    value = entry.get(name)
    if not isinstance(value, kind) or isinstance(value, bool) is not (kind is bool):
        what = f"is {shown(value)}, not {_KIND_NAMES[kind]}" if name in entry else "is missing"
        raise FormatError(f"{at}{name} {what}")
    return value


_KIND_NAMES: dict[type, str] = {
    bool: "true or false",
    int: "a whole number",
    str: "a text",
    list: "an array",
    dict: "an object",
}


def _optional(entry: Any, at: str, name: str, kind: type[_T]) -> _T | None:
    if isinstance(entry, dict) and entry.get(name) is None:
        return None
    return _field(entry, at, name, kind)


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
    """Return a value for a message: one line, printable, and not long."""
    if isinstance(value, str):
        value = value[: MAX_SHOWN + 1]
    text = "an object" if isinstance(value, dict) else repr(value)
    if isinstance(value, list):
        text = "an array"
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "..."
