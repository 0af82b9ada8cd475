"""Read and write `guest.json`: everything of a guest at rest except RAM and device bytes.

The file is a JSON object: `format` (1), `running`, `machine`, `blocks`, `disks` and `bitmaps`
(which may be left out), `ram_section_id`, `early`, `sections` and `description`. Reading and
writing both follow `directory_rules`, so everything written can be read again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from .directory_rules import (
    MAX_BITMAPS,
    BlockFile,
    DiskFile,
    FormatError,
    SectionFile,
    check_blocks,
    check_description,
    check_disks,
    check_machine,
    check_sections,
    shown,
)
from .file_names import file_name
from .parts import BlockLayout, DeviceSection, Machine

FORMAT = 1
MAX_TEXT = 64 << 20
"""Largest size of guest.json in bytes; parsed, it takes up to twenty times as much memory."""

_T = TypeVar("_T")


@dataclass(frozen=True)
class Contents:
    """The contents of guest.json."""

    machine: Machine
    running: bool
    blocks: tuple[BlockFile, ...]
    ram_section_id: int
    early: tuple[SectionFile, ...]
    sections: tuple[SectionFile, ...]
    description: bytes | None
    disks: tuple[DiskFile, ...] = ()
    bitmaps: int = 0
    """Size in bytes of the file of the dirty bitmaps; 0: there is none."""

    def check(self) -> None:
        """Raise FormatError for the first value that no stream could carry."""
        check_machine(self.machine)
        check_blocks(self.blocks, self.machine.page_size)
        check_disks(self.disks)
        if not 0 <= self.bitmaps <= MAX_BITMAPS:
            raise FormatError(f"bitmaps is {shown(self.bitmaps)}: not a size up to {MAX_BITMAPS}")
        check_sections(self.ram_section_id, self.early, self.sections)
        check_description(self.description, self.machine.page_size)


def block_files(layouts: Sequence[BlockLayout]) -> tuple[BlockFile, ...]:
    """Return the blocks with the names for their files."""
    return tuple(BlockFile(x, file_name(number, x.name)) for number, x in enumerate(layouts))


def section_files(sections: Sequence[DeviceSection], first: int = 0) -> tuple[SectionFile, ...]:
    """Return the sections with the names for their files, numbered from `first` on."""
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


def parse(text: bytes) -> Contents:
    """Return the contents of guest.json. Raises FormatError."""
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
        bitmaps=_optional(document, "", "bitmaps", int) or 0,
        disks=tuple(
            _disk(entry, f"disks[{index}].")
            for index, entry in enumerate(_optional(document, "", "disks", list) or ())
        ),
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


def _disk(entry: Any, at: str) -> DiskFile:
    return DiskFile(
        name=_field(entry, at, "name", str),
        size=_field(entry, at, "size", int),
        file=_field(entry, at, "file", str),
        read_only=_optional(entry, at, "read_only", bool) or False,
    )


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
    """Return the text of guest.json. Raises FormatError if it could not be read again or sent."""
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
        "disks": [vars(disk) for disk in contents.disks],
        "bitmaps": contents.bitmaps,
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
    """Return the description as text from which `_wire_text` restores every byte."""
    return description.decode("utf-8", "surrogateescape")


def _wire_text(description: str) -> bytes:
    try:
        return description.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise FormatError("description has characters that cannot be encoded") from None


def _field(entry: Any, at: str, name: str, kind: type[_T]) -> _T:
    """Return a member of a JSON object. Raises FormatError if it is missing or has another type.

    `at` is the path of the object, up to the dot before the member.
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
