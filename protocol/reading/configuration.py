"""Read and check the CONFIGURATION at the start of a stream."""

from __future__ import annotations

from typing import Any

from .. import events
from ..errors import StreamError, UnsupportedError
from ..wire import stream
from ..wire.cursor import Cursor, decode_name
from ..wire.marks import (
    CAPABILITIES,
    MAX_PAGE_BITS,
    MIN_PAGE_BITS,
    PAGE_BITS,
    PAGE_SIZES,
    UUID,
    SectionType,
)

IGNORE_SHARED = "x-ignore-shared"
"""Capability: RAM blocks are listed with their addresses; pages of shared ones are left out."""
MAPPED_RAM = "mapped-ram"
"""Capability: pages are at fixed places of the file (see `mapped_ram`)."""

MAX_CONFIGURATION = 1 << 15
_SECTION = "configuration"


def read_configuration(cursor: Cursor) -> events.Configuration:
    """Read the configuration with all its subsections."""
    start = cursor.offset
    machine = _name(cursor.take(stream.ConfigurationHeader, MAX_CONFIGURATION).machine, start)
    values: dict[bytes, Any] = {}
    expected = iter(stream.CONFIGURATION_SUBSECTIONS.items())
    while cursor.peek() == SectionType.SUBSECTION:
        at = cursor.offset
        header = cursor.take(stream.SubsectionHeader)
        body = next((body for name, body in expected if name == header.name), None)
        if body is None or header.version != 1:
            message = f"subsection {header.name!r} version {header.version} here"
            raise UnsupportedError(message, offset=at, section=_SECTION)
        values[header.name] = cursor.take(body, MAX_CONFIGURATION)
    capabilities = values.get(CAPABILITIES)
    return events.Configuration(
        start,
        machine,
        page_size=_page_size(values.get(PAGE_BITS), start),
        capabilities=None if capabilities is None else _capabilities(capabilities, start),
        uuid=values.get(UUID),
    )


def _page_size(bits: int | None, start: int) -> int | None:
    if bits is None:
        return None
    if not MIN_PAGE_BITS <= bits <= MAX_PAGE_BITS:
        raise StreamError(f"pages of 2**{bits} bytes", offset=start, section=_SECTION)
    return int(1 << bits)


def checked_page_size(size: int, offset: int) -> int:
    """Return a page size found elsewhere in a stream, at `offset`.

    Raises StreamError if it is not a valid one.
    """
    if size not in PAGE_SIZES:
        raise StreamError(f"pages of {size} bytes", offset=offset)
    return size


def _capabilities(raw: list[bytes], start: int) -> tuple[str, ...]:
    return tuple(_name(name, start) for name in raw)


def _name(raw: bytes, start: int) -> str:
    name = decode_name(raw)
    if name is None:
        raise StreamError(f"bad name {raw[:40]!r}", offset=start, section=_SECTION)
    return name
