"""Refuse, by name, what a stream may hold but a receiver cannot apply, before it does harm."""

from __future__ import annotations

from ..protocol import events
from ..protocol.errors import UnsupportedError
from ..protocol.reading.configuration import IGNORE_SHARED, MAPPED_RAM
from ..protocol.section_events import DiskBlock, DiskProgress
from ..protocol.wire.block import SECTION_NAME as DISKS
from ..protocol.wire.dirty_bitmap import SECTION_NAME as BITMAPS
from ..protocol.wire.marks import CommandType
from ..protocol.wire.ram import SECTION_NAME

_COMMANDS = frozenset(
    {
        CommandType.POSTCOPY_LISTEN,
        CommandType.POSTCOPY_RUN,
        CommandType.POSTCOPY_RAM_DISCARD,
        CommandType.PACKAGED,
    }
)


def refuse(event: events.Event) -> None:
    """Raise UnsupportedError if the event has to be refused."""
    what, section = None, None
    if isinstance(event, events.Configuration):
        refused = IGNORE_SHARED in (event.capabilities or ())
        what, section = (f"capability {IGNORE_SHARED} is" if refused else None), "configuration"
    elif isinstance(event, events.IterativeSection):
        known = isinstance(event, events.RamSection) or event.name in (DISKS, BITMAPS)
        what, section = (None if known else "this kind of iterative section is"), event.name
    elif isinstance(event, events.CompressedRun):
        what, section = "COMPRESS_PAGE records are", SECTION_NAME
    elif isinstance(event, events.UnsplitDevices):
        what = "devices whose ends are not known (no description, several possible ends) are"
    elif isinstance(event, events.NoFooters):
        what = "sections without footers (very old machine types) are"
    elif isinstance(event, events.Command) and event.command in _COMMANDS:
        what = f"command {CommandType(event.command).name} is"
    if what is not None:
        raise UnsupportedError(f"{what} not supported", offset=event.offset, section=section)


def refuse_places(event: events.Event) -> None:
    """Raise UnsupportedError if the event begins a mapped-ram stream.

    Its pages are read at their places, so it has to be in a file, as it is.
    """
    if isinstance(event, events.Configuration) and MAPPED_RAM in (event.capabilities or ()):
        message = "a mapped-ram stream is received from a file: neither compressed, nor from a pipe"
        raise UnsupportedError(message, offset=event.offset, section="configuration")


def refuse_before_ram(event: DiskBlock | DiskProgress, *, listed: bool) -> None:
    """Raise UnsupportedError if the event comes before RAM was `listed`, for which no guest is."""
    if not listed:
        message = "a block of a disk before the list of RAM blocks is not supported"
        raise UnsupportedError(message, offset=event.offset, section=DISKS)


def refuse_left_out(event: events.RamBlocks) -> None:
    """Raise UnsupportedError if a mapped-ram file leaves out a block."""
    for block in event.blocks:
        if block.mapped is not None and not block.mapped.present:
            message = f"block {block.name}, which is left out, is not supported"
            raise UnsupportedError(message, offset=event.offset, section=SECTION_NAME)
